"""restart_when_changed and env_file: what changed since the start rolls with the next apply, and only then. Real agent, real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .conftest import Agent
from .test_agent import SLEEP, actions, environment_of
from .waiting import until


def web(*listed: str, **fields: Any) -> dict[str, Any]:
    return {"web": {**SLEEP, **({"restart_when_changed": list(listed)} if listed else {}), **fields}}


def reasons(result: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in result["instances"] if row["changed"]}


def planned(agent: Agent, definitions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return agent.ask("plan", project="shop", definitions=definitions, base=str(agent.folder), **fields)


def rolls(agent: Agent, definitions: dict[str, Any], expected: dict[str, str]) -> None:
    """The plan predicts the run, each of these instances is replaced for that reason and no other one, and the next run is ok."""
    before = agent.pids()
    predicted = planned(agent, definitions)
    assert reasons(predicted) == expected
    assert agent.pids() == before
    done = agent.apply(definitions)
    assert done["ok"], done["report"]
    facts = [(row["name"], row["action"], row["changed"], row["changes"], row["reason"]) for row in done["instances"]]
    assert facts == [
        (row["name"], row["action"], row["changed"], row["changes"], row["reason"]) for row in predicted["instances"]
    ]
    assert actions(done) == {name: "rolled" if name in expected else "none" for name in before}
    assert {name for name, pid in agent.pids().items() if pid != before[name]} == set(expected)
    is_ok(agent, definitions)


def is_ok(agent: Agent, definitions: dict[str, Any]) -> None:
    before = agent.pids()
    for done in (planned(agent, definitions), agent.apply(definitions)):
        assert not done["changed"], done["report"]
    assert agent.pids() == before


def test_a_file_that_changed_rolls_each_instance_once(agent: Agent) -> None:
    agent.file("one", "app.conf")
    definitions = web("app.conf", instances=3)
    definitions["other"] = SLEEP
    agent.apply(definitions)
    is_ok(agent, definitions)
    agent.file("two", "app.conf")
    why = f"{agent.folder}/app.conf changed since it was started"
    rolls(agent, definitions, {f"web:{number}": why for number in range(3)})


def test_what_was_written_anew_with_the_same_content_is_the_same(agent: Agent) -> None:
    file = agent.file("one", "app.conf")
    definitions = web("app.conf")
    agent.apply(definitions)
    os.utime(file, (1, 1))
    is_ok(agent, definitions)
    agent.file("two", "app.conf")
    agent.file("one", "app.conf")
    is_ok(agent, definitions)
    agent.file("one", "new").rename(file)
    is_ok(agent, definitions)


def test_a_link_that_leads_elsewhere(agent: Agent) -> None:
    for number in (41, 42):
        (agent.folder / f"releases/{number}").mkdir(parents=True)
        agent.file("same", f"releases/{number}/app.conf")
    current = agent.folder / "current"
    current.symlink_to("releases/41")
    definitions = {
        "link": {**SLEEP, "restart_when_changed": "current"},
        "file": {**SLEEP, "restart_when_changed": "current/*.conf"},
        "none": SLEEP,
    }
    agent.apply(definitions)
    (agent.folder / "new").symlink_to("releases/42")
    (agent.folder / "new").rename(current)
    old, new = (f"{agent.folder}/releases/{number}" for number in (41, 42))
    rolls(
        agent,
        definitions,
        {
            "link": f"{current} now leads to {new} (was {old})",
            "file": f"{current}/app.conf now leads to {new}/app.conf (was {old}/app.conf)",
        },
    )


def test_files_that_a_glob_finds(agent: Agent) -> None:
    (agent.folder / "conf.d" / "deep").mkdir(parents=True)
    agent.file("a", "conf.d/a.conf")
    definitions = web("conf.d/**/*.conf")
    agent.apply(definitions)
    agent.file("", "conf.d/notes.txt")
    is_ok(agent, definitions)
    agent.file("", "conf.d/deep/ü b.conf")
    rolls(agent, definitions, {"web": f"{agent.folder}/conf.d/deep/ü b.conf is new"})
    (agent.folder / "conf.d/a.conf").unlink()
    agent.file("changed", "conf.d/deep/ü b.conf")
    rolls(agent, definitions, {"web": f"{agent.folder}/conf.d/a.conf is gone, and 1 more"})


def test_an_env_file_always_counts_and_comes_with_the_roll(agent: Agent) -> None:
    agent.file("A=1\n", "web.env")
    definitions = web(env_file="web.env")
    agent.apply(definitions)
    agent.file("A=2\n", "web.env")
    rolls(agent, definitions, {"web": f"{agent.folder}/web.env changed since it was started"})
    assert environment_of(agent.pids()["web"])["A"] == "2"


def test_a_file_that_is_missing_and_one_that_is_none(agent: Agent) -> None:
    os.mkfifo(agent.folder / "fifo")
    definitions = web("app.conf", "fifo", "/dev/null")
    agent.apply(definitions)
    file = agent.file("", "app.conf")
    rolls(agent, definitions, {"web": f"{file} is new"})
    file.unlink()
    rolls(agent, definitions, {"web": f"{file} is gone"})


def test_a_name_that_is_no_utf_8(agent: Agent) -> None:
    definitions = web("*.conf")
    agent.apply(definitions)
    Path(os.fsdecode(os.fsencode(agent.folder) + b"/\xff\n.conf")).touch()
    rolls(agent, definitions, {"web": f"{agent.folder}/\\xff\\n.conf is new"})
    agent.crash()
    is_ok(agent, definitions)


def test_a_field_that_is_added_counts_from_then_on(agent: Agent) -> None:
    agent.file("one", "app.conf")
    agent.apply(web())
    agent.file("two", "app.conf")
    pids = agent.pids()
    done = agent.apply(web("app.conf"))
    assert actions(done) == {"web": "updated"}
    is_ok(agent, web("app.conf"))
    assert agent.pids() == pids
    agent.file("three", "app.conf")
    rolls(agent, web("app.conf"), {"web": f"{agent.folder}/app.conf changed since it was started"})


def test_a_path_that_is_not_listed_any_more_does_not_count(agent: Agent) -> None:
    for name in ("a", "b"):
        agent.file("one", name)
    agent.apply(web("a", "b"))
    agent.file("two", "a")
    assert actions(agent.apply(web("b"))) == {"web": "updated"}
    assert actions(agent.apply(web("a", "b"))) == {"web": "updated"}
    is_ok(agent, web("a", "b"))


def test_all_reasons_are_told(agent: Agent) -> None:
    agent.file("one", "app.conf")
    agent.apply(web("app.conf"))
    agent.file("two", "app.conf")
    (row,) = agent.apply(web("app.conf", env={"A": "1"}))["instances"]
    assert row["reason"] == f"{agent.folder}/app.conf changed since it was started"
    assert [change["field"] for change in row["changes"]] == ["env.A"]
    agent.file("three", "app.conf")
    (row,) = agent.apply(web("app.conf", env={"A": "1"}, max_restarts=3))["instances"]
    assert (row["action"], [change["field"] for change in row["changes"]]) == ("rolled", ["max_restarts"])


def test_it_is_known_after_a_crash_of_the_agent(agent: Agent) -> None:
    agent.file("one", "app.conf")
    definitions = web("app.conf", "*.d/*", instances=2)
    agent.apply(definitions)
    agent.crash()
    is_ok(agent, definitions)
    agent.file("two", "app.conf")
    agent.crash()
    why = f"{agent.folder}/app.conf changed since it was started"
    rolls(agent, definitions, {"web:0": why, "web:1": why})


def test_whatever_starts_it_sees_the_files_anew(agent: Agent) -> None:
    agent.file("one", "app.conf")
    definitions = web("app.conf")
    agent.apply(definitions)
    agent.file("two", "app.conf")
    agent.ask("restart", names=["web"])
    is_ok(agent, definitions)
    agent.file("three", "app.conf")
    pid = agent.pids()["web"]
    os.kill(pid, 9)
    until(lambda: agent.instance("web")["pid"] not in (None, pid), "it is restarted")
    is_ok(agent, definitions)
    agent.ask("stop", names=["web"])
    agent.file("four", "app.conf")
    done = agent.apply(definitions)
    assert [(row["action"], row["reason"]) for row in done["instances"]] == [("started", "was stopped")]
    is_ok(agent, definitions)


def test_a_copy_that_takes_over_has_seen_the_files_anew(agent: Agent) -> None:
    agent.file("one", "app.conf")
    definitions = web("app.conf", readiness_check="exec://true")
    agent.apply(definitions)
    agent.file("two", "app.conf")
    pid = agent.pids()["web"]
    assert agent.ask("reload", names=["web"])["type"] == "success"
    assert agent.pids()["web"] != pid
    is_ok(agent, definitions)


def test_a_start_of_what_runs_compares_nothing(agent: Agent) -> None:
    agent.file("one", "app.conf")
    agent.file('[web]\ncommand = "sleep 1000"\nrestart_when_changed = "app.conf"\n')
    agent.pm3("start")
    pids = agent.pids()
    agent.file("two", "app.conf")
    agent.pm3("start")
    assert agent.pids() == pids
    assert agent.instance("web")["project"] is None


def test_other_states_do_as_they_are_told(agent: Agent) -> None:
    agent.file("one", "app.conf")
    definitions = web("app.conf")
    agent.apply(definitions)
    agent.file("two", "app.conf")
    done = agent.apply(definitions, state="restarted")
    assert [(row["action"], row["reason"]) for row in done["instances"]] == [("restarted", "asked for")]
    agent.file("three", "app.conf")
    assert actions(agent.apply(definitions, state="stopped")) == {"web": "stopped"}
    assert actions(agent.apply(definitions, state="stopped")) == {"web": "none"}


def test_what_its_own_hook_writes_is_what_it_was_started_with(agent: Agent) -> None:
    definitions = web("app.conf", pre_start="date +%N >app.conf", env_file=[])
    agent.apply(definitions)
    is_ok(agent, definitions)


def test_a_roll_for_a_file_stops_at_the_first_that_does_not_come_up(agent: Agent) -> None:
    """And the rest is still to be rolled the next time, though the first has seen the file."""
    agent.file("good", "app.conf")
    command = """sh -c 'grep -q good app.conf || exit 3; exec sleep 1000'"""
    definitions = web("app.conf", command=command, instances=2, restart="never")
    agent.apply(definitions)
    agent.file("bad", "app.conf")
    assert actions(agent.apply(definitions)) == {"web:0": "failed", "web:1": "skipped"}
    agent.file("good again", "app.conf")
    assert actions(agent.apply(definitions)) == {"web:0": "started", "web:1": "rolled"}
    is_ok(agent, definitions)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is no second instance")
def test_a_glob_that_means_nothing_for_one_instance_fails_its_start(agent: Agent) -> None:
    definitions = web("@{1 // (1 - instance)}", instances=2)
    refused = agent.apply(definitions)
    assert [problem["field"] for problem in refused["problems"]] == ["restart_when_changed"]
    definitions["web"]["instances"] = "max"  # only the host knows that there is a second one
    done = agent.apply(definitions)
    assert (actions(done)["web:0"], actions(done)["web:1"]) == ("created", "failed")
    assert "divides by zero" in agent.instance("web:1")["last_exit"]["message"]


@pytest.mark.parametrize("count", [200])
def test_many_instances_of_many_files(agent: Agent, count: int) -> None:
    """Each file is looked at once for all of them, while others are answered."""
    (agent.folder / "conf.d").mkdir()
    for number in range(200):
        agent.file("one", f"conf.d/{number:03}")
    definitions = web("conf.d/*", instances=count, min_uptime=0)
    agent.apply(definitions)
    is_ok(agent, definitions)
    agent.file("two", "conf.d/007")
    why = f"{agent.folder}/conf.d/007 changed since it was started"
    assert reasons(planned(agent, definitions)) == {f"web:{number}": why for number in range(count)}
