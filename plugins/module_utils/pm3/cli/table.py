# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes as people read them: the table of `list` and the lines of `info`. Pure: data in, lines out.

Columns, labels, their order and the units are pm3's (spec: pm3.md, section 5.2), with lines of our own between them in `info`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from ..model.order import natural
from ..model.screen import columns_of, one_line, padded
from .console import GREEN, GREY, RED, YELLOW

Paint = Callable[..., str]
COLUMNS = ("name", "group", "pid", "status", "cpu", "mem", "uptime", "restarts")
_STATUS_COLOURS = {"online": GREEN, "starting": YELLOW, "unhealthy": RED, "errored": RED, "stopped": GREY}


def table(processes: Iterable[Mapping[str, Any]], paint: Paint) -> list[str]:
    """The lines of the process table, in natural order of names; `paint(text, colour)` colours the status."""
    rows = [_cells(process) for process in sorted(processes, key=lambda one: natural(str(one["name"])))]
    if not rows:
        return ["no processes running"]
    return boxed(COLUMNS, rows, lambda row: ("status", _STATUS_COLOURS.get(row[COLUMNS.index("status")])), paint)


def holds(processes: Iterable[Mapping[str, Any]], paint: Paint) -> list[str]:
    """Lines below the table: which processes apply leaves alone, and why. Those that are held together share one."""
    found: dict[str, dict[str, None]] = {}
    for one in sorted(processes, key=lambda one: natural(str(one["name"]))):
        if one.get("held"):
            found.setdefault(str(one["held"]), {})[str(one.get("process") or one["name"])] = None
    return [paint(printable(f"{listed(list(names))}: {text}"), YELLOW) for text, names in found.items()]


def listed(names: Sequence[str], most: int = 5) -> str:
    """`a, b, c and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def boxed(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    colour_of: Callable[[Sequence[str]], tuple[str, str | None]],
    paint: Paint,
) -> list[str]:
    """Rows of printable cells as a table; `colour_of` gives for a row the column to paint and the colour, or None for none."""
    widths = [max(columns_of(row[at]) for row in [columns, *rows]) for at in range(len(columns))]

    def rule(left: str, fill: str, cross: str, right: str) -> str:
        return left + cross.join(fill * (width + 2) for width in widths) + right

    def line(row: Iterable[str], column: str = "", colour: str | None = None) -> str:
        cells = [padded(cell, width) for cell, width in zip(row, widths)]
        if colour is not None:
            cells[columns.index(column)] = paint(cells[columns.index(column)], colour)
        return "│ " + " ┆ ".join(cells) + " │"

    body = [line(row, *colour_of(row)) for row in rows]
    return [rule("┌", "─", "┬", "┐"), line(columns), rule("╞", "═", "╪", "╡"), *body, rule("└", "─", "┴", "┘")]


def details(info: Mapping[str, Any], paint: Paint) -> list[str]:
    """The lines of `info` for one process."""
    status = str(info.get("status"))
    lines = [f"{printable(info['name'])}: {paint(status, _STATUS_COLOURS.get(status, GREY))}"]
    for label, value in _labelled(info):
        if label == "last_exit":
            last = info["last_exit"]
            lines.append(f"  {label}: {printable(value)}")
            lines += [f"    | {printable(line)}" for line in last.get("log_tail") or ()]
        elif isinstance(value, Mapping):
            lines.append(f"  {label}:")
            lines += [f"    {printable(key)}={printable(value[key])}" for key in sorted(value, key=natural)]
        else:
            lines.append(f"  {label}: {printable(value)}")
    return lines


def _labelled(info: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Label and value of each line, in order; what is absent is left out, except what a reader would miss."""
    timeout = info.get("readiness_timeout")
    found = [
        ("command", info.get("command")),
        ("pid", info.get("pid")),
        ("cwd", info.get("cwd")),
        ("cpu", _percent(info.get("cpu_percent"))),
        ("memory", size(info.get("memory_bytes"))),
        ("uptime", _uptime(info)),
        ("since", moment(info.get("since"))),
        ("restarts", info.get("restarts", 0)),
        ("total_restarts", info.get("total_restarts")),
        ("last_exit", _last_exit(info.get("last_exit"))),
        ("project", info.get("project")),
        ("held", str(info.get("held") or "").removeprefix("held ")),
        ("group", info.get("group")),
        ("env", info.get("env")),
        ("stdout_log", info.get("stdout_log")),
        ("stderr_log", info.get("stderr_log")),
        ("lost_bytes", info.get("lost_bytes") or None),
        ("watch_trouble", info.get("watch_trouble")),
        ("memory_max", size(info["memory_max"]) if "memory_max" in info else None),
        ("cpu_max", info.get("cpu_max")),
        ("pids_max", info.get("pids_max")),
        ("readiness_check", info.get("readiness_check")),
        ("readiness_timeout", f"{timeout}s" if timeout is not None else None),
        ("health_check", info.get("health_check")),
        ("depends_on", ", ".join(sorted(info.get("depends_on") or [], key=natural))),
    ]
    return [(label, value) for label, value in found if value is not None and value not in ("", {})]


def size(count: Any) -> str:
    """Bytes as `512B`, `1.5K`, `5.2M`, `1.1G`."""
    if not isinstance(count, (int, float)):
        return "-"
    for unit, limit in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return f"{int(count)}B"


def duration(seconds: Any) -> str:
    """Seconds as `45s`, `2m 13s`, `3h 5m`, `2d 4h`."""
    if not isinstance(seconds, (int, float)):
        return "-"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}h"
    if hours:
        return f"{hours}h {minute}m"
    return f"{minutes}m {second}s" if minutes else f"{second}s"


def moment(seconds: Any) -> str | None:
    """Seconds since the epoch as a local date and time; a text as it is."""
    if isinstance(seconds, str):
        return seconds
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        return None
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def printable(value: Any) -> str:
    """A text in one line that leaves the terminal alone."""
    return one_line(str(value))


def _cells(process: Mapping[str, Any]) -> tuple[str, ...]:
    cells = (
        process["name"],
        process.get("group") or "-",
        process.get("pid") or "-",
        process.get("status") or "-",
        _percent(process.get("cpu_percent")),
        size(process.get("memory_bytes")),
        _uptime(process),
        process.get("restarts", 0),
    )
    return tuple(printable(cell) for cell in cells)


def _percent(value: Any) -> str:
    return f"{value:.1f}%" if isinstance(value, (int, float)) else "-"


def _uptime(process: Mapping[str, Any]) -> str:
    """Only what runs has an uptime, whatever the agent sends (W7)."""
    return duration(process.get("uptime")) if process.get("pid") else "-"


def _last_exit(last: Any) -> str | None:
    if not isinstance(last, Mapping):
        return None
    at = moment(last.get("at"))
    return _how(last) + (f", at {at}" if at else "")


def _how(last: Mapping[str, Any]) -> str:
    if last.get("message"):
        return str(last["message"])
    if last.get("signal") is not None:
        return f"signal {last['signal']}"
    return f"code {last['code']}" if last.get("code") is not None else str(last.get("cause") or "unknown")
