"""Checkpoints of the store: one at a time, off the loop, and what is asked for during one is not forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.checkpoints import Checkpoints
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.schemas import StoreError

from .waiting import DEADLINE


@pytest.fixture
def loop() -> Iterator[Loop]:
    errors: list[BaseException] = []
    one = Loop(errors.append)
    yield one
    one.close()
    assert errors == []


class Disk:
    """Each write takes until it is allowed to end."""

    def __init__(self) -> None:
        self.begun, self.at_once, self.most = 0, 0, 0
        self.may_end = threading.Semaphore(0)
        self.is_full = False
        self._threads = threading.active_count()

    def rests(self) -> bool:
        return threading.active_count() == self._threads

    def write(self) -> None:
        self.begun += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        assert self.may_end.acquire(timeout=DEADLINE)
        self.at_once -= 1
        if self.is_full:
            raise StoreError("store.sqlite cannot be written: database or disk is full")


def run_until(loop: Loop, condition: Callable[[], bool]) -> None:
    """Runs the loop until `condition` holds."""

    def look() -> None:
        if condition():
            loop.stop()
        else:
            loop.after(0.001, look)

    late = loop.after(DEADLINE, loop.stop)
    loop.soon(look)
    loop.run()
    late.cancel()
    assert condition()


def test_what_is_asked_for_meanwhile_is_one_more(loop: Loop) -> None:
    """Whoever has changed something after a checkpoint began is not served by that one."""
    disk = Disk()
    checkpoints = Checkpoints(loop, disk.write, pytest.fail)
    checkpoints.ask()
    run_until(loop, lambda: disk.begun == 1)
    for __ in range(5):
        checkpoints.ask()
    disk.may_end.release()
    run_until(loop, lambda: disk.begun == 2)
    disk.may_end.release()
    checkpoints.ask()
    run_until(loop, lambda: disk.begun == 3)
    disk.may_end.release()
    run_until(loop, disk.rests)
    assert (disk.begun, disk.most) == (3, 1)


def test_a_disk_that_is_full_is_told_and_tried_again(loop: Loop) -> None:
    disk, told = Disk(), list[str]()
    checkpoints = Checkpoints(loop, disk.write, told.append)
    for is_full in (True, False):
        disk.is_full = is_full
        disk.may_end.release()
        checkpoints.ask()
        run_until(loop, disk.rests)
    assert disk.begun == 2
    assert len(told) == 1
    assert "disk is full; until it can be, a loss of power would undo" in told[0]
