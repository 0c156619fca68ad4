# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches over real files on a real loop.

That something does *not* count is shown without waiting: afterwards a file called `fence` is written, and the first change that is told
must be that one, for a burst is told with its first path.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import watches as module
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.inotify import Event
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.watches import Watches

from .conftest import descriptors
from .waiting import DEADLINE

PACKAGES = Path(__file__).resolve().parents[3] / "plugins" / "module_utils"


class CountingLoop(Loop):
    turns = 0

    def _call(self, callback: Callable[[], None]) -> None:
        self.turns += 1
        super()._call(callback)


class Bench:
    """Watches on a loop, and what they have told."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.loop = CountingLoop(self._failed)
        self.said: list[str] = []
        self.hidden: set[str] = set()
        self.watches = Watches(self.loop, self.said.append, lambda path: path in self.hidden)
        self.told: list[tuple[str, str]] = []
        self._wanted: Callable[[], bool] = lambda: False

    def watch(self, root: Path, *ignore: str, key: str = "web") -> None:
        self.begin(root, *ignore, key=key)
        if self.watches._busy:  # a busy machine may have left no time for all of it
            self.settle()

    def begin(self, root: Path, *ignore: str, key: str = "web") -> None:
        """Returns while a larger tree is still looked at."""
        self.watches.watch(key, str(root), ignore, lambda path: self._changed(key, path))

    def _changed(self, key: str, path: str) -> None:
        self.told.append((key, path))
        if self._wanted():
            self.loop.stop()

    def next(self, count: int = 1) -> list[str]:
        """Runs the loop until so many more are told; the paths of all that are then."""
        before = len(self.told)
        self._wanted = lambda: len(self.told) >= before + count
        self.run()
        return [path for _key, path in self.told[before:]]

    def run(self) -> None:
        late: list[str] = []

        def too_late() -> None:
            late.append(f"told so far: {self.told}, said: {self.said}")
            self.loop.stop()

        timer = self.loop.after(DEADLINE, too_late)
        self.loop.run()
        timer.cancel()
        assert not self.errors, self.errors
        assert not late, late

    def settle(self, condition: Callable[[], bool] | None = None) -> None:
        """Runs the loop until the trees have been looked at, and what has happened until now has been read."""

        def turn() -> None:
            if not self.watches._busy and not self.watches._read(1) and (condition is None or condition()):
                self.loop.stop()
            else:
                self.loop.after(0, turn)

        self._wanted = lambda: False
        self.loop.after(0, turn)
        self.run()

    def nothing(self, folder: Path) -> None:
        """Nothing that has happened so far counts."""
        fence = folder / "fence"
        write(fence)
        assert self.next() == [str(fence)]

    def live_timers(self) -> int:
        return sum(one.callback is not None for one in self.loop._timers)

    def turns_at_once(self) -> int:
        """How many callbacks are due now, with one of our own that is the last."""
        before = self.loop.turns
        self.loop.after(0, self.loop.stop)
        self.loop.run()
        return self.loop.turns - before

    def kernel_watches(self) -> int:
        inotify = self.watches._kernel.inotify
        if inotify is None:
            return 0
        return Path(f"/proc/self/fdinfo/{inotify.fd}").read_text().count("inotify wd:")

    def _failed(self, error: BaseException) -> None:
        self.errors.append(error)
        self.loop.stop()


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.watches.close()
    one.loop.close()
    assert not one.errors


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of many bursts."""
    monkeypatch.setattr(module, "DELAY", 0.02)
    monkeypatch.setattr(module, "_PAUSE", 0.001)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "app"
    (root / "lib" / "deep").mkdir(parents=True)
    for name in ("main.py", "lib/a.py", "lib/deep/b.py"):
        write(root / name)
    return root


def write(path: Path, text: str = "x\n") -> None:
    path.write_text(text)


# What counts


def _read_everything(root: Path) -> None:
    for path in root.rglob("*.py"):
        path.read_bytes()
        path.stat()
        with path.open("r+b") as file:  # as a database does that is only asked
            file.read()
        path.chmod(0o755)
    subprocess.run([str(root / "lib" / "deep" / "run")], check=True)
    subprocess.run(["grep", "-r", "nothing", str(root)], check=False)
    list(root.rglob("**"))


def test_reads_never_count(bench: Bench, tree: Path) -> None:
    shutil.copy("/bin/true", tree / "lib" / "deep" / "run")
    bench.watch(tree)
    bench.nothing(tree)
    _read_everything(tree)
    bench.nothing(tree)
    for path in tree.rglob("*"):
        os.utime(path)
        path.chmod(0o700)
    bench.nothing(tree)


def _in_place(root: Path) -> Path:
    write(root / "lib" / "a.py", "y\n")
    return root / "lib" / "a.py"


def _append(root: Path) -> Path:
    with (root / "lib" / "a.py").open("a") as file:
        file.write("y\n")
    return root / "lib" / "a.py"


def _renamed_over(root: Path) -> Path:
    write(root / "lib" / "a.py.new")
    os.replace(root / "lib" / "a.py.new", root / "lib" / "a.py")
    return root / "lib" / "a.py.new"


def _vim(root: Path) -> Path:
    """With backupcopy=no: a swap file, a try with 4913, the file becomes the backup, a new one is written, the backup goes."""
    folder = root / "lib"
    write(folder / ".a.py.swp")
    write(folder / "4913")
    (folder / "4913").unlink()
    os.rename(folder / "a.py", folder / "a.py~")
    write(folder / "a.py", "y\n")
    (folder / "a.py~").unlink()
    (folder / ".a.py.swp").unlink()
    return folder / "a.py"


def _emacs(root: Path) -> Path:
    folder = root / "lib"
    os.symlink("user@host.1:1", folder / ".#a.py")
    write(folder / "a.py", "y\n")
    (folder / ".#a.py").unlink()
    return folder / "a.py"


def _ed(root: Path) -> Path:
    subprocess.run(["sed", "-i", "s/x/y/", str(root / "lib" / "deep" / "b.py")], check=True)
    return root / "lib" / "deep"


def _deleted(root: Path) -> Path:
    (root / "lib" / "a.py").unlink()
    return root / "lib" / "a.py"


def _moved_away(root: Path) -> Path:
    os.rename(root / "lib" / "a.py", root.parent / "a.py")
    return root / "lib" / "a.py"


def _moved_in(root: Path) -> Path:
    write(root.parent / "c.py")
    os.rename(root.parent / "c.py", root / "lib" / "c.py")
    return root / "lib" / "c.py"


def _linked(root: Path) -> Path:
    os.symlink("a.py", root / "lib" / "link.py")
    return root / "lib" / "link.py"


def _emptied(root: Path) -> Path:
    os.truncate(root / "main.py", 0)
    return root / "main.py"


COARSE = 5  # CLOCK_REALTIME_COARSE of linux/time.h


def _mapped(root: Path) -> Path:
    """No event tells of such a write, only the file's times, whose clock ticks every 10 ms: what is written in the tick of the watch
    may have been written before it."""
    began = time.time_ns()
    while time.clock_gettime_ns(COARSE) <= began:
        pass
    with (root / "main.py").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:1] = b"y"
        memory.flush()
    return root / "main.py"


def _folder_moved_in(root: Path) -> Path:
    (root.parent / "new").mkdir()
    write(root.parent / "new" / "a.py")
    os.rename(root.parent / "new", root / "lib" / "new")
    return root / "lib" / "new" / "a.py"


def _folder_moved_away(root: Path) -> Path:
    os.rename(root / "lib", root.parent / "lib")
    return root / "lib"


def _folder_renamed(root: Path) -> Path:
    os.rename(root / "lib" / "deep", root / "lib" / "deeper")
    return root / "lib" / "deep"


def _folder_deleted(root: Path) -> Path:
    shutil.rmtree(root / "lib" / "deep")
    return root / "lib" / "deep" / "b.py"


def _strange_names(root: Path) -> Path:
    folder = os.fsencode(root) + b"/\xff\n\xc3\xa9"
    os.mkdir(folder)
    with open(folder + b"/\xfe.py", "w") as file:
        file.write("x")
    return Path(os.fsdecode(folder + b"/\xfe.py"))


CHANGES = [
    *(
        _in_place,
        _append,
        _renamed_over,
        _vim,
        _emacs,
        _ed,
        _deleted,
        _moved_away,
        _moved_in,
        _linked,
        _emptied,
        _mapped,
    ),
    *(_folder_moved_in, _folder_moved_away, _folder_renamed, _folder_deleted, _strange_names),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_once(bench: Bench, tree: Path, change: Callable[[Path], Path]) -> None:
    bench.watch(tree)
    expected = str(change(tree))
    (told,) = bench.next()
    assert told.startswith(expected) if change is _ed else told == expected
    bench.nothing(tree)


def test_a_file_that_stays_open(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    with (tree / "main.py").open("a") as file:
        file.write("y")
        file.flush()
        assert bench.next() == [str(tree / "main.py")]
    bench.nothing(tree)  # its end says nothing new


def test_empty_folders_do_not_count(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    (tree / "new" / "deep").mkdir(parents=True)
    (tree / "new" / "other").mkdir()
    os.rename(tree / "new" / "other", tree / "new" / "renamed")
    (tree / "new" / "renamed").rmdir()
    bench.nothing(tree)
    write(tree / "new" / "deep" / "a.py")
    assert bench.next() == [str(tree / "new" / "deep" / "a.py")]


def test_linked_folders_are_not_followed(bench: Bench, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tree / "lib" / "elsewhere")
    os.symlink("..", tree / "lib" / "loop")
    bench.watch(tree)
    write(tmp_path / "elsewhere" / "a.py")
    bench.nothing(tree)


# Ignores


def test_ignored_things_do_not_count_and_cost_nothing(bench: Bench, tree: Path) -> None:
    for folder in (".git/objects", "node_modules/left/pad", "lib/__pycache__", "static/cache/deep"):
        (tree / folder).mkdir(parents=True)
    bench.watch(tree, "static/cache", "*.tmp", "lo")
    before = bench.kernel_watches()
    for name in (".git/index", "node_modules/left/pad/a.js", "static/cache/deep/x", "a.tmp", "web.log", "lib/a.py~"):
        write(tree / name)
    for folder in ("lib/deep/node_modules/x", "static/cache/y", "lo/x"):
        (tree / folder).mkdir(parents=True)
        write(tree / folder / "a.js")
    bench.nothing(tree)
    assert bench.kernel_watches() == before
    write(tree / "log")
    assert bench.next() == [str(tree / "log")]


def test_the_path_of_the_root_is_not_ignored(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "node_modules" / "log"
    root.mkdir(parents=True)
    bench.watch(root, "log")
    bench.nothing(root)


def test_a_folder_that_gets_another_name_is_ignored_no_more(bench: Bench, tree: Path) -> None:
    (tree / "node_modules").mkdir()
    write(tree / "node_modules" / "a.js")
    bench.watch(tree)
    os.rename(tree / "node_modules", tree / "modules")
    assert bench.next() == [str(tree / "modules" / "a.js")]
    os.rename(tree / "modules", tree / "node_modules")
    assert bench.next() == [str(tree / "modules")]
    write(tree / "node_modules" / "a.js", "y")
    bench.nothing(tree)


def test_what_the_agent_writes_itself_does_not_count(bench: Bench, tree: Path) -> None:
    (tree / "data" / "deep").mkdir(parents=True)
    bench.hidden = {str(tree / "data"), str(tree / "own")}
    bench.watch(tree)
    write(tree / "data" / "deep" / "store")
    write(tree / "data" / "store")
    write(tree / "own")
    bench.nothing(tree)


# Bursts


def test_a_burst_is_told_once_and_the_next_again(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    for number in range(300):
        write(tree / f"{number}.py")
    assert bench.next() == [str(tree / "0.py")]
    write(tree / "again.py")
    write(tree / "and again.py")
    assert bench.next() == [str(tree / "again.py")]
    bench.nothing(tree)


def test_a_burst_lasts_half_a_second(bench: Bench, tree: Path) -> None:
    assert module.DELAY == 0.5
    bench.watch(tree)
    write(tree / "first")
    begin = bench.loop.time()
    for number in range(1, 5):
        bench.loop.after(number / 10, lambda number=number: write(tree / f"later {number}"))  # type: ignore[misc]
    assert bench.next() == [str(tree / "first")]
    assert bench.loop.time() - begin >= module.DELAY
    bench.nothing(tree)


def test_a_thousand_watchers_of_a_tree_are_one(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    before = bench.kernel_watches()
    before_them = descriptors()
    for number in range(1000):
        bench.watch(tree, key=f"web:{number}")
    assert bench.kernel_watches() == before
    assert descriptors() == before_them
    write(tree / "a.py")
    told = bench.next(1001)
    assert set(told) == {str(tree / "a.py")}
    assert len({key for key, _path in bench.told}) == 1001


def test_a_newcomer_hears_only_what_comes_after(bench: Bench, tree: Path) -> None:
    bench.watch(tree, key="old")
    write(tree / "before")
    bench.watch(tree, key="new")
    write(tree / "after")
    bench.next(2)
    assert bench.told == [("old", str(tree / "before")), ("new", str(tree / "after"))]
    bench.nothing(tree)


def test_trees_may_overlap(bench: Bench, tree: Path) -> None:
    bench.watch(tree, key="all")
    bench.watch(tree / "lib", key="lib")
    bench.watch(tree, "lib", key="rest")
    write(tree / "lib" / "a.py")
    write(tree / "main.py")
    bench.next(3)
    assert sorted(bench.told) == [
        ("all", str(tree / "lib" / "a.py")),
        ("lib", str(tree / "lib" / "a.py")),
        ("rest", str(tree / "main.py")),
    ]
    bench.watches.unwatch("all")
    bench.told.clear()
    write(tree / "lib" / "a.py")
    write(tree / "main.py")
    bench.next(2)
    assert {key for key, _path in bench.told} == {"lib", "rest"}


def test_who_left_hears_nothing_more(bench: Bench, tree: Path) -> None:
    bench.watch(tree, key="old")
    bench.watch(tree, key="web")
    write(tree / "a.py")
    bench.settle(lambda: not bench.watches._watchers["web"].shared.quiet)
    bench.watches.unwatch("old")
    bench.watch(tree)  # replaced: what was on the way to the former is not for this one
    shared = bench.watches._watchers["web"].shared
    bench.nothing(tree)
    assert len(bench.told) == 1
    assert set(shared.quiet) == shared.watchers


def test_who_is_told_may_end_the_watch_of_the_next(bench: Bench, tree: Path) -> None:
    def changed(path: str) -> None:
        bench.watches.unwatch("second")
        bench._changed("first", path)

    bench.watches.watch("first", str(tree), (), changed)
    bench.watch(tree, key="second")
    write(tree / "a.py")
    assert bench.next() == [str(tree / "a.py")]
    bench.nothing(tree)
    assert {key for key, _path in bench.told} == {"first"}


def test_everything_is_given_back(bench: Bench, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.0)
    before_them = descriptors()
    bench.watch(tree, key="one")
    before = bench.kernel_watches()
    bench.watch(tree, "x", key="two")
    bench.watch(tree / "lib", key="three")
    for key in ("two", "three"):
        bench.watches.unwatch(key)
    bench.settle(lambda: bench.kernel_watches() == before and len(bench.watches._shared) == 1)
    bench.watches.unwatch("one")
    bench.settle(lambda: descriptors() == before_them)
    bench.watch(tree)
    bench.nothing(tree)


def test_a_tree_is_not_scanned_again_for_a_restart(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    first = bench.watches._watchers["web"].shared
    bench.watches.unwatch("web")
    write(tree / "meanwhile")
    bench.watch(tree)
    assert bench.watches._watchers["web"].shared is first
    bench.nothing(tree)


def test_idle_is_idle(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    bench.nothing(tree)
    bench.settle(lambda: bench.live_timers() == 1)  # that of `run`
    for path in (tree, tree.parent, Path("/tmp")):
        list(path.iterdir())
    write(tree.parent / "sibling")
    (tree / "main.py").read_bytes()
    assert bench.live_timers() == 0
    assert bench.turns_at_once() == 1  # ours: the kernel has told nothing


def test_who_writes_without_end_is_read_once_per_pause(
    bench: Bench, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE", 1000.0)
    bench.watch(tree)
    inotify = bench.watches._kernel.inotify
    assert inotify is not None
    read, readings = inotify.read, []

    def read_then_write() -> list[Event]:
        """Somebody has written again whenever we have read."""
        readings.append(read())
        write(tree / "busy")
        return readings[-1]

    monkeypatch.setattr(inotify, "read", read_then_write)
    write(tree / "busy")
    assert bench.next() == [str(tree / "busy")]
    assert len(readings) == 2  # when it began, and before it was told
    assert bench.turns_at_once() == 1  # events are there, and may wait


def test_who_writes_without_end_is_told_again_and_again(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    command = "import sys\nwith open(sys.argv[1], 'w', 1) as file:\n while True: file.write('x\\n'); file.seek(0)"
    writer = subprocess.Popen([sys.executable, "-c", command, str(tree / "busy")])
    try:
        assert bench.next(3) == [str(tree / "busy")] * 3
    finally:
        writer.kill()
        writer.wait()


def test_a_kept_tree_goes_after_a_while(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    bench.watches.unwatch("web")
    shared = next(iter(bench.watches._shared.values()))
    assert shared.linger is not None
    assert 0 < shared.linger.when - bench.loop.time() <= module.LINGER
    callback = shared.linger.callback
    assert callback is not None
    shared.linger.cancel()
    callback()  # its time has come
    bench.settle(lambda: bench.kernel_watches() == 0)
    assert not bench.watches._shared


def test_who_comes_back_keeps_the_tree(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    bench.watches.unwatch("web")
    shared = next(iter(bench.watches._shared.values()))
    bench.watch(tree)
    assert shared.linger is None
    bench.settle(lambda: bench.live_timers() == 1)


# The root


def test_a_missing_root_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "srv" / "app" / "src"
    bench.watch(root)
    assert "does not exist" in (bench.watches.trouble("web") or "")
    root.mkdir(parents=True)
    write(root / "a.py")
    assert bench.next() == [str(root / "a.py")]
    assert bench.watches.trouble("web") is None
    bench.nothing(root)
    assert len(bench.said) == 1


@pytest.mark.parametrize("busy", [False, True])
def test_a_root_that_goes_and_comes_again(bench: Bench, tree: Path, busy: bool) -> None:
    """`busy`: a process works in the root, so the kernel keeps the deleted folder."""
    root = tree / "lib" / "deep"
    worker = subprocess.Popen(["cat"], cwd=root, stdin=subprocess.PIPE) if busy else None
    try:
        bench.watch(root)
        for _round in range(3):
            shutil.rmtree(tree)
            assert bench.next() == [str(root / "b.py")]
            bench.settle()
            assert "does not exist" in (bench.watches.trouble("web") or "")
            root.mkdir(parents=True)
            bench.settle()
            write(root / "b.py")
            assert bench.next() == [str(root / "b.py")]
            bench.nothing(root)
            (root / "fence").unlink()
            assert bench.next() == [str(root / "fence")]
    finally:
        if worker is not None:
            worker.communicate()


def test_a_folder_above_the_root_is_replaced(bench: Bench, tree: Path, tmp_path: Path) -> None:
    root = tree / "lib"
    bench.watch(root)
    shutil.copytree(tree, tmp_path / "next")
    os.rename(tree, tmp_path / "last")
    os.rename(tmp_path / "next", tree)
    assert bench.next() == [str(root)]
    write(tmp_path / "last" / "lib" / "a.py")
    bench.nothing(root)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_link_is_switched(bench: Bench, tmp_path: Path, atomic: bool) -> None:
    for release in ("41", "42"):
        (tmp_path / "releases" / release / "lib").mkdir(parents=True)
        write(tmp_path / "releases" / release / "lib" / "a.py")
    current = tmp_path / "current"
    os.symlink("releases/41", current)
    bench.watch(current)
    write(tmp_path / "releases" / "41" / "lib" / "a.py")
    assert bench.next() == [str(current / "lib" / "a.py")]
    for release, other in (("42", "41"), ("41", "42")):
        if atomic:
            os.symlink(f"releases/{release}", tmp_path / "new")
            os.replace(tmp_path / "new", current)
        else:
            current.unlink()
            os.symlink(f"releases/{release}", current)
        assert bench.next() == [str(current)]
        write(tmp_path / "releases" / other / "lib" / "a.py")
        bench.nothing(current)
        write(tmp_path / "releases" / release / "lib" / "b.py")
        assert bench.next() == [str(current / "lib" / "b.py")]
    assert bench.said == []


def test_a_link_above_the_root_is_switched(bench: Bench, tmp_path: Path) -> None:
    for release in ("41", "42"):
        (tmp_path / "releases" / release / "src").mkdir(parents=True)
        write(tmp_path / "releases" / release / "src" / "a.py")
    os.symlink(tmp_path / "releases" / "41", tmp_path / "current")
    root = tmp_path / "releases" / ".." / "current" / "src"
    bench.watch(root)
    os.symlink("./releases/../releases/42/.", tmp_path / "new")
    os.replace(tmp_path / "new", tmp_path / "current")
    assert bench.next() == [str(root)]
    bench.nothing(root)


def test_links_in_a_circle(bench: Bench, tmp_path: Path) -> None:
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    bench.watch(tmp_path / "a")
    assert "symbolic links" in (bench.watches.trouble("web") or "")
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "x.py")
    assert bench.next() == [str(tmp_path / "a" / "x.py")]
    assert bench.watches.trouble("web") is None


def test_a_single_file(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "a.log"  # an ignored name: whoever names it means it
    write(root)
    bench.watch(root)
    root.read_bytes()
    root.chmod(0o600)
    write(tmp_path / "other")
    write(root, "y\n")
    assert bench.next() == [str(root)]
    for _round in range(2):
        write(tmp_path / "new")
        os.replace(tmp_path / "new", root)
        assert bench.next() == [str(root)]
    with root.open():  # somebody has it open
        root.unlink()
        assert bench.next() == [str(root)]
    write(root)
    assert bench.next() == [str(root)]
    root.unlink()
    root.mkdir()
    write(root / "a.py")
    assert bench.next() == [str(root)]
    bench.nothing(root)


def test_the_root_of_all_can_be_watched(bench: Bench) -> None:
    everything = [name for name in os.listdir("/") if name != "tmp"]
    bench.watch(Path("/"), *(f"/{name}/" for name in everything), "/tmp/")
    assert bench.watches.trouble("web") is None
    assert bench.kernel_watches() == 1


# Races


def test_folders_filled_at_full_speed(bench: Bench, tree: Path, fast: None) -> None:
    bench.watch(tree)
    script = (
        "import os, sys\n"
        "for number in range(300):\n"
        "    folder = f'{sys.argv[1]}/{number % 7}/{number}/x/y'\n"
        "    os.makedirs(folder)\n"
        "    open(folder + '/a.py', 'w').close()\n"
    )
    subprocess.Popen([sys.executable, "-c", script, str(tree)]).wait()
    assert bench.next()
    bench.settle()
    for number in range(0, 300, 30):  # all of them are watched
        path = tree / f"{number % 7}/{number}/x/y/a.py"
        write(path, "y")
        assert str(path) in bench.next()


class History:
    """Random things that happen to a tree; what it looks like."""

    NAMES = ("a", "b", "c")

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.count = itertools.count()

    def path(self) -> Path:
        return self.root.joinpath(*self.random.choices(self.NAMES, k=self.random.choice((1, 1, 2, 2, 3, 4))))

    def step(self) -> None:
        try:
            self.random.choice((self.write, self.write, self.make, self.move, self.move, self.remove, self.reroot))()
        except OSError:
            pass  # what the dice ask for is not always possible

    def write(self) -> None:
        write(self.path(), str(next(self.count)))

    def make(self) -> None:
        self.path().mkdir(parents=True)

    def move(self) -> None:
        os.rename(self.path(), self.path())

    def remove(self) -> None:
        path = self.path()
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def reroot(self) -> None:
        if self.random.random() < 0.2:
            aside = self.root.parent / "aside"
            if aside.exists():
                os.rename(aside, self.root) if not self.root.exists() else shutil.rmtree(aside)
            else:
                os.rename(self.root, aside)
                self.root.mkdir()

    def state(self) -> dict[str, tuple[int, int]]:
        """Every file, which one it is, and when it was written."""
        found = {}
        for folder, _folders, files in os.walk(self.root):
            for name in files:
                path = os.path.join(folder, name)
                status = os.stat(path)
                found[path] = (status.st_ino, status.st_mtime_ns)
        return found


@pytest.mark.parametrize("seed", range(40))
def test_after_the_last_change_there_is_always_one_told(bench: Bench, tmp_path: Path, seed: int, fast: None) -> None:
    root = tmp_path / "app"
    root.mkdir()
    history = History(root, seed)
    for _number in range(history.random.randrange(20)):
        history.step()
    known = [history.state()]
    bench.watches.watch("web", str(root), (), lambda path: known.append(history.state()))
    left = [120]

    def some() -> None:
        """Steps at full speed, then a pause of some turns or some bursts."""
        for _number in range(min(left[0], history.random.choice((1, 2, 5, 20)))):
            history.step()
            left[0] -= 1
        bench.loop.after(history.random.choice((0, 0, 0.001, 0.005, 0.05)), some if left[0] > 0 else bench.loop.stop)

    bench.loop.after(0, some)
    bench.run()

    def turn() -> None:
        if known[-1] == history.state():
            bench.loop.stop()
        else:
            bench.loop.after(0.001, turn)

    bench.loop.after(0, turn)
    bench.run()
    # ... and all that is left is watched.
    for path in sorted(known[-1]):
        bench.settle(lambda: all(shared.quiet and not shared.due for shared in bench.watches._shared.values()))
        told = len(known)
        write(Path(path), "again")
        bench.loop.after(0, lambda told=told: _stop_when(bench, lambda: len(known) > told))  # type: ignore[misc]
        bench.run()


def _stop_when(bench: Bench, condition: Callable[[], bool]) -> None:
    if condition():
        bench.loop.stop()
    else:
        bench.loop.after(0.001, lambda: _stop_when(bench, condition))


# Size


def test_more_events_than_the_kernel_keeps(bench: Bench, tree: Path) -> None:
    bench.watch(tree)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(limit // 2 + 10):  # while the loop stands still; two alternating files are not merged
        os.truncate(tree / "main.py", number)
        os.truncate(tree / "lib" / "a.py", number)
    (tree / "unseen" / "deep").mkdir(parents=True)
    shutil.rmtree(tree / "lib" / "deep")
    (tree / "lib" / "deep").mkdir()
    assert bench.next() == [str(tree / "main.py")]
    bench.nothing(tree)
    for folder in ("unseen/deep", "lib/deep", "lib"):
        write(tree / folder / "new.py")
        assert bench.next() == [str(tree / folder / "new.py")]


def _many(root: Path, folders: int) -> None:
    for number in range(folders):
        path = root / str(number % 50) / str(number)
        path.mkdir(parents=True)
        (path / "a.py").touch()


def test_thousands_of_folders(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "app"
    _many(root, 5000)
    bench.begin(root)
    assert bench.watches._busy  # not all at once
    begin = bench.watches._watchers["web"].shared.tree._since or 0
    changed = root / "49" / "4999" / "a.py"
    while changed.stat().st_ctime_ns <= begin:  # the clock of files ticks
        write(changed, "while the folders are still looked at")
    assert bench.next() == [str(root / "49" / "4999" / "a.py")]
    assert bench.kernel_watches() >= 5051
    write(root / "7" / "4957" / "a.py", "y")
    assert bench.next() == [str(root / "7" / "4957" / "a.py")]
    bench.nothing(root)
    assert bench.watches.trouble("web") is None
    shutil.rmtree(root)
    bench.next()
    bench.settle(lambda: bench.kernel_watches() < 20)


LIMITED = """
import sys
sys.path.insert(0, sys.argv[1])
from pm3.agent.loop import Loop
from pm3.agent.watches import Watches
from pathlib import Path

root, limit = Path(sys.argv[2]), Path("/proc/sys/user") / sys.argv[3]
limit.write_text(sys.argv[4])
def fail(error): raise error
loop, said, told = Loop(fail), [], []
watches = Watches(loop, said.append)
def changed(path): told.append(path); loop.stop()
def settle():
    loop.after(0.01, settle) if watches._busy else loop.stop()
watches.watch("web", str(root), (), changed)
loop.after(0, settle); loop.run()
print(said, watches.trouble("web"), sep="\\n")
if not watches._refusal:
    (root / "top.py").write_text("x"); loop.run()
limit.write_text("10000")
watches.watch("web", str(root), (), changed)
loop.after(0, settle); loop.run()
print(said, watches.trouble("web"), sep="\\n")
(root / "49" / "99" / "a.py").write_text("x"); loop.run()
print(told)
"""


def _limited(root: Path, name: str, value: int) -> list[str]:
    """A tree of 100 folders under a limit that is then raised, in a user namespace of its own.

    Never by fs.inotify.*: those belong to the whole machine, whichever namespace they are written in.
    """
    if subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    command = ["unshare", "-Ur", sys.executable, "-c", LIMITED, str(PACKAGES), str(root), name, str(value)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


UNREADABLE = """
import sys
sys.path.insert(0, sys.argv[1])
from pm3.agent.loop import Loop
from pm3.agent.watches import Watches
from pathlib import Path

root = Path(sys.argv[2])
for name in ("open", "closed"):
    (root / name).mkdir()
(root / "closed").chmod(0)
def fail(error): raise error
loop, said, told = Loop(fail), [], []
watches = Watches(loop, said.append)
def changed(path): told.append(path); loop.stop()
def settle():
    loop.after(0, settle) if watches._busy else loop.stop()
watches.watch("web", str(root), (), changed)
loop.after(0, settle); loop.run()
print(said, watches.trouble("web"), sep="\\n")
(root / "open" / "a.py").write_text("x"); loop.run()
(root / "closed").chmod(0o700)
watches.watch("web", str(root), (), changed)
loop.after(0, settle); loop.run()
print(watches.trouble("web"))
(root / "closed" / "a.py").write_text("x"); loop.run()
print(told)
"""


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """By somebody without rights: a root without capabilities, for the tests' Python may be nobody else's to run."""
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    if powerless and subprocess.run([*powerless, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no way here to give up rights")
    root = tmp_path / "app"
    root.mkdir()
    command = [*powerless, sys.executable, "-c", UNREADABLE, str(PACKAGES), str(root)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said, trouble, mended, told = done.stdout.splitlines()
    assert trouble == f"{root}/closed cannot be watched: Permission denied; what changes in it is not seen"
    assert (said, mended) == (str([trouble]), "None")
    assert told == str([str(root / "open" / "a.py"), str(root / "closed" / "a.py")])


def test_the_limit_of_watches(tmp_path: Path) -> None:
    root = tmp_path / "app"
    _many(root, 100)
    said, trouble, later, mended, told = _limited(root, "max_inotify_watches", 70)
    assert said.count("watched only in part") == 1
    assert "sysctl user.max_inotify_watches=280" in trouble
    assert (later, mended) == (said, "None")
    assert told == str([str(root / "top.py"), str(root / "49" / "99" / "a.py")])


def test_the_limit_of_instances(tmp_path: Path) -> None:
    root = tmp_path / "app"
    _many(root, 100)
    said, trouble, later, mended, told = _limited(root, "max_inotify_instances", 0)
    assert said.count("max_user_instances") == 1
    assert "max_user_instances" in trouble
    assert (later, mended) == (said, "None")
    assert told == str([str(root / "49" / "99" / "a.py")])
