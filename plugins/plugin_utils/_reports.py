# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a whole fleet has to say: the results of one task on every host as one document, and that as lines or as a page.

A result is what a task registered on a host; a host without one was never asked. `report` is the document as lines.
Pure. Private to this collection.
"""

from __future__ import annotations

import pathlib
import re
import typing as t

from ..module_utils.pm3.model.rows import why

Document = dict[str, t.Any]
Results = t.Mapping[str, t.Mapping[str, t.Any]]  # by host

PAGE = pathlib.Path(__file__).with_name("status.html.j2")

# Trouble comes first, then what may be somebody's wish, then what is well.
_ORDER = ("errored", "unhealthy", "starting", "stopped", "online")
_STATES = ("released", "ok", "went back", "failed", "unreachable", "not reached")
_MIB = 1 << 20


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which app2 comes before app10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def unanswered(results: Results) -> tuple[list[Document], list[Document]]:
    """The hosts that could not be reached and those on which the task failed, each with what was said."""
    unreachable, failed = [], []
    for host in sorted(results, key=natural):
        result = results[host]
        said = {"host": host, "message": _first_line(result.get("msg") or "it was not asked")}
        if result.get("unreachable"):
            unreachable.append(said)
        elif result.get("failed") or result.get("msg") or not isinstance(result.get("instances"), list):
            failed.append(said)
    return unreachable, failed


def status(results: Results) -> Document:
    """From results of `process_info`: every host and every instance, the ones with trouble first."""
    unreachable, failed = unanswered(results)
    silent = {one["host"] for one in (*unreachable, *failed)}
    hosts, instances = [], []
    for host in sorted(set(results) - silent, key=natural):
        result = results[host]
        revisions: dict[str, t.Any] = {
            project: next((one for one in known if one.get("current")), {})
            for project, known in (result.get("revisions") or {}).items()
        }
        rows = [_instance(host, one, revisions.get(one.get("project")) or {}) for one in result["instances"]]
        instances += rows
        hosts.append(
            {
                "host": host,
                "agent": (result.get("agent") or {}).get("version"),
                "instances": len(rows),
                "trouble": sum(row["trouble"] for row in rows),
                "revisions": {name: _revision(one) for name, one in revisions.items() if one},
            }
        )
    instances.sort(key=lambda row: (_rank(row), natural(row["host"]), natural(row["name"])))
    counts = {state: sum(row["status"] == state for row in instances) for state in _ORDER}
    document: Document = {
        "hosts": hosts,
        "instances": instances,
        "unreachable": unreachable,
        "failed": failed,
        "summary": {
            "hosts": len(results),
            "unreachable": len(unreachable),
            "failed": len(failed),
            "without_agent": sum(one["agent"] is None for one in hosts),
            "instances": len(instances),
            "trouble": sum(row["trouble"] for row in instances),
            **counts,
        },
    }
    return {**document, "report": _status_lines(document)}


def _status_lines(document: Document) -> list[str]:
    """For a terminal: who did not answer, a table of all instances, and how many there are."""
    rows = [
        {
            "host": row["host"],
            "instance": row["name"],
            "status": row["status"],
            "restarts": row["total_restarts"],
            "memory": size(row["memory_bytes"]),
            "cpu": "" if row["cpu_percent"] is None else f"{row['cpu_percent']:.1f}%",
            "revision": row["revision"],
            "note": row["note"],
        }
        for row in document["instances"]
    ]
    versions: dict[str, list[str]] = {}
    for one in document["hosts"]:
        versions.setdefault(one["agent"] or "none", []).append(one["host"])
    most = max((len(hosts) for hosts in versions.values()), default=0)
    agents = [
        f"{version} on {len(hosts)}" + (f" ({', '.join(hosts)})" if len(hosts) < most and len(hosts) <= 5 else "")
        for version, hosts in sorted(versions.items())
    ]
    count = document["summary"]
    told = [f"{count[state]} {state}" for state in _ORDER if count[state]]
    closing = f"{_counted(count['instances'], 'instance')} on {_counted(count['hosts'], 'host')}"
    closing += f": {', '.join(told)}" if told else ""
    return [*silence(document), *table(rows), closing, *([f"agents: {', '.join(agents)}"] if agents else [])]


def drift(results: Results) -> Document:
    """From results of `processes` in check mode, or lists of them (`results` of a loop): what a run would change, and what is held."""
    unreachable, failed = [], []
    drifted: list[Document] = []
    held: list[Document] = []
    for host in sorted(results, key=natural):
        parts = results[host].get("results")
        for part in parts if isinstance(parts, list) else [results[host]]:
            lost, refused = unanswered({host: part})
            unreachable += [one for one in lost if one not in unreachable]
            failed += refused
            for row in part.get("instances") or () if not lost and not refused else ():
                seen = {"host": host, "project": part.get("project"), **{key: row[key] for key in _DRIFT}}
                if row["changed"]:
                    drifted.append(seen)
                elif str(row["reason"]).startswith("held by "):
                    held.append(seen)
    document: Document = {
        "hosts": len(results),
        "drifted": drifted,
        "held": held,
        "failed": failed,
        "unreachable": unreachable,
    }
    return {**document, "report": _drift_lines(document)}


def _drift_lines(document: Document) -> list[str]:
    """For a terminal: one line for each instance that is not as described, or is held."""
    rows = []
    for one in (*document["drifted"], *document["held"]):
        rows.append(
            {
                "host": one["host"],
                "instance": one["name"],
                "action": "held" if one in document["held"] else one["action"],
                "why": why(one),
            }
        )
    hosts = len({one["host"] for one in document["drifted"]})
    count = len(document["drifted"])
    silent = {one["host"] for one in (*document["failed"], *document["unreachable"])}
    answered, asked = document["hosts"] - len(silent), _counted(document["hosts"], "host")
    known = f"{answered} of {asked}" if silent else asked
    closing = f"drift: {_counted(count, 'instance')} on {hosts} of {asked}" if count else f"no drift on {known}"
    return [*silence(document), *table(rows), closing]


def rollout(
    hosts: t.Mapping[str, t.Mapping[str, t.Any]], project: str, label: str, lost: t.Collection[str] = ()
) -> Document:
    """From the facts that role `rollout` has set on each host: what became of the rollout there, and as a whole. `lost` are hosts that have
    dropped out of the plays, so that their facts may be those of an earlier rollout."""
    releases = [f"{project} {way} {label}" for way in ("to", "from")]
    rows = [_rolled(host, hosts[host], releases, host in lost) for host in sorted(hosts, key=natural)]
    document: Document = {
        "project": project,
        "label": label,
        "stopped": any(facts.get("pm3_rollout_stopped") for host, facts in hosts.items() if host not in lost),
        "hosts": rows,
        "summary": {state: sum(row["state"] == state for row in rows) for state in _STATES},
    }
    document["ok"] = not document["stopped"] and not any(
        row["message"] or row["state"] == "not reached" for row in rows
    )
    return {**document, "report": _rollout_lines(document)}


def _rolled(host: str, facts: t.Mapping[str, t.Any], releases: t.Sequence[str], is_lost: bool) -> Document:
    outcome, back = (
        found if found.get("release") in releases else {}
        for found in (facts.get(f"pm3_rollout_{name}") or {} for name in ("outcome", "return"))
    )
    if is_lost and not outcome:
        outcome = {"error": "failed outside of the rollout, see above"}
    there, then = outcome.get("result") or {}, back.get("result") or {}
    returned = bool(there.get("reverted")) or bool(then.get("changed"))
    errors = [one["error"] for one in (outcome, back) if one.get("error")]
    if any(one.get("unreachable") for one in (outcome, back)):
        state = "unreachable"
    elif back.get("error"):
        state = "failed"
    elif returned:
        state = "went back"
    elif errors:
        state = "failed"
    elif outcome:
        state = "ok" if not there.get("changed") else "went back" if outcome.get("leave") else "released"
    else:
        state = "not reached"
    rows = [*(there.get("instances") or ()), *(then.get("instances") or ())]
    summary = there.get("summary") or {}
    first, last = (there if there.get("instances") else then), (then if then.get("instances") else there)
    return {
        "host": host,
        "state": state,
        "before": str(first.get("previous_label") or first.get("previous_revision") or ""),
        "after": str(last.get("label") or last.get("revision") or ""),
        **{key: summary.get(key, 0) for key in ("ok", "changed", "failed")},
        "reverted": sum(row["action"] == "reverted" for row in rows)
        + sum(bool(row["changed"]) for row in then.get("instances") or ()),
        "seconds": float(outcome.get("seconds") or 0),
        "drained": bool(outcome.get("drained")) and not (back and not back.get("error")),
        "message": "; ".join(_first_line(error) for error in errors),
        "log_tail": [line for row in rows for line in row.get("log_tail") or ()],
    }


def _rollout_lines(document: Document) -> list[str]:
    """For a terminal: a line for each host, then why where something failed, then all in one sentence."""
    columns = ("host", "state", "before", "after", "ok", "changed", "failed", "reverted", "seconds")
    lines = table([{key: row[key] for key in columns} for row in document["hosts"]])
    for row in document["hosts"]:
        if row["message"]:
            lines.append(f"{row['host']}: {row['message']}")
            lines += [f"    | {line}" for line in row["log_tail"]]
        if row["drained"]:
            lines.append(f"{row['host']}: is still drained")
    told = [f"{count} {state}" for state, count in document["summary"].items() if count]
    end = "stopped" if document["stopped"] else "done" if document["ok"] else "done, with failures"
    return [*lines, f"release {document['label']} of {document['project']}: {end}: {', '.join(told) or 'no hosts'}"]


def silence(document: Document) -> list[str]:
    """A line for each host that gave no answer."""
    lines = [f"{one['host']}: unreachable: {one['message']}" for one in document["unreachable"]]
    return lines + [f"{one['host']}: failed: {one['message']}" for one in document["failed"]]


def table(rows: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Rows under their keys, in columns; numbers to the right, columns in which nothing is left out."""
    keys = [key for key in (rows[0] if rows else ()) if any(row[key] not in (None, "") for row in rows)]
    if not keys:
        return []
    right = {key for key in keys if all(isinstance(row[key], (int, float)) for row in rows)} | {"memory", "cpu"}
    cells = [{key: key.upper() for key in keys}] + [
        {key: "" if row[key] is None else str(row[key]) for key in keys} for row in rows
    ]
    width = {key: max(len(line[key]) for line in cells) for key in keys}
    return [
        "  ".join(line[key].rjust(width[key]) if key in right else line[key].ljust(width[key]) for key in keys).rstrip()
        for line in cells
    ]


def page(document: Document, made_at: str) -> str:
    """The document of `status` as one HTML file that needs nothing else. `made_at` is shown as it is."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["size"] = size
    by_host: dict[str, list[Document]] = {}
    for row in document["instances"]:
        by_host.setdefault(row["host"], []).append(row)
    hosts = sorted(
        document["hosts"], key=lambda one: (not one["trouble"] and one["agent"] is not None, natural(one["host"]))
    )
    template = environment.from_string(PAGE.read_text("utf-8"))
    return template.render({**document, "hosts": hosts}, by_host=by_host, made_at=made_at)


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return ""
    return f"{count / _MIB:.1f} MB" if count < 1000 * _MIB else f"{count / _MIB / 1024:.1f} GB"


_DRIFT = ("name", "process", "action", "status", "reason", "changes")


def _instance(host: str, one: t.Mapping[str, t.Any], revision: t.Mapping[str, t.Any]) -> Document:
    has_trouble = one["status"] in ("errored", "unhealthy") or (one["status"] == "stopped" and bool(one.get("wanted")))
    last = one.get("last_exit") or {}
    notes = [str(one["held"])] if one.get("held") else []
    if has_trouble and last.get("message"):
        notes.append(str(last["message"]))
    return {
        "host": host,
        "trouble": has_trouble,
        "revision": _revision(revision),
        "note": "; ".join(notes),
        "memory_bytes": one.get("memory_bytes"),
        "cpu_percent": one.get("cpu_percent"),
        **{
            key: one.get(key)
            for key in ("name", "process", "project", "status", "pid", "uptime", "restarts", "total_restarts")
        },
    }


def _rank(row: Document) -> tuple[bool, int]:
    place = _ORDER.index(row["status"]) if row["status"] in _ORDER else 0
    return (not row["trouble"], place)


def _revision(one: t.Mapping[str, t.Any]) -> str:
    """Its label, or its number where it has none."""
    return str(one.get("label") or one.get("revision") or "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _first_line(text: t.Any) -> str:
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "")
