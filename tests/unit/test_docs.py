# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What README and docs show is true: tables of fields are those of the field table, examples load, options exist.

The tables are written by this test: PM3_WRITE_DOCS=1 make unit ARGS="-k test_docs"
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import shaping
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli import main as cli
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli.main import COMMANDS, Argument
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.formats import pm3_toml
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import (
    definition,
    kinds,
    life,
    loading,
    machine,
    patterns,
    rows,
)
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import FIELDS, Effect, Field
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.plan import plan
from ansible_collections.pm3.fleet.plugins.plugin_utils import _placement

ROOT = pathlib.Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
REFERENCE, TYPED, LIFE, LOGS, SURVIVAL = (
    DOCS / f"{name}.md" for name in ("fields", "commands", "supervision", "logs", "survival")
)
PAGES = sorted([README, *ROOT.glob("docs/*.md"), *ROOT.glob("roles/*/README.md")])
MODULES = ("agent", "processes", "process", "process_info")

_TABLE = re.compile(r"(<!-- fields: .*? -->\n).*?(<!-- end of fields -->\n)", re.DOTALL)
_COMMANDS = re.compile(r"(<!-- commands: .*? -->\n).*?(<!-- end of commands -->\n)", re.DOTALL)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ROW = re.compile(r"^(?:  )?(\S+) +(\w+) +(\w+)(?: +(.+))?$")
_COSTS = {
    Effect.RESTART: "replaces it",
    Effect.HOT: "applied while it runs",
    Effect.NONE: "costs nothing",
    Effect.INSTANCES: "adds or removes",
}


# --- the tables of fields --------------------------------------------------------------------------------------------


def written(row: Field) -> str:
    """The field as a person writes it."""
    return "env_NAME" if row.name == "environments" else row.name


def default(row: Field) -> str:
    if row.required:
        return "required"
    if row.default in (None, (), {}):
        return ""
    if isinstance(row.default, str):
        return f'`"{row.default}"`'
    unit = {kinds.MILLISECONDS: "ms", kinds.SECONDS: "s"}.get(row.kind, "")
    return f"`{row.default}{' ' * bool(unit)}{unit}`"


def takes(row: Field) -> str:
    if row.kind.choices:
        return ", ".join(f'`"{choice}"`' for choice in row.kind.choices)
    return (kinds.ENVIRONMENT if row.kind is kinds.OVERLAYS else row.kind).words


def short_table() -> str:
    lines = ["| field | default | |", "|---|---|---|"]
    lines += [f"| `{written(row)}` | {default(row)} | {row.help} |" for row in FIELDS.values()]
    return "\n".join(lines) + "\n"


def full_table() -> str:
    lines = ["| field | takes | default | a change | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{written(row)}` | {takes(row)} | {default(row)} | {_COSTS[row.effect]} | {row.help} |"
        for row in FIELDS.values()
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("page", "table"), [(README, short_table), (REFERENCE, full_table)], ids=["README", "fields"])
def test_tables_of_fields_are_the_field_table(page: pathlib.Path, table: Any) -> None:
    same(page, _TABLE, table())


def same(page: pathlib.Path, marks: re.Pattern[str], content: str) -> None:
    """What is between the marks on a page is `content`; or it is written there."""
    text = page.read_text(encoding="utf-8")
    expected, count = marks.subn(lambda found: found.group(1) + content + found.group(2), text)
    assert count == 1, "the marks around what is written by this test are missing"
    if os.environ.get("PM3_WRITE_DOCS"):
        page.write_text(expected, encoding="utf-8")
    else:
        assert text == expected, 'write it anew: PM3_WRITE_DOCS=1 make unit ARGS="-k test_docs"'


# --- what moves ------------------------------------------------------------------------------------------------------

_MOVES = re.compile(r"(<!-- moves: .*? -->\n).*?(<!-- end of moves -->\n)", re.DOTALL)


def moves() -> str:
    lines = [
        "| hosts | numbers | a share | move when a host goes or comes | at most | and for a number more | at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, count in ((3, 20), (5, 20), (10, 30), (10, 100), (30, 100), (100, 100), (100, 300)):
        hosts = [f"worker{number}" for number in range(size)]
        owners = owned(count, hosts)
        going = [moved(owners, owned(count, [one for one in hosts if one != gone])) for gone in hosts]
        growing = [moved(owned(more, hosts), owned(more + 1, hosts)) for more in range(count, count + 30)]
        share = f"{count // size}" + (f" or {count // size + 1}" if count % size else "")
        cells = [*(f"{sum(found) / len(found):.1f} | {max(found)}" for found in (going, growing))]
        lines.append(f"| {size} | {count} | {share} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def owned(count: int, hosts: list[str]) -> dict[int, str]:
    return {number: host for host in hosts for number in _placement.place(count, hosts, host)}


def moved(one: dict[int, str], other: dict[int, str]) -> int:
    return sum(one[number] != other[number] for number in one)


def test_what_moves_is_measured() -> None:
    same(DOCS / "placement.md", _MOVES, moves())


# --- the commands ----------------------------------------------------------------------------------------------------


def synopsis(argument: Argument) -> str:
    """An argument as it is typed: `[NAME…]`, `[--env ENV]`, `SIG`."""
    flags, about = argument
    if not flags[0].startswith("-"):
        shown = about["metavar"] + "…" * (about.get("nargs") in ("*", "+"))
        return f"[{shown}]" if about.get("nargs") in ("*", "?") else shown
    return f"[{taken(argument)}]"


def taken(argument: Argument) -> str:
    """An argument or option on its own."""
    flags, about = argument
    if not flags[0].startswith("-"):
        return str(about["metavar"])
    if about.get("action") == "store_true":
        return ", ".join(flags)
    return f"{', '.join(flags)} {about.get('metavar') or '|'.join(about['choices'])}"


def reference() -> str:
    lines = []
    for name, command in COMMANDS.items():
        words = " ".join(["pm3", name, *map(synopsis, command.arguments)])
        lines += [
            f"### {name}",
            "",
            f"`{words}`",
            "",
            f"{command.help[0].upper()}{command.help[1:]}. {command.more}".rstrip(),
        ]
        if command.aliases:
            lines[-1] += f" Also: {', '.join(f'`{alias}`' for alias in command.aliases)}."
        about = [one for one in command.arguments if "help" in one[1]]
        if about:
            lines += ["", "| | |", "|---|---|"]
            lines += [f"| `{taken(one)}` | {one[1]['help']} |" for one in about]
        lines.append("")
    return "\n".join(lines)


def test_the_reference_of_commands_is_their_table() -> None:
    same(TYPED, _COMMANDS, reference())


def test_every_message_is_of_a_command() -> None:
    text = TYPED.read_text(encoding="utf-8")
    said = text.partition("## What is said")[2].partition("\n## ")[0]
    for cell in re.findall(r"^\| (`.*?)(?: \(on stderr\))? \|", said, re.MULTILINE):
        assert {name.strip("`") for name in cell.split(", ")} <= set(COMMANDS), cell


# --- examples --------------------------------------------------------------------------------------------------------


def blocks(language: str) -> list[Any]:
    """All blocks of a language on all pages, each with a name that says where it is."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            if block.group(1) == language:
                line = text.count("\n", 0, block.start()) + 1
                found.append(pytest.param(block.group(2), id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_examples_load(text: str) -> None:
    pm3_toml.load(text, "example", base="/srv")
    assert definition.cautions(pm3_toml.parse(text, "example")) == []


def test_every_field_is_told_of() -> None:
    """Not only in its row: in an example, or in a sentence of one of the pages."""
    texts = [_TABLE.sub("", page.read_text(encoding="utf-8")) for page in PAGES]
    for row in FIELDS.values():
        name = "env_prod" if row.name == "environments" else row.name
        assert any(re.search(rf"^{name} = |`{name}\b", text, re.MULTILINE) for text in texts), name


# --- facts that are in the code, too ---------------------------------------------------------------------------------


def section(page: pathlib.Path, heading: str) -> str:
    text = page.read_text(encoding="utf-8")
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def first_words(text: str) -> list[str]:
    """What is in the first cell of each row of the tables, without the heading."""
    return [
        word for cell in re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE) for word in re.findall("`(.*?)`", cell)
    ]


def test_states_and_causes_are_those_of_the_machine() -> None:
    states = section(LIFE, "Status")
    assert set(first_words(states)) == {status.value for status in life.Status}
    assert {phase.value for phase in life.Phase} <= set(re.findall(r"`(\w+)`", states))
    assert set(first_words(section(LIFE, "Why it ended"))) == {cause.value for cause in life.Cause}


def test_pauses_are_those_of_the_machine() -> None:
    text = section(LIFE, "Pauses, and when it is given up")
    said = text.partition("doubles: ")[2].partition(", then always")[0]
    pauses = [machine.backoff(failures) for failures in range(30)]
    assert [machine.FIRST_BACKOFF, *map(float, said.split(", "))] == [
        one for one in pauses if one < machine.LONGEST_BACKOFF
    ]
    assert f"then always {machine.LONGEST_BACKOFF:g}." in text


def test_rows_are_as_they_are_documented() -> None:
    module = importlib.import_module("ansible_collections.pm3.fleet.plugins.modules.processes")
    shown = yaml.safe_load(module.RETURN)["instances"]["contains"]
    (one,) = plan("shop", loading.load({"web": {"command": "web"}}, base="/srv"), [], cpus=1).rows
    made = rows.row(one, "online")
    assert list(shown) == list(made)
    last = shown["last_exit"]["contains"]
    assert set(re.findall(r"V\((\w+)\)", last["cause"]["description"])) == {cause.value for cause in life.Cause}


def test_results_of_the_modules_have_the_same_keys() -> None:
    package = "ansible_collections.pm3.fleet.plugins.modules"
    processes, process = (
        yaml.safe_load(importlib.import_module(f"{package}.{name}").RETURN) for name in ("processes", "process")
    )
    assert list(process) == list(processes)
    for name, about in process.items():
        assert (about["type"], about["returned"].split()[0]) == (
            processes[name]["type"],
            processes[name]["returned"].split()[0],
        )
    row = set(processes["instances"]["contains"])
    assert all(set(one) <= row for one in process["instances"]["sample"])


def test_what_a_watch_leaves_out_is_told() -> None:
    text = (
        section(REFERENCE, "Restarts for reasons of its own")
        .partition("Left out in any\n  case: ")[2]
        .partition(". ")[0]
    )
    assert re.findall("`(.*?)`", text) == list(patterns.DEFAULT_IGNORES)


def test_a_record_of_a_json_log_is_as_shown() -> None:
    (text,) = [block.values[0] for block in blocks("json") if str(block.id).startswith("docs/logs.md")]
    shown = json.loads(text)
    made = shaping.Json(shown["name"], shown["process"], shown["stream"], None)
    record = json.loads(made.shape(shown["line"].encode() + b"\n", True, False, time.time_ns()))
    assert list(record) == list(shown)
    assert record | {"time": ""} == shown | {"time": ""}
    assert {*shown, "partial"} == set(first_words(section(LOGS, "Shape")))


# Where the tests are that the page of what survives what names.
TESTS = {
    "agent": ROOT / "tests" / "integration" / "agent",
    "fleet": ROOT / "tests" / "fleet",
    "machine": ROOT / "tests" / "machine",
    "store": ROOT / "tests" / "unit" / "plugins" / "module_utils" / "pm3" / "agent",
}


def test_what_survives_what_is_tested() -> None:
    """Each cell names a test, and each test exists."""
    text = SURVIVAL.read_text(encoding="utf-8")
    table = text.partition("\n## ")[0]
    header, *lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(lines) > 8
    for line in lines:
        event, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert len(cells) == header.count("|") - 2, event
        assert all(re.search(r"\[\d+\]$", cell) for cell in cells), event
    tests = dict(re.findall(r"^(\d+)\. (.*)$", section(SURVIVAL, "The tests"), re.MULTILINE))
    assert set(re.findall(r"\[(\d+)\]", text)) == set(tests)
    assert list(tests) == [str(number) for number in range(1, len(tests) + 1)]
    for names in tests.values():
        for name in names.split(", "):
            folder, path, function = re.fullmatch(r"`(\w+)/(\w+\.py)::(test_\w+)`", name).groups()  # type: ignore[union-attr]
            source = (TESTS[folder] / path).read_text(encoding="utf-8")
            assert re.search(rf"^def {function}\(", source, re.MULTILINE), name


def documented(module: str) -> dict[str, Any]:
    """The options that a task may give to one of our modules."""
    package = "ansible_collections.pm3.fleet.plugins"
    own = yaml.safe_load(importlib.import_module(f"{package}.modules.{module}").DOCUMENTATION)
    options: dict[str, Any] = {}
    for words in own["extends_documentation_fragment"]:
        _namespace, _collection, name, *section = words.split(".")
        fragment = importlib.import_module(f"{package}.doc_fragments.{name}").ModuleDocFragment
        text = getattr(fragment, section[0].upper() if section else "DOCUMENTATION")
        options.update(yaml.safe_load(text)["options"])
    options.update(own["options"])
    return {name: about for name, about in options.items() if not about["description"][0].startswith("Not for tasks")}


def role_variables(role: str) -> set[str]:
    specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    return set(specs["argument_specs"]["main"]["options"])


def playbook_variables(playbook: str) -> set[str]:
    plays = yaml.safe_load((ROOT / "playbooks" / f"{playbook}.yml").read_text(encoding="utf-8"))
    (checked,) = [task for task in tasks_of(plays) if "ansible.builtin.validate_argument_spec" in task]
    return set(checked["ansible.builtin.validate_argument_spec"]["argument_spec"])


def mentioned_in(playbook: str) -> set[str]:
    return set(re.findall(r"\bpm3_\w+", (ROOT / "playbooks" / f"{playbook}.yml").read_text(encoding="utf-8")))


def tasks_of(found: Any) -> Iterator[dict[str, Any]]:
    """All tasks of a parsed playbook or list of tasks, those in blocks included."""
    for entry in found if isinstance(found, list) else []:
        nested = [
            entry.get(key) for key in ("pre_tasks", "tasks", "post_tasks", "handlers", "block", "rescue", "always")
        ]
        if any(nested) or "hosts" in entry:
            for tasks in nested:
                yield from tasks_of(tasks)
        else:
            yield entry


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_examples_use_what_there_is(text: str) -> None:
    parsed = yaml.safe_load(text)
    if isinstance(parsed, dict):  # a file for -e, or one of another program
        ours = {key for key in parsed if key.startswith(("rollout_", "pm3_"))}
        known = playbook_variables("rollout") | role_variables("gitops") | role_variables("agent")
        assert ours <= known | mentioned_in("site")
        assert not ours or len(ours) == len(parsed)
        return
    for play in parsed:
        for role in play.get("roles", []):
            name = role["role"] if isinstance(role, dict) else role
            assert name.startswith("pm3.fleet.")
            given = {**play.get("vars", {}), **(role if isinstance(role, dict) else {})}
            variables = role_variables(name.rpartition(".")[2])
            assert {key for key in given if key.startswith("pm3_")} <= variables
    for task in tasks_of(parsed):
        for action, options in task.items():
            if action.startswith("pm3.fleet."):
                module = action.rpartition(".")[2]
                assert module in MODULES
                known = documented(module)
                assert set(options or {}) <= set(known)
                assert {name for name, about in known.items() if about.get("required")} <= set(options or {})
                if "definitions" in (options or {}):
                    loading.load(options["definitions"], base="/srv")


def reported() -> list[Any]:
    found = []
    for block in blocks("console"):
        (text,) = block.values
        lines = [_ROW.match(line) for line in text.splitlines()]
        shown = [line for line in lines if line and line.group(3) in ("online", "stopped", "errored", "removed")]
        found.append(pytest.param(shown, id=block.id))
    return found


def typed() -> list[Any]:
    """All commands of ours in the console blocks of all pages."""
    found = []
    for block in blocks("console"):
        (text,) = block.values
        for number, line in enumerate(re.findall(r"^\$ (?:.* \| )?pm3 (.*)$", text, re.MULTILINE)):
            found.append(pytest.param(line.split(), id=f"{block.id}-{number}"))
    return found


@pytest.mark.parametrize("words", typed())
def test_commands_in_examples_can_be_typed(words: list[str]) -> None:
    cli.parser(words[0]).parse_intermixed_args(words[1:])


@pytest.mark.parametrize("shown", [*reported()])
def test_lines_per_instance_look_as_they_do(shown: list[re.Match[str]]) -> None:
    made = [
        {
            "name": line.group(1),
            "action": "none" if line.group(2) == "ok" else line.group(2),
            "status": line.group(3),
            "reason": line.group(4) or "",
            "changes": [],
            "log_tail": [],
        }
        for line in shown
    ]
    assert rows.report(made) == [line.group(0).strip() for line in shown]


# --- commands and links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_links_are_there(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"`pm3 ([a-z]+)", text)) <= set(COMMANDS)
    for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^):]+))?\)", text):
        assert (page.parent / link).exists(), link
        assert not anchor or anchor in anchors(page.parent / link if link else page), f"{link}#{anchor}"


def anchors(page: pathlib.Path) -> set[str]:
    """What a link can point to: the headings of a page, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    for page in PAGES:
        assert page == README or f"]({page.relative_to(ROOT)}" in text, page


def test_every_plugin_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    for module in MODULES:
        assert f"module `{module}`" in text
    for role in (ROOT / "roles").iterdir():
        assert f"role [`{role.name}`]" in text
        own = (role / "README.md").read_text(encoding="utf-8")
        described = "".join(re.findall(r"^\| (`pm3_[^|]+)\|", own, re.MULTILINE))
        assert set(re.findall(r"`(\w+)`", described)) == role_variables(role.name)
    for playbook in (ROOT / "playbooks").glob("*.yml"):
        assert f"playbook `{playbook.stem}`" in text
