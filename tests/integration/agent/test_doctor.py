"""The loop that measures itself, long work in slices, and what the agent tells of itself."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import READ, Lag, Loop
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.tasks import All, Aside, Pace, Steps, Task

from .conftest import Agent
from .waiting import DEADLINE, until


@pytest.fixture
def errors() -> list[BaseException]:
    return []


@pytest.fixture
def loop(errors: list[BaseException]) -> Any:
    one = Loop(errors.append)
    yield one
    one.close()
    assert errors == []


def slow() -> None:
    until_then = time.monotonic() + 2 * Lag.SLOW
    while time.monotonic() < until_then:
        pass


# The loop


def test_a_slow_turn_is_noted_with_its_culprit(loop: Loop) -> None:
    loop.soon(lambda: None)
    loop.soon(slow)
    loop.soon(loop.stop)
    loop.run()
    assert loop.lag.longest >= 2 * Lag.SLOW
    assert loop.lag.culprit == "slow"
    assert loop.lag.slow == 1
    assert loop.lag.last_minute(loop.time()) == loop.lag.longest


def test_the_last_minute_forgets() -> None:
    lag = Lag()
    lag.note(3.0, 1000.0, slow)
    lag.note(1.0, 1030.0, slow)
    lag.note(0.5, 1055.0, slow)
    assert lag.last_minute(1060.0) == 3.0
    assert lag.last_minute(1075.0) == 1.0
    assert lag.last_minute(1110.0) == 0.5
    assert lag.last_minute(9999.0) == 0.0
    assert (lag.longest, lag.slow) == (3.0, 3)


def test_a_timer_may_be_further_away_than_the_kernel_can_sleep(loop: Loop) -> None:
    loop.after(2.0**64, lambda: None)
    loop.from_thread(loop.stop)
    loop.run()


def test_of_more_news_than_a_turn_takes_none_is_forgotten(loop: Loop) -> None:
    """All are ready for ever; each must get its turn although the first ones never stop."""
    told: set[int] = set()
    pipes = [os.pipe() for _pipe in range(600)]

    def news(number: int) -> None:
        told.add(number)
        if len(told) == len(pipes):
            loop.stop()

    for number, (read, write) in enumerate(pipes):
        os.write(write, b"x")
        loop.watch(read, READ, lambda number=number: news(number))
    limit = loop.after(20, loop.stop)
    loop.run()
    limit.cancel()
    for read, write in pipes:
        loop.unwatch(read)
        os.close(read)
        os.close(write)
    assert len(told) == len(pipes)


# Long work


def test_others_have_their_turn_between_slices(loop: Loop) -> None:
    heard: list[str] = []

    def steps() -> Steps:
        pace = Pace(loop)
        for _piece in range(5):
            slow()
            heard.append("piece")
            if pace.over():
                yield pace

    loop.soon(lambda: Task(steps()).start().begin(lambda _task: loop.stop()))
    loop.from_thread(lambda: heard.append("other"))
    loop.run()
    assert heard.count("piece") == 5
    assert heard.index("other") <= 2  # what a descriptor tells is heard in the turn after the first slice


def test_tasks_that_were_not_begun_never_are_when_it_is_cancelled(loop: Loop) -> None:
    begun: list[int] = []

    def steps(number: int) -> Steps:
        begun.append(number)
        slow()
        return
        yield

    everything = All(loop, [Task(steps(number)) for number in range(5)])
    everything.begin(lambda _tasks: None)
    everything.cancel()
    loop.soon(loop.stop)
    loop.run()
    assert begun == [0]


def test_what_takes_long_is_done_aside(loop: Loop) -> None:
    here: list[bool] = []
    may_go_on = threading.Event()

    def work() -> None:
        here.append(threading.current_thread() is threading.main_thread())
        assert may_go_on.wait(DEADLINE)
        raise OSError("no room")

    def steps() -> Steps:
        return [str((yield Aside(loop, work))), (yield Aside(loop, lambda: None))]

    task = Task(steps()).start()
    task.begin(lambda _task: loop.stop())
    loop.soon(may_go_on.set)
    loop.run()
    assert task.value() == ["no room", None]
    assert here == [False]


def test_who_is_cancelled_hears_nothing_of_what_is_done_aside(loop: Loop) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    heard: list[object] = []

    def work() -> None:
        threads.append(threading.current_thread())
        begun.set()
        may_go_on.wait(DEADLINE)

    def steps() -> Steps:
        heard.append((yield Aside(loop, work)))

    task = Task(steps()).start()
    assert begun.wait(DEADLINE)
    task.cancel()
    may_go_on.set()
    threads[0].join()
    loop.soon(loop.stop)
    loop.run()
    assert heard == []


# The facts


def facts(agent: Agent) -> dict[str, dict[str, Any]]:
    answer = agent.ask("doctor")
    assert answer["type"] == "doctor"
    for fact in answer["facts"]:
        assert set(fact) == {"name", "ok", "severity", "text"}
        assert fact["severity"] in ("error", "warning", "info")
        assert fact["text"]
        assert "\n" not in fact["text"]
    return {fact["name"]: fact for fact in answer["facts"]}


def test_a_healthy_agent_has_no_error(agent: Agent) -> None:
    agent.apply({"web": {"command": "sleep 1000", "instances": 2, "min_uptime": 50}})
    found = facts(agent)
    assert not [fact for fact in found.values() if not fact["ok"] and fact["severity"] == "error"]
    assert {"runs", "loop", "cgroups", "pidfd", "descriptors", "open files", "inotify", "store", "logs"} <= set(found)
    assert "2 instances, 2 of them running" in found["runs"]["text"]
    assert "kept by a keeper" in found["descriptors"]["text"]


def test_a_store_that_is_gone_is_told(agent: Agent) -> None:
    path = agent.data_dir / "store.sqlite"
    path.rename(agent.data_dir / "elsewhere")
    (agent.data_dir / "store.sqlite-wal").rename(agent.data_dir / "elsewhere-wal")
    store = facts(agent)["store"]
    assert (store["ok"], store["severity"]) == (False, "error")
    (agent.data_dir / "elsewhere").rename(path)
    (agent.data_dir / "elsewhere-wal").rename(agent.data_dir / "store.sqlite-wal")


def test_output_that_was_lost_is_told(agent: Agent) -> None:
    (agent.data_dir / "logs" / "talker-out.log").mkdir()
    agent.apply({"talker": {"command": "sh -c 'echo hello; exec sleep 1000'", "min_uptime": 50}})
    lost = until(lambda: facts(agent).get("output"), "the loss is told")
    assert "talker lost 6 bytes" in lost["text"]
    (agent.data_dir / "logs" / "talker-out.log").rmdir()


def test_a_path_that_is_no_utf8_survives_a_crash(agent: Agent) -> None:
    """Bytes that no text of the store can hold, in the PATH that a client sends."""
    path = os.environ["PATH"] + ":/opt/\udcff/bin"
    table = {"command": "sleep 1000", "min_uptime": 50}
    assert agent.ask("start", configs={"web": {**table, "cwd": "/"}}, path=path, wait=True)["type"] == "success"
    agent.crash()
    assert agent.ask("restart", names=["web"])["type"] == "success"
    pid = agent.instance("web")["pid"]
    with open(f"/proc/{pid}/environ", "rb") as file:
        assert b"PATH=" + os.fsencode(path) in file.read().split(b"\0")
