"""Pumps for tests: in this process, or in one of their own that can be killed; a program that writes; and what it must have left."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Callable

from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import stream
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log import LogFile
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.output import Pumps, Streams
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.log_options import LogOptions

from .waiting import DEADLINE

SOURCES = Path(__file__).parents[3] / "plugins" / "module_utils"
PLAIN = LogOptions(max_size=0)

# Takes over the descriptors from the holder (or opens the FIFOs by their path), says so, and pumps until it is killed.
PUMP = """
import json, os, socket, sys
told = json.loads(sys.argv[1])
sys.path.insert(0, told["sources"])
from pm3.agent import stream
from pm3.agent.log import LogFile
from pm3.agent.loop import Loop
from pm3.agent.output import Pumps
from pm3.model.log_options import LogOptions

def failed(*error):
    os.write(2, repr(error).encode() + b"\\n")
    os._exit(3)

stream._PATIENCE = told["patience"]
loop = Loop(failed)
pumps = Pumps(loop, told["run"])
options = LogOptions(**told["options"])
for spawn_id, paths, count in told["spawns"]:
    fds = None
    if count:
        with socket.socket(fileno=told["holder"]) as holder:
            fds = socket.recv_fds(holder, 1, count)[1][::-1]  # whoever keeps them keeps no order
            holder.detach()
    streams = pumps.reopen(spawn_id, fds)
    pumps.attach(streams, tuple(LogFile(path, index, options, "a:0", "a") for path, index in paths), failed)
os.write(1, b"!")
loop.run()
"""

# Numbered lines on both streams, of changing length, in writes that do not respect them: so many, or fewer if it is asked to end. How
# many it were is noted in a file, if one is named.
WRITER = """
import os, random, signal, sys
chance, most = random.Random(int(sys.argv[1])), int(sys.argv[2])
number, pending = 0, b""

def enough(*about):
    global most
    most = number

def put(fd, data):
    while data:
        data = data[os.write(fd, data):]

signal.signal(signal.SIGTERM, enough)
while number < most or pending:
    while len(pending) < 6000 and number < most:
        pending += b"%d %s\\n" % (number, b"x" * chance.randrange(120))
        number += 1
    size = chance.randrange(1, len(pending) + 1)
    put(2, pending[:size])
    put(1, pending[:size])
    pending = pending[size:]
for path in sys.argv[3:]:
    with open(path, "w") as note:
        note.write(str(number))
"""


class Room:
    """A loop with pumps in a folder of the test's own, and what they reported."""

    def __init__(self, folder: Path) -> None:
        self.run_folder = folder / "run"
        self.logs = folder / "logs"
        self.indexes = folder / "logs" / ".index"
        self.run_folder.mkdir()
        self.errors: list[BaseException] = []
        self.messages: list[str] = []
        self.loop = Loop(self.errors.append)
        self.pumps = Pumps(self.loop, str(self.run_folder))

    def start(
        self,
        name: str,
        spawn_id: str = "s1",
        owner: tuple[int, int] | None = None,
        options: LogOptions = PLAIN,
        tty: bool = False,
    ) -> Streams:
        streams = self.pumps.prepare(spawn_id, owner, tty)
        self.attach(streams, name, options)
        return streams

    def hear(self, _name: str, text: str) -> None:
        """In the pump's thread."""
        self.loop.from_thread(lambda: self.messages.append(text))

    def attach(self, streams: Streams, name: str, options: LogOptions = PLAIN) -> None:
        self.pumps.attach(
            streams,
            self.files(name, options),
            self.hear,
        )

    def files(self, name: str, options: LogOptions = PLAIN) -> tuple[LogFile, LogFile]:
        return self.file(self.out(name), options), self.file(self.err(name), options)

    def file(self, path: Path, options: LogOptions = PLAIN, follow: bool = True) -> LogFile:
        return LogFile(str(path), str(self.indexes / path.name), options, "a:0", "a", follow)

    def out(self, name: str) -> Path:
        return self.logs / f"{name}-out.log"

    def err(self, name: str) -> Path:
        return self.logs / f"{name}-err.log"

    def spawn(self, streams: Streams, code: str, *arguments: str) -> subprocess.Popen[bytes]:
        out, err = streams.open_write()
        try:
            return subprocess.Popen([sys.executable, "-I", "-S", "-c", code, *arguments], stdout=out, stderr=err)
        finally:
            os.close(out)
            os.close(err)

    def settle(self) -> None:
        """Until the pump has done what it was asked for so far."""
        told: list[list[str]] = []
        self.pumps.flush([], told.append)
        self.until(lambda: bool(told))

    def drain(self, *all_streams: Streams) -> None:
        left = list(all_streams)

        def done() -> None:
            left.pop()

        for streams in all_streams:
            self.pumps.drain(streams, done)
        self.until(lambda: not left)

    def until(self, condition: Callable[[], bool], patience: float = DEADLINE) -> None:
        """Runs the loop until `condition` holds; it is asked again every few milliseconds."""
        failed: list[object] = []

        def end(why: object) -> None:
            failed.append(why)
            self.loop.stop()

        deadline = self.loop.after(patience, lambda: end("what was waited for did not happen"))

        def ask() -> None:
            try:
                if condition():
                    self.loop.stop()
                else:
                    self.loop.after(0.005, ask)
            except Exception as error:
                end(error)

        self.loop.soon(ask)
        self.loop.run()
        deadline.cancel()
        assert not failed, failed


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def copies(log: Path) -> list[Path]:
    """The rotated copies of a log, the newest first; of one that is being replaced by its compressed form, that form."""
    found = []
    while True:
        plain = log.with_name(f"{log.name}.{len(found) + 1}")
        packed = plain.with_name(plain.name + ".gz")
        if not packed.exists() and not plain.exists():
            return found
        found.append(packed if packed.exists() else plain)


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def everything(log: Path) -> list[bytes]:
    """All that a log and its copies hold, the oldest first; each of them consists of whole lines."""
    found = [content(path) for path in (*reversed(copies(log)), log)]
    for text in found:
        assert text.endswith(b"\n") or not text, f"cut: {text[-100:]!r}"
    return found


def numbered(path: Path) -> list[int]:
    """The numbers of the lines of a log, which must be whole."""
    return numbers(path.read_bytes())


def numbers(text: bytes) -> list[int]:
    lines = text.split(b"\n")
    assert lines.pop() == b"", "the last line has no end"
    for line in lines:
        assert re.fullmatch(rb"\d+ x*", line), f"a line was cut: {line!r}"
    return [int(line.partition(b" ")[0]) for line in lines]


def start_pump(
    room: Room, spawns: Sequence[tuple[Streams, str]], options: LogOptions, held: bool = True
) -> tuple[subprocess.Popen[bytes], int]:
    """A process that pumps these spawns into the logs of these names, and the descriptor on which it says that it has begun."""
    ready = os.pipe()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        told = {
            "sources": str(SOURCES),
            "run": str(room.run_folder),
            "holder": theirs.fileno(),
            "options": asdict(options),
            "patience": stream._PATIENCE,
            "spawns": [
                (
                    streams.spawn_id,
                    [(file.path, file.index) for file in room.files(name)],
                    len(streams.read_fds) if held else 0,
                )
                for streams, name in spawns
            ],
        }
        for streams, __ in spawns if held else ():
            socket.send_fds(ours, [b"!"], list(streams.read_fds))
        command = [sys.executable, "-I", "-S", "-c", PUMP, json.dumps(told)]
        pump = subprocess.Popen(command, stdout=ready[1], pass_fds=(theirs.fileno(),))
        os.close(ready[1])
    return pump, ready[0]


def kill_pumps(
    room: Room,
    spawns: Sequence[tuple[Streams, str]],
    options: LogOptions,
    writers: Sequence[subprocess.Popen[bytes]],
    pause: Callable[[], None],
    held: bool = True,
) -> int:
    """Starts and kills processes that pump until all writers have ended, each after a `pause`. Gives the number of kills."""
    kills = 0
    while any(writer.poll() is None for writer in writers):
        pump, ready = start_pump(room, spawns, options, held)
        try:
            assert os.read(ready, 1) == b"!"
            pause()
        finally:
            pump.kill()
            assert pump.wait() == -signal.SIGKILL
            os.close(ready)
        kills += 1
    return kills
