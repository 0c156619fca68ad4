# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets on which the agent listens for its processes (`listen`), so that no connection is refused while one is replaced.

There is one socket for each address of a process, and all its instances have it: a connection that comes while none of them takes it
waits in the socket's queue. Nothing is ever accepted or read here. A socket is opened before the first spawn that needs it, and closed
when no instance of its process that was spawned with it lists the address any more. Like the pipes, it is given to the service manager
at once, so that it survives the agent; the name under which it is kept tells the next agent whose it is.

Owns the descriptors, and the files of the unix sockets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping

from ..model import listening
from ..model.listening import Address
from ..model.problems import Unfit
from .descriptors import ServiceManager
from .instance import Instance

_QUEUE = 4096  # connections that may wait; net.core.somaxconn has the last word
_MODE = 0o660  # of a unix socket: who is in its group may connect
_PREFIX = "l-"  # of the names under which they are kept: a hyphen, so that no spawn id is ever the same
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_Key = tuple[str, Address]  # a process, and where it listens


class ListenError(Exception):
    """Nobody can listen there; the text says why."""


class _Listener:
    __slots__ = ("fd", "file", "holders", "name")

    def __init__(self, fd: int, name: str, path: str) -> None:
        self.fd = fd
        self.name = name  # under which it is kept
        self.file = _identity(path)  # of a unix socket: what is to be removed with it
        self.holders: set[Instance] = set()


class Sockets:
    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self._listeners: dict[_Key, _Listener] = {}
        self._held: dict[Instance, tuple[_Key, ...]] = {}
        self._idle: set[_Key] = set()  # nobody's, and to be closed when the changes under way are done
        self._changes = 0

    def take(self, instance: Instance, owner: tuple[int, int]) -> list[int]:
        """The descriptors that its program is to have, in the order of its definition. `owner` is its user and group.

        Raises `ListenError` and `Unfit`; then it has none that it had not had before.
        """
        keys = _keys(instance)
        self._hold(instance, [key for key in self._held.get(instance, ()) if key in keys])
        opened = []
        try:
            for key in keys:
                if not self._is_there(key):
                    self._listen(key, owner)
                    opened.append(key)
                elif key[1].path:
                    _own(key[1].path, owner)
        except BaseException:
            for key in opened:
                if not self._listeners[key].holders:
                    self._close(key)
            raise
        self._hold(instance, keys)
        listeners = [self._listeners[key] for key in keys]
        for one in listeners:
            if not any(other.running is not None for other in one.holders):
                os.set_blocking(one.fd, True)  # as programs expect it, whatever the last one had made of it
        return [one.fd for one in listeners]

    def trim(self, instance: Instance) -> None:
        """Its definition may have changed: gives up what is not in it any more."""
        if instance in self._held:
            keys = _listed(instance)
            self._hold(instance, [key for key in self._held[instance] if key in keys])

    def release(self, instance: Instance) -> None:
        """It is no more."""
        if instance in self._held:
            self._hold(instance, ())

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """What nobody needs in the midst of a change stays open until its end: `web` becomes `web:0` without a gap."""
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            if not self._changes:
                self._close_idle()

    def handles(self) -> dict[str, list[int]]:
        """What an upgrade in place carries over."""
        return {one.name: [one.fd] for one in self._listeners.values()}

    def restore(self, instances: Iterable[Instance], kept: Mapping[str, list[int]]) -> None:
        """Takes over what an earlier agent had, for the instances that it left; closes what none of these lists."""
        left = {name: list(fds) for name, fds in kept.items() if is_listener(name)}
        for instance in instances if left else ():
            keys = []
            for key in _listed(instance):
                name = _name(key)
                if key not in self._listeners and left.get(name):
                    self._listeners[key] = _Listener(left[name].pop(), name, key[1].path)
                if key in self._listeners:
                    keys.append(key)
            self._hold(instance, keys)
        taken = {one.name for one in self._listeners.values()}
        for name, fds in left.items():
            if name not in taken:
                self._manager.forget(name)
            for fd in fds:
                _give_up(fd)

    def close(self) -> None:
        """An orderly end: nobody listens any more."""
        self._held.clear()
        for key in list(self._listeners):
            self._close(key)

    def _hold(self, instance: Instance, keys: Iterable[_Key]) -> None:
        before, now = self._held.pop(instance, ()), tuple(keys)
        if now:
            self._held[instance] = now
        for key in now:
            self._listeners[key].holders.add(instance)
            self._idle.discard(key)
        for key in before:
            if key not in now:
                holders = self._listeners[key].holders
                holders.discard(instance)
                if not holders:
                    self._idle.add(key)
        if not self._changes:
            self._close_idle()

    def _is_there(self, key: _Key) -> bool:
        """Whether it is open, and can be reached: the file of a unix socket may have been removed by somebody."""
        listener = self._listeners.get(key)
        return listener is not None and (not key[1].path or listener.file == _identity(key[1].path))

    def _listen(self, key: _Key, owner: tuple[int, int]) -> None:
        address = key[1]
        try:
            try:
                fd = _opened(address, owner)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not self._idle:
                    raise
                self._close_idle()  # in this very change another process has given it up
                fd = _opened(address, owner)
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {self._reason(error, key)}") from None
        old = self._listeners.get(key)
        listener = self._listeners[key] = _Listener(fd, _name(key), address.path)
        if old is not None:  # whose file was removed
            listener.holders = old.holders
            self._manager.forget(old.name)
            os.close(old.fd)
        self._manager.keep(listener.name, [fd])

    def _reason(self, error: OSError, key: _Key) -> str:
        if error.errno == errno.EADDRINUSE:
            others = (process for process, address in self._listeners if address == key[1] and process != key[0])
            other = next(others, None)
            return f"process {other} listens there" if other is not None else "somebody else listens there"
        if error.errno in (errno.EACCES, errno.EPERM):
            return "the agent is not allowed to"
        if error.errno == errno.EADDRNOTAVAIL:
            return "this host does not have that address"
        return os.strerror(error.errno).lower() if error.errno else str(error)

    def _close_idle(self) -> None:
        for key in list(self._idle):
            self._close(key)

    def _close(self, key: _Key) -> None:
        self._idle.discard(key)
        listener = self._listeners.pop(key)
        self._manager.forget(listener.name)
        _shut(listener.fd)
        path = key[1].path
        if listener.file is not None and _identity(path) == listener.file:
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(listener.fd)


def is_listener(name: str) -> bool:
    """Whether it is one of these that is kept under the name."""
    return name.startswith(_PREFIX)


def _keys(instance: Instance) -> list[_Key]:
    found = [(instance.process, listening.parse(instance.filled(text))) for text in instance.definition.listen]
    return list(dict.fromkeys(found))


def _listed(instance: Instance) -> list[_Key]:
    """None of an instance that could not be started anyway."""
    with contextlib.suppress(Unfit):
        return _keys(instance)
    return []


def _name(key: _Key) -> str:
    """The same for every agent. Eight digits of FNV-1a: the odds that two of a thousand sockets share one are below one in a million."""
    number = 0xCBF29CE484222325
    for byte in f"{key[0]}\n{key[1]}".encode("utf-8", "surrogatepass"):
        number = (number ^ byte) * 0x100000001B3 % 2**64
    digits = ""
    for _place in range(8):
        number, digit = divmod(number, 36)
        digits += _DIGITS[digit]
    return _PREFIX + digits


def _opened(address: Address, owner: tuple[int, int]) -> int:
    """A socket that listens."""
    if address.path:
        return _opened_unix(address.path, owner)
    if address.host != listening.ALL:
        return _opened_tcp(socket.AF_INET6 if ":" in address.host else socket.AF_INET, address.host, address.port)
    try:
        return _opened_tcp(socket.AF_INET6, "::", address.port, both=True)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _opened_tcp(socket.AF_INET, "0.0.0.0", address.port)  # a host without IPv6


def _opened_tcp(family: int, host: str, port: int, both: bool = False) -> int:
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        made.bind((host, port))
        made.listen(_QUEUE)
        return made.detach()


def _opened_unix(path: str, owner: tuple[int, int]) -> int:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)  # as systemd does: below /run nothing survives a boot
    _make_way(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        os.fchmod(
            made.fileno(), 0o600
        )  # which the file gets; the umask is the whole agent's, and another thread makes files
        made.bind(path)
        try:
            _own(path, owner)
            made.listen(_QUEUE)
        except OSError:
            os.unlink(path)
            raise
        return made.detach()


def _make_way(path: str) -> None:
    """Removes a socket that somebody left there. One on which somebody listens is not removed, nor what is no socket at all."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError("there is something else of that name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as knock:
        if knock.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    os.unlink(path)


def _own(path: str, owner: tuple[int, int]) -> None:
    found = os.lstat(path)
    if (found.st_uid, found.st_gid) != owner:
        os.chown(path, *owner, follow_symlinks=False)
    if stat.S_IMODE(found.st_mode) != _MODE:
        os.chmod(path, _MODE)


def _identity(path: str) -> tuple[int, int] | None:
    """Of the socket that is now at this path, if it is one."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            return found.st_dev, found.st_ino
    return None


def _shut(fd: int) -> None:
    """Has nobody listen there from this moment on, although the service manager still has it for a moment, or a stray process."""
    one = socket.socket(fileno=fd)
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.detach()


def _give_up(fd: int) -> None:
    """Closes a socket that was kept and that nobody wants."""
    _shut(fd)
    with socket.socket(fileno=fd) as one:
        path = one.getsockname() if one.family == socket.AF_UNIX else ""
        if isinstance(path, str) and path and _identity(path) is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)
