# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: that it leads where the definitions point, that it touches nothing else, and that it says why.

`carried_out` is a host on which every change of a plan succeeds. What the agent does with a plan in earnest is tested with the agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import graph, rows
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import (
    FIELDS,
    Definition,
    Effect,
    load,
    uses_count,
)
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.plan import (
    MASK,
    Action,
    Actual,
    Change,
    FieldChange,
    Plan,
    State,
    differences,
    instance_names,
    plan,
    said,
)
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError
from hypothesis import given
from hypothesis import strategies as st

CPUS = 4
WHY = "held by ann since 2026-11-20 19:31: the disk is being replaced"
REPLACED = (Action.STARTED, Action.RESTARTED, Action.RELOADED, Action.ROLLED, Action.CREATED)


def carried_out(
    made: Plan, actual: Iterable[Actual], project: str | None, state: State = State.PRESENT
) -> list[Actual]:
    """The instances of a host on which everything that the plan asks for succeeds."""
    host = {one.name: one for one in actual}
    up = state is not State.STOPPED
    for row in made.rows:
        if row.held:
            continue
        if row.action is Action.REMOVED:
            del host[row.name]
        elif row.action in REPLACED or row.action is Action.STOPPED:
            assert (row.name in host) == (row.action is not Action.CREATED and not row.was)
            if row.was:
                del host[row.was]
            running = up and row.action is not Action.STOPPED
            status = "online" if running else "stopped"
            host[row.name] = Actual(
                row.name, row.process, row.number, project, row.definition, row.count, running, running, status
            )
        else:
            assert row.count == host[row.name].count, "PM3_INSTANCE_COUNT of a running process cannot change"
            host[row.name] = replace(host[row.name], project=project, definition=row.definition)
    return sorted(host.values(), key=lambda one: one.name)


def running(definitions: Mapping[str, Definition], project: str | None = "shop") -> list[Actual]:
    """A host on which these definitions were started fresh."""
    return carried_out(plan(project, definitions, [], cpus=CPUS), [], project)


def actions(made: Plan) -> dict[str, Action]:
    assert len({row.name for row in made.rows}) == len(made.rows), "an instance has one row"
    return {row.name: row.action for row in made.rows}


def web(**fields: Any) -> dict[str, Definition]:
    return load({"web": {"command": "serve", **fields}})


# Examples ---------------------------------------------------------------------------------------------------------------


def test_what_somebody_deleted_is_missing_and_not_new() -> None:
    """The number of instances has not changed then, so no reason says that it had."""
    definitions = web(instances=3)
    host = [one for one in running(definitions) if one.name != "web:1"]
    made = plan("shop", definitions, host, cpus=CPUS, current=definitions)
    assert [(row.name, row.action, row.reason) for row in made.rows] == [
        ("web:0", Action.NONE, ""),
        ("web:1", Action.CREATED, "was missing"),
        ("web:2", Action.NONE, ""),
    ]
    (alone,) = plan("shop", web(), [], cpus=CPUS, current=web()).rows
    assert alone.reason == "was missing"
    scaled = plan("shop", web(instances=5), host, cpus=CPUS, current=definitions)
    assert {row.reason for row in scaled.rows if row.action is Action.CREATED} == {"instances: 3 -> 5"}


def test_a_first_apply_creates_what_is_defined() -> None:
    definitions = load({"web": {"command": "serve", "instances": 2, "depends_on": ["db"]}, "db": {"command": "db"}})
    made = plan("shop", definitions, [], cpus=CPUS)
    assert [(row.name, row.process, row.number, row.count, row.action, row.reason) for row in made.rows] == [
        ("db", "db", 0, 1, Action.CREATED, "new"),
        ("web:0", "web", 0, 2, Action.CREATED, "new"),
        ("web:1", "web", 1, 2, Action.CREATED, "new"),
    ]
    assert made.definitions == definitions
    assert made.changed


def test_a_second_apply_has_nothing_to_do() -> None:
    made = plan("shop", web(instances=2), running(web(instances=2)), cpus=CPUS)
    assert actions(made) == {"web:0": Action.NONE, "web:1": Action.NONE}
    assert not made.changed


def test_a_new_release_rolls_and_says_why() -> None:
    made = plan("shop", web(cwd="/srv/42"), running(web(cwd="/srv/41")), cpus=CPUS)
    (row,) = made.rows
    assert (row.action, row.changes) == (Action.ROLLED, (FieldChange("cwd", "/srv/41", "/srv/42", Effect.RESTART),))
    assert row.definition.cwd == "/srv/42"


def test_scaling_up_touches_only_what_it_adds() -> None:
    made = plan("shop", web(instances=3), running(web(instances=2)), cpus=CPUS)
    assert actions(made) == {"web:0": Action.NONE, "web:1": Action.NONE, "web:2": Action.CREATED}
    assert made.rows[2].reason == "instances: 2 -> 3"
    assert made.rows[0].reason == "keeps PM3_INSTANCE_COUNT=2 until its next start"
    again = plan("shop", web(instances=3), carried_out(made, running(web(instances=2)), "shop"), cpus=CPUS)
    assert not again.changed


def test_scaling_down_touches_only_what_it_removes() -> None:
    made = plan("shop", web(instances=2), running(web(instances=4)), cpus=CPUS)
    assert [(row.name, row.action) for row in made.rows] == [
        ("web:0", Action.NONE),
        ("web:1", Action.NONE),
        ("web:2", Action.REMOVED),
        ("web:3", Action.REMOVED),
    ]
    assert made.rows[3].reason == "instances: 4 -> 2"


def test_scaling_rolls_whoever_is_told_the_count() -> None:
    before, after = web(command="serve @{count}", instances=2), web(command="serve @{count}", instances=3)
    made = plan("shop", after, running(before), cpus=CPUS)
    assert actions(made) == {"web:0": Action.ROLLED, "web:1": Action.ROLLED, "web:2": Action.CREATED}
    assert {row.reason for row in made.rows} == {"instances: 2 -> 3"}


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        (1, 2, {"web:0": Action.ROLLED, "web:1": Action.CREATED}),
        (2, 1, {"web": Action.ROLLED, "web:1": Action.REMOVED}),
    ],
)
def test_one_instance_has_the_plain_name(before: int, after: int, names: dict[str, Action]) -> None:
    made = plan("shop", web(instances=after), running(web(instances=before)), cpus=CPUS)
    assert actions(made) == names
    assert {row.reason for row in made.rows} == {f"instances: {before} -> {after}"}
    assert [(row.was, row.name) for row in made.rows if row.was] == [
        ("web", "web:0") if after > 1 else ("web:0", "web")
    ]


def test_an_instance_that_does_not_run_is_not_replaced_under_another_name() -> None:
    down = [replace(one, up=False, wanted=False, status="stopped") for one in running(web())]
    made = plan("shop", web(instances=2), down, cpus=CPUS)
    assert actions(made) == {"web": Action.REMOVED, "web:0": Action.CREATED, "web:1": Action.CREATED}


def test_scaling_touches_only_what_it_adds_unless_all_shall_roll() -> None:
    host = running(web(instances=2))
    assert actions(plan("shop", web(instances=3), host, cpus=CPUS)) == {
        "web:0": Action.NONE,
        "web:1": Action.NONE,
        "web:2": Action.CREATED,
    }
    for rolls in ({"update": {"on_scale": "roll"}}, {"env": {"OF": "@{count}"}}):
        host = running(web(instances=2, **rolls))
        made = plan("shop", web(instances=3, **rolls), host, cpus=CPUS)
        assert actions(made) == {"web:0": Action.ROLLED, "web:1": Action.ROLLED, "web:2": Action.CREATED}
        assert {row.reason for row in made.rows} == {"instances: 2 -> 3"}


def test_a_name_of_another_project_is_taken_over_only_when_that_is_asked_for() -> None:
    host = running(web(instances=2), "other")
    with pytest.raises(DefinitionError, match="belongs to project other; rename it"):
        plan("shop", web(instances=2), host, cpus=CPUS)
    made = plan("shop", web(instances=2), host, cpus=CPUS, take_over=True)
    assert actions(made) == {"web:0": Action.UPDATED, "web:1": Action.UPDATED}
    assert {row.reason for row in made.rows} == {"belonged to project other"}
    assert not plan("shop", web(instances=2), carried_out(made, host, "shop"), cpus=CPUS).changed


def test_what_is_to_go_goes_although_nothing_is_pruned() -> None:
    definitions = load({name: {"command": "serve"} for name in "abc"})
    made = plan("shop", {"a": definitions["a"]}, running(definitions), cpus=CPUS, prune=False, gone=["b"])
    assert actions(made) == {"a": Action.NONE, "b": Action.REMOVED}


def test_reloaded() -> None:
    host = running(web(instances=2))
    host[1] = replace(host[1], up=False, status="errored")
    made = plan("shop", web(instances=2), host, cpus=CPUS, state=State.RELOADED)
    assert actions(made) == {"web:0": Action.RELOADED, "web:1": Action.STARTED}
    made = plan("shop", web(instances=2, cwd="/new"), host, cpus=CPUS, state=State.RELOADED)
    assert actions(made) == {"web:0": Action.ROLLED, "web:1": Action.ROLLED}


def test_instance_names() -> None:
    assert instance_names(web()["web"], CPUS) == [("web", 0)]
    assert instance_names(web(instances=3)["web"], CPUS) == [("web:0", 0), ("web:1", 1), ("web:2", 2)]
    assert instance_names(web(instance_ids=[12, 7])["web"], CPUS) == [("web:7", 7), ("web:12", 12)]
    assert instance_names(web(instance_ids=[0])["web"], CPUS) == [("web:0", 0)]
    assert instance_names(web(instance_ids=[])["web"], CPUS) == []


@pytest.mark.parametrize(
    ("instances", "cpus", "count"),
    [(0, 4, 1), (1, 4, 1), (7, 4, 7), ("max", 4, 4), ("max", 0, 1), (-1, 4, 3), (-4, 4, 1), (-9, 4, 1)],
)
def test_how_many_instances(instances: Any, cpus: int, count: int) -> None:
    assert len(instance_names(web(instances=instances)["web"], cpus)) == count


def test_a_list_of_numbers_adds_and_removes_exactly_those_that_differ() -> None:
    before, after = web(instance_ids=[2, 7, 12]), web(instance_ids=[7, 9, 100])
    host = running(before)
    made = plan("shop", after, host, cpus=CPUS, current=before)
    assert [(row.name, row.number, row.action, row.reason) for row in made.rows] == [
        ("web:7", 7, Action.NONE, ""),
        ("web:9", 9, Action.CREATED, "added to instance_ids"),
        ("web:100", 100, Action.CREATED, "added to instance_ids"),
        ("web:2", 2, Action.REMOVED, "not in instance_ids"),
        ("web:12", 12, Action.REMOVED, "not in instance_ids"),
    ]
    assert {row.count for row in made.rows} == {3}
    missing = plan("shop", before, host[1:], cpus=CPUS, current=before)
    assert [(row.name, row.action, row.reason) for row in missing.rows if row.action is not Action.NONE] == [
        (host[0].name, Action.CREATED, "was missing")
    ]


def test_no_number_is_no_instance_and_still_a_definition() -> None:
    some, none = web(instance_ids=[3, 5]), web(instance_ids=[])
    made = plan("shop", none, running(some), cpus=CPUS, current=some)
    assert actions(made) == {"web:3": Action.REMOVED, "web:5": Action.REMOVED}
    assert (made.definitions, carried_out(made, running(some), "shop")) == (none, [])
    assert not plan("shop", none, [], cpus=CPUS, current=none).changed
    back = plan("shop", some, [], cpus=CPUS, current=none)
    assert [(row.name, row.reason) for row in back.rows] == [
        ("web:3", "added to instance_ids"),
        ("web:5", "added to instance_ids"),
    ]
    assert {row.reason for row in plan("shop", some, [], cpus=CPUS).rows} == {"new"}


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ({"instances": 3}, {"instance_ids": [1, 2, 7]}, {"web:1": "none", "web:2": "none", "web:7": "created"}),
        ({"instance_ids": [1, 7]}, {"instances": 2}, {"web:0": "created", "web:1": "none"}),
        ({"instance_ids": [7]}, {}, {"web": "created"}),
        ({}, {"instance_ids": [0, 7]}, {"web:0": "rolled", "web:7": "created"}),
        ({"instance_ids": [0]}, {}, {"web": "rolled"}),
    ],
)
def test_from_instances_to_numbers_and_back(
    before: dict[str, Any], after: dict[str, Any], names: dict[str, str]
) -> None:
    """What has the same name goes on; `web` alone and `web:0` are one another's predecessors, as ever."""
    made = plan("shop", web(**after), running(web(**before)), cpus=CPUS, current=web(**before))
    assert {row.name: row.action.value for row in made.rows if row.action is not Action.REMOVED} == names
    assert all(row.reason for row in made.rows if row.action is not Action.NONE)


def test_numbers_roll_where_the_count_is_told() -> None:
    """How many there are here is what PM3_INSTANCE_COUNT says; whoever computes with it has to know."""
    one, two = web(command="serve @{count}", instance_ids=[7]), web(command="serve @{count}", instance_ids=[7, 9])
    made = plan("shop", two, running(one), cpus=CPUS, current=one)
    assert actions(made) == {"web:7": Action.ROLLED, "web:9": Action.CREATED}
    kept = plan("shop", web(instance_ids=[7, 9]), running(web(instance_ids=[7])), cpus=CPUS).rows[0]
    assert (kept.action, kept.reason) == (Action.NONE, "keeps PM3_INSTANCE_COUNT=1 until its next start")


def test_prune_removes_what_is_not_defined_any_more_dependents_first() -> None:
    tables: dict[str, Any] = {
        "db": {"command": "db"},
        "api": {"command": "api", "depends_on": ["db"]},
        "web": {"command": "web"},
    }
    tables["job"] = {"command": "job", "depends_on": ["api"]}
    before = load(tables)
    made = plan("shop", load({"web": {"command": "web"}}), running(before), cpus=CPUS, current=before)
    assert [(row.name, row.action) for row in made.rows] == [
        ("web", Action.NONE),
        ("job", Action.REMOVED),
        ("api", Action.REMOVED),
        ("db", Action.REMOVED),
    ]
    assert {row.reason for row in made.rows[1:]} == {"not defined any more"}
    assert set(made.definitions) == {"web"}


def test_surplus_and_pruned_are_removed_in_one_order() -> None:
    """`api` depended on all of `db`, so it goes before `db` shrinks; `web:1` depended on `cache`, so it goes before `cache`."""
    tables: dict[str, Any] = {"db": {"command": "db", "instances": 3}, "api": {"command": "api", "depends_on": ["db"]}}
    tables["cache"] = {"command": "cache"}
    tables["web"] = {"command": "web", "depends_on": ["cache"], "instances": 3}
    before = load(tables)
    after = load({"db": {"command": "db", "instances": 2}, "web": {"command": "web", "instances": 2}})
    made = plan("shop", after, running(before), cpus=CPUS)
    removed = [row.name for row in made.rows if row.action is Action.REMOVED]
    assert removed == ["api", "web:2", "cache", "db:2"]


def test_without_prune_the_rest_is_left_alone() -> None:
    before = load({"web": {"command": "web"}, "db": {"command": "db"}})
    made = plan("shop", load({"web": {"command": "web"}}), running(before), cpus=CPUS, current=before, prune=False)
    assert actions(made) == {"web": Action.NONE}
    assert set(made.definitions) == {"db", "web"}


def test_only_names_what_is_touched() -> None:
    after = load({"web": {"command": "new"}, "db": {"command": "new"}})
    before = load({"web": {"command": "old"}, "db": {"command": "old"}, "job": {"command": "old"}})
    made = plan("shop", after, running(before), cpus=CPUS, current=before, only=["web"])
    assert actions(made) == {"web": Action.ROLLED}
    assert {name: definition.command for name, definition in made.definitions.items()} == {
        "db": "old",
        "job": "old",
        "web": "new",
    }
    with pytest.raises(DefinitionError, match=r"\[wbe\]: named in only, but not defined"):
        plan("shop", after, [], cpus=CPUS, only=["wbe", "web"])


def test_a_name_of_another_project_is_an_error() -> None:
    with pytest.raises(DefinitionError, match=r"\[web\]: belongs to project bank"):
        plan("shop", web(), running(web(), "bank"), cpus=CPUS)
    with pytest.raises(DefinitionError, match="belongs to project bank"):
        plan(None, web(), running(web(), "bank"), cpus=CPUS)


def test_what_nobody_owns_is_taken_over_but_never_pruned() -> None:
    adhoc = running(load({"web": {"command": "serve"}, "job": {"command": "run"}}), None)
    made = plan("shop", web(), adhoc, cpus=CPUS)
    assert actions(made) == {"web": Action.NONE}
    assert actions(plan(None, web(), adhoc, cpus=CPUS)) == {"web": Action.NONE}


# Examples: what an instance is doing ------------------------------------------------------------------------------------

UP, ERRORED, STOPPED = (True, True, "online"), (False, True, "errored"), (False, False, "stopped")
STOPPING = (True, False, "online")  # runs still, and was told to end


@pytest.mark.parametrize(
    ("state", "doing", "action", "reason"),
    [
        (State.PRESENT, UP, Action.NONE, ""),
        (State.PRESENT, ERRORED, Action.STARTED, "was errored"),
        (State.PRESENT, STOPPED, Action.STARTED, "was stopped"),
        (State.PRESENT, STOPPING, Action.STARTED, "was stopped"),
        (State.STOPPED, UP, Action.STOPPED, "asked for"),
        (State.STOPPED, ERRORED, Action.STOPPED, "asked for"),
        (State.STOPPED, STOPPED, Action.NONE, ""),
        (State.STOPPED, STOPPING, Action.NONE, ""),
        (State.RESTARTED, UP, Action.RESTARTED, "asked for"),
        (State.RESTARTED, ERRORED, Action.RESTARTED, "asked for"),
        (State.RESTARTED, STOPPED, Action.STARTED, "was stopped"),
        (State.ABSENT, UP, Action.REMOVED, "absent"),
        (State.ABSENT, STOPPED, Action.REMOVED, "absent"),
    ],
)
def test_state(state: State, doing: tuple[bool, bool, str], action: Action, reason: str) -> None:
    up, wanted, status = doing
    actual = [replace(one, up=up, wanted=wanted, status=status) for one in running(web())]
    (row,) = plan("shop", web(), actual, cpus=CPUS, state=state).rows
    assert (row.action, row.reason) == (action, reason)


def test_what_has_done_its_work_is_started_once_more_where_that_is_asked_for() -> None:
    done = [replace(one, status="stopped") for one in running(web())]
    for autostart, again, action in (
        (True, (), Action.NONE),
        (True, ("web",), Action.STARTED),
        (False, ("web",), Action.UPDATED),
    ):
        (row,) = plan("shop", web(autostart=autostart), done, cpus=CPUS, again=again).rows
        assert row.action is action
    (row,) = plan("shop", web(), running(web()), cpus=CPUS, again=["web"]).rows
    assert row.action is Action.NONE


def test_a_stopped_instance_learns_its_new_definition() -> None:
    actual = [replace(one, up=False, wanted=False, status="stopped") for one in running(web(cwd="/41"))]
    (row,) = plan("shop", web(cwd="/42"), actual, cpus=CPUS, state=State.STOPPED).rows
    assert (row.action, row.definition.cwd) == (Action.UPDATED, "/42")


def test_absent_forgets_what_was_never_started_too() -> None:
    current = load({"web": {"command": "serve"}, "job": {"command": "run"}})
    assert plan("shop", web(), running(web()), cpus=CPUS, current=current, state=State.ABSENT).definitions == {}
    left = plan("shop", web(), running(web()), cpus=CPUS, current=current, state=State.ABSENT, prune=False)
    assert set(left.definitions) == {"job"}
    assert actions(left) == {"web": Action.REMOVED}


def test_absent_takes_the_whole_project_and_nothing_else() -> None:
    host = [
        *running(load({"web": {"command": "serve"}, "job": {"command": "run"}})),
        *running(load({"x": {"command": "x"}}), "bank"),
    ]
    made = plan("shop", web(), host, cpus=CPUS, state=State.ABSENT)
    assert actions(made) == {"job": Action.REMOVED, "web": Action.REMOVED}
    assert [one.name for one in carried_out(made, host, "shop")] == ["x"]


# Examples: fields -------------------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "command": "serve --better",
    "cwd": "/srv",
    "env": {"A": "1"},
    "env_file": ["/etc/a.env"],
    "restart_when_changed": ["/etc/*.conf"],
    "environments": {"prod": {"A": "1"}},
    "secrets": {"TOKEN": "hunter2"},
    "instances": 3,
    "instance_ids": [0, 1, 7],
    "depends_on": ["db"],
    "update": {"max_unavailable": 2},
    "group": "front",
    "user": "shop",
    "listen": ["tcp://127.0.0.1:@{3000 + instance}"],
    "restart": "always",
    "max_restarts": 3,
    "min_uptime": "5s",
    "stop_exit_codes": [3],
    "kill_signal": "INT",
    "kill_timeout": "9s",
    "readiness_check": "tcp://localhost:1",
    "readiness_timeout": 5,
    "health_check": "tcp://localhost:1",
    "autostart": False,
    "stop_command": "serve --stop",
    "reload_signal": "HUP",
    "pre_start": "make",
    "post_stop": "rm -f web.pid",
    "hook_timeout": "1m",
    "liveness_check": "exec://web-is-alive",
    "liveness_interval": 5,
    "liveness_timeout": 1,
    "liveness_failures": 5,
    "liveness_successes": 2,
    "max_memory": "300M",
    "memory_max": "400M",
    "cpu_max": "50%",
    "pids_max": 64,
    "watch": True,
    "watch_ignore": ["*.tmp"],
    "cron_restart": "0 3 * * *",
    "umask": "077",
    "nice": 5,
    "limits": {"nofile": 4096},
    "tty": True,
    "stdout_file": "/var/log/@{name}.out",
    "stderr_file": "/var/log/@{name}.err",
    "log_format": "json",
    "log_date_format": "%T",
    "log_max_size": "1M",
    "log_max_age": "1d",
    "log_keep": 9,
    "log_total_size": "1G",
    "log_compress": True,
}


@pytest.mark.parametrize("field", list(FIELDS))
def test_what_changing_a_field_costs(field: str) -> None:
    """Whoever adds a row to the table says here how it may change; hot changes never restart."""
    needed = {check: "tcp://localhost:1" for check in ("readiness_check", "liveness_check") if check != field}
    two: dict[str, Any] = {"instance_ids": [0, 1]} if field == "instance_ids" else {"instances": 2}
    before, after = web(**two, **needed), web(**{**two, **needed, field: OTHER[field]})
    for one, other in ((before, after), (after, before)):
        made = plan("shop", other, running(one), cpus=CPUS)
        costs = {
            Effect.RESTART: {Action.ROLLED},
            Effect.HOT: {Action.UPDATED},
            Effect.NONE: {Action.UPDATED},
            Effect.INSTANCES: {Action.NONE, Action.CREATED} if one is before else {Action.NONE, Action.REMOVED},
        }
        assert set(actions(made).values()) == costs[FIELDS[field].effect]
        for row in made.rows:
            assert all(change.field.split(".")[0] == field for change in row.changes)
            assert bool(row.changes) == (FIELDS[field].effect is not Effect.INSTANCES)


# Examples: files that changed ----------------------------------------------------------------------------------------------

STALE = "/srv/app.conf changed since it was started"


def stale(definitions: Mapping[str, Definition], **facts: Any) -> list[Actual]:
    """A host on which a file has changed since all of it was started."""
    return [replace(one, stale=STALE, **facts) for one in running(definitions)]


def test_what_was_started_with_other_files_rolls_and_says_which() -> None:
    made = plan("shop", web(instances=2), stale(web(instances=2)), cpus=CPUS)
    assert [(row.action, row.reason, row.changes) for row in made.rows] == [(Action.ROLLED, STALE, ())] * 2
    after = carried_out(made, stale(web(instances=2)), "shop")
    assert not plan("shop", web(instances=2), after, cpus=CPUS).changed


@pytest.mark.parametrize(
    ("after", "reason", "changed"),
    [
        (web(env={"A": "1"}), STALE, ["env.A"]),
        (web(restart="always"), STALE, ["restart"]),
        (web(command="serve @{count}", instances=2), "instances: 1 -> 2", ["command"]),
    ],
)
def test_all_reasons_of_a_roll_are_told(after: dict[str, Definition], reason: str, changed: list[str]) -> None:
    made = plan("shop", after, stale(web()), cpus=CPUS)
    rolled = [row for row in made.rows if row.action is Action.ROLLED]
    assert [(row.reason, [change.field for change in row.changes]) for row in rolled] == [(reason, changed)]


def test_a_new_count_and_another_file_are_both_told() -> None:
    before, after = web(command="serve @{count}", instances=2), web(command="serve @{count}", instances=3)
    made = plan("shop", after, stale(before), cpus=CPUS)
    assert [row.reason for row in made.rows] == [f"instances: 2 -> 3; {STALE}"] * 2 + ["instances: 2 -> 3"]


@pytest.mark.parametrize(
    ("state", "action", "reason"),
    [
        (State.STOPPED, Action.STOPPED, "asked for"),
        (State.RESTARTED, Action.RESTARTED, "asked for"),
        (State.ABSENT, Action.REMOVED, "absent"),
    ],
)
def test_other_states_do_not_ask_for_files(state: State, action: Action, reason: str) -> None:
    (row,) = plan("shop", web(), stale(web()), cpus=CPUS, state=state).rows
    assert (row.action, row.reason) == (action, reason)


def test_files_do_not_start_what_was_stopped() -> None:
    (row,) = plan("shop", web(autostart=False), stale(web(autostart=False), wanted=False, up=False), cpus=CPUS).rows
    assert (row.action, row.reason) == (Action.NONE, "")


# Examples: differences ---------------------------------------------------------------------------------------------------


def test_differences_of_tables_are_by_key() -> None:
    before = web(env={"A": "1", "B": "1", "D": "4"}, environments={"prod": {"A": "1"}})["web"]
    after = web(env={"B": "2", "C": "3", "D": "4"})["web"]
    assert differences(before, after) == (
        FieldChange("env.A", "1", None, Effect.RESTART),
        FieldChange("env.B", "1", "2", Effect.RESTART),
        FieldChange("env.C", None, "3", Effect.RESTART),
        FieldChange("environments.prod", {"A": "1"}, None, Effect.NONE),
    )
    assert differences(before, before) == ()


def test_a_secret_that_changes_is_seen_and_not_shown() -> None:
    made = plan("shop", web(secrets={"TOKEN": "hunter3"}), running(web(secrets={"TOKEN": "hunter2"})), cpus=CPUS)
    assert made.rows[0].changes == (FieldChange("secrets.TOKEN", MASK, MASK, Effect.RESTART),)


def test_a_secret_in_another_text_is_covered_there() -> None:
    before = web(command="sh -c 'echo hunter2'", watch_ignore=["hunter2.log"], secrets={"TOKEN": "hunter2"})
    after = web(command="sh -c 'say hunter2'", env={"URL": "a-hunter2-b"}, secrets={"TOKEN": "hunter2"})
    assert {(one.field, str(one.before), str(one.after)) for one in differences(before["web"], after["web"])} == {
        ("command", "sh -c 'echo ********'", "sh -c 'say ********'"),
        ("env.URL", "None", "a-********-b"),
        ("watch_ignore", "['********.log']", "[]"),
    }


def test_what_becomes_a_secret_is_not_shown_as_it_leaves_env() -> None:
    changes = differences(
        web(env={"TOKEN": "hunter1", "COPY": "hunter2"})["web"], web(secrets={"TOKEN": "hunter2"})["web"]
    )
    assert [(change.field, change.before, change.after) for change in changes] == [
        ("env.COPY", MASK, None),
        ("env.TOKEN", MASK, None),
        ("secrets.TOKEN", None, MASK),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        ([], "none"),
        ("", '""'),
        ('a "b" \\ c', '"a \\"b\\" \\\\ c"'),
        ("two\nlines", '"two\\nlines"'),
        ("ü", '"ü"'),
        (15, "15"),
        (0.5, "0.5"),
        (True, "true"),
        (["a", 1], '["a", 1]'),
        ({"A": "1"}, '{A = "1"}'),
    ],
)
def test_a_value_as_a_person_writes_it(value: Any, text: str) -> None:
    assert said(value) == text


# Properties -------------------------------------------------------------------------------------------------------------

SECRETS = ("s3cret-one", "s3cret-two")
# Dependencies point to earlier letters, so that they are never circular.
tables = st.fixed_dictionaries(
    {"command": st.sampled_from(["run", "run --more", "run --of @{count}"])},
    optional={
        "instances": st.sampled_from([0, 1, 2, 3, 4, "max", -1]),
        "instance_ids": st.sampled_from([None, [], [0], [7], [1, 2], [0, 1, 12]]),
        "depends_on": st.lists(st.sampled_from("abc"), max_size=2),
        "env": st.dictionaries(st.sampled_from(["A", "B"]), st.sampled_from(["1", "2", *SECRETS]), max_size=2),
        "secrets": st.dictionaries(st.sampled_from(["A", "T"]), st.sampled_from(SECRETS)),
        "cwd": st.sampled_from(["/41", "/42"]),
        "kill_timeout": st.sampled_from([100, "1s"]),
        "group": st.just("front"),
        "update": st.sampled_from([{}, {"order": "start_first"}, {"max_unavailable": 2}, {"on_scale": "roll"}]),
    },
)


def recounts(*definitions: Definition) -> bool:
    """Whether its processes have to know how many there are; the last of them says how it is rolled."""
    return any(map(uses_count, definitions)) or definitions[-1].update.get("on_scale") == "roll"


def acyclic(written: dict[str, dict[str, Any]]) -> dict[str, Definition]:
    return load(
        {
            name: {
                **one,
                "depends_on": [o for o in one.get("depends_on", []) if o < name],
                "instances": one.get("instances") if one.get("instance_ids") is None else None,
            }
            for name, one in written.items()
        }
    )


definitions = st.dictionaries(st.sampled_from("abcde"), tables, min_size=1, max_size=4).map(acyclic)
projects = st.sampled_from(["shop", None])
states = st.sampled_from([State.PRESENT, State.RESTARTED, State.RELOADED, State.STOPPED])


@st.composite
def hosts(draw: st.DrawFn, desired: Mapping[str, Definition]) -> list[Actual]:
    """A host with a life behind it: scaled, stopped, errored, half done; with instances of ours, of nobody's and of others."""
    host: list[Actual] = []
    for _apply in range(draw(st.integers(0, 2))):
        earlier = draw(definitions)
        host = carried_out(plan("shop", earlier, host, cpus=CPUS, prune=False), host, "shop")
    doing = st.sampled_from([UP, UP, ERRORED, STOPPED, STOPPING])
    host = [one for one in host if draw(st.integers(0, 5))]
    for place, one in enumerate(host):
        up, wanted, status = draw(doing)
        stale = (
            draw(st.sampled_from(["", "", "", "/srv/settings changed since it was started"])) if up and wanted else ""
        )
        host[place] = replace(one, up=up, wanted=wanted, status=status, stale=stale)
    taken = {one.process for one in host} | set(desired)
    for project in ("bank", None):
        others = {f"{name}-{project}": one for name, one in draw(definitions).items() if name not in taken}
        host += running({name: replace(one, name=name, depends_on=()) for name, one in others.items()}, project)
    return host


cases = definitions.flatmap(lambda desired: st.tuples(st.just(desired), hosts(desired)))


def ours(host: Iterable[Actual]) -> list[Actual]:
    return [one for one in host if one.project == "shop"]


@given(cases)
def test_it_leads_where_the_definitions_point(case: tuple[dict[str, Definition], list[Actual]]) -> None:
    """A host with any past cannot be told from a fresh one; the count of those that went on running is the one exception."""
    desired, host = case
    made = plan("shop", desired, host, cpus=CPUS)
    after = ours(carried_out(made, host, "shop"))
    fresh = {one.name: one for one in running(desired)}
    assert [replace(one, count=0) for one in after] == [replace(fresh[name], count=0) for name in sorted(fresh)]
    for one in after:
        assert one.count == fresh[one.name].count or not recounts(one.definition)
    assert made.definitions == desired


@given(cases, states)
def test_the_second_time_there_is_nothing_to_do(case: tuple[dict[str, Definition], list[Actual]], state: State) -> None:
    desired, host = case
    after = carried_out(plan("shop", desired, host, cpus=CPUS, state=state), host, "shop", state)
    starting = (State.RESTARTED, State.RELOADED)
    again = plan("shop", desired, after, cpus=CPUS, state=State.PRESENT if state in starting else state)
    assert set(actions(again).values()) <= {Action.NONE}
    assert not again.changed


@given(cases, st.sampled_from(State), st.booleans())
def test_others_are_never_touched(case: tuple[dict[str, Definition], list[Actual]], state: State, prune: bool) -> None:
    desired, host = case
    made = plan("shop", desired, host, cpus=CPUS, state=state, prune=prune)
    theirs = {one.name for one in host if one.project != "shop"}
    assert not theirs & set(actions(made))
    if state is State.ABSENT:
        assert [one.name for one in ours(host) if one.process in desired or prune] == sorted(actions(made))
    if not prune:
        assert {row.process for row in made.rows} <= set(desired)


@given(cases, st.data())
def test_only_touches_what_it_names(case: tuple[dict[str, Definition], list[Actual]], data: st.DataObject) -> None:
    desired, host = case
    only = data.draw(st.sets(st.sampled_from(sorted(desired))))
    made = plan("shop", desired, host, cpus=CPUS, only=only)
    whole = actions(plan("shop", desired, host, cpus=CPUS))
    touched = {row.process for row in made.rows}
    assert touched <= only
    assert all(desired[name].instance_ids == () for name in only - touched)
    assert all(whole[name] is action for name, action in actions(made).items())


@given(cases)
def test_what_keeps_running_has_not_changed_its_start(case: tuple[dict[str, Definition], list[Actual]]) -> None:
    """Nothing is replaced without need, and nothing goes on that should be replaced."""
    desired, host = case
    before = {one.name: one for one in host}
    for row in plan("shop", desired, host, cpus=CPUS).rows:
        was = before.get(row.was or row.name)
        if was is None or row.was or row.action is Action.REMOVED:
            continue
        costly = any(change.effect is Effect.RESTART for change in row.changes)
        recounted = was.count != len(instance_names(row.definition, CPUS)) and recounts(was.definition, row.definition)
        needed = costly or recounted or bool(was.stale) or not was.up or not was.wanted
        assert (row.action in REPLACED) == needed


@given(definitions, definitions)
def test_it_leads_from_any_project_to_any_other_and_back(
    one: dict[str, Definition], other: dict[str, Definition]
) -> None:
    """What a revert relies on. Only what goes on running may know another number of instances."""
    assert not plan("shop", one, running(one), cpus=CPUS, current=one).changed

    def uncounted(host: Iterable[Actual]) -> list[Actual]:
        return [found if recounts(found.definition) else replace(found, count=0) for found in host]

    there = carried_out(plan("shop", other, running(one), cpus=CPUS, current=one), running(one), "shop")
    assert uncounted(there) == uncounted(running(other))
    back = carried_out(plan("shop", one, there, cpus=CPUS, current=other), there, "shop")
    assert uncounted(back) == uncounted(running(one))


@given(cases, st.sampled_from([State.PRESENT, State.RELOADED, State.STOPPED]))
def test_what_can_change_while_it_runs_costs_no_process(
    case: tuple[dict[str, Definition], list[Actual]], state: State
) -> None:
    """A change without effect, or a hot one, replaces nothing by itself: a file, the count, or another name has to be a reason."""
    desired, host = case
    before = {one.name: one for one in host}
    for row in plan("shop", desired, host, cpus=CPUS, state=state).rows:
        was = before.get(row.name)
        if was is None or row.action is Action.REMOVED or any(one.effect is Effect.RESTART for one in row.changes):
            continue
        recounted = was.count != len(instance_names(row.definition, CPUS)) and recounts(was.definition, row.definition)
        stale = bool(was.stale) and state is State.PRESENT
        if row.action is Action.ROLLED:
            assert recounted or stale
            assert row.reason
        elif was.up and was.wanted and not recounted and not stale:
            live = (Action.NONE, Action.UPDATED)
            assert row.action in {State.RELOADED: (Action.RELOADED,), State.STOPPED: (Action.STOPPED,)}.get(state, live)
            assert (row.action is Action.NONE) <= (not row.changes)


@given(cases, definitions, st.booleans(), st.data())
def test_it_leads_there_whatever_is_held_or_taken_over_or_to_go(
    case: tuple[dict[str, Definition], list[Actual]], current: dict[str, Definition], prune: bool, data: st.DataObject
) -> None:
    """What is held stays, what is to go goes, what was another project's is ours, and the second time nothing is left to do."""
    desired, host = case
    host = [replace(one, project="bank" if data.draw(st.booleans()) else one.project) for one in host]
    mixed = {one.process for one in host if len({other.project for other in host if other.process == one.process}) > 1}
    host = [replace(one, project="bank") if one.process in mixed else one for one in host]
    names = sorted({*desired, *current, *(one.process for one in ours(host))})
    held = dict.fromkeys(data.draw(st.sets(st.sampled_from(names), max_size=2)), WHY)
    gone = data.draw(st.sets(st.sampled_from(names), max_size=2))
    about: dict[str, Any] = {"cpus": CPUS, "prune": prune, "gone": gone, "held": held, "take_over": True}
    made = plan("shop", desired, host, current=current, **about)
    after = carried_out(made, host, "shop")
    fresh = {one.name: one for one in running({name: one for name, one in desired.items() if name not in held})}
    found = {one.name: one for one in after if one.process in desired and one.process not in held}
    assert {name: replace(one, count=0) for name, one in found.items()} == {
        name: replace(one, count=0) for name, one in fresh.items()
    }
    assert [one for one in after if one.process in held] == sorted(
        (one for one in host if one.process in held), key=lambda one: one.name
    )
    leaving = {one.process for one in ours(host) if one.process not in desired and (prune or one.process in gone)}
    assert not [one for one in after if one.process in leaving - set(held)]
    theirs = [one for one in host if one.process not in desired and one.process not in leaving]
    assert [one for one in after if one.process not in desired and one.process not in leaving] == sorted(
        theirs, key=lambda one: one.name
    )
    for row in made.rows:
        was = next((one.project for one in host if one.name == row.name), None)
        moved = was not in (None, "shop") and not row.held and row.action is not Action.REMOVED
        assert not moved or f"belonged to project {was}" in row.reason
    assert not plan("shop", desired, after, current=made.definitions, **about).changed


@given(cases, st.sampled_from(State))
def test_the_order_of_rows(case: tuple[dict[str, Definition], list[Actual]], state: State) -> None:
    """By dependency, then name, then number; what is removed comes last, dependents first. The host's order plays no part."""
    desired, host = case
    made = plan("shop", desired, host, cpus=CPUS, state=state)
    assert (
        plan("shop", dict(reversed(list(desired.items()))), list(reversed(host)), cpus=CPUS, state=state).rows
        == made.rows
    )
    leaving = [row.action is Action.REMOVED for row in made.rows]
    assert leaving == sorted(leaving)
    staying = [row for row in made.rows if row.action is not Action.REMOVED]
    level = {name: number for number, names in enumerate(graph.levels(graph.of(desired))) for name in names}
    assert staying == sorted(staying, key=lambda row: (level[row.process], row.process, row.number))
    removed = [row for row in made.rows if row.action is Action.REMOVED]
    for place, row in enumerate(removed):
        assert not {other.process for other in removed[:place]} & set(row.definition.depends_on)


@given(cases, st.sampled_from(State))
def test_every_change_says_why(case: tuple[dict[str, Definition], list[Actual]], state: State) -> None:
    desired, host = case
    for row in plan("shop", desired, host, cpus=CPUS, state=state).rows:
        assert row.action is Action.NONE or row.reason or row.changes
        assert row.action is not Action.NONE or not row.changes
        assert row.before == next((one.definition for one in host if one.name == (row.was or row.name)), None)


@given(cases, st.sampled_from(State))
def test_secrets_are_in_no_row_and_no_report(case: tuple[dict[str, Definition], list[Actual]], state: State) -> None:
    """A value counts as secret for an instance if its definition keeps it as one, before or after."""
    desired, host = case
    before = {one.name: one.definition for one in host}
    for row in plan("shop", desired, host, cpus=CPUS, state=state).rows:
        old = before.get(row.was or row.name, row.definition)
        secrets = {*row.definition.secrets.values(), *old.secrets.values()}
        shown = rows.row(row, "online")
        for text in (str(row.changes), row.reason, str(shown), "\n".join(rows.report([shown]))):
            assert not [secret for secret in secrets if secret in text]


@given(projects, definitions)
def test_against_nothing_everything_is_created(project: str | None, desired: dict[str, Definition]) -> None:
    made = plan(project, desired, [], cpus=CPUS)
    assert {row.action for row in made.rows} <= {Action.CREATED}
    expected = [name for one in desired.values() for name, _number in instance_names(one, CPUS)]
    assert sorted(actions(made)) == sorted(expected)


def test_a_change_is_a_value() -> None:
    """Plans can be compared: what check mode predicted with what a run does."""
    made, other = (plan("shop", web(), [], cpus=CPUS) for _time in range(2))
    assert made == other
    assert isinstance(made.rows[0], Change)


# Holds ------------------------------------------------------------------------------------------------------------------


def test_what_is_held_stays_as_it_is_and_says_why() -> None:
    tables: dict[str, Any] = {"db": {"command": "db", "cwd": "/41", "instances": 2}, "job": {"command": "job"}}
    tables["web"] = {"command": "web", "depends_on": ["db"]}
    before = load(tables)
    tables["db"] = {"command": "db", "cwd": "/42", "instances": 3}
    tables["web"]["cwd"] = "/42"
    after = load({name: tables[name] for name in ("db", "web")})
    host = running(before)
    made = plan("shop", after, host, cpus=CPUS, current=before, held={"db": WHY, "job": WHY})
    assert [(row.name, row.action, row.reason, row.held) for row in made.rows] == [
        ("db:0", Action.NONE, WHY, True),
        ("db:1", Action.NONE, WHY, True),
        ("web", Action.ROLLED, "", False),
        ("job", Action.NONE, WHY, True),
    ]
    assert made.rows[0].definition == made.rows[0].before == before["db"]
    assert made.definitions == {**before, "web": after["web"]}
    # Once it is released the next apply does what was left out.
    host = carried_out(made, host, "shop")
    released = plan("shop", after, host, cpus=CPUS, current=made.definitions)
    assert actions(released) == {
        **{"db:0": Action.ROLLED, "db:1": Action.ROLLED, "db:2": Action.CREATED},
        **{"web": Action.NONE, "job": Action.REMOVED},
    }
    assert released.definitions == after


def test_what_is_held_and_new_is_not_created() -> None:
    made = plan("shop", web(instances=3), [], cpus=CPUS, held={"web": WHY})
    (row,) = made.rows
    assert (row.name, row.action, row.reason, row.before) == ("web", Action.NONE, WHY, None)
    assert made.definitions == {}
    assert plan("shop", web(), [], cpus=CPUS, state=State.ABSENT, held={"web": WHY}).rows == ()


def test_absent_leaves_what_is_held() -> None:
    current = load({"web": {"command": "serve"}, "job": {"command": "run"}})
    for prune in (True, False):
        made = plan(
            *("shop", web(), running(current)),
            **{"cpus": CPUS, "current": current, "state": State.ABSENT, "prune": prune, "held": {"web": WHY}},
        )
        assert actions(made) == {"web": Action.NONE, **({"job": Action.REMOVED} if prune else {})}
        assert set(made.definitions) == ({"web"} if prune else {"web", "job"})


@given(cases, definitions, st.sampled_from(State), st.booleans(), st.data())
def test_what_is_held_never_changes_whatever_the_rest(
    case: tuple[dict[str, Definition], list[Actual]],
    current: dict[str, Definition],
    state: State,
    prune: bool,
    data: st.DataObject,
) -> None:
    """And the rest is planned as it would be without."""
    desired, host = case
    names = sorted({*desired, *(one.process for one in host)})
    held = dict.fromkeys(data.draw(st.sets(st.sampled_from(names))), WHY)
    about: dict[str, Any] = {"cpus": CPUS, "current": current, "state": state, "prune": prune}
    made = plan("shop", desired, host, held=held, **about)
    free = plan("shop", desired, host, **about)
    before = {one.name: one for one in host}
    for row in made.rows:
        assert row.held == (row.process in held)
        if row.held:
            assert (row.action, row.reason, row.changes) == (Action.NONE, WHY, ())
            was = before.get(row.name)
            if was is not None:
                assert (row.definition, row.count, row.before) == (was.definition, was.count, was.definition)
            else:
                assert row.name == row.process
                assert not [one for one in host if one.process == row.process]
    assert [row for row in made.rows if not row.held] == [row for row in free.rows if row.process not in held]
    shown = {row.name for row in made.rows}
    assert {row.name for row in free.rows if row.process in held and row.name in before} <= shown
    for name in {*desired, *current}:
        assert made.definitions.get(name) == (current if name in held else free.definitions).get(name)


@given(cases, st.sampled_from(State), st.booleans())
def test_with_everything_held_nothing_changes(
    case: tuple[dict[str, Definition], list[Actual]], state: State, prune: bool
) -> None:
    desired, host = case
    held = dict.fromkeys({*desired, *(one.process for one in host)}, WHY)
    made = plan("shop", desired, host, cpus=CPUS, current=desired, state=state, prune=prune, held=held)
    assert not made.changed
    assert made.definitions == desired
