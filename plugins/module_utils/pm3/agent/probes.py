# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One knock at a check's address: http, https or tcp (spec: pm3.md, section 3.6). When to knock again, the machine decides.

Owns the probe's socket and timer. Nothing blocks the loop: names are looked up in short-lived threads, at most one per name at a time
however slow the resolver is; `localhost` and literal addresses need none. What a check costs is loaded when one needs it: `ssl` with
the first https address, `urllib` with the first redirect.

http and https: a GET, any 2xx passes, up to five redirects are followed, certificates are verified against the system's authorities.
Only the head of an answer is read. Proxy variables are not honoured, unlike in pm3: the agent's environment is a clean one, and a
check asks whether *this* process answers, not what a proxy says about it.

The steps of a probe are one generator, so that they read from top to bottom and that cancelling it, wherever it stands, runs the
`finally` that closes its socket.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from .. import VERSION
from ..model import checks
from ..model.problems import Unfit
from .loop import READ, WRITE, Loop, Timer

if TYPE_CHECKING:
    import ssl

Done = Callable[["str | None"], None]

_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_HEAD_LIMIT = 64 << 10  # bytes
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(r"HTTP/\d(?:\.\d)? (\d{3})(?: |$)")
_LOCALHOST = ("127.0.0.1", "::1")
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class _Failed(Exception):
    """The probe has failed, and why: a short sentence."""


class _Ready(NamedTuple):
    """A step's wish: to go on when `fd` is ready, with True, or after so many seconds, with False."""

    fd: int
    events: int
    seconds: float | None = None


class _Threaded(NamedTuple):
    """A step's wish: to go on with what `work` gives, which may block. An exception is a result, too."""

    key: tuple[str, ...]  # equal work that is under way already is not begun again
    work: Callable[[], Any]


_Steps = Generator["_Ready | _Threaded", Any, Any]


def probe(loop: Loop, url: str, timeout: float, done: Done) -> Probe:
    """Knocks once. `done(None)`: it passed; `done(text)`: why not. Called once, from the loop, unless cancelled before."""
    return Probe(loop, url, timeout, done)


class Probe:
    def __init__(self, loop: Loop, url: str, timeout: float, done: Done) -> None:
        self._loop = loop
        self._done: Done | None = done
        self._steps: _Steps = _knock(url, loop.time() + timeout, loop.time)
        self._fd = -1  # watched
        self._turn: Timer | None = None  # for this step
        self._limit = loop.after(timeout, partial(self._end, f"no answer within {timeout:g} s"))
        loop.soon(partial(self._go_on, None))

    def cancel(self) -> None:
        """Ends the probe without a word."""
        self._done = None
        self._end(None)

    def _go_on(self, result: Any) -> None:
        self._rest()
        if self._done is None:
            return
        try:
            wish = self._steps.send(result)
        except StopIteration:
            self._end(None)
        except _Failed as failure:
            self._end(str(failure))
        except OSError as error:
            self._end(_text(error))
        except Exception as error:  # a defect of ours must not let an instance wait for ever
            self._end(f"the check itself failed: {type(error).__name__}: {error}")
        else:
            if isinstance(wish, _Threaded):
                _off_the_loop(self._loop, wish, self._go_on)
            else:
                self._fd = wish.fd
                self._loop.watch(wish.fd, wish.events, partial(self._go_on, True))
                if wish.seconds is not None:
                    self._turn = self._loop.after(wish.seconds, partial(self._go_on, False))

    def _rest(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            self._fd = -1
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _end(self, failure: str | None) -> None:
        self._rest()
        self._limit.cancel()
        self._steps.close()
        done, self._done = self._done, None
        if done is not None:
            done(failure)


# The steps. Each is a generator that yields its wishes.


def _knock(url: str, deadline: float, clock: Callable[[], float]) -> _Steps:
    for _visit in range(1 + _REDIRECTS):
        try:
            target = checks.parse(url)
        except Unfit as error:
            raise _Failed(str(error)) from None
        connection: socket.socket = yield from _connect(target, deadline, clock)
        try:
            if target.scheme == "tcp":
                return
            if target.scheme == "https":
                connection = yield from _secure(connection, target.host)
            yield from _send(connection, _request(target))
            status, location = yield from _receive_answer(connection)
        finally:
            connection.close()
        if 200 <= status < 300:
            return
        if status not in _MOVED or not location:
            raise _Failed(f"answered {status}")
        url = _redirected(url, location)
    raise _Failed(f"redirected more than {_REDIRECTS} times")


def _connect(target: checks.Target, deadline: float, clock: Callable[[], float]) -> _Steps:
    """A connection to the first address of the host that takes one. Each gets its share of the time that is left."""
    addresses = yield from _resolve(target.host, target.port)
    failure: OSError | None = None
    for number, (family, address) in enumerate(addresses):
        connection = None
        try:
            connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            code = connection.connect_ex(address)
            if code == errno.EINPROGRESS:
                left = len(addresses) - number
                share = (deadline - clock()) / left if left > 1 else None  # the last one has all that is left
                ready = yield _Ready(connection.fileno(), WRITE, share)
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if ready else errno.ETIMEDOUT
            if code == 0 and connection.getsockname() == address:
                # Where nobody listens on a port of the ephemeral range, TCP sometimes connects a socket to itself.
                code = errno.ECONNREFUSED
            if code == 0:
                found, connection = connection, None
                return found
            error = OSError(code, os.strerror(code))
        except OSError as raised:
            error = raised
        finally:
            if connection is not None:
                connection.close()
        if failure is None or failure.errno in _NO_WAY:  # "refused" on IPv4 says more than "no IPv6 here"
            failure = error
    raise failure or _Failed(f"{target.host} has no address")


def _resolve(host: str, port: int) -> _Steps:
    """[(family, address)]"""
    hosts = _LOCALHOST if host == "localhost" else (host,)
    try:
        return [found for one in hosts for found in _look_up(one, port, socket.AI_NUMERICHOST)]
    except (OSError, UnicodeError):
        pass  # a name
    found = yield _Threaded(("name", host, str(port)), partial(_look_up, host, port, 0))
    if isinstance(found, Exception):
        why = found.strerror if isinstance(found, OSError) else str(found)
        raise _Failed(f"{host} cannot be resolved: {why}")
    return found


def _look_up(host: str, port: int, flags: int) -> list[tuple[int, Any]]:
    # As bytes: for a str, Python would load its tables for international names first, more than 1 MB.
    name = host.encode("ascii") if host.isascii() else host
    return [(one[0], one[4]) for one in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)]


def _secure(connection: socket.socket, host: str) -> _Steps:
    """The same connection with TLS, the host's certificate verified."""
    context = yield _Threaded(("authorities",), _authorities)
    if isinstance(context, Exception):
        raise _Failed(f"the system's certificate authorities cannot be read: {context}")
    import ssl  # loaded by now

    secured = None
    try:
        secured = context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)
        yield from _patiently(secured, READ, secured.do_handshake)
        secure, secured = secured, None
        return secure
    except ssl.SSLCertVerificationError as error:
        raise _Failed(f"its certificate is not valid: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise _Failed(f"TLS failed: {error.reason or error}") from None
    finally:
        if secured is not None:
            secured.close()


_contexts: dict[tuple[Any, ...], ssl.SSLContext] = {}  # at most one: the present state of the authorities


def _authorities() -> ssl.SSLContext:
    """A context that verifies; made anew when the system's authorities change, for an agent may run for years."""
    import ssl

    paths = ssl.get_default_verify_paths()
    state = tuple((path, os.stat(path).st_mtime_ns) for path in (paths.cafile, paths.capath) if path)
    context = _contexts.get(state)
    if context is None:
        context = ssl.create_default_context()
        _contexts.clear()
        _contexts[state] = context
    return context


def _patiently(connection: socket.socket, awaited: int, action: Callable[[], Any]) -> _Steps:
    """What `action` gives once the connection is ready for it: for `awaited`, or for what TLS wants."""
    while True:
        try:
            return action()
        except (BlockingIOError, InterruptedError):
            wanted = awaited
        except OSError as error:  # told by their names: without https there is no module that has them
            if type(error).__name__ not in ("SSLWantReadError", "SSLWantWriteError"):
                raise
            wanted = READ if type(error).__name__ == "SSLWantReadError" else WRITE
        yield _Ready(connection.fileno(), wanted)


def _request(target: checks.Target) -> bytes:
    host = target.host.partition("%")[0]  # a zone is a matter between us and the kernel
    name = host.encode("ascii") if host.isascii() else host.encode("idna")
    if ":" in host:
        name = b"[" + name + b"]"
    if target.port != {"http": 80, "https": 443}[target.scheme]:
        name += b":%d" % target.port
    lines = (b"GET " + _quoted(target.path) + b" HTTP/1.1", b"Host: " + name)
    return b"\r\n".join(lines) + f"\r\nUser-Agent: pm3/{VERSION}\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()


def _quoted(path: str) -> bytes:
    """What is no printable ASCII as %XX; the rest, with its own percent signs, as it is."""
    text = path.encode("utf-8", "surrogateescape")
    return b"".join(b"%c" % byte if 0x21 <= byte <= 0x7E else b"%%%02X" % byte for byte in text)


def _send(connection: socket.socket, request: bytes) -> _Steps:
    while request:
        sent = yield from _patiently(connection, WRITE, partial(connection.send, request))
        request = request[sent:]


def _receive_answer(connection: socket.socket) -> _Steps:
    """(status, location or None) of the answer; interim ones (1xx) are passed over."""
    received = b""
    while True:
        end = _END_OF_HEAD.search(received)
        if end is not None:
            status, location = _understood(received[: end.start()])
            if status >= 200:
                return status, location
            received = received[end.end() :]
            continue
        if len(received) > _HEAD_LIMIT:
            raise _Failed(f"answered with a head of more than {_HEAD_LIMIT >> 10} KiB")
        chunk = yield from _patiently(connection, READ, partial(connection.recv, 16384))
        if not chunk:
            raise _Failed("closed the connection before it had answered")
        received += chunk
        if not received.startswith(b"HTTP/"[: len(received)]):  # who greets, and then waits, would cost the whole time
            raise _Failed("answered something that is not HTTP")


def _understood(head: bytes) -> tuple[int, str | None]:
    first, *fields = head.decode("latin-1").splitlines()
    found = _STATUS_LINE.match(first)
    if found is None:
        raise _Failed("answered something that is not HTTP")
    for field in fields:
        name, _colon, value = field.partition(":")
        if name.lower() == "location":
            return int(found[1]), value.strip()
    return int(found[1]), None


def _redirected(url: str, location: str) -> str:
    from urllib.parse import urljoin

    moved = urljoin(url, location)
    if not moved.startswith(("http://", "https://")):
        raise _Failed(f"redirected to {moved}, which is no http or https address")
    return moved


def _text(error: OSError) -> str:
    text = os.strerror(error.errno) if error.errno else str(error)
    return text[:1].lower() + text[1:]


# Work that may block

_waiting: dict[
    tuple[Loop, tuple[str, ...]], list[Callable[[Any], None]]
] = {}  # touched by the loops only, not by the threads


def _off_the_loop(loop: Loop, wish: _Threaded, then: Callable[[Any], None]) -> None:
    waiting = _waiting.setdefault((loop, wish.key), [])
    waiting.append(then)
    if len(waiting) == 1:
        try:
            threading.Thread(target=_work, args=(loop, wish), daemon=True).start()
        except RuntimeError as error:  # no more threads
            loop.soon(partial(_deliver, loop, wish.key, error))


def _work(loop: Loop, wish: _Threaded) -> None:
    try:
        result = wish.work()
    except Exception as error:
        result = error
    loop.from_thread(partial(_deliver, loop, wish.key, result))


def _deliver(loop: Loop, key: tuple[str, ...], result: Any) -> None:
    for then in _waiting.pop((loop, key)):
        loop.soon(partial(then, result))
