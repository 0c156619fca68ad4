# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`pm3 log` over logs that are rotated and have an index: the order of time, and every line once."""

from __future__ import annotations

import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import log_file as log_files
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.follower import Follower
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log_file import LINE
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log_index import RECORD, Times
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.logs import Tail, newest_lines, rfc3339
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from .conftest import descriptors
from .log_reading import Reader, Writer, append, log_file

SECOND = 10**9
SLOW = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def reading() -> Iterator[Reader]:
    reader = Reader()
    try:
        yield reader
    finally:
        reader.loop.close()
    assert not reader.errors


@pytest.fixture
def reader() -> Iterator[Reader]:
    with reading() as made:
        yield made


def writers(folder: Path, count: int, **about: Any) -> list[Writer]:
    return [Writer(log_file(f"w{number}", "out", folder / f"w{number}-out.log"), **about) for number in range(count)]


# The newest lines

PIECE = st.one_of(
    st.text("a\n\r\xff", max_size=12).map(lambda text: text.encode("latin-1")),
    st.integers(1, 40_000).map(lambda length: b"x" * length + b"\n"),
)
WRITE = st.tuples(st.just("write"), st.integers(0, 2), PIECE, st.sampled_from([None, 0, 1, 1, 2]))
ROTATE = st.tuples(st.just("rotate"), st.integers(0, 2))


class Oracle:
    """What a log holds, told without files."""

    def __init__(self) -> None:
        self.bytes: list[tuple[bytes, int | None]] = []  # pieces, and the time that the index says
        self._known: int | None = None

    def write(self, content: bytes, moment: int | None) -> None:
        if content and moment is not None:
            self._known = moment
        self.bytes.append((content, self._known))

    def rotate(self) -> None:
        self._known = None

    def lines(self) -> list[tuple[int | None, str]]:
        found: list[tuple[int | None, bytes]] = []
        line, began = b"", None
        for content, moment in self.bytes:
            for part in _split(content):
                began = began if line else moment
                line += part
                if line.endswith(b"\n"):
                    found.append((began, line[:-1]))
                    line = b""
        if line:
            found.append((began, line))
        return [(moment, text.decode("utf-8", "replace").rstrip("\r")) for moment, text in found]


def _split(content: bytes) -> list[bytes]:
    *whole, rest = content.split(b"\n")
    return [*(line + b"\n" for line in whole), rest]


def merged(streams: list[list[tuple[int | None, str]]]) -> list[tuple[str, int | None, str]]:
    keyed = []
    for order, stream in enumerate(streams):
        key = 0
        for place, (moment, text) in enumerate(stream):
            key = max(key, moment or 0)
            keyed.append((key, order, place, moment, text))
    return [(f"w{order}", moment, text) for _key, order, _place, moment, text in sorted(keyed, key=lambda one: one[:3])]


@SLOW
@example(
    [("write", 0, b"x\n", 0), ("rotate", 0), ("write", 0, b"\n", None), ("write", 0, b"a", 0)], 3, 0, 1, 95
)  # what is of unknown time is not known to be too old
@given(
    st.lists(st.one_of(WRITE, WRITE, WRITE, ROTATE), max_size=40),
    st.sampled_from([0, 1, 2, 3, 10, 10_000]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([1, 200]),
    st.one_of(st.none(), st.integers(95, 140)),
)
def test_a_tail_is_what_was_written(
    history: list[Any], lines: int, packed_from: int, most_open: int, since: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder, reading() as reader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files.Descriptors.__init__, "__defaults__", (most_open,))
        logs = writers(Path(folder), 3, keep=50, packed_from=packed_from)
        oracles = [Oracle() for _log in logs]
        now = 100
        for kind, number, *what in history:
            if kind == "rotate":
                if since is not None and oracles[number].bytes and not oracles[number].bytes[-1][0].endswith(b"\n"):
                    continue  # the pump rotates where a line ends
                logs[number].rotate()
                oracles[number].rotate()
                continue
            content, passed = what
            now += passed or 0
            logs[number].write(content, None if passed is None else now)
            oracles[number].write(content, None if passed is None else now)
        before = descriptors()
        reader.tail([log.file for log in logs], lines, since)
        expected = [oracle.lines()[-lines:] if lines else [] for oracle in oracles]
        if since is not None:
            expected = [[one for one in stream if one[0] is not None and one[0] >= since] for stream in expected]
        found = [(name, moment, text) for (name, text), moment in zip(reader.lines, reader.times)]
        assert found == merged(expected)
        assert descriptors() == before


def test_a_tail_of_very_many_logs(tmp_path: Path, reader: Reader) -> None:
    logs = writers(tmp_path, 1000)
    for moment in range(20):
        for number, log in enumerate(logs):
            log.write(b"%d %d\n" % (moment, number), SECOND * (moment * 1000 + number + 1))
        if moment == 16:
            for log in logs:
                log.rotate()
    most = 0
    before = descriptors()
    emit = reader.emit

    def count(*line: Any) -> bool:
        nonlocal most
        most = max(most, descriptors() - before) if len(reader.lines) % 100 == 0 else most
        return emit(*line)

    reader.emit = count  # type: ignore[method-assign]
    reader.tail([log.file for log in logs], 15)
    assert reader.texts() == [f"{moment} {number}" for moment in range(5, 20) for number in range(1000)]
    assert 0 < most <= 210


def test_lines_longer_than_all_that_is_read(tmp_path: Path, reader: Reader) -> None:
    (log,) = writers(tmp_path, 1, packed_from=1)
    log.write(b"first\n" + b"x" * 3_000_000 + b"\nlast\n", SECOND)
    log.rotate()
    log.write(b"y" * 200_000, 2 * SECOND)
    reader.tail([log.file], 5)
    assert [(line[:1], len(line)) for line in reader.texts()] == [("f", 5), ("x", LINE), ("l", 4), ("y", LINE)]


def test_a_broken_copy_costs_what_is_in_it(tmp_path: Path, reader: Reader) -> None:
    (log,) = writers(tmp_path, 1, packed_from=2)
    for number in range(4):
        log.write(b"%d\n" % number, SECOND * number)
        log.rotate()
    packed = tmp_path / "w0-out.log.3.gz"
    packed.write_bytes(packed.read_bytes()[:-12])
    (tmp_path / "w0-out.log.4.gz").write_bytes(b"no gzip")
    (tmp_path / "w0-out.log.5").mkdir()
    log.write(b"4\n", SECOND * 4)
    reader.tail([log.file], 5)
    assert reader.texts()[-3:] == ["2", "3", "4"]


# The index


def test_times_of_an_index_that_is_not_as_it_should_be(tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert Times(bytes(index)).at(0) is None
    index.write_bytes(RECORD.pack(10, 1)[:-3])
    assert Times(bytes(index)).at(99) is None
    index.write_bytes(b"".join(RECORD.pack(10 * number, number) for number in range(1, 1000)) + b"torn")
    times = Times(bytes(index))
    for offset in (*range(0, 12_000, 7), 5, 9_999, 10, 9):
        assert times.at(offset) == (min(offset // 10, 999) or None)
    assert times.since(500) == 5000
    assert times.since(1000) is None
    index.rename(tmp_path / "index.1")
    index.write_bytes(RECORD.pack(0, 5000))
    assert times.at(7770) == 777
    (tmp_path / "index.1").unlink()
    assert times.at(7771) == 777


def test_a_time_is_said_with_its_zone() -> None:
    before = os.environ.get("TZ")
    try:
        os.environ["TZ"] = "XXX-05:30"
        time.tzset()
        assert rfc3339(1_700_000_000_123_999_999) == "2023-11-15T03:43:20.123+05:30"
        assert rfc3339(2**64 - 1).startswith("2554-")
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


# What follows


def follow(reader: Reader, logs: list[Writer], lines: int = 0) -> Follower:
    return Follower(reader.loop, [log.file for log in logs], reader.emit, lines)


LOOK = st.tuples(st.just("look"), st.just(0))
FLUSH = st.tuples(st.just("flush"), st.integers(0, 2))
PAUSE = st.tuples(st.just("pause"), st.just(0))


# Of empty copies that were compressed none is to be told from the others, so that the one that was followed is not met again.
AMONG_EMPTY_COPIES = [
    *[("rotate", 0), ("flush", 0), ("rotate", 0)],
    *[("write", 0, b"new\n", 0), ("rotate", 0), ("rotate", 0)],
]


@SLOW
@example([("write", 0, b"old\n", 0)], AMONG_EMPTY_COPIES, 3, 1)
@example([], [("write", 0, b"aa", 0), ("flush", 0), ("write", 0, b"\n", 0), ("rotate", 0)], 0, 1)
@example([], [("write", 0, b"aa", 0), ("flush", 0), ("write", 0, b"aaa\n", 0), ("rotate", 0)], 0, 1)
@example([], [("write", 0, b"x\n", 0), ("flush", 0), ("write", 0, b"x\n", 0), ("rotate", 0)], 0, 0)
@example([("write", 0, b"old\n", 0), ("rotate", 0)], [*AMONG_EMPTY_COPIES[3:], ("rotate", 0)], 3, 1)
@given(
    st.lists(st.one_of(WRITE, ROTATE), max_size=12),
    st.lists(st.one_of(WRITE, WRITE, WRITE, ROTATE, LOOK, FLUSH, PAUSE), max_size=40),
    st.sampled_from([0, 1, 3, 10_000]),
    st.sampled_from([0, 1, 2]),
)
def test_a_follower_sees_each_line_once(past: list[Any], history: list[Any], lines: int, packed_from: int) -> None:
    with tempfile.TemporaryDirectory() as folder, reading() as reader, ExitStack() as to_close:
        logs = writers(Path(folder), 3, keep=50, packed_from=packed_from)
        written = [b"", b"", b""]

        def write(number: int, content: bytes) -> None:
            logs[number].write(content, time.time_ns())
            written[number] += content

        for kind, number, *what in past:
            logs[number].rotate() if kind == "rotate" else write(number, what[0])
        before = descriptors()
        begins = [max(0, content.count(b"\n") - lines) for content in written]
        follower = follow(reader, logs, lines)
        to_close.callback(follower.close)
        for kind, number, *what in history:
            if kind == "write":
                write(number, what[0])
            elif kind == "rotate":
                logs[number].rotate()
            elif kind == "flush":
                follower.resume()
                reader.room = 10**9
                reader.quiet()  # what is not read before is lost
                logs[number].flush()
            elif kind == "pause":
                reader.room = len(reader.lines) + 1
            else:
                reader.room = 10**9
                follower.resume()
                reader.settle()
        expected = [
            [line.decode("utf-8", "replace").rstrip("\r") for line in content.split(b"\n")[begin:-1]]
            for content, begin in zip(written, begins)
        ]
        reader.room = 10**9
        follower.resume()
        reader.quiet()
        found: dict[str, list[str]] = {log.file.name: [] for log in logs}
        for name, text in reader.lines:
            found[name].append(text)
        assert list(found.values()) == expected
        follower.close()
        assert descriptors() == before


@pytest.mark.parametrize("packed_from", [0, 1])
def test_lines_of_one_wake_up_come_in_order(tmp_path: Path, reader: Reader, packed_from: int) -> None:
    logs = writers(tmp_path, 5, packed_from=packed_from)
    follower = follow(reader, logs)
    reader.settle()
    begin = time.time_ns()
    for number in range(500):
        logs[number * 3 % 5].write(b"%d\n" % number, begin + number)
        if number % 100 == 99:
            logs[number % 5].rotate()
    reader.until(500)
    assert reader.texts() == [str(number) for number in range(500)]
    assert reader.times == [begin + number for number in range(500)]
    follower.close()


def test_a_line_whose_record_is_to_come_has_the_time_of_the_write(tmp_path: Path, reader: Reader) -> None:
    (log,) = writers(tmp_path, 1)
    log.write(b"old\n", time.time_ns() - SECOND // 50)
    follower = follow(reader, [log], 1)
    reader.until(1)
    reader.settle()
    append(tmp_path / "w0-out.log", b"new\n")
    written = os.stat(tmp_path / "w0-out.log").st_mtime_ns
    reader.until(2)
    assert reader.times[1] == written
    follower.close()


def test_a_log_that_was_flushed_and_grew_again_is_read_anew(tmp_path: Path, reader: Reader) -> None:
    (log,) = writers(tmp_path, 1)
    follower = follow(reader, [log])
    log.write(b"before\n", time.time_ns())
    reader.until(1)
    reader.settle()
    log.flush()
    log.write(b"after the flush\nand longer than before\n", time.time_ns())
    reader.until(3)
    assert reader.texts() == ["before", "after the flush", "and longer than before"]
    follower.close()


def test_an_index_that_has_moved_before_its_log_is_found(tmp_path: Path, reader: Reader) -> None:
    (log,) = writers(tmp_path, 1)
    log.write(b"a\n", SECOND)
    index = Path(log.file.index)
    index.rename(index.with_name(index.name + ".1"))
    assert reader.tail([log.file], 5) == [("w0", "a")]
    assert reader.times == [SECOND]


def test_very_many_files_are_opened_in_turns(tmp_path: Path, reader: Reader) -> None:
    logs = writers(tmp_path, 350)
    for number, log in enumerate(logs):
        log.write(b"old\n%d\n" % number, number + 1)
    before = descriptors()
    follower = follow(reader, logs, 1)
    assert descriptors() - before < 150
    follower.add([logs[0].file, logs[-1].file])  # the last one from its present end on
    reader.quiet()
    assert reader.texts() == [str(number) for number in range(349)]
    for number, log in enumerate(logs):
        log.write(b"new %d\n" % number, time.time_ns())
    reader.quiet()
    assert sorted(reader.texts()[349:]) == sorted(f"new {number}" for number in range(350))
    follower.close()
    assert descriptors() == before


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """No more than so many descriptors beyond those in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = (number for number in range(hard) if number not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, more, None), hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("more", [50, 150])
def test_where_no_more_files_can_be_opened_a_follower_says_what_to_do(
    tmp_path: Path, reader: Reader, more: int
) -> None:
    logs = writers(tmp_path, 300)
    for log in logs:
        log.write(b"a\n", SECOND)
    follow(reader, logs[:1]).close()
    before = descriptors()
    said: list[OSError] = []

    def failed(error: OSError) -> None:
        said.append(error)
        reader.loop.stop()

    with at_most(more):
        try:
            Follower(reader.loop, [log.file for log in logs], reader.emit, 1, failed=failed)
        except OSError as error:
            said.append(error)
        else:
            reader.run()
    assert ["follow fewer logs at once" in str(error.strerror) for error in said] == [True]
    assert descriptors() == before
    reader.quiet()
    assert reader.lines == []


def test_where_no_more_files_can_be_opened_a_tail_says_so(tmp_path: Path, reader: Reader) -> None:
    logs = writers(tmp_path, 100)
    for log in logs:
        log.write(b"a\n", SECOND)
    before = descriptors()
    said: list[OSError] = []

    def failed(error: OSError) -> None:
        said.append(error)
        reader.loop.stop()

    with at_most(20):
        Tail(reader.loop, [log.file for log in logs], 1, reader.emit, lambda: None, failed=failed)
        reader.run()
    assert ["too many files are open" in str(error.strerror) for error in said] == [True]
    assert descriptors() == before


def test_a_file_that_joins_is_followed_from_its_end(tmp_path: Path, reader: Reader) -> None:
    first, second, third = writers(tmp_path, 3)
    second.write(b"old\nand open", 5)
    follower = follow(reader, [first])
    follower.add([second.file, third.file, first.file])
    second.write(b"\nnew\n", time.time_ns())
    reader.until(1)
    third.write(b"made later\n", time.time_ns())
    reader.until(2)
    first.write(b"followed once\n", time.time_ns())
    reader.until(3)
    reader.settle()
    assert reader.texts() == ["new", "made later", "followed once"]
    follower.close()
    follower.add([second.file])


@pytest.mark.parametrize("packed_from", [0, 2])
def test_a_writer_at_full_speed_that_rotates(tmp_path: Path, reader: Reader, packed_from: int) -> None:
    logs = writers(tmp_path, 2, keep=60, packed_from=packed_from)
    follower = follow(reader, logs)
    lines = 20_000

    def write() -> None:
        for number in range(0, lines, 10):
            for log in logs:
                log.write(b"".join(b"%d\n" % one for one in range(number, number + 10)), time.time_ns())
            if number % 800 == 0:
                logs[number // 800 % 2].rotate()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        reader.until(2 * lines)
        reader.settle()
    finally:
        thread.join()
    for log in logs:
        assert [text for name, text in reader.lines if name == log.file.name] == [str(one) for one in range(lines)]
    follower.close()


def test_tails_while_a_writer_rotates(tmp_path: Path, reader: Reader) -> None:
    (log,) = writers(tmp_path, 1, keep=100, packed_from=3)
    ended = threading.Event()

    def write() -> None:
        for number in range(20_000):
            log.write(b"%d\n" % number, time.time_ns())
            if number % 300 == 299:
                log.rotate()
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    last = False
    while not last:
        last = ended.is_set()
        reader.lines.clear()
        reader.tail([log.file], 1000)
        numbers = [int(text) for text in reader.texts() if text]
        assert numbers == sorted(set(numbers))
    thread.join()
    assert numbers == list(range(19_000, 20_000))


# At once


def test_newest_lines_across_a_rotation(tmp_path: Path) -> None:
    (log,) = writers(tmp_path, 1)
    assert newest_lines(log.file, 3) == []
    log.write(b"1\n2\n3\n", 1)
    log.rotate()
    assert newest_lines(log.file, 2) == ["2", "3"]
    log.write(b"4\r\n\xff", 1)
    before = descriptors()
    assert newest_lines(log.file, 4) == ["2", "3", "4", "\ufffd"]
    assert newest_lines(log.file, 0) == []
    log.write(b"x" * 100_000, 1)
    assert [len(line) for line in newest_lines(log.file, 2, limit_bytes=1000)] == [1000]
    assert descriptors() == before


def test_a_tail_that_fails_ends(tmp_path: Path) -> None:
    reader = Reader()
    (tmp_path / "log").write_bytes(b"a\n")
    Tail(reader.loop, [log_file("web", "out", tmp_path / "log" / "\0")], 5, reader.emit, reader.loop.stop)
    reader.loop.run()
    assert reader.errors
    reader.loop.close()
