# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The field table: what each field takes and what it makes of it, and how definitions are loaded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import (
    FIELDS,
    Definition,
    Effect,
    cautions,
    load,
    located,
    name_unfit,
    overlaid,
    parse,
    uses_count,
)
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError, Problem
from hypothesis import given
from hypothesis import strategies as st

# Per field: what may be written with what it becomes, and what may not with a piece of the answer.
DURATIONS: list[tuple[Any, Any]] = [(0, 0), (250, 250), (2**64 - 1, 2**64 - 1)]
BAD_DURATIONS: list[tuple[Any, str]] = [
    (-1, "whole number from 0"),
    (2**64, "whole number from 0"),
    (True, "found a boolean"),
    (float("nan"), "not negative"),
    (float("inf"), "not negative"),
    (-0.5, "not negative"),
    ("9" * 400 + "s", "not beyond all measure"),
    ("10", 'such as "250ms", "10s" or "5m"'),
    ("10 weeks", 'such as "250ms"'),
    ("-1s", 'such as "250ms"'),
    ("", 'such as "250ms"'),
    ([1], "found an array"),
]
ENV: list[tuple[Any, Any]] = [
    ({}, {}),
    ({"B": "2", "A": "1"}, {"A": "1", "B": "2"}),
    ({"PORT": "@{3000 + instance}"}, {"PORT": "@{3000 + instance}"}),
    ({"EMPTY": "", "odd name": "x"}, {"EMPTY": "", "odd name": "x"}),
]
BAD_ENV: list[tuple[Any, str]] = [
    ("A=1", "expected a table of strings, found a string"),
    ({"PORT": 80}, "PORT: expected a string, found an integer; put the value in quotes"),
    ({"ON": True}, "ON: expected a string, found a boolean"),
    ({"": "x"}, "variable names"),
    ({"A=B": "x"}, "variable names"),
    ({"A\0": "x"}, "variable names"),
    ({1: "x"}, "variable names"),
    ({"A": "\0"}, "A: expected a text without NUL"),
    ({"A": "\ud800"}, "half surrogate"),
]
BAD_TEXT: list[tuple[Any, str]] = [
    (7, "expected a string, found an integer"),
    ("", "empty"),
    (" ", "empty"),
    ("\0", "NUL"),
]
URLS: list[tuple[Any, Any]] = [
    ("tcp://localhost:5432", "tcp://localhost:5432"),
    ("http://localhost:@{3000 + instance}/@{name}", "http://localhost:@{3000 + instance}/@{name}"),
]
BAD_URLS: list[tuple[Any, str]] = [
    ("localhost:80", "expected http://host:port/path"),
    ("tcp://localhost", "expected tcp://host:port"),
    ("tcp://localhost:@{65536 + instance}", "expected a port from 1 to 65535"),
    ("tcp://localhost:@{port}", "expected @{instance}"),
    (80, "expected a string"),
]
FLAGS: list[tuple[Any, Any]] = [(True, True), (False, False)]
BAD_FLAGS: list[tuple[Any, str]] = [("yes", "expected true or false"), (1, "expected true or false, found an integer")]
HOOKS: list[tuple[Any, Any]] = [
    ("make && ./migrate | tee log", "make && ./migrate | tee log"),
    ("a @{name}", "a @{name}"),
]
BAD_HOOKS: list[tuple[Any, str]] = [*BAD_TEXT, ("run @{port}", "expected @{instance}")]
SIZES: list[tuple[Any, Any]] = [
    (1048576, 1048576),
    ("512", 512),
    ("1K", 1024),
    ("1.5 KB", 1536),
    (" 300m ", 300 * 2**20),
    ("2GiB", 2 * 2**30),
]
BAD_SIZES: list[tuple[Any, str]] = [
    ("much", 'such as "512K"'),
    ("-1M", 'such as "512K"'),
    ("", 'such as "512K"'),
    ("9" * 40, "whole number from 0"),
    (1.5, "found a float"),
    (True, "found a boolean"),
    (-1, "from 0"),
]
GOOD: dict[str, list[tuple[Any, Any]]] = {
    "command": [
        ("node server.js", "node server.js"),
        ("run --port @{3000 + instance}", "run --port @{3000 + instance}"),
    ],
    "cwd": [("/srv/shop", "/srv/shop"), ("app", "app")],
    "env": ENV,
    "env_file": [("a.env", ("a.env",)), (["b", "a"], ("b", "a")), ([], ())],
    "restart_when_changed": [
        ("a.conf", ("a.conf",)),
        (["conf.d/**/*.y[am]l", "@{process}.conf"], ("conf.d/**/*.y[am]l", "@{process}.conf")),
        (["@{10 // (1 + instance)}/x"], ("@{10 // (1 + instance)}/x",)),
        ([], ()),
    ],
    "environments": [({}, {}), ({"prod": {"A": "1"}, "dev": {}}, {"dev": {}, "prod": {"A": "1"}})],
    "secrets": [({"TOKEN": "a@{b"}, {"TOKEN": "a@{b"}), *ENV],
    "instances": [(0, 1), (1, 1), (4, 4), ("max", "max"), (-1, -1)],
    "instance_ids": [([12, 7, 0], (0, 7, 12)), ([], ()), ([999_999_999], (999_999_999,))],
    "depends_on": [(["b", "a", "b"], ("a", "b")), (["db:0"], ("db:0",)), ([], ())],
    "update": [
        ({}, {}),
        ({"order": "start_first", "max_surge": "25%"}, {"max_surge": "25%", "order": "start_first"}),
        ({"order": "stop_first", "max_unavailable": 1, "deadline": 0, "on_scale": "keep"}, {}),
        (
            {"deadline": "2m", "on_failure": "pause", "max_unavailable": 3},
            {"deadline": 120, "max_unavailable": 3, "on_failure": "pause"},
        ),
        ({"on_scale": "roll"}, {"on_scale": "roll"}),
    ],
    "group": [("backend", "backend")],
    "restart": [("always", "always"), ("never", "never"), ("on_failure", "on_failure")],
    "max_restarts": [(0, 0), (2**32 - 1, 2**32 - 1)],
    "min_uptime": [
        *DURATIONS,
        ("10s", 10_000),
        ("1.5 ms", 1.5),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("1d", 86_400_000),
    ],
    "stop_exit_codes": [([3, 1, 3], (1, 3)), ([], ()), ([-(2**31), 2**31 - 1], (-(2**31), 2**31 - 1))],
    "kill_signal": [("SIGINT", "SIGINT"), ("INT", "SIGINT"), ("sigusr1", "SIGUSR1")],
    "kill_timeout": [*DURATIONS, ("250ms", 250)],
    "user": [("shop", "shop"), ("shop:www-data", "shop:www-data"), ("first.last@dept", "first.last@dept")],
    "listen": [
        ("tcp://*:80", ("tcp://*:80",)),
        (["unix:///run//web/./sock", "tcp://[0:0::1]:3000"], ("unix:///run/web/sock", "tcp://[::1]:3000")),
        (["tcp://127.0.0.1:@{3000 + instance}"], ("tcp://127.0.0.1:@{3000 + instance}",)),
        ([], ()),
    ],
    "readiness_check": [*URLS, ("notify://", "notify://")],
    "readiness_timeout": [(30, 30), ("2m", 120), ("500ms", 0.5), (0.5, 0.5), (2.0, 2)],
    "health_check": URLS,
    "autostart": FLAGS,
    "stop_command": HOOKS,
    "reload_signal": [("HUP", "SIGHUP")],
    "pre_start": HOOKS,
    "post_stop": HOOKS,
    "hook_timeout": [(300, 300), ("5m", 300)],
    "liveness_check": URLS,
    "liveness_interval": [(10, 10), ("500ms", 0.5)],
    "liveness_timeout": [(2, 2), ("1m", 60)],
    "liveness_failures": [(1, 1)],
    "liveness_successes": [(3, 3)],
    "max_memory": [*SIZES, (1, 1)],
    "memory_max": [*SIZES, (1, 1)],
    "cpu_max": [
        *[("50%", "50%"), (" 150.0 % ", "150%"), ("12.50%", "12.5%"), ("1000000%", "1000000%")],
        *[(0.5, "50%"), (2, "200%"), (1.25, "125%"), (0.01, "1%"), (10_000, "1000000%")],
    ],
    "pids_max": [(1, 1), (64, 64)],
    "watch": [*FLAGS, ("src", "src"), ("/srv/@{name}", "/srv/@{name}")],
    "watch_ignore": [(["*.tmp", "cache/**"], ("*.tmp", "cache/**")), ([], ())],
    "cron_restart": [("0 3 * * 1", "0 3 * * 1"), ("*/3 * * * * *", "*/3 * * * * *")],
    "umask": [("022", "022"), ("0077", "077"), ("0", "000")],
    "nice": [(-20, -20), (0, 0), (19, 19)],
    "limits": [
        ({}, {}),
        ({"nofile": 65536}, {"nofile": "65536:65536"}),
        ({"nofile": "1024:infinity", "core": "unlimited"}, {"core": "unlimited:unlimited", "nofile": "1024:unlimited"}),
    ],
    "tty": FLAGS,
    "stdout_file": [("/var/log/web.log", "/var/log/web.log"), ("out/@{name}", "out/@{name}")],
    "stderr_file": [("web.err", "web.err")],
    "log_format": [("raw", "raw"), ("json", "json")],
    "log_date_format": [("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S"), ("%T", "%T")],
    "log_max_size": [*SIZES, (0, 0)],
    "log_max_age": [(0, 0), ("1d", 86400)],
    "log_keep": [(0, 0), (30, 30)],
    "log_total_size": [*SIZES, (0, 0)],
    "log_compress": FLAGS,
}
BAD: dict[str, list[tuple[Any, str]]] = {
    "command": [
        (7, "expected a string, found an integer"),
        (["node", "server.js"], "expected a string, found an array"),
        ("", "nothing to run"),
        ("a 'b", "closing single quote"),
        ('a "b', "closing double quote"),
        ("run @{port}", "expected @{instance}"),
        ("a\0b", "NUL"),
    ],
    "cwd": BAD_TEXT,
    "env": [*BAD_ENV, ({"PORT": "@{port}"}, "PORT: expected @{instance}")],
    "env_file": [(7, "a string or an array of strings"), ([7], "expected a string"), ([""], "empty"), ("", "empty")],
    "restart_when_changed": [
        (7, "a string or an array of strings"),
        ([7], "expected a string"),
        ([""], "empty"),
        ("@{port}/x", "expected @{instance}"),
        (["a/[b"], "expected a ] after the ["),
        ("[z-a]", "from the lower to the higher letter"),
    ],
    "environments": [
        ("prod", "a table of tables"),
        ({"prod": 1}, "a table of strings"),
        ({"prod": {"A": 1}}, "A: expected"),
        ({1: {}}, "string"),
    ],
    "secrets": BAD_ENV,
    "instances": [
        ("min", 'a whole number or "max"'),
        (1.5, "whole number"),
        (True, "boolean"),
        (100_001, "from -1024"),
        (-1025, "from -1024"),
    ],
    "instance_ids": [
        (7, "expected an array of whole numbers, found an integer"),
        ("7", "expected an array of whole numbers, found a string"),
        (["7"], "expected a whole number, found a string"),
        ([1.5], "expected a whole number, found a float"),
        ([True], "expected a whole number, found a boolean"),
        ([3, -1], "expected a whole number from 0 to 999999999, found -1"),
        ([10**9], "expected a whole number from 0 to 999999999, found 1000000000"),
        ([7, 12, 7], "expected each number once, found 7 twice"),
        (list(range(100_001)), "expected at most 100000 numbers, found 100001"),
    ],
    "depends_on": [("db", "an array of strings"), ([1], "expected a string"), ({"db": 1}, "an array of strings")],
    "update": [
        ("start_first", "expected a table such as"),
        ({"ordre": "start_first"}, "ordre: unknown key; did you mean order?"),
        ({"x": 1}, "x: unknown key; known: order, max_unavailable"),
        ({"order": "both"}, "order: expected one of stop_first, start_first, found 'both'"),
        ({"max_unavailable": 0}, "max_unavailable: expected a whole number from 1"),
        ({"max_surge": "110%"}, 'max_surge: expected a whole number from 1, or a part such as "25%"'),
        ({"max_surge": True}, "max_surge: expected a whole number, found a boolean"),
        ({"deadline": "soon"}, "deadline: expected a time such as"),
        ({"on_failure": "panic"}, "on_failure: expected one of revert, pause"),
    ],
    "group": BAD_TEXT,
    "restart": [("on-failure", "one of on_failure, always, never"), (True, "expected a string")],
    "max_restarts": [(-1, "from 0"), (2**32, "from 0"), (1.0, "found a float"), ("3", "found a string")],
    "min_uptime": BAD_DURATIONS,
    "stop_exit_codes": [(1, "an array of whole numbers"), (["1"], "a whole number"), ([2**31], "from -2147483648")],
    "kill_signal": [
        ("SIGTRM", "did you mean SIGTERM?"),
        ("TERMINATE", "such as SIGTERM"),
        (15, "expected a string"),
        ("", "such as SIGTERM"),
    ],
    "kill_timeout": BAD_DURATIONS,
    "user": [
        (7, "a string"),
        ("", '"name:group"'),
        ("a:b:c", '"name:group"'),
        ("a b", '"name:group"'),
        (":g", '"name:group"'),
    ],
    "listen": [
        (80, "a string or an array of strings"),
        ("80", "expected tcp://ADDRESS:PORT"),
        ("tcp://localhost:80", "an IPv6 address in brackets or * for all"),
        ("tcp://*:@{65536 + instance}", "expected a port from 1 to 65535"),
        ("unix://run/web.sock", "unix:///absolute/path"),
        (["tcp://[::1]:80", "tcp://[0::1]:80"], "expected each address once, found tcp://[::1]:80 twice"),
    ],
    "readiness_check": [*BAD_URLS, ("notify://here", "expected notify:// and nothing after it")],
    "readiness_timeout": [(0, "expected more than 0"), ("0ms", "expected more than 0"), *BAD_DURATIONS],
    "health_check": [*BAD_URLS, ("notify://", "notify:// is for readiness_check alone")],
    "autostart": BAD_FLAGS,
    "stop_command": BAD_HOOKS,
    "reload_signal": [("HOP", "did you mean SIGHUP?")],
    "pre_start": BAD_HOOKS,
    "post_stop": BAD_HOOKS,
    "hook_timeout": [(0, "expected more than 0"), *BAD_DURATIONS],
    "liveness_check": [
        *BAD_URLS,
        ("notify://", "notify:// is for readiness_check alone"),
        ("exec://", "nothing to run"),
        ("exec://a 'b", "closing single quote"),
    ],
    "liveness_interval": [(0, "expected more than 0"), *BAD_DURATIONS],
    "liveness_timeout": [(0, "expected more than 0"), *BAD_DURATIONS],
    "liveness_failures": [(0, "from 1"), ("3", "found a string")],
    "liveness_successes": [(0, "from 1"), (1.0, "found a float")],
    "max_memory": [*BAD_SIZES, (0, "expected more than 0")],
    "memory_max": [*BAD_SIZES, (0, "expected more than 0")],
    "cpu_max": [
        *(
            (wrong, 'expected a number of CPUs such as 0.5, or percent of one CPU such as "50%"')
            for wrong in (
                *("50", "0%", "0.9%", "%", "-1%", "1e3%", "2000000%"),
                *(0, 0.001, -1, True, 10_001, 10**400, float("inf"), float("nan"), [0.5]),
            )
        ),
    ],
    "pids_max": [(0, "from 1"), (-1, "from 1"), ("64", "a whole number")],
    "watch": [(1, "expected true, false or a path"), (["a"], "expected true, false or a path"), ("", "empty")],
    "watch_ignore": [("*.tmp", "an array of strings"), ([1], "expected a string")],
    "cron_restart": BAD_TEXT[:1],
    "umask": [(22, 'octal digits in quotes, such as "022"'), ("9", "octal digits"), ("1777", "octal"), ("", "octal")],
    "nice": [(-21, "from -20"), (20, "to 19"), ("5", "found a string")],
    "limits": [
        (5, "a table of limits"),
        ({"nofiles": 5}, "nofiles: unknown limit; did you mean nofile?"),
        ({"nofile": "many"}, "nofile: expected a number"),
        ({"nofile": True}, "nofile: expected a number"),
        ({"nofile": "2:1"}, "soft limit may not be above"),
        ({"nofile": "1:2:3"}, "nofile: expected"),
        ({"nofile": "unlimited:5"}, "soft limit may not be above"),
    ],
    "tty": BAD_FLAGS,
    "stdout_file": BAD_HOOKS,
    "stderr_file": BAD_HOOKS,
    "log_format": [("text", "one of raw, json")],
    "log_date_format": [*BAD_TEXT, ("%n", "one short line"), ("%T" * 100, "one short line")],
    "log_max_size": BAD_SIZES,
    "log_max_age": BAD_DURATIONS,
    "log_keep": [(-1, "from 0"), ("3", "found a string")],
    "log_total_size": BAD_SIZES,
    "log_compress": BAD_FLAGS,
}


LIVENESS = ("interval", "timeout", "failures", "successes")


def table(field: str, value: Any) -> dict[str, Any]:
    """A definition with that field, and whatever else it needs."""
    check = field.partition("_")[0] + "_check"
    limits_one = field in ("readiness_timeout", *(f"liveness_{name}" for name in LIVENESS))
    return {"command": "run", **({check: "tcp://localhost:1"} if limits_one else {}), field: value}


def problems(tables: Any) -> list[Problem]:
    with pytest.raises(DefinitionError) as caught:
        load(tables)
    assert caught.value.problems
    return list(caught.value.problems)


# Rows -------------------------------------------------------------------------------------------------------------------


def test_every_row_has_examples() -> None:
    """Whoever adds a row to the table says here what it takes and what it refuses."""
    assert set(GOOD) == set(BAD) == set(FIELDS)
    assert all(GOOD.values())
    assert all(BAD.values())


@pytest.mark.parametrize("row", FIELDS.values(), ids=list(FIELDS))
def test_every_row_is_whole(row: Any) -> None:
    assert row.help.endswith(".")
    assert isinstance(row.effect, Effect)
    if not row.required and row.default not in (None, (), {}):
        assert row.kind.check(row.default) == row.default


@pytest.mark.parametrize(("field", "value", "canonical"), [(field, *one) for field in GOOD for one in GOOD[field]])
def test_what_a_field_takes(field: str, value: Any, canonical: Any) -> None:
    definition = load({"web": table(field, value)})["web"]
    found = getattr(definition, field)
    assert (found, type(found)) == (canonical, type(canonical))
    assert load({"web": definition.data()}) == {"web": definition}
    assert load({"web": json.loads(json.dumps(definition.data()))}) == {"web": definition}


@pytest.mark.parametrize(("field", "value", "words"), [(field, *one) for field in BAD for one in BAD[field]])
def test_what_a_field_does_not_take(field: str, value: Any, words: str) -> None:
    (problem,) = problems({"web": table(field, value)})
    assert (problem.table, problem.field) == ("web", field)
    assert words in problem.message


@pytest.mark.parametrize("field", [field for field, row in FIELDS.items() if not row.required])
def test_a_field_that_is_null_is_absent(field: str) -> None:
    """pm3's client sends those."""
    assert load({"web": {"command": "run", field: None}}) == load({"web": {"command": "run"}})


def test_defaults_are_pm3s() -> None:
    web = load({"web": {"command": "run"}})["web"]
    assert (web.restart, web.max_restarts, web.min_uptime, web.instances) == ("on_failure", 15, 1000, 1)
    assert (web.kill_signal, web.kill_timeout, web.readiness_timeout) == ("SIGTERM", 5000, 30)
    assert web.data() == {"command": "run"}


# Loading ----------------------------------------------------------------------------------------------------------------


def test_all_problems_come_at_once_with_their_places() -> None:
    tables = {
        "web": {"comand": "run", "max_restarts": -1, "kill_signal": "SIGTRM", "env": {"PORT": 80}},
        "a/b": {"command": "run"},
        "job": "run",
        "api": {"command": "run", "readiness_timeout": 3},
    }
    found = {(problem.table, problem.field): problem.message for problem in problems(tables)}
    assert found == {
        ("web", "comand"): "unknown field; did you mean command?",
        ("web", "command"): "missing; every process needs one",
        ("web", "max_restarts"): "expected a whole number from 0 to 4294967295, found -1",
        ("web", "kill_signal"): "expected a signal such as SIGTERM, found 'SIGTRM'; did you mean SIGTERM?",
        ("web", "env"): "PORT: expected a string, found an integer; put the value in quotes",
        ("a/b", None): "invalid process name 'a/b': it may not contain / \\ : or ..",
        ("job", None): 'expected a table such as [web] with command = "…" in it',
        ("api", "readiness_timeout"): "needs a readiness_check",
    }


@pytest.mark.parametrize("instances", [1, 2, "max"])
def test_either_how_many_or_which(instances: Any) -> None:
    (problem,) = problems({"web": {"command": "run", "instances": instances, "instance_ids": [0, 1]}})
    assert (problem.field, problem.message) == ("instance_ids", "takes the place of instances; give one of the two")
    assert load({"web": {"command": "run", "instances": None, "instance_ids": []}})["web"].data() == {
        "command": "run",
        "instance_ids": [],
    }


@pytest.mark.parametrize(
    ("files", "field", "words"),
    [
        ({"instances": 2, "stdout_file": "/var/log/web"}, "stdout_file", "put @{instance} or @{name} in it"),
        ({"instances": "max", "stderr_file": "/var/log/@{process}"}, "stderr_file", "one file for several instances"),
        ({"instance_ids": [7], "stdout_file": "/var/log/web"}, "stdout_file", "put @{instance} or @{name} in it"),
        (
            {"stdout_file": "/var/log/web", "stderr_file": "/var/log/web"},
            "stderr_file",
            "another file than stdout_file",
        ),
    ],
)
def test_a_log_has_one_stream_that_fills_it(files: dict[str, Any], field: str, words: str) -> None:
    (problem,) = problems({"web": {"command": "run", **files}})
    assert problem.field == field
    assert words in problem.message
    load({"web": {"command": "run", "instances": 2, "stdout_file": "/var/log/@{name}"}})


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, []),
        ({"readiness_check": "exec://ready"}, []),
        ({"readiness_check": "http://127.0.0.1:@{3000 + 2 * instance + slot}/"}, []),
        ({"readiness_check": "http://127.0.0.1:3000/"}, ["readiness_check"]),
        ({"readiness_check": "exec://ready", "health_check": "tcp://127.0.0.1:@{3000 + instance}"}, ["health_check"]),
        ({"liveness_check": "tcp://127.0.0.1:3000"}, []),  # asked only of what is up
    ],
)
def test_copies_side_by_side_can_be_told_apart(fields: dict[str, Any], wrong: list[str]) -> None:
    for order, expected in (("start_first", wrong), ("stop_first", [])):
        _made, problems = parse("web", {"command": "x", "update": {"order": order}, **fields})
        assert [one.field for one in problems] == expected
        assert all("@{3000 + 2 * instance + slot}" in one.message for one in problems)


@pytest.mark.parametrize(
    ("field", "value", "beginnings"),
    [
        ("env", {"A": 1, "B": True, "C": "@{x}", "D": "d"}, ["A: ", "B: ", "C: "]),
        ("env_prod", {"A": 1, "": "x"}, ["expected variable names"]),
        ("environments", {"prod": {"A": 1}, "test": {"B": 1, "C": 1}}, ["A: ", "B: ", "C: "]),
        ("secrets", {"A": 1, "B": 2}, ["A: expected a string", "B: expected a string"]),
        ("update", {"order": "x", "max_unavailable": -3, "deadline": "foo", "sok": 1}, ["deadline: ", "max_", "order: ", "sok: "]),
        ("limits", {"nofile": "x", "nofil": 1, "core": "9:1"}, ["core: ", "nofil: ", "nofile: "]),
        ("watch_ignore", [3, "*.tmp", 4, "[a"], ["item 1: ", "item 3: ", "item 4: "]),
        ("depends_on", [3], ["expected a string"]),
        ("env_file", ["a", 3, ""], ["item 2: ", "item 3: "]),
        ("stop_exit_codes", [1, "2", 2**40], ["item 2: ", "item 3: "]),
    ],
)  # fmt: skip
def test_every_mistake_in_a_field_is_reported(field: str, value: Any, beginnings: list[str]) -> None:
    found = problems({"web": {"command": "run", field: value}})
    assert {problem.field for problem in found} == {field}
    assert [problem.message.startswith(said) for problem, said in zip(found, beginnings)] == [True] * len(beginnings)
    assert len(found) == len(beginnings)


def test_problems_are_in_order_of_name() -> None:
    assert [problem.table for problem in problems({name: {} for name in ("c", "a", "b")})] == ["a", "b", "c"]


def test_an_unknown_field_far_from_all_has_no_hint() -> None:
    (problem,) = problems({"web": {"command": "run", "wibble": 1}})
    assert problem.message == "unknown field"


@pytest.mark.parametrize("tables", [{}, [], None, "web", ["web"], 7])
def test_nothing_is_defined(tables: Any) -> None:
    assert "expected" in problems(tables)[0].message


def test_definitions_are_in_order_of_name() -> None:
    assert list(load({name: {"command": "run"} for name in ("c", "a", "b")})) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["web", "web-1", "my app", "a.b", ".hidden", "ümläut", "x" * 200])
def test_names(name: str) -> None:
    assert name_unfit(name) is None
    assert load({name: {"command": "run"}})[name].name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        "a/b",
        "a\\b",
        "a:b",
        "-a",
        " a",
        "a ",
        "a\n",
        "a\x00b",
        "\x7f",
        "\ud800",
        "x" * 201,
        "ü" * 101,
        7,
        None,
    ],
)
def test_names_that_are_none(name: Any) -> None:
    (problem,) = problems({name: {"command": "run"}})
    assert problem.message.startswith("invalid process name")


def test_names_of_every_type_at_once() -> None:
    """YAML makes numbers and booleans of keys."""
    assert {problem.table for problem in problems({1: {}, "a": {}, None: {}})} >= {"1", "a", "None"}


def test_parse_gives_what_it_could_read_or_nothing() -> None:
    definition, wrong = parse("web", {"command": "run", "instances": 2})
    assert definition == Definition("web", command="run", instances=2)
    assert wrong == []
    assert parse("web", {})[0] is None


def test_no_message_repeats_a_secret() -> None:
    for secrets in (
        "hunter2",
        ["hunter2"],
        {"TOKEN": ["hunter2"]},
        {"TOKEN": "hunter2\0"},
        {"A": {"hunter2": 1}},
        {"": "hunter2"},
    ):
        assert not [
            problem
            for problem in problems({"web": {"command": "run", "secrets": secrets}})
            if "hunter2" in str(problem)
        ]


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["max", "10s", "TERM", "a@{b}", "tcp://x:1"]),
)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
keys = st.one_of(st.sampled_from([*FIELDS, "env_prod", "env_", "name"]), st.text())
rough = st.one_of(anything, st.dictionaries(keys, anything, max_size=4).map(lambda one: {"command": "run", **one}))


@given(st.one_of(anything, st.dictionaries(st.one_of(st.sampled_from("abc"), st.text()), rough, max_size=3)))
def test_whatever_comes_over_the_wire_loads_or_is_refused(tables: Any) -> None:
    try:
        definitions = load(tables)
    except DefinitionError:
        return
    assert load({name: definition.data() for name, definition in definitions.items()}) == definitions


good = st.fixed_dictionaries(
    {"command": st.sampled_from([value for value, _canonical in GOOD["command"]])},
    optional={
        field: st.sampled_from([value for value, _canonical in GOOD[field]])
        for field in GOOD
        if field not in ("command", "stdout_file", "stderr_file", "update", "instances")
    },
).map(lambda one: {"readiness_check": "tcp://localhost:1", "liveness_check": "exec://true", **one})


@given(st.dictionaries(st.sampled_from("abc"), good, min_size=1))
def test_canonical_definitions_come_back(tables: dict[str, Any]) -> None:
    definitions = load(tables)
    assert (
        load(json.loads(json.dumps({name: definition.data() for name, definition in definitions.items()})))
        == definitions
    )


def test_many_cpus_without_a_unit_are_probably_percent() -> None:
    (said,) = cautions({"web": {"command": "run", "cpu_max": 50}})
    assert said == '[web] cpu_max: 50 means 50 CPUs; write "50%", or "5000%" for so many'
    for meant in (0.5, 2, 8, "50%", "5000%"):
        assert cautions({"web": {"command": "run", "cpu_max": meant}}) == []


def test_a_check_where_the_agent_itself_listens_is_probably_not_meant() -> None:
    listening = {"command": "run", "listen": ["tcp://*:80"]}
    (said,) = cautions(
        {"web": {**listening, "readiness_check": "tcp://localhost:80", "health_check": "tcp://localhost:81"}}
    )
    assert said.startswith("[web] readiness_check: always passes, because the agent itself listens on that port")
    assert cautions({"web": {**listening, "readiness_check": "notify://"}}) == []
    assert cautions({"web": {"command": "run", "readiness_check": "tcp://localhost:80"}}) == []
    assert cautions({"web": {"command": "run", "listen": 80, "readiness_check": "tcp://localhost:80"}}) == []


# Overlays ---------------------------------------------------------------------------------------------------------------


def test_overlays_are_tables_env_name_or_one_table_environments() -> None:
    prod = {"PORT": "80"}
    web = load({"web": {"command": "run", "env_prod": prod, "env_": {}}})["web"]
    assert web.environments == {"": {}, "prod": prod}
    assert load({"web": {"command": "run", "environments": {"": {}, "prod": prod}}})["web"] == web
    both = load({"web": {"command": "run", "environments": {"dev": {}}, "env_prod": prod}})["web"]
    assert both.environments == {"dev": {}, "prod": prod}
    (problem,) = problems({"web": {"command": "run", "env_prod": {"PORT": 80}}})
    assert (problem.field, problem.message[:5]) == ("env_prod", "PORT:")


def test_an_overlay_wins_over_env_and_keeps_the_rest() -> None:
    tables = {
        "web": {"command": "run", "env": {"A": "1", "B": "1"}, "env_prod": {"B": "2", "C": "2"}},
        "job": {"command": "run", "env": {"A": "1"}, "env_dev": {"A": "3"}},
    }
    definitions = overlaid(load(tables), "prod")
    assert definitions["web"].env == {"A": "1", "B": "2", "C": "2"}
    assert definitions["job"].env == {"A": "1"}
    assert all(not definition.environments for definition in definitions.values())
    assert overlaid(load(tables), None)["web"].env == {"A": "1", "B": "1"}


def test_the_overlay_without_a_name() -> None:
    assert overlaid(load({"web": {"command": "run", "env_": {"A": "1"}}}), "")["web"].env == {"A": "1"}


def test_an_overlay_that_nobody_defines() -> None:
    definitions = load({"web": {"command": "run", "env_dev": {}, "env_prod": {}}})
    with pytest.raises(DefinitionError, match="unknown environment: 'prd'; known: dev, prod"):
        overlaid(definitions, "prd")
    with pytest.raises(DefinitionError, match="no process defines one"):
        overlaid(load({"web": {"command": "run"}}), "prod")


# Places -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "base", "cwd", "env_file"),
    [
        ({}, "/srv/shop", "/srv/shop", ()),
        ({}, None, None, ()),
        ({"cwd": "app"}, "/srv/shop", "/srv/shop/app", ()),
        ({"cwd": "./app/"}, "/srv/shop", "/srv/shop/app", ()),
        ({"cwd": "/opt/app"}, "/srv/shop", "/opt/app", ()),
        ({"cwd": "/opt/app"}, None, "/opt/app", ()),
        ({"env_file": "a.env"}, "/srv/shop", "/srv/shop", ("/srv/shop/a.env",)),
        (
            {"env_file": ["a.env", "/etc/b.env"], "cwd": "app"},
            "/srv/shop",
            "/srv/shop/app",
            ("/srv/shop/app/a.env", "/etc/b.env"),
        ),
    ],
)
def test_located(fields: dict[str, Any], base: str | None, cwd: str | None, env_file: tuple[str, ...]) -> None:
    """Relative to the folder of the file that defines it; env_file to cwd."""
    definition, wrong = located(load({"web": {"command": "run", **fields}})["web"], base)
    assert (definition.cwd, definition.env_file, wrong) == (cwd, env_file, [])
    assert located(definition, base) == (definition, [])


def test_a_glob_is_relative_to_a_folder_whose_name_is_none() -> None:
    fields = {"cwd": "app*/@{8 // 2}", "restart_when_changed": ["conf.d/../*.conf", "/etc/a.conf"]}
    definition, wrong = located(load({"web": {"command": "run", **fields}})["web"], "/srv/[1]")
    assert not wrong
    assert definition.restart_when_changed == (
        "/srv/[[]1]/app[*]/@{8 // 2}/conf.d/../*.conf",
        "/etc/a.conf",
    )
    assert located(definition, "/srv/[1]") == (definition, [])


@pytest.mark.parametrize(
    ("field", "value"), [("cwd", "app"), ("env_file", "a.env"), ("restart_when_changed", "*.conf")]
)
def test_a_relative_path_without_a_place(field: str, value: str) -> None:
    (problem,) = located(load({"web": {"command": "run", field: value}})["web"], None)[1]
    assert (problem.table, problem.field) == ("web", field)
    assert "chdir" in problem.message


# Counting ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "uses"),
    [
        ({}, False),
        ({"command": "run --of @{count}"}, True),
        ({"command": "run --of @@{count}"}, False),
        ({"env": {"SHARD": "@{instance}/@{count - 1}"}}, True),
        ({"env": {"SHARD": "@{instance}"}}, False),
        ({"readiness_check": "tcp://localhost:@{3000 + count}"}, True),
        ({"health_check": "http://localhost/@{count}"}, True),
        ({"secrets": {"TOKEN": "@{count}"}}, False),
    ],
)
def test_uses_count(fields: dict[str, Any], uses: bool) -> None:
    assert uses_count(load({"web": {"command": "run", **fields}})["web"]) is uses
