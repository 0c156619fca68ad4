# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`pm3 log` below the socket: tails and followers over real files, real inotify, and the real pump that writes what is followed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.follower import Follower
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log import LogFile
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log_file import LINE, File
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.logs import Tail
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.output import Pumps
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.log_options import LogOptions

from .conftest import Agent, descriptors
from .log_reading import Reader, append, log_file
from .waiting import until


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.loop.close()
    assert not made.errors


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"", 5, []),
        (b"a\nb\nc\n", 2, ["b", "c"]),
        (b"a\nb\nc", 2, ["b", "c"]),
        (b"a\nb\nc\n", 9, ["a", "b", "c"]),
        (b"a\nb\n", 0, []),
        (b"a\n\n\n", 2, ["", ""]),
        (b"a\r\n\xff\xc3\xa9\r\n", 2, ["a", "\ufffdé"]),
        (b"\n", 1, [""]),
        (b"x" * 200_000 + b"\nshort\n", 2, ["x" * (2 * LINE - 200_000 % LINE), "short"]),
        (
            b"".join(b"%d\n" % number for number in range(100_000)),
            50_000,
            [str(number) for number in range(50_000, 100_000)],
        ),
    ],
)
def test_tail(tmp_path: Path, reader: Reader, content: bytes, lines: int, expected: list[str]) -> None:
    log = tmp_path / "log"
    log.write_bytes(content)
    found = [line for _name, line in reader.tail([log_file("web", "out", log)], lines)]
    if "short" in expected:
        assert found[-1] == "short"
        assert set(found[0]) == {"x"}
        assert len(found[0]) <= LINE
    else:
        assert found == expected


def test_tail_goes_file_by_file_and_skips_those_that_are_missing(tmp_path: Path, reader: Reader) -> None:
    before = descriptors()
    for name in ("wéb:0-out", "wéb:0-err", "b-err"):
        (tmp_path / f"{name}.log").write_text(f"old\n{name}\n")
    names = (("wéb:0", "out"), ("wéb:0", "err"), ("b", "out"), ("b", "err"))
    files = [log_file(name, stream, tmp_path / f"{name}-{stream}.log") for name, stream in names]
    assert reader.tail(files, 1) == [("wéb:0", "wéb:0-out"), ("wéb:0", "wéb:0-err"), ("b", "b-err")]
    assert descriptors() == before


def test_a_tail_waits_for_a_slow_reader(tmp_path: Path, reader: Reader) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"%d\n" % number for number in range(100_000)))
    reader.room = 1000
    done: list[bool] = []

    def finish() -> None:
        done.append(True)
        reader.loop.stop()

    tail = Tail(reader.loop, [log_file("web", "out", log)], 50_000, reader.emit, finish)
    for taken in range(1000, 50_000, 1000):
        reader.until(taken)
        reader.settle()
        assert len(reader.lines) == taken
        reader.room += 1000
        tail.resume()
    reader.settle()
    tail.resume()
    if not done:
        reader.until(10**9)
    assert reader.texts() == [str(number) for number in range(50_000, 100_000)]


def follow(reader: Reader, folder: Path, lines: int = 0) -> tuple[Follower, Path]:
    log = folder / "web-out.log"
    follower = Follower(
        reader.loop, [log_file("web", "out", log), log_file("web", "err", folder / "web-err.log")], reader.emit, lines
    )
    return follower, log


def test_follow_tails_first_and_gives_whole_lines(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "web-out.log").write_bytes(b"a\nb\nc\nbegun")
    before = descriptors()
    follower, log = follow(reader, tmp_path, 2)
    reader.until(2)
    reader.settle()
    assert reader.texts() == ["b", "c"]
    append(log, b", ")
    reader.settle()
    append(log, b"ended\r\nnext\n")
    reader.until(4)
    append(tmp_path / "web-err.log", b"from the start\n")  # a file that was missing
    reader.until(5)
    assert reader.texts()[2:] == ["begun, ended", "next", "from the start"]
    follower.close()
    follower.close()
    assert descriptors() == before


def test_nothing_happens_while_nothing_is_written(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "web-out.log").write_bytes(b"a\n")
    follower, log = follow(reader, tmp_path)
    reader.settle()
    append(tmp_path / "another.log", b"not followed\n")
    reader.loop.after(0.2, reader.loop.stop)  # the test's length, not a condition
    before = reader.loop.turns
    reader.loop.run()
    assert reader.loop.turns - before <= 3
    append(log, b"b\n")
    reader.until(1)
    follower.close()


@pytest.mark.parametrize("harm", ["truncate", "delete", "rename", "rename behind the end", "remove the folder"])
def test_follow_survives_what_happens_to_the_file(tmp_path: Path, reader: Reader, harm: str) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    follower, log = follow(reader, folder)
    append(log, b"first\n")
    reader.until(1)
    expected = ["first", "after"]
    if harm == "truncate":
        os.truncate(log, 0)
        reader.settle()
    elif harm == "delete":
        log.unlink()
        reader.settle()
    elif harm == "rename":
        append(log, b"last\nbeg")
        log.rename(folder / "web-out.log.1")
        log.write_bytes(b"un\n")
        expected = ["first", "last", "begun", "after"]
    elif harm == "rename behind the end":
        log.rename(folder / "web-out.log.1")
        reader.settle()
        append(folder / "web-out.log.1", b"last\n")  # by a writer that has not noticed yet
        expected = ["first", "last", "after"]
    else:
        shutil.rmtree(folder)
        reader.settle()
        folder.mkdir(exist_ok=True)
    append(log, b"after\n")
    reader.until(len(expected))
    assert reader.texts() == expected
    append(log, b"and on\n")
    reader.until(len(expected) + 1)
    follower.close()


def test_a_long_line_is_cut_and_costs_no_memory(tmp_path: Path, reader: Reader) -> None:
    follower, log = follow(reader, tmp_path)
    for _again in range(50):
        append(log, b"x" * 100_000)
        reader.settle()
    reader.until(1)  # it is not waited for its end
    append(log, b"\nnext\n")
    reader.until(2)
    assert reader.texts()[1] == "next"
    assert reader.texts()[0] == "x" * LINE
    follower.close()


def test_a_follower_that_stops_reading_costs_nobody_anything(tmp_path: Path, reader: Reader) -> None:
    follower, log = follow(reader, tmp_path)
    reader.room = 1
    append(log, b"0\n1\n")
    reader.until(1)
    reader.settle()
    before = reader.loop.turns
    for number in range(2, 50_000):
        if number % 1000 == 0:
            append(log, b"".join(b"%d\n" % one for one in range(number - 1000 if number > 1000 else 2, number)))
    append(log, b"".join(b"%d\n" % one for one in range(49_000, 50_000)))
    turns_of_settling = 55
    reader.settle()
    assert reader.loop.turns - before <= turns_of_settling
    assert len(reader.lines) == 1
    reader.room = 10**9
    follower.resume()
    reader.until(50_000)
    assert reader.texts() == [str(number) for number in range(50_000)]
    follower.close()


def test_followers_that_leave_leave_nothing(tmp_path: Path, reader: Reader) -> None:
    before = descriptors()
    for number in range(300):  # more than inotify instances are to be had
        follower, log = follow(reader, tmp_path)
        append(log, b"%d\n" % number)
        if number % 2:
            reader.until(number // 2 + 1)
        follower.close()
        reader.settle()
    assert reader.texts() == [str(number) for number in range(1, 300, 2)]
    assert descriptors() == before


def test_a_client_that_closes_in_the_midst_of_its_lines(tmp_path: Path, reader: Reader) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a\n" * 1000)
    taken: list[str] = []

    def emit(_file: File, _time: int | None, line: str) -> bool:
        taken.append(line)
        if len(taken) == 5:
            follower.close()
        return True

    follower = Follower(reader.loop, [log_file("web", "out", log)], emit, 100)
    reader.settle()
    assert len(taken) == 5


def test_a_flood_through_the_pump_is_followed_without_a_gap(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "run").mkdir()
    pumps = Pumps(reader.loop, str(tmp_path / "run"))
    streams = pumps.prepare("s1", None)
    follower, log = follow(reader, tmp_path)
    files = [LogFile(str(path), None, LogOptions(), "web", "web") for path in (log, tmp_path / "web-err.log")]
    pumps.attach(streams, (files[0], files[1]), lambda name, text: reader.errors.append(OSError(text)))
    out, err = streams.open_write()
    code = (
        "import os\nfor n in range(0, 200000, 100): os.write(1, b''.join(b'%d\\n' % one for one in range(n, n + 100)))"
    )
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=out, stderr=err)
    os.close(out)
    os.close(err)
    reader.until(200_000)
    child.wait()
    assert reader.texts() == [str(number) for number in range(200_000)]
    follower.close()
    pumps.drain(streams, reader.loop.stop)
    reader.run()
    pumps.close()


@pytest.mark.parametrize("harm", ["link", "second name", "link to itself"])
def test_nothing_is_read_through_what_stands_in_place_of_a_named_log(agent: Agent, harm: str) -> None:
    """Who may write the folder of a named log could show anybody's file to whoever reads it; and one bad log is no other's affair."""
    log, secret = agent.folder / "web.log", agent.folder / "secret"
    secret.write_text("root only\n")
    if harm == "second name":
        log.hardlink_to(secret)
    else:
        log.symlink_to(secret if harm == "link" else log)
    agent.file("""
        [good]
        command = "sh -c 'echo fine; exec sleep 1000000'"
        [web]
        command = "sh -c 'sleep 1000000'"
        stdout_file = "web.log"
        """)
    agent.pm3("start")
    until(lambda: agent.pm3("log", "good").stdout == "fine\n", "it has written")
    assert agent.pm3("log", "web").stdout == ""
    assert agent.pm3("log").stdout == "[good] fine\n"
    (shown,) = agent.ask("snapshot", names=["web"], log_lines=5)["instances"]
    assert shown["log_tail"] == []
    following = agent.begin("log", "-f", "web")
    try:
        secret.write_text("root only\nand more\n")
        log.unlink()
        log.write_text("a log again\n")
        assert following.stdout is not None
        assert following.stdout.readline() == "a log again\n"
    finally:
        following.kill()
        following.communicate()
