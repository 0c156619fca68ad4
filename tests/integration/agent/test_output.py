# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pumps with real FIFOs, real programs that write, real full disks and real SIGKILLs of the process that pumps."""

from __future__ import annotations

import os
import random
import resource
import select
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log import LogFile
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.output import Pumps, last_lines
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.log_options import LogOptions
from ansible_collections.pm3.fleet.tests.integration.agent.pumping import (
    PLAIN,
    WRITER,
    Room,
    kill_pumps,
    numbered,
    size,
)

from .conftest import descriptors


def test_output_reaches_its_two_files(room: Room) -> None:
    before = descriptors()
    streams = room.start("wéb:0")
    fifo = os.stat(room.run_folder / "s1.out")
    assert stat.S_ISFIFO(fifo.st_mode)
    assert stat.S_IMODE(fifo.st_mode) == 0o600
    child = room.spawn(
        streams, "import os; os.write(1, b'one\\n'); os.write(2, b'two\\n'); os.write(1, b'\\0\\xff\\r\\n')"
    )
    assert child.wait() == 0
    room.drain(streams)
    assert room.out("wéb:0").read_bytes() == b"one\n\0\xff\r\n"
    assert room.err("wéb:0").read_bytes() == b"two\n"
    assert stat.S_IMODE(room.out("wéb:0").stat().st_mode) == 0o640 & ~_umask()
    assert stat.S_IMODE(room.logs.stat().st_mode) == 0o750 & ~_umask()
    assert not list(room.run_folder.iterdir())
    assert descriptors() == before
    assert streams.lost == (0, 0)


def test_the_fifos_belong_to_the_user_of_the_instance(room: Room) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    room.drain(room.start("web", owner=(1234, 2345)))  # works although the FIFO is another's
    streams = room.pumps.prepare("s2", (1234, 2345))
    found = os.stat(room.run_folder / "s2.err")
    assert (found.st_uid, found.st_gid) == (1234, 2345)
    room.drain(streams)  # never attached: closed and removed
    assert not list(room.run_folder.iterdir())


def test_a_child_that_reopens_its_own_output_truncates_nothing(room: Room) -> None:
    streams = room.start("web")
    out, err = streams.open_write()
    child = subprocess.Popen(["sh", "-c", "echo one; echo two > /dev/stdout; echo three"], stdout=out, stderr=err)
    os.close(out)
    os.close(err)
    child.wait()
    room.drain(streams)
    assert room.out("web").read_text() == "one\ntwo\nthree\n"


def test_the_next_spawn_continues_on_a_line_of_its_own(room: Room) -> None:
    for spawn_id, text in (("s1", "no end"), ("s2", "whole\n"), ("s3", "last\n")):
        streams = room.start("web", spawn_id)
        room.spawn(streams, f"import os; os.write(1, {text.encode()!r})").wait()
        room.drain(streams)
    assert room.out("web").read_text() == "no end\nwhole\nlast\n"


def test_a_grandchild_may_hold_the_pipe_after_the_exit(room: Room) -> None:
    """Exit, end of file and drained are three things."""
    streams = room.start("web")
    ready, go = os.pipe(), os.pipe()
    code = f"""
import os
if os.fork() == 0:
    os.close({go[1]})
    os.write({ready[1]}, b"!")
    os.read({go[0]}, 1)
    os.write(1, b"grandchild\\n")
    os.write({ready[1]}, b"!")
    os.read({go[0]}, 1)
    os._exit(0)
os.write(1, b"child\\n")
"""
    out, err = streams.open_write()
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=out, stderr=err, pass_fds=(*ready, *go))
    for fd in (out, err, ready[1], go[0]):
        os.close(fd)
    child.wait()
    os.read(ready[0], 1)
    os.write(go[1], b"!")
    os.read(ready[0], 1)
    room.drain(streams)  # though the grandchild lives: it does not hold the drain up
    assert room.out("web").read_text() == "child\ngrandchild\n"
    os.close(go[1])
    assert os.read(ready[0], 1) == b""
    os.close(ready[0])


def test_a_drain_ends_beside_somebody_who_goes_on_writing(room: Room) -> None:
    streams = room.start("web")
    child = room.spawn(streams, "import os\nwhile True: os.write(1, b'y\\n' * 4096)")
    room.until(lambda: size(room.out("web")) > 1_000_000)
    room.drain(streams)
    child.kill()
    child.wait()


def test_no_wake_ups_when_nobody_writes_or_nobody_can(room: Room) -> None:
    """A hung-up pipe is no news for ever (level-triggered, it wakes a loop several hundred thousand times a second)."""
    quiet, hung_up = room.start("quiet", "s1"), room.start("hung-up", "s2")
    held = quiet.open_write()
    room.spawn(hung_up, "print('gone')").wait()
    room.until(lambda: room.out("hung-up").exists() and room.out("hung-up").read_bytes() == b"gone\n")
    marker = os.open(room.run_folder / "s1.out", os.O_WRONLY)
    os.write(
        marker, b"mark\n"
    )  # the thread is through with the hang-up once this has arrived, but for the pipe of stderr
    room.until(lambda: room.out("quiet").read_bytes() == b"mark\n")
    before = _switches_of_other_threads()
    waiting = select.poll()
    waiting.poll(
        500
    )  # the test's length, not a condition: whatever the machine does meanwhile, we wake up a few times at most
    assert _switches_of_other_threads() - before <= 5
    for fd in (*held, marker):
        os.close(fd)
    room.drain(quiet, hung_up)


def test_a_flood_starves_nobody_and_costs_no_memory(room: Room) -> None:
    flood, trickle = room.start("flood", "s1"), room.start("trickle", "s2")
    flooding = room.spawn(flood, "import os\nwhile True: os.write(1, b'y' * 65535 + b'\\n')")
    room.until(lambda: size(room.out("flood")) > 64 << 20)
    before = _resident()
    trickling = room.spawn(trickle, "import os\nfor number in range(20000): os.write(1, b'%d \\n' % number)")
    trickling.wait()
    room.drain(trickle)  # while the other one goes on
    assert flooding.poll() is None
    assert numbered(room.out("trickle")) == list(range(20000))
    flooding.kill()
    flooding.wait()
    room.drain(flood)
    assert size(room.out("flood")) > 64 << 20
    assert _resident() - before < 4 << 20
    room.out("flood").unlink()


@pytest.mark.parametrize("harm", ["delete", "rename", "truncate", "append", "remove the folder"])
def test_what_somebody_does_to_the_log(room: Room, harm: str) -> None:
    streams = room.start("web")
    fd, other = streams.open_write()
    log = room.out("web")
    os.write(fd, b"first\n")
    room.until(lambda: log.exists() and log.read_bytes() == b"first\n")
    if harm == "delete":
        log.unlink()
    elif harm == "rename":
        log.rename(log.with_suffix(".old"))
    elif harm == "truncate":
        os.truncate(log, 0)
    elif harm == "append":
        with log.open("ab") as file:
            file.write(b"more\n")
    else:
        shutil.rmtree(room.logs)
    os.write(fd, b"second\n")
    os.close(fd)
    os.close(other)
    room.drain(streams)
    assert log.read_bytes() == (b"first\nmore\nsecond\n" if harm == "append" else b"second\n")


def test_a_log_that_is_no_file_loses_its_lines_and_nobody_elses(room: Room) -> None:
    room.logs.mkdir()
    os.mkfifo(room.out("web"))
    room.err("web").symlink_to(os.devnull)
    streams = room.start("web")
    room.spawn(streams, "import os; os.write(1, b'x' * 1000000); os.write(2, b'y' * 1000)").wait()
    room.drain(streams)
    assert streams.lost == (1000000, 0)
    assert len(room.messages) == 1
    assert str(room.out("web")) in room.messages[0]


def test_a_log_that_cannot_be_written_for_a_while(room: Room) -> None:
    """The limit of a file's size stands for the full disk, which not everybody may make."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    streams = room.start("web")
    child = room.spawn(
        streams, "import os\nfor number in range(100000): os.write(1, b'%d \\n' % number)\nos.read(0, 1)"
    )
    try:
        room.until(lambda: size(room.out("web")) > 10000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        room.until(lambda: bool(room.messages) and streams.lost[0] > 100000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        full = size(room.out("web"))
        fd, other = streams.open_write()

        def written_again() -> bool:
            os.write(fd, b"7 \n")
            return size(room.out("web")) > full

        room.until(written_again)  # as soon as a second has gone by and something is to be written
        os.close(fd)
        os.close(other)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        child.kill()
        child.wait()
    room.drain(streams)
    assert len(room.messages) == 1
    assert "File too large" in room.messages[0]
    assert size(room.out("web")) > full


def test_a_full_disk(room: Room) -> None:
    room.logs.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "pm3-test", room.logs], check=False).returncode
    ):
        pytest.skip("only root can mount a small disk")
    try:
        streams = room.start("web")
        room.spawn(streams, "import os\nfor number in range(1000): os.write(1, b'y' * 999 + b'\\n')").wait()
        room.drain(streams)
        kept = size(room.out("web"))
        assert kept + streams.lost[0] == 1_000_000
        assert 0 < kept <= 65536
        assert len(room.messages) == 1
        assert "No space left on device" in room.messages[0]
    finally:
        subprocess.run(["umount", room.logs], check=True)


def test_closing_leaves_everything_in_the_fifo_or_in_the_file(room: Room) -> None:
    streams = room.start("web")
    child = room.spawn(streams, WRITER, "1", "200000")
    for step in range(1, 21):
        room.until(lambda: size(room.out("web")) > step * 100_000 or child.poll() is not None)  # noqa: B023 (called before the next)
        room.pumps.close()
        room.pumps = Pumps(room.loop, str(room.run_folder))
        reopened = room.pumps.reopen("s1", streams.read_fds)
        assert reopened is not None
        streams = reopened
        room.attach(streams, "web")
    child.wait()
    room.drain(streams)
    assert numbered(room.out("web")) == list(range(200000))
    assert room.pumps.reopen("s1", None) is None


@pytest.mark.parametrize("held", [True, False], ids=["descriptors kept", "by path"])
def test_not_a_line_is_lost_doubled_or_cut_by_sigkills(room: Room, held: bool) -> None:
    """The pump's process is killed and replaced hundreds of times while a program writes numbered lines to both of its streams."""
    lines, chance = 1_000_000, random.Random(20)
    keep = room.pumps.prepare("s1", None)
    writer = room.spawn(keep, WRITER, "2", str(lines))
    exited = os.pidfd_open(writer.pid)
    waiting = select.poll()
    waiting.register(exited, select.POLLIN)
    # when the kill comes is the chance of this test
    kills = kill_pumps(room, [(keep, "a:0")], PLAIN, [writer], lambda: waiting.poll(chance.random() * 8), held)
    os.close(exited)
    assert kills > 100
    last = room.pumps.reopen("s1", keep.read_fds)
    assert last is not None
    room.attach(last, "a:0")  # what the killed ones left
    room.drain(last)
    assert numbered(room.out("a:0")) == list(range(lines))
    assert (writer.returncode, room.messages) == (0, [])


def test_descriptors_and_tasks_do_not_grow(room: Room) -> None:
    room.drain(room.start("web"))
    before = descriptors(), len(os.listdir("/proc/self/task"))
    for number in range(300):
        streams = room.start("web", f"s{number}")
        fds = streams.open_write()
        os.write(fds[0], b"%d \n" % number)
        for fd in fds:
            os.close(fd)
        room.drain(streams)
    assert numbered(room.out("web")) == list(range(300))
    assert (descriptors(), len(os.listdir("/proc/self/task"))) == before
    assert not list(room.run_folder.iterdir())


def test_hundreds_of_streams_that_end_while_others_are_taken_on(room: Room) -> None:
    everything = []
    for number in range(150):
        streams = room.start(f"i{number}", f"s{number}")
        fds = streams.open_write()
        for fd in fds:
            os.write(fd, b"%d \n" % number)
            os.close(fd)
        everything.append(streams)
    room.drain(*everything)
    for number in range(150):
        assert numbered(room.out(f"i{number}")) == numbered(room.err(f"i{number}")) == [number]


@pytest.mark.parametrize(
    ("content", "lines", "limit", "expected"),
    [
        (b"", 5, 100, []),
        (b"a\nb\nc\n", 2, 100, ["b", "c"]),
        (b"a\nb\nc", 2, 100, ["b", "c"]),
        (b"a\nb\n", 5, 100, ["a", "b"]),
        (b"a\nb\n", 0, 100, []),
        (b"a\n\n\n", 2, 100, ["", ""]),
        (b"a\r\n\xff\xc3\xa9\r\n", 2, 100, ["a", "\ufffdé"]),
        (b"0123456789\nab\n", 5, 8, ["ab"]),  # of the first line only a part would be seen
        (b"0123456789\nab\n", 5, 3, ["ab"]),
        (b"0123456789", 5, 4, ["6789"]),
        (b"0123456789\n", 5, 4, ["6789"]),
    ],
)
def test_last_lines(tmp_path: Path, content: bytes, lines: int, limit: int, expected: list[str]) -> None:
    log = tmp_path / "log"
    log.write_bytes(content)
    assert last_lines(named(log), lines, 0, limit) == expected


def test_last_lines_of_no_file(tmp_path: Path) -> None:
    assert last_lines(named(tmp_path / "none"), 5, 0) == []
    assert last_lines(named(tmp_path), 5, 0) == []
    (tmp_path / "log").write_bytes(b"a\n")
    (tmp_path / "link").symlink_to("log")
    assert last_lines(named(tmp_path / "link"), 5, 0) == ["a"]
    assert last_lines(named(tmp_path / "link", follow=False), 5, 0) == []


def named(path: Path, follow: bool = True) -> LogFile:
    return LogFile(str(path), None, LogOptions(), "web", "web", follow)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _switches_of_other_threads() -> int:
    total = 0
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != os.getpid():
            total += sum(
                int(line.split()[1])
                for line in (task / "status").read_text().splitlines()
                if line.startswith("voluntary")
            )
    return total
