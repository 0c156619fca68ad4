# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that takes several steps and waits in between: rolling instances, walking through levels.

A task is a generator. It yields what it waits for and goes on when that is there; so a long request reads from top to bottom, and
needs neither a thread nor an event loop of its own. What can be waited for is anything with `begin(resume)` and `cancel()`.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Callable, Protocol

from .loop import Loop, Timer


class Wait(Protocol):
    def begin(self, resume: Callable[[Any], None]) -> None:
        """Calls `resume(answer)` exactly once, now or later, unless cancelled before."""

    def cancel(self) -> None: ...


Steps = Generator[Wait, Any, Any]


class Task:
    """A running generator. Waiting for a task gives the task, once it is done."""

    __slots__ = ("_advancing", "_answers", "_resume", "_steps", "_wait", "done", "error", "result")

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._resume: Callable[[Any], None] | None = None
        self._wait: Wait | None = None
        self._answers: list[Any] = []
        self._advancing = False
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> Task:
        self._advance(None)
        return self

    def begin(self, resume: Callable[[Any], None]) -> None:
        if self.done:
            resume(self)
        else:
            self._resume = resume

    def cancel(self) -> None:
        """Ends the task where it stands: its generator sees GeneratorExit."""
        if not self.done:
            self.done = True
            if self._wait is not None:
                self._wait.cancel()
            self._steps.close()

    def _advance(self, answer: Any) -> None:
        """Runs the generator to where it really has to wait. An answer that comes at once is taken up here, without recursion."""
        self._answers.append(answer)
        if self._advancing:
            return
        self._advancing = True
        while self._answers and not self.done:
            try:
                self._wait = self._steps.send(self._answers.pop())
            except StopIteration as stop:
                self._end(stop.value, None)
            except Exception as error:  # told to whoever waits for the task
                self._end(None, error)
            else:
                self._wait.begin(self._advance)
        self._advancing = False

    def _end(self, result: Any, error: BaseException | None) -> None:
        self.done, self.result, self.error = True, result, error
        # What waits and what is waited for know each other: with thousands of them, that is not left to the collector of cycles.
        resume, self._resume, self._wait = self._resume, None, None
        if resume is not None:
            resume(self)

    def value(self) -> Any:
        """The result of a task that is done; raises what ended it."""
        if self.error is not None:
            raise self.error
        return self.result


class Pace:
    """For work of many small pieces: where its time is `over()`, it yields the pace, and so lets other news have their turn first."""

    def __init__(self, loop: Loop, seconds: float = 0.005) -> None:
        self._loop = loop
        self._seconds = seconds
        self._until = loop.time() + seconds
        self._timer: Timer | None = None

    def over(self) -> bool:
        return self._loop.time() >= self._until

    def begin(self, resume: Callable[[Any], None]) -> None:
        def go_on() -> None:
            self._until = self._loop.time() + self._seconds
            resume(None)

        # Not `soon`, which may still be in this turn: descriptors come before timers.
        self._timer = self._loop.after(0, go_on)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def paced(pace: Pace, parts: Generator[None, None, Any]) -> Steps:
    """Runs work that comes in small parts; gives its result."""
    while True:
        try:
            next(parts)
        except StopIteration as stop:
            return stop.value
        if pace.over():
            yield pace


class Aside:
    """Does what may take long in a thread; the answer is the error that it raised, or None. Cancelled, it is done all the same."""

    def __init__(self, loop: Loop, work: Callable[[], None]) -> None:
        self._loop = loop
        self._work = work
        self._resume: Callable[[Any], None] | None = None

    def begin(self, resume: Callable[[Any], None]) -> None:
        self._resume = resume
        try:
            threading.Thread(target=self._run, daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._over(error)

    def cancel(self) -> None:
        self._resume = None

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            self._work()
        except Exception as error:
            failure = error
        self._loop.from_thread(lambda: self._over(failure))

    def _over(self, failure: Exception | None) -> None:
        if self._resume is not None:
            self._resume(failure)


class All:
    """Runs several tasks side by side, begun a slice at a time; the answer is the list of them, once all are done."""

    def __init__(self, loop: Loop, tasks: Sequence[Task]) -> None:
        self._pace = Pace(loop)
        self._tasks = tasks
        self._begun = 0
        self._left = len(tasks)
        self._resume: Callable[[Any], None] | None = None

    def begin(self, resume: Callable[[Any], None]) -> None:
        self._resume = resume
        if not self._tasks:
            resume(self._tasks)
        self._begin_some()

    def cancel(self) -> None:
        self._pace.cancel()
        for task in self._tasks:
            task.cancel()

    def _begin_some(self, _turn: Any = None) -> None:
        while self._begun < len(self._tasks):
            if self._pace.over():
                self._pace.begin(self._begin_some)
                return
            task = self._tasks[self._begun]
            self._begun += 1
            task.start().begin(self._one)

    def _one(self, _task: Any) -> None:
        self._left -= 1
        if self._left == 0 and self._resume is not None:
            self._resume(self._tasks)


class Turns:
    """Lets pieces of work that share something happen one after the other, in the order in which they were asked for.

    What they share is named by keys; work whose keys nobody else holds or waits for begins at once.
    """

    def __init__(self) -> None:
        self._jobs: list[_Job] = []

    def take(self, keys: Iterable[Any], begin: Callable[[Callable[[], None]], None]) -> None:
        """Calls `begin(done)` when it is its turn; the turn lasts until `done()`."""
        self._jobs.append(_Job(frozenset(keys), begin))
        self._look()

    def _look(self) -> None:
        held: set[Any] = set()
        for job in list(self._jobs):
            if not job.begun and held.isdisjoint(job.keys):
                job.begun = True
                job.begin(lambda job=job: self._done(job))  # type: ignore[misc]
            held |= job.keys

    def _done(self, job: _Job) -> None:
        self._jobs.remove(job)
        self._look()


class _Job:
    def __init__(self, keys: frozenset[Any], begin: Callable[[Callable[[], None]], None]) -> None:
        self.keys = keys
        self.begin = begin
        self.begun = False
