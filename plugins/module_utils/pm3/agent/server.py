# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's socket: one request per connection, a line of JSON each way (spec: pm3.md, section 6.1).

Owns the listening socket, its file, and the connections; knows framing, JSON and who the peer is. What a request means, and whether
this peer may ask for it, the handler decides.

No client can harm another one or the agent: nothing here blocks, a silent client is dropped, one that never reads costs what its
own queue may hold, and running out of descriptors (W27) sends the newcomer away with a sentence and leaves the rest alone.

What tells that a peer has left: not the end of its input, for every client half-closes after its request. The kernel reports EPOLLHUP
on a unix socket only when both directions are closed, and reports it whether asked for or not; so connections that wait for an answer
lie in an epoll of their own with an empty event mask, which stays silent until somebody leaves, writing or not.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
from typing import Any, Callable, NamedTuple

from ..wire import messages, paths
from .loop import READ, WRITE, Loop, Timer

REQUEST_SECONDS = 30.0  # from connecting to the end of the request
BLOCKED_BYTES = 1 << 20  # queued: a streamer should pause here …
DRAINED_BYTES = 256 << 10  # … and may go on here
QUEUE_LIMIT = 64 << 20  # queued: whoever lets it come so far is not reading at all, and is dropped
_ACCEPTS = 64  # per turn
_CHUNK = 256 << 10  # bytes read or written per connection and turn, so that one big request delays nobody
_PAUSE = 0.2  # seconds without accepting when not even a refusal was possible
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Peer(NamedTuple):
    """Who connected, by SO_PEERCRED: the kernel's word, as of the connect."""

    pid: int
    uid: int
    gid: int


Handler = Callable[[dict[str, Any], Peer, "Client"], None]  # may raise messages.Malformed: its text is the reply


class Client:
    """One connection, as the handler sees it.

    `on_gone` is called once when the peer leaves before `finish`; `on_drained` when a queue that was `blocked` has emptied. Both are
    called from the loop, never from within a method of this class. Sending to a client that is `closed` is allowed and does nothing.
    """

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self.peer = Peer(*struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))
        self.on_gone: Callable[[], None] | None = None
        self.on_drained: Callable[[], None] | None = None
        self.closed = False
        self._server = server
        self._loop = server.loop
        self._connection = connection
        self._fd = connection.fileno()
        self._request = bytearray()
        self._oversize = False
        self._queue = bytearray()
        self._flush_due = False
        self._was_blocked = False
        self._finished = False
        self._loop.watch(self._fd, READ, self._readable)
        self._deadline: Timer | None = self._loop.after(REQUEST_SECONDS, self._too_late)

    @property
    def pending_bytes(self) -> int:
        return len(self._queue)

    @property
    def blocked(self) -> bool:
        """Whether a streamer should wait for `on_drained` before it sends more."""
        return len(self._queue) > BLOCKED_BYTES

    def send(self, document: messages.Document) -> None:
        """Queues one line. What is sent during one turn of the loop leaves together."""
        if self.closed or self._finished:
            return
        if len(self._queue) > QUEUE_LIMIT:
            self._gone()
            return
        self._queue += messages.encode(document)
        self._was_blocked = self._was_blocked or self.blocked
        if not self._flush_due:
            self._flush_due = True
            self._loop.soon(self._flush)

    def finish(self, document: messages.Document) -> None:
        """Queues the last line; the connection closes when all of it has gone out."""
        self.send(document)
        self.end()

    def end(self) -> None:
        """No line follows; the connection closes when all of them have gone out."""
        self._finished = True
        self._flush()

    # The request

    def _readable(self) -> None:
        try:
            chunk = self._connection.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._gone()
            return
        line, newline, _ignored = chunk.partition(b"\n")
        if len(self._request) + len(line) > messages.LONGEST_REQUEST:
            # Read on without keeping it: a client that is still writing cannot read our answer.
            self._oversize = True
            self._request = bytearray()
        elif not self._oversize:
            self._request += line
        if newline or not chunk:
            self._complete()

    def _complete(self) -> None:
        request, self._request = self._request, bytearray()
        self._await_nothing()
        self._server.watch_leaving(self._fd)
        if self._oversize:
            self._refuse(f"a request may have at most {messages.LONGEST_REQUEST >> 20} MiB")
            return
        try:
            document = messages.decode(bytes(request))
            if not isinstance(document.get("type"), str):
                raise messages.Malformed("expected a request with its type, a string")
            del request  # it may be large, and the handler need not hold it
            self._server.handler(document, self.peer, self)
        except messages.Malformed as error:
            self._refuse(str(error))
        except Exception as error:  # a defect of ours in one request must not look like silence to its client
            self._refuse(f"the agent failed at this request: {type(error).__name__}: {error}")
            self._server.on_error(error)

    def _too_late(self) -> None:
        self._await_nothing()
        self._refuse(f"no whole request came within {REQUEST_SECONDS:g} s")
        self._close()  # now: who is silent for so long is not reading either

    def _await_nothing(self) -> None:
        self._loop.unwatch(self._fd)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, message: str) -> None:
        self.finish(messages.error(message))

    # The answer

    def _flush(self) -> None:
        self._flush_due = False
        if self.closed:
            return
        try:
            while self._queue:
                with memoryview(self._queue) as whole, whole[:_CHUNK] as part:
                    sent = self._connection.send(part, socket.MSG_NOSIGNAL)
                del self._queue[:sent]
        except (BlockingIOError, InterruptedError):
            self._loop.watch(self._fd, WRITE, self._flush)
        except OSError:
            self._gone()
            return
        else:
            self._loop.unwatch(self._fd)
            if self._finished:
                self._close()
                return
        if self._was_blocked and len(self._queue) <= DRAINED_BYTES:
            self._was_blocked = False
            if self.on_drained is not None:
                self._loop.soon(self._drained)

    def _drained(self) -> None:
        if not self.closed and self.on_drained is not None:
            self.on_drained()

    # The end

    def _gone(self) -> None:
        """The peer has left, or is given up."""
        if not self.closed:
            self._close()
            if self.on_gone is not None and not self._finished:
                self._loop.soon(self.on_gone)

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._await_nothing()
        self._server.forget(self._fd)
        self._queue = bytearray()
        try:
            # Closed with input unread, the peer would find "connection reset" instead of the end of our answer.
            self._connection.recv(_CHUNK)
        except OSError:
            pass
        self._connection.close()

    def close_now(self) -> None:
        """For the server's own end: what can go out at once does, nobody is called."""
        self.on_gone = self.on_drained = None
        self._flush()
        self._close()


class Server:
    """Listens at `path` and gives each request to `handler(request, peer, client)`; that sends, now or later, and finishes.

    `group` is the admin group that may connect beside the owner. The caller holds the lock of the data dir, so a socket that already
    lies at `path` is nobody's and is replaced. `listener` is one that survived our own execve (`fileno`): it is used as it is.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        handler: Handler,
        on_error: Callable[[BaseException], None],
        group: int | None = None,
        listener: int | None = None,
    ) -> None:
        self.loop = loop
        self.handler = handler
        self.on_error = on_error
        self._path = path
        self._listener = _listen(path, group) if listener is None else socket.socket(fileno=listener)
        self._listener.setblocking(False)
        self._leaving = select.epoll()
        self._clients: dict[int, Client] = {}
        self._reserve = _reserve()
        self._refusing = False  # within an episode of missing descriptors, which is told once
        self._pause: Timer | None = None
        loop.watch(self._leaving.fileno(), READ, self._somebody_left)
        loop.watch(self._listener.fileno(), READ, self._acceptable)

    def fileno(self) -> int:
        """The listening descriptor, for an execve that is to keep it."""
        return self._listener.fileno()

    def close(self, unlink: bool = True) -> None:
        """Ends all connections after a last try to send what they wait for. `unlink=False` when the socket lives on in another."""
        if self._pause is not None:
            self._pause.cancel()
        for fd in (self._listener.fileno(), self._leaving.fileno()):
            self.loop.unwatch(fd)
        for client in list(self._clients.values()):
            client.close_now()
        if unlink:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
        self._listener.close()
        self._leaving.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    # Coming

    def _acceptable(self) -> None:
        for _turn in range(_ACCEPTS):
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._no_room(error)
                    return
                continue  # that one client has left already; nothing else can be wrong with a listening socket
            self._refusing = False
            self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            self._clients[connection.fileno()] = Client(self, connection)
        except OSError as error:  # no memory for one more watch
            self._clients.pop(connection.fileno(), None)
            connection.close()
            self.on_error(error)

    def _no_room(self, error: OSError) -> None:
        """Out of descriptors: the reserved one serves to send the newcomer away, or its connection would keep waking us up."""
        if not self._refusing:
            self._refusing = True
            self.on_error(OSError(error.errno, f"cannot accept a client: {error.strerror}"))
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
            try:
                connection, _address = self._listener.accept()
                with connection:
                    connection.setblocking(False)
                    text = f"the agent cannot serve another client now: {error.strerror}"
                    connection.send(messages.encode(messages.error(text)), socket.MSG_NOSIGNAL)
                    connection.recv(_CHUNK)
            except OSError:
                pass
            self._reserve = _reserve()
        if self._reserve < 0:
            self.loop.unwatch(self._listener.fileno())
            self._pause = self.loop.after(_PAUSE, self._pause_over)

    def _pause_over(self) -> None:
        self._pause = None
        self._reserve = _reserve()
        self.loop.watch(self._listener.fileno(), READ, self._acceptable)

    # Leaving

    def watch_leaving(self, fd: int) -> None:
        self._leaving.register(fd, 0)

    def forget(self, fd: int) -> None:
        self._clients.pop(fd, None)
        try:
            self._leaving.unregister(fd)
        except (OSError, ValueError):
            pass  # its request was never complete

    def _somebody_left(self) -> None:
        for fd, _events in self._leaving.poll(0, 64):
            client = self._clients.get(fd)
            if client is not None:
                client._gone()


def _listen(path: str, group: int | None) -> socket.socket:
    """A listening socket at `path`. Nobody can connect before `listen`, so the mode is right before anybody can."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        name = os.path.basename(path)
        _remove_stale(path)
        paths.reach(listener.bind, path)
        if group is not None:
            os.chown(name, -1, group, dir_fd=directory)
        os.chmod(name, 0o600 if group is None else 0o660, dir_fd=directory)
        listener.listen(socket.SOMAXCONN)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "expected a socket or nothing, found another kind of file", path)
        os.unlink(path)
    except FileNotFoundError:
        pass


def _reserve() -> int:
    try:
        return os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
