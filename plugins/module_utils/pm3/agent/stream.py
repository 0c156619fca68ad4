# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pipe and the log that it fills. Used by the pump's thread alone, but for `lost`, which anybody may read.

Without a shape, a byte is in the pipe or in the log, never in our memory. So this can end at any instruction, and its successor goes
on at the end of the log without a lost, doubled or cut line. With a shape, a spool keeps the same promise (spool.py). Only where a
log is nearly full, or filled by two streams, the bytes in the pipe are looked at before they are moved, to find the ends of lines.
"""

from __future__ import annotations

import os
import time
from typing import Callable

from ..model.log_options import JSON
from . import spool as spools
from .log import Log, LogFile
from .pipes import capacity, enlarge, is_full, null, peek, splice
from .points import reached
from .shaping import PIECE, Json, Stamps
from .spool import Spool

_FULL = 32 * 1024  # a default pipe that is full holds no less, however its writes lie in its sixteen pages
_FLOOD = 4  # turns with a full pipe within a second after which the pipe is enlarged
_RETRY = 1.0  # seconds after which a log that could not be written is tried again
_PATIENCE = 1.0  # seconds that a stream waits for another one to end its line
FOREVER = float("inf")


class Stream:
    __slots__ = (
        "_alone_after",
        "_apart",
        "_flood_began",
        "_full_turns",
        "_on_error",
        "_retry_at",
        "_shape",
        "_spool",
        "_waits_since",
        "base",
        "ended",
        "fd",
        "file",
        "held",
        "kind",
        "log",
        "lost",
    )

    def __init__(self, fd: int, base: str, kind: str, fresh: bool) -> None:
        """`base` begins the names of its files in the run folder, `kind` is "stdout" or "stderr". `fresh`: what a log holds already
        is another spawn's, so a line left open there is ended first."""
        self.fd, self.base, self.kind = fd, base, kind
        self.file: LogFile | None = None
        self.log: Log | None = None
        self.lost = 0  # bytes that were read and thrown away, because the log could not be written
        self.ended = False  # nobody can write to it any more, or it is being drained
        self.held: float | None = None  # it leaves something in its pipe until more comes, or until this moment
        self._apart = fresh
        # Until an agent that began just now has all its streams, nobody knows who fills this log, too.
        self._alone_after = 0.0 if fresh else FOREVER
        self._on_error: Callable[[str, str], None] | None = None
        self._shape: Stamps | Json | None = None
        self._spool: Spool | None = None
        self._waits_since: float | None = None
        self._retry_at: float | None = None  # while the log cannot be written: when it is tried again
        self._full_turns = 0
        self._flood_began = 0.0

    def fill(self, file: LogFile, on_error: Callable[[str, str], None]) -> None:
        """Names the log; called before it is handed to the pump. `on_error` gets the instance's name and a sentence."""
        self.file, self._on_error = file, on_error

    def start(self, log: Log, now: float) -> None:
        """Makes the log, so that it is there (or known to be unwritable) before the first byte."""
        self.log = log
        self._alone_after = min(self._alone_after, now + _PATIENCE)
        log.fillers.append(self)
        log.turn_of(log.last)
        try:
            log.find()
            log.interrupted.forget(self.base)
        except OSError as error:
            self._fail(error, now)
        self.reshape(now)

    def reshape(self, now: float) -> None:
        """Acts on the options in `file`, for what is moved from now on."""
        if self.file is None:
            return
        options = self.file.options
        if options.format == JSON:
            self._shape = Json(self.file.name, self.file.process, self.kind, options.date_format)
        else:
            self._shape = None if options.date_format is None else Stamps(options.date_format)
        if self._spool is None and (self._shape is not None or spools.exists(self.base)):
            try:
                self._spool = Spool(self.base)
            except OSError as error:  # better without a shape than not at all
                self._say(f"{self.base}.spool cannot be written: {error.strerror}. Lines are logged as they come.")
        if self._shape is None and self._spool is not None:
            self.finish(now)

    def start_line(self) -> None:
        """What comes has another shape than what came: it begins on a line of its own."""
        self._apart = True
        if self.log is not None and self.log.last is self:
            self.log.last = None
        if self._spool is not None:
            self._spool.commit(0, at_line_start=True)

    def move(self, limit: int, now: float, final: bool = False) -> int | None:
        """Moves at most `limit` bytes and says how many. None: nothing for now; 0: the pipe is empty and nobody can write to it.

        `final`: nothing comes after what is there now, so nothing is waited for.
        """
        self.held = None
        try:
            if self._retry_at is None or now >= self._retry_at:
                try:
                    moved = self._into_log(limit, now, final)
                    self._retry_at = None
                    if moved >= _FULL:
                        self._note_flood(now)
                    return moved
                except BlockingIOError:
                    raise
                except OSError as error:
                    self._fail(error, now)
            return self._throw_away(limit)
        except BlockingIOError:
            return None

    def finish(self, now: float) -> None:
        """Nothing more comes into the spool: has it emptied and removed."""
        if self._spool is None:
            return
        try:
            self._log.find()
            self._empty_spool(now, final=True)
        except OSError as error:
            self._fail(error, now)
        reached("spool.finished")
        self._spool.remove()
        reached("spool.removed")
        self._spool = None

    def close_files(self) -> None:
        """The agent is going to be re-executed; what is in pipe and spool stays there."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    @property
    def holds_in_pipe(self) -> bool:
        """Whether what is held stays in the pipe, or else in the spool."""
        return self._spool is None

    def capacity(self) -> int:
        return capacity(self.fd)

    @property
    def _log(self) -> Log:
        if self.log is None:
            raise ValueError("a stream was moved before it was attached")
        return self.log

    def _into_log(self, limit: int, now: float, final: bool) -> int:
        log = self._log
        log.find()
        if self._spool is not None:
            return self._shaped(self._spool, limit, now, final)
        return self._raw(log, limit, now, final)

    # As it comes

    def _raw(self, log: Log, limit: int, now: float, final: bool) -> int:
        if log.last is not self and not self._has_turn(now, final):
            raise BlockingIOError
        room = log.room(now)
        alone = final or self._is_alone(now)
        if alone and room > log.zone:
            return log.take(self.fd, min(limit, room - log.zone))
        data = peek(self.fd)
        if not data:
            return 0
        if not alone:
            whole = data.rfind(b"\n") + 1
            if not whole and not is_full(self.fd):
                self._hold(now)
                raise BlockingIOError
            data = data[: whole or len(data)]
        count = fitting(data, room, log.zone, bool(log.position) and log.at_line_start())
        if count:
            return log.take(self.fd, min(limit, count))
        self._rotate(now)
        return self._into_log(limit, now, final)

    def _has_turn(self, now: float, final: bool) -> bool:
        """Whether it may write although another stream did so last: not in the midst of that one's line, unless it takes too long."""
        log, last = self._log, self._log.last
        if last is None:
            another = waits = log.turns.owner not in (None, os.fsencode(self.base))
        else:
            another, waits = True, last in log.fillers and not last.ended
        if (another or self._apart) and not log.at_line_start():
            if waits and not final and not self._waited(now):
                return False
            owner = log.owner() if final else None
            if owner is not None and owner is not self:
                # Both are drained at once: the end of its line goes first, with whatever of it comes with that.
                while not log.at_line_start() and owner.move(PIECE, now, final=owner.ended):
                    pass
            if not log.at_line_start():
                log.end_line()
        log.turn_of(self)
        self._apart, self._waits_since = False, None
        return True

    def _is_alone(self, now: float) -> bool:
        """Whether a line may stay open: nobody else wants to begin one in this log."""
        return now >= self._alone_after and not self._log.shared

    def _hold(self, now: float) -> None:
        """What is left has no end yet; it is looked at again when more comes, or when this stream may be alone."""
        self.held = FOREVER if self._log.shared or now >= self._alone_after else self._alone_after

    def _waited(self, now: float) -> bool:
        if self._waits_since is None:
            self._waits_since = now
        self.held = self._waits_since + _PATIENCE
        if now >= self.held:
            self.held = None
        return self.held is None

    # With a shape

    def _shaped(self, spool: Spool, limit: int, now: float, final: bool) -> int:
        moved = None
        try:
            moved = spool.fill(self.fd, min(limit, PIECE))
        except BlockingIOError:
            pass
        self._empty_spool(now, final=moved == 0 or (final and moved is None))
        spool.trim(idle=not moved)
        if moved is None:
            raise BlockingIOError
        return moved

    def _empty_spool(self, now: float, final: bool) -> None:
        spool, log = self._spool, self._log
        while spool is not None and spool.waiting:
            data = spool.peek(PIECE + 1)
            last = final and len(data) == spool.waiting
            count = len(data) if self._shape is None else self._shape.ready(data, not self._is_alone(now), last)
            if not count:
                self._hold(now)
                return
            if log.last is not self and not self._has_turn(now, final):
                return
            self._append(spool, data[:count], last and count == len(data), now)

    def _append(self, spool: Spool, data: bytes, last: bool, now: float) -> None:
        log, moment = self._log, time.time_ns()
        text = self._text(data, spool.at_line_start, last, moment)
        if len(text) + _margin(text, log) <= log.room(now):
            self._put(spool, data, text)
            return
        begin = end = pending = 0  # of the lines, and of what they became, that are shaped already but not written
        texts: list[bytes] = []
        may_rotate, room = log.at_line_start(), log.room(now)
        for line in lines(data):
            text = self._text(line, spool.at_line_start if not end else True, last, moment)
            if may_rotate and log.position + pending and pending + len(text) + _margin(text, log) > room:
                self._put(spool, data[begin:end], b"".join(texts))
                self._rotate(now)
                log.find()
                begin, pending, texts, room = end, 0, [], log.room(now)
            may_rotate = True
            texts.append(text)
            end += len(line)
            pending += len(text)
        self._put(spool, data[begin:end], b"".join(texts))

    def _text(self, data: bytes, at_line_start: bool, last: bool, moment: int) -> bytes:
        return data if self._shape is None else self._shape.shape(data, at_line_start, last, moment)

    def _put(self, spool: Spool, data: bytes, text: bytes) -> None:
        """Writes what `data` has become, so that a crash can neither lose nor double it."""
        if not data:
            return
        log = self._log
        spool.begin(log.identity, log.position)
        reached("spool.begun")
        try:
            log.append(text)
            reached("spool.appended")
        except OSError:
            self.lost += len(data)
            spool.commit(len(data), at_line_start=True)
            raise
        spool.commit(len(data), data.endswith(b"\n"))
        reached("spool.committed")

    # What can go wrong

    def _rotate(self, now: float) -> None:
        log = self._log
        try:
            log.rotate(now)
        except OSError as error:
            if not log.rotation_failed:
                self._say(
                    f"{self._path()} cannot be rotated: {error.strerror}. It grows until that is possible; nothing is lost."
                )
            log.rotation_failed = True

    def _fail(self, error: OSError, now: float) -> None:
        """Says so once, until the log has been written again."""
        self._log.close()
        path = self._path()
        if self._spool is not None and error.filename == self._spool.path:
            path = self._spool.path
        elif self._spool is not None:
            self.lost += self._spool.waiting
            self._spool.commit(self._spool.waiting, at_line_start=True)
            self._spool.trim(idle=True)
        first, self._retry_at = self._retry_at is None, now + _RETRY
        if first:
            self._say(
                f"{path} cannot be written: {error.strerror}. The program goes on; its output is thrown away until the log can be written."
            )

    def _throw_away(self, limit: int) -> int:
        moved = splice(self.fd, null(), limit)  # the program must go on, whatever became of its log
        self.lost += moved
        if moved:
            self._apart = True
            if self._log.last is self:
                self._log.last = None
        return moved

    def _say(self, text: str) -> None:
        if self._on_error is not None and self.file is not None:
            self._on_error(self.file.name, text)

    def _path(self) -> str:
        return "" if self.file is None else self.file.path

    def _note_flood(self, now: float) -> None:
        if now - self._flood_began > 1.0:
            self._flood_began, self._full_turns = now, 0
        self._full_turns += 1
        if self._full_turns == _FLOOD:
            enlarge(self.fd)


def fitting(data: bytes, room: int, zone: int, at_line_start: bool) -> int:
    """How many of these bytes still go into a log that has `room` bytes left; 0: it is to be rotated first.

    Whole lines that fit. A line without its end goes in only if `zone` bytes more are left for it. A line that has begun in this
    log (not `at_line_start`), or in an empty one, ends in it, however long it becomes.
    """
    if len(data) + (0 if data.endswith(b"\n") else zone) <= room:
        return len(data)
    least = 0 if at_line_start else data.find(b"\n") + 1 or len(data)
    return max(least, data.rfind(b"\n", 0, max(room, 0)) + 1)


def lines(data: bytes) -> list[bytes]:
    """With their ends; the last one may have none."""
    found = [line + b"\n" for line in data.split(b"\n")]
    last = found.pop()[:-1]
    return [*found, last] if last else found


def _margin(text: bytes, log: Log) -> int:
    return 0 if text.endswith(b"\n") else log.zone
