# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotation, shapes, shared logs and terminals under real SIGKILLs; every line is there once, whole and in order."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import select
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import stream
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log_index import RECORD
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.stream import fitting
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.log_options import LogOptions
from ansible_collections.pm3.fleet.tests.integration.agent.pumping import (
    PLAIN,
    WRITER,
    Room,
    content,
    copies,
    everything,
    kill_pumps,
    numbers,
    size,
)

from .conftest import descriptors

STAMP = "%Y-%m-%d %H:%M:%S"
SMALL = LogOptions(max_size=50_000, keep=1000)


def plain(text: bytes, options: LogOptions, name: str = "a:0") -> bytes:
    """The lines as the program wrote them; `name` is the instance's."""
    if options.format == "json":
        found = [json.loads(line) for line in text.splitlines()]
        assert {entry["name"] for entry in found} <= {name}
        return "".join(entry["line"] + "\n" for entry in found).encode()
    if options.date_format is not None:
        lines = text.split(b"\n")[:-1]
        assert all(re.match(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| ", line) for line in lines)
        return b"".join(line[22:] + b"\n" for line in lines)
    return text


def program_lines(log: Path, options: LogOptions) -> bytes:
    return b"".join(plain(text, options) for text in everything(log))


def check_sizes(log: Path, options: LogOptions) -> None:
    for path in (*copies(log), log):
        assert len(content(path)) <= options.max_size
        assert len(content(path)) > options.max_size // 2 or path == log


KINDS = {
    "raw": SMALL,
    "compressed": replace(SMALL, compress=True),
    "stamps": replace(SMALL, max_size=100_000, date_format=STAMP),
    "json": replace(SMALL, max_size=200_000, format="json"),
    "stamps, not rotated": LogOptions(max_size=0, date_format=STAMP),
}


@pytest.mark.parametrize("kind", KINDS)
def test_not_a_line_is_lost_doubled_or_cut_by_sigkills_and_rotation(room: Room, kind: str) -> None:
    options, lines, chance = KINDS[kind], 100_000, random.Random(7)
    keep = room.pumps.prepare("s1", None)
    writer = room.spawn(keep, WRITER, "2", str(lines))
    waiting = select.poll()
    kill_pumps(room, [(keep, "a:0")], options, [writer], lambda: waiting.poll(chance.random() * 30))
    last = room.pumps.reopen("s1", keep.read_fds)
    assert last is not None
    room.pumps.close()
    room.pumps = type(room.pumps)(room.loop, str(room.run_folder))  # it looks at what a kill interrupted
    room.attach(last, "a:0", options)
    room.drain(last)
    if options.compress:
        # It is done by who is nice to everybody else, and on a busy machine gets a hundredth of a CPU.
        room.until(lambda: all(path.suffix == ".gz" for path in copies(room.out("a:0"))), patience=1000)
        room.until(lambda: not list(room.logs.glob("*.tmp")))
    assert numbers(program_lines(room.out("a:0"), options)) == list(range(lines))
    if options.max_size:
        assert len(copies(room.out("a:0"))) > 20
        check_sizes(room.out("a:0"), options)
    assert (writer.returncode, room.messages) == (0, [])
    assert not list(room.run_folder.iterdir())


@pytest.mark.parametrize("kind", ["raw", "stamps", "json"])
def test_two_spawns_that_fill_one_log(room: Room, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their lines are not mixed, whatever they write at once and whoever is killed."""
    monkeypatch.setattr(stream, "_PATIENCE", 600.0)  # however long a busy machine stops a writer in its line
    options, lines, chance = KINDS[kind], 40_000, random.Random(3)
    keeps = [room.pumps.prepare(spawn_id, None) for spawn_id in ("s1", "s2")]
    writers = [room.spawn(keep, WRITER, str(seed), str(lines)) for seed, keep in enumerate(keeps)]
    waiting = select.poll()
    spawns = [(keep, "a:0") for keep in keeps]
    kill_pumps(room, spawns, options, writers, lambda: waiting.poll(chance.random() * 30))
    room.pumps.close()
    room.pumps = type(room.pumps)(room.loop, str(room.run_folder))
    for keep in keeps:
        last = room.pumps.reopen(keep.spawn_id, keep.read_fds)
        assert last is not None
        room.attach(last, "a:0", options)
        keeps[keeps.index(keep)] = last
    room.drain(*keeps)
    found = numbers(program_lines(room.out("a:0"), options))
    assert sorted(found) == sorted([*range(lines)] * 2)
    check_sizes(room.out("a:0"), options)


def test_who_has_nothing_to_say_cuts_nobodys_line(room: Room) -> None:
    """Two are drained, and the first is through at once; the other one's line is open, and goes on into where every line is looked at."""
    both = [room.start("web", spawn_id, options=SMALL) for spawn_id in ("s1", "s2")]
    writing = both[1].open_write()
    room_for = fcntl.fcntl(writing[0], fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing[0], b"x" * room_for)  # a pipe that is full is moved without the end of its line
    room.until(lambda: room.out("web").exists() and room.out("web").stat().st_size == room_for)
    room.pumps.close()
    fcntl.fcntl(writing[0], fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(writing[0], b"x" * SMALL.max_size + b"\n")
    for fd in writing:
        os.close(fd)
    room.pumps = type(room.pumps)(room.loop, str(room.run_folder))
    again = []
    for streams in both:
        reopened = room.pumps.reopen(streams.spawn_id, streams.read_fds)
        assert reopened is not None
        room.attach(reopened, "web", SMALL)
        again.append(reopened)
    room.drain(*again)
    assert room.out("web").read_bytes() == b"x" * (room_for + SMALL.max_size) + b"\n"


def test_a_new_copy_waits_for_the_end_of_the_old_ones_line(room: Room) -> None:
    old = room.start("web", "s1")
    old_fds = old.open_write()
    os.write(old_fds[0], b"half ")
    room.until(lambda: room.out("web").exists() and room.out("web").read_bytes() == b"half ")
    new = room.start("web", "s2")
    room.settle()
    new_fds = new.open_write()
    os.write(new_fds[0], b"new\n")
    os.write(old_fds[0], b"line\nopen")
    room.until(lambda: b"new\n" in room.out("web").read_bytes())
    assert room.out("web").read_bytes() == b"half line\nnew\n"
    for fd in old_fds:
        os.close(fd)
    room.drain(old)
    os.write(new_fds[0], b"newer\nend")
    room.until(lambda: room.out("web").read_bytes().endswith(b"end"))  # alone again: it waits for nothing
    assert room.out("web").read_bytes() == b"half line\nnew\nopen\nnewer\nend"
    for fd in new_fds:
        os.close(fd)
    room.drain(new)


def test_nobody_waits_for_ever_for_the_end_of_a_line(room: Room) -> None:
    """A prompt of the old copy does not hide what the new one says."""
    old = room.start("web", "s1")
    old_fds = old.open_write()
    os.write(old_fds[0], b"login: ")
    room.until(lambda: room.out("web").exists() and room.out("web").read_bytes() == b"login: ")
    new = room.start("web", "s2")
    room.settle()
    new_fds = new.open_write()
    os.write(new_fds[0], b"new\n")
    room.until(lambda: room.out("web").read_bytes() == b"login: \nnew\n")
    for fd in (*old_fds, *new_fds):
        os.close(fd)
    room.drain(old, new)


def test_a_full_pipe_without_a_line_does_not_block_its_writer(room: Room) -> None:
    first, second = room.start("web", "s1"), room.start("web", "s2")
    room.spawn(first, "import os; os.write(1, b'x' * 300000)").wait()
    room.drain(first, second)
    assert room.out("web").read_bytes().strip(b"\n") == b"x" * 300000


def write_each(room: Room, fd: int, log: Path, lines: list[bytes]) -> None:
    """Each by itself, so that it is a piece of its own to the pump."""
    total = sum(map(size, (*copies(log), log)))
    for line in lines:
        os.write(fd, line)
        total += len(line)
        room.until(lambda: sum(map(size, (*copies(log), log))) == total)  # noqa: B023 (called before the next)


def test_rotation_by_size_is_pm3s(room: Room) -> None:
    streams = room.start("web", options=LogOptions(max_size=1000, keep=2))
    fds, log = streams.open_write(), room.out("web")
    write_each(room, fds[0], log, [b"%099d\n" % number for number in range(30)])
    assert [size(path) for path in (log, *copies(log))] == [1000, 1000, 1000]
    os.write(fds[0], b"%099d\n" % 30)
    room.until(lambda: size(log) == 100)
    assert [int(line) for line in b"".join(everything(log)).split()] == list(range(10, 31))
    assert sorted(path.name for path in room.logs.iterdir() if path.name.startswith("web-out")) == [
        "web-out.log",
        "web-out.log.1",
        "web-out.log.2",
    ]
    assert stat.S_IMODE(log.stat().st_mode) == stat.S_IMODE(copies(log)[0].stat().st_mode)
    for fd in fds:
        os.close(fd)
    room.drain(streams)


def test_a_line_longer_than_a_log_is_whole(room: Room) -> None:
    streams = room.start("web", options=LogOptions(max_size=1000, keep=5))
    room.spawn(streams, "import os; os.write(1, b'first\\n' + b'x' * 200000 + b'\\nlast\\n')").wait()
    room.drain(streams)
    assert everything(room.out("web")) == [b"first\n" + b"x" * 200000 + b"\n", b"last\n"]


def test_only_exact_names_are_copies(room: Room) -> None:
    room.logs.mkdir()
    others = ["web-out.log.old", "web-out.log.old.1", "my-web-out.log.1", "web-out.log.01", "web-out.log.3.bak"]
    for name in others:
        (room.logs / name).write_text(name)
    for number in range(1, 8):
        (room.logs / f"web-out.log.{number}").write_text(f"{number}\n")
    room.out("web").write_text("0\n" * 50)
    streams = room.start("web", options=LogOptions(max_size=100, keep=3))
    room.spawn(streams, "print('new')").wait()
    room.drain(streams)
    assert everything(room.out("web")) == [b"2\n", b"1\n", b"0\n" * 50, b"new\n"]
    assert {path.name for path in room.logs.glob("*.log.*")} == {*others, *(f"web-out.log.{n}" for n in (1, 2, 3))}
    assert all((room.logs / name).read_text() == name for name in others)


def test_a_gap_is_filled_and_nothing_dropped(room: Room) -> None:
    """As after a crash between two renames."""
    room.logs.mkdir()
    for number in (1, 3):
        (room.logs / f"web-out.log.{number}").write_text(f"{number}\n")
    room.out("web").write_text("0\n" * 50)
    streams = room.start("web", options=LogOptions(max_size=100, keep=3))
    room.spawn(streams, "print('new')").wait()
    room.drain(streams)
    assert everything(room.out("web")) == [b"3\n", b"1\n", b"0\n" * 50, b"new\n"]


def test_no_copies_are_kept_where_none_are_wanted(room: Room) -> None:
    streams = room.start("web", options=LogOptions(max_size=1000, keep=0))
    room.spawn(streams, "for number in range(1000): print(number)").wait()
    room.drain(streams)
    assert not copies(room.out("web"))
    assert numbers(room.out("web").read_bytes().replace(b"\n", b" \n"))[-1] == 999


def test_total_size(room: Room) -> None:
    streams = room.start("web", options=LogOptions(max_size=1000, keep=50, total_size=3500))
    room.spawn(streams, "for number in range(5000): print(number, '')").wait()
    room.drain(streams)
    found = copies(room.out("web"))
    assert len(found) == 3
    lines = numbers(b"".join(everything(room.out("web"))))
    assert lines == list(range(lines[0], 5000))


def test_compressed_copies_count_as_what_they_take(room: Room) -> None:
    streams = room.start("web", options=LogOptions(max_size=10_000, keep=50, total_size=40_000, compress=True))
    room.spawn(streams, "for number in range(30000): print(number, '')").wait()
    room.drain(streams)
    log = room.out("web")
    room.until(lambda: all(path.suffix == ".gz" for path in copies(log)))
    lines = numbers(b"".join(everything(log)))
    assert lines == list(range(lines[0], 30000))
    assert sum(map(size, copies(log))) <= 40_000
    assert len(copies(log)) > 5
    assert not list(room.logs.glob("*.tmp"))


def test_what_a_crash_left_of_compressing_is_tidied(room: Room) -> None:
    room.logs.mkdir()
    log = room.out("web")
    (room.logs / "web-out.log.gz.tmp").write_bytes(b"half")
    (room.logs / "web-out.log.1").write_text("1 \n")
    import gzip

    (room.logs / "web-out.log.2").write_text("0 \n")
    (room.logs / "web-out.log.2.gz").write_bytes(gzip.compress(b"0 \n"))  # all but the removal of its source was done
    streams = room.start("web", options=LogOptions(compress=True))
    room.until(lambda: all(path.suffix == ".gz" for path in copies(log)))
    room.drain(streams)
    assert [content(path) for path in copies(log)] == [b"1 \n", b"0 \n"]
    assert sorted(path.name for path in room.logs.glob("web-out.log.*")) == ["web-out.log.1.gz", "web-out.log.2.gz"]


def test_rotation_by_age(room: Room) -> None:
    room.logs.mkdir()
    log = room.out("web")
    log.write_text("old\n")
    os.utime(log, (1, 1))
    streams = room.start("web", options=LogOptions(max_age=3600.0))
    fds = streams.open_write()
    os.write(fds[0], b"new\n")
    room.until(lambda: log.exists() and log.read_bytes() == b"new\n")
    write_each(room, fds[0], log, [b"newer\n"])
    assert everything(log) == [b"old\n", b"new\nnewer\n"]
    room.pumps.reconfigure(streams, room.files("web", LogOptions(max_age=0.000001)))
    room.settle()
    write_each(room, fds[0], log, [b"newest\n"])
    assert everything(log) == [b"old\n", b"new\nnewer\n", b"newest\n"]
    for fd in fds:
        os.close(fd)
    room.drain(streams)


@pytest.mark.parametrize("kind", ["raw", "stamps", "json"])
def test_flush_under_load(room: Room, kind: str) -> None:
    """Of what comes later nothing is missing, and no hole is before it."""
    options, log = replace(KINDS[kind], keep=3), room.out("web")
    streams = room.start("web", options=options)
    writer = room.spawn(streams, WRITER, "1", "100000")
    flushed: list[list[str]] = []
    asked = 0
    while asked < 20 and writer.poll() is None:
        room.pumps.flush(room.files("web", options), flushed.append)
        asked += 1
        room.until(lambda: len(flushed) == asked or writer.poll() is not None)  # noqa: B023 (called before the next)
    writer.wait()
    room.drain(streams)
    found = numbers(program_lines(log, options).partition(b"\n")[2])  # the first may have begun before
    # None, where the last flush came after the last line.
    assert found == list(range(100000 - len(found), 100000))
    assert asked
    room.pumps.flush(room.files("web", options), flushed.append)
    room.until(lambda: len(flushed) == asked + 1)
    assert not any(flushed)
    assert sorted((path.name, size(path)) for path in room.logs.iterdir() if path.is_file()) == [
        ("web-err.log", 0),
        ("web-out.log", 0),
    ]
    assert all(size(path) == 0 for path in room.indexes.iterdir())


def test_a_log_that_cannot_be_flushed_is_named(room: Room) -> None:
    room.logs.mkdir()
    room.out("web").mkdir()
    flushed: list[list[str]] = []
    room.pumps.flush([*room.files("web"), *room.files("none")], flushed.append)
    room.until(lambda: bool(flushed))
    assert len(flushed[0]) == 1
    assert str(room.out("web")) in flushed[0][0]
    assert not room.out("none").exists()


def test_the_index_says_when_what_came(room: Room) -> None:
    streams = room.start("web", options=LogOptions(max_size=1000, keep=3))
    fds, log = streams.open_write(), room.out("web")
    for number in range(25):
        write_each(room, fds[0], log, [b"%099d\n" % number])
    for number, path in enumerate((log, *copies(log))):
        index = room.indexes / (log.name + (f".{number}" if number else ""))
        records = list(RECORD.iter_unpack(index.read_bytes()))
        assert records == sorted(records)
        assert records[0][0] == 0
        assert records[-1][0] < size(path)
    for fd in fds:
        os.close(fd)
    room.drain(streams)


@pytest.mark.parametrize("harm", ["truncate", "rename"])
def test_an_index_begins_anew_with_its_log(room: Room, harm: str) -> None:
    streams = room.start("web")
    fds, log = streams.open_write(), room.out("web")
    os.write(fds[0], b"x" * 999 + b"\n")
    room.until(lambda: size(log) == 1000)
    if harm == "truncate":
        os.truncate(log, 0)
    else:
        log.rename(log.with_name("gone"))
    os.write(fds[0], b"y\n")
    room.until(lambda: log.exists() and log.read_bytes() == b"y\n")
    for fd in fds:
        os.close(fd)
    room.drain(streams)
    records = list(RECORD.iter_unpack((room.indexes / log.name).read_bytes()))
    assert [offset for offset, __ in records] == [0]


def test_a_log_is_logged_without_its_index(room: Room) -> None:
    room.logs.mkdir()
    room.indexes.write_text("no folder")
    streams = room.start("web")
    room.spawn(streams, "print('fine')").wait()
    room.drain(streams)
    assert room.out("web").read_text() == "fine\n"
    assert not room.messages


def test_a_log_that_cannot_be_rotated_grows(room: Room) -> None:
    streams = room.start("web", options=LogOptions(max_size=100, keep=1))
    room.out("web").with_name("web-out.log.1").mkdir(parents=True)
    (room.out("web").with_name("web-out.log.1") / "file").touch()
    room.spawn(streams, "for number in range(1000): print(number, '')").wait()
    room.drain(streams)
    assert numbers(room.out("web").read_bytes()) == list(range(1000))
    assert len(room.messages) == 1
    assert "cannot be rotated" in room.messages[0]


def test_the_shape_changes_while_it_runs(room: Room) -> None:
    streams = room.start("web")
    fds, log = streams.open_write(), room.out("web")
    for kind in ("raw", "stamps", "json", "raw", "json", "stamps", "raw"):
        room.pumps.reconfigure(streams, room.files("web", replace(KINDS[kind], max_size=0)))
        room.settle()
        before = size(log)
        os.write(fds[0], b"1 x\n2 xx\n")
        room.until(lambda: log.exists() and log.read_bytes()[before:].count(b"\n") == 2)  # noqa: B023
        assert plain(log.read_bytes()[before:], KINDS[kind]) == b"1 x\n2 xx\n"
    for fd in fds:
        os.close(fd)
    room.drain(streams)
    assert not list(room.run_folder.iterdir())


def test_json(room: Room) -> None:
    streams = room.start("web", options=LogOptions(format="json"))
    room.spawn(
        streams, "import os; os.write(1, b'\\xff\"\\r\\n' + b'x' * 150000 + '\\u00e9\\n'.encode() + b'end')"
    ).wait()
    room.drain(streams)
    entries = [json.loads(line) for line in room.out("web").read_text().splitlines()]
    assert [(entry["line"], entry.get("partial")) for entry in entries] == [
        ('\ufffd"', None),
        ("x" * 65536, True),
        ("x" * 65536, True),
        ("x" * (150000 - 131072) + "é", None),
        ("end", None),
    ]
    assert {(entry["name"], entry["process"], entry["stream"]) for entry in entries} == {("a:0", "a", "stdout")}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d", entry["time"]) for entry in entries)


def test_a_line_without_its_end_does_not_stop_what_is_behind_it(room: Room) -> None:
    """A turn takes a part of the pipe only, and what is held of it must not make us deaf for the rest."""
    streams = room.start("web", options=LogOptions(max_size=0, format="json"))
    fds = streams.open_write()
    room.settle()
    for __ in range(30):
        before = room.out("web").read_bytes().count(b"\n")
        writer = threading.Thread(target=os.write, args=(fds[0], (b"x" * 50000 + b"\n") * 20 + b"open "))
        writer.start()
        room.until(lambda: room.out("web").read_bytes().count(b"\n") == before + 20)  # noqa: B023
        writer.join()
    for fd in fds:
        os.close(fd)
    room.drain(streams)


@pytest.mark.parametrize("date_format", ["%n%n", "", "\0", "%", "%Q%é", "%9999999d", "\ud800"])
def test_no_date_format_ends_output(room: Room, date_format: str) -> None:
    for spawn_id, kind in (("s1", "raw"), ("s2", "json")):
        streams = room.start("web", spawn_id, options=LogOptions(format=kind, date_format=date_format))
        room.spawn(streams, "print('one'); print('two')").wait()
        room.drain(streams)
    lines = room.out("web").read_bytes().split(b"\n")
    assert [line.partition(b" | ")[2] for line in lines[:2]] == [b"one", b"two"]
    assert [json.loads(line)["line"] for line in lines[2:4]] == ["one", "two"]


TERMINAL = """
import fcntl, os, struct, sys, termios
print(os.isatty(1), os.isatty(2), struct.unpack("HHHH", fcntl.ioctl(1, termios.TIOCGWINSZ, b" " * 8))[:2])
try:
    os.open("/dev/tty", os.O_RDWR)
except OSError as error:
    print(error.errno)
"""


def test_a_terminal(room: Room) -> None:
    before = descriptors()
    streams = room.start("web", tty=True, owner=(os.getuid(), os.getgid()))
    assert stat.S_ISCHR(os.fstat(streams.read_fds[2]).st_mode)
    out, err = streams.open_write()
    child = subprocess.Popen([sys.executable, "-c", TERMINAL], stdout=out, stderr=err, start_new_session=True)
    os.close(out)
    os.close(err)
    assert child.wait() == 0
    room.drain(streams)
    assert room.out("web").read_bytes() == b"True False (24, 80)\r\n6\r\n"
    assert descriptors() == before


def test_a_terminal_without_anybody_does_not_wake_us_and_is_drained(room: Room) -> None:
    streams = room.start("web", tty=True)
    room.spawn(streams, "import os; os.write(1, b'x' * 99 + b'\\n'); os.write(1, b'y' * 3000)").wait()
    room.until(lambda: size(room.out("web")) == 3101)
    task = next(
        Path("/proc/self/task") / str(thread.native_id) for thread in threading.enumerate() if thread.name == "pump"
    )

    def read() -> int:
        found = re.search(r"^voluntary.*?(\d+)$", (task / "status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1])

    waiting = select.poll()
    waiting.poll(50)
    before = read()
    waiting.poll(300)
    assert read() - before <= 5
    room.drain(streams)
    never = room.pumps.prepare("s2", None, tty=True)
    room.drain(never)


@pytest.mark.parametrize("splices", [True, False])
def test_a_flood_through_a_terminal(room: Room, splices: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not splices:  # as a kernel that cannot

        def refused(*__: int) -> int:
            raise OSError(22, "Invalid argument")

        from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import terminal

        monkeypatch.setattr(terminal, "splice", refused)
    streams = room.start("web", tty=True)
    room.spawn(streams, "for number in range(200000): print(number, '')").wait()
    room.drain(streams)
    assert numbers(room.out("web").read_bytes().replace(b"\r", b"")) == list(range(200000))


def test_a_terminal_under_sigkills(room: Room) -> None:
    lines, chance = 100_000, random.Random(1)
    keep = room.pumps.prepare("s1", None, tty=True)
    writer = room.spawn(keep, f"for number in range({lines}): print(number, '')")
    waiting = select.poll()
    kill_pumps(room, [(keep, "a:0")], SMALL, [writer], lambda: waiting.poll(chance.random() * 30))
    last = room.pumps.reopen("s1", keep.read_fds)
    assert last is not None
    room.attach(last, "a:0", SMALL)
    room.drain(last)
    found = b"".join(everything(room.out("a:0")))
    assert found.count(b"\r\n") == lines
    assert numbers(found.replace(b"\r", b"")) == list(range(lines))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(room: Room, kind: str) -> None:
    room.logs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "pm3-test", str(room.logs)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    options = replace(KINDS[kind], max_size=100_000 if KINDS[kind].max_size else 0)
    try:
        streams = room.start("web", options=options)
        room.spawn(streams, "for number in range(100000): print(number, '')").wait()
        room.drain(streams)
        total = sum(len(f"{number} \n") for number in range(100000))
        assert streams.lost[0] > 0 or kind == "compressed"
        if kind == "json":
            assert len(program_lines(room.out("web"), options)) + streams.lost[0] == total
        elif options.date_format is not None:  # a line may be cut by what was lost, and then ended
            texts = (path.read_bytes() for path in (*copies(room.out("web")), room.out("web")))
            kept = sum(len(re.sub(rb"(?m)^\d{4}-.{14} \| ", b"", text)) for text in texts)
            assert 0 <= kept + streams.lost[0] - total <= 2
        assert len([text for text in room.messages if "No space left" in text]) == 1 or kind == "compressed"
        flushed: list[list[str]] = []
        room.pumps.flush(room.files("web", options), flushed.append)
        room.until(lambda: bool(flushed))
        streams = room.start("web", "s2", options=options)
        room.spawn(streams, "print('1 x')").wait()
        room.drain(streams)
        assert program_lines(room.out("web"), options) == b"1 x\n"
    finally:
        room.pumps.close()
        room.pumps = type(room.pumps)(room.loop, str(room.run_folder))
        subprocess.run(["umount", room.logs], check=True)


@pytest.mark.parametrize("harm", ["file", "folder", "copy", "hard link", "loop"])
def test_links_of_others_are_not_followed(room: Room, tmp_path: Path, harm: str) -> None:
    if os.geteuid():
        pytest.skip("only root can be led astray by another user's links")
    theirs, secret = tmp_path / "theirs", tmp_path / "secret"
    theirs.mkdir()
    secret.write_text("secret\n")
    log = theirs / "folder" / "x.log"
    if harm == "folder":
        log.parent.symlink_to(tmp_path)
        os.lchown(log.parent, 1234, 1234)
    else:
        log.parent.mkdir()
    if harm in ("file", "loop"):
        log.symlink_to(secret if harm == "file" else log)
    elif harm == "hard link":
        os.link(secret, log)
    elif harm == "copy":
        log.with_name("x.log.1").symlink_to(secret)
    streams = room.pumps.prepare("s1", None)
    options = LogOptions(max_size=100, keep=2, compress=True)
    files = (room.file(log, options, follow=False), room.file(room.err("web")))
    room.pumps.attach(streams, files, room.hear)
    room.spawn(streams, "for number in range(30): print(number, '')").wait()
    room.drain(streams)
    assert secret.read_text() == "secret\n"
    assert not (tmp_path / "x.log").exists()
    if harm == "copy":
        found = b"".join(content(path) for path in (*reversed(copies(log)), log) if not path.is_symlink())
        assert numbers(found)[-1] == 29
    else:
        assert len(room.messages) == 1
        assert streams.lost[0] > 0


def test_a_link_of_ours_in_the_path_is_followed(room: Room, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("../" + tmp_path.name + "/real")
    log = tmp_path / "link" / "deep" / "x.log"
    streams = room.pumps.prepare("s1", None)
    room.pumps.attach(streams, (room.file(log, PLAIN, follow=False), room.file(room.err("web"))), room.hear)
    room.spawn(streams, "print('here')").wait()
    room.drain(streams)
    assert (tmp_path / "real" / "deep" / "x.log").read_text() == "here\n"
    assert not room.messages


@pytest.mark.parametrize(
    ("data", "room_left", "zone", "at_line_start", "expected"),
    [
        (b"a\nb\n", 10, 2, True, 4),
        (b"a\nb\n", 4, 2, True, 4),
        (b"a\nb\n", 3, 2, True, 2),
        (b"a\nb\n", 1, 2, True, 0),
        (b"a\nb", 5, 2, True, 5 - 2),
        (b"a\nb", 4, 2, True, 2),  # no room for the rest of b
        (b"abc", 2, 2, True, 0),
        (b"abc", 2, 2, False, 3),  # its line has begun here
        (b"abc\nd\n", 2, 2, False, 4),
        (b"abc\nd\n", -7, 2, False, 4),
        (b"abc\nd\n", -7, 2, True, 0),
    ],
)
def test_fitting(data: bytes, room_left: int, zone: int, at_line_start: bool, expected: int) -> None:
    assert fitting(data, room_left, zone, at_line_start) == expected
