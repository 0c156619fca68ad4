from __future__ import annotations

import re
import time
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli import table
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.screen import columns_of
from hypothesis import given
from hypothesis import strategies as st


def plain(text: str, *_colours: str) -> str:
    return text


def process(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "status": "online", "restarts": 0, **more}


def test_the_table_is_the_one_of_pm3() -> None:
    listed = [
        process("web:10", group="web", pid=812, uptime=7385, cpu_percent=0.44, memory_bytes=7340032),
        process("tick", status="stopped", uptime=9, restarts=2),
        process("web:2", group="web", pid=811, uptime=45),
    ]
    assert "\n".join(table.table(listed, plain)) == (
        "┌────────┬───────┬─────┬─────────┬──────┬──────┬────────┬──────────┐\n"
        "│ name   ┆ group ┆ pid ┆ status  ┆ cpu  ┆ mem  ┆ uptime ┆ restarts │\n"
        "╞════════╪═══════╪═════╪═════════╪══════╪══════╪════════╪══════════╡\n"
        "│ tick   ┆ -     ┆ -   ┆ stopped ┆ -    ┆ -    ┆ -      ┆ 2        │\n"
        "│ web:2  ┆ web   ┆ 811 ┆ online  ┆ -    ┆ -    ┆ 45s    ┆ 0        │\n"
        "│ web:10 ┆ web   ┆ 812 ┆ online  ┆ 0.4% ┆ 7.0M ┆ 2h 3m  ┆ 0        │\n"
        "└────────┴───────┴─────┴─────────┴──────┴──────┴────────┴──────────┘"
    )


def test_wide_letters_do_not_move_columns() -> None:
    listed = [process("プロセス", group="日本語"), process("web", group="front")]
    lines = table.table(listed, plain)
    assert len({columns_of(line) for line in lines}) == 1
    assert len({columns_of(line.partition("┆")[0]) for line in lines if "┆" in line}) == 1


def test_an_empty_table_is_a_sentence() -> None:
    assert table.table([], plain) == ["no processes running"]


@given(
    st.lists(
        st.fixed_dictionaries({"name": st.text(), "group": st.none() | st.text(), "pid": st.integers(1, 2**22)}),
        min_size=1,
    )
)
def test_every_line_is_as_wide_and_leaves_the_terminal_alone(listed: list[dict[str, Any]]) -> None:
    lines = table.table(listed, plain)
    assert len({columns_of(line) for line in lines}) == 1
    assert all(line.isprintable() for line in lines)


def test_what_is_held_is_told_below_the_table() -> None:
    by_ann = "held by ann since 2026-11-20 19:31: disk \x1b[2J"
    listed = [
        *(process(f"job-{number}", held=by_ann) for number in range(7)),
        process("web:1", process="web", held="held by bob since 2026-11-20 19:33: memory"),
        process("web:0", process="web", held="held by bob since 2026-11-20 19:33: memory"),
        process("db"),
    ]
    assert table.holds(listed, plain) == [
        "job-0, job-1, job-2, job-3, job-4 and 2 more: held by ann since 2026-11-20 19:31: disk \\x1b[2J",
        "web: held by bob since 2026-11-20 19:33: memory",
    ]
    assert table.holds([process("db")], plain) == []
    assert "  held: by bob since 2026-11-20 19:33: memory" in table.details(listed[7], plain)
    assert table.table(listed, plain)[1].split(" ┆ ")[0] == "│ name "


def test_colours_do_not_move_columns() -> None:
    def paint(text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m"

    listed = [process("web"), process("db", status="errored")]
    coloured = table.table(listed, paint)
    assert [re.sub(r"\x1b\[[0-9]*m", "", line) for line in coloured] == table.table(listed, plain)
    assert "\x1b[31merrored\x1b[0m" in coloured[3]


@given(st.lists(st.text("01a:")))
def test_the_natural_order_is_one_order(names: list[str]) -> None:
    assert sorted(names, key=table.natural) == sorted(names, key=table.natural)


def test_the_natural_order() -> None:
    names = ["web:10", "web", "web:2", "db", "a2b10", "a2b9", "9" * 5000]
    assert sorted(names, key=table.natural) == ["9" * 5000, "a2b9", "a2b10", "db", "web", "web:2", "web:10"]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (None, "-"),
        (0, "0B"),
        (512, "512B"),
        (1536, "1.5K"),
        (5452595, "5.2M"),
        (1181116006, "1.1G"),
        (2**45, "32768.0G"),
    ],
)
def test_sizes(count: int | None, said: str) -> None:
    assert table.size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "-"), (0, "0s"), (45, "45s"), (133, "2m 13s"), (11_100, "3h 5m"), (187_200, "2d 4h")]
)
def test_durations(seconds: int | None, said: str) -> None:
    assert table.duration(seconds) == said


def test_info_has_the_labels_of_pm3_in_their_order() -> None:
    info = process(
        "web:0",
        command="./web --port 80",
        pid=812,
        cwd="/srv",
        uptime=61,
        group="web",
        env={"B": "2", "A": "1\n2"},
        stdout_log="/d/logs/web:0-out.log",
        stderr_log="/d/logs/web:0-err.log",
        readiness_check="tcp://localhost:80",
        readiness_timeout=30,
        health_check="http://localhost/",
        depends_on=["db:10", "db:2"],
        total_restarts=3,
        last_exit={"cause": "exit", "code": 1, "signal": None, "message": "exited with code 1"},
        project="shop",
    )
    assert table.details(info, plain) == [
        "web:0: online",
        "  command: ./web --port 80",
        "  pid: 812",
        "  cwd: /srv",
        "  cpu: -",
        "  memory: -",
        "  uptime: 1m 1s",
        "  restarts: 0",
        "  total_restarts: 3",
        "  last_exit: exited with code 1",
        "  project: shop",
        "  group: web",
        "  env:",
        "    A=1\\n2",
        "    B=2",
        "  stdout_log: /d/logs/web:0-out.log",
        "  stderr_log: /d/logs/web:0-err.log",
        "  readiness_check: tcp://localhost:80",
        "  readiness_timeout: 30s",
        "  health_check: http://localhost/",
        "  depends_on: db:2, db:10",
    ]


def test_info_of_what_does_not_run() -> None:
    assert table.details(process("job", status="stopped", command="x", uptime=99), plain) == [
        "job: stopped",
        "  command: x",
        "  cpu: -",
        "  memory: -",
        "  uptime: -",
        "  restarts: 0",
    ]


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"cause": "exit", "code": 3, "signal": None, "message": None}, "code 3"),
        ({"cause": "signal", "code": None, "signal": "SIGKILL"}, "signal SIGKILL"),
        ({"cause": "unknown"}, "unknown"),
    ],
)
def test_the_last_exit(last: dict[str, Any], said: str) -> None:
    assert f"  last_exit: {said}" in table.details(process("web", last_exit=last), plain)


def test_what_a_newer_agent_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    last = {
        "cause": "exit",
        "code": 1,
        "message": "exited with code 1",
        "at": 86_400.5,
        "log_tail": ["Traceback", "a\tb"],
    }
    info = process("web", last_exit=last, since=90_000, lost_bytes=17, watch_trouble="/srv: too many watches")
    lines = table.details(info, plain)
    assert lines[3:9] == [
        "  uptime: -",
        "  since: 1970-01-02 03:00:00",
        "  restarts: 0",
        "  last_exit: exited with code 1, at 1970-01-02 02:00:00",
        "    | Traceback",
        "    | a\\tb",
    ]
    assert lines[9:] == ["  lost_bytes: 17", "  watch_trouble: /srv: too many watches"]
    assert not [line for line in table.details(process("web", lost_bytes=0), plain) if "lost" in line]
    limited = process("web", memory_max=64 << 20, cpu_max="50%", pids_max=8)
    assert table.details(limited, plain)[-3:] == [
        "  memory_max: 64.0M",
        "  cpu_max: 50%",
        "  pids_max: 8",
    ]
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, None), (True, None), ("today", "today"), (1e30, "1e+30"), ([], None)]
)
def test_moments_that_are_none(seconds: Any, said: str | None) -> None:
    assert table.moment(seconds) == said
