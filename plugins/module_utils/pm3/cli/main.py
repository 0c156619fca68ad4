# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: which commands there are, what each takes, and the exit status.

0 is success, 1 an error (the agent's or ours), 2 bad arguments (W3). What a command does is in the module that its row names; only
the parser of the command that was typed is built, and only what it needs is imported, so that `pm3 list` starts fast.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import VERSION
from ..wire import paths
from ..wire.client import ClientError
from .console import Console, any_text

Argument = tuple[tuple[str, ...], dict[str, Any]]  # what add_argument takes


class Command(NamedTuple):
    help: str
    arguments: tuple[Argument, ...] = ()
    aliases: tuple[str, ...] = ()
    module: str = "commands"  # the one whose RUN has it
    speaks_json: bool = True
    more: str = ""  # for its own help and the reference


def _argument(*flags: str, **about: Any) -> Argument:
    return flags, about


_NAMES = _argument("names", nargs="*", metavar="NAME", help="a process, an instance (web:0) or a group; none: all")
_FILE = _argument("file", nargs="?", metavar="FILE", help="default pm3.toml; - is standard input")
_ENV = _argument("--env", metavar="ENV", help="merge the overlay env_ENV of each process into its env")
_HELD = _argument("names", nargs="*", metavar="NAME", help="a process, a group or a project")
_HELD_PROJECT = _argument("--project", metavar="P", help="all of this project, also where a process has the same name")
_APPLY = (
    _FILE,
    _argument(
        "--project", metavar="P", help="the project that the file is all of; default: the name of the file's folder"
    ),
    _ENV,
    _argument(
        "--no-prune", action="store_true", help="leave processes of the project alone that the file does not define"
    ),
    _argument("--only", action="append", metavar="NAME", help="only this process; may be given several times"),
    _argument(
        "--state",
        choices=("present", "stopped", "restarted", "reloaded", "absent"),
        default="present",
        help="default present; absent needs no FILE with --project",
    ),
    _argument("--label", metavar="L", help="a name for this revision, such as a release"),
    _argument("--take-over", action="store_true", help="processes that another project has become this one's"),
    _argument("--no-retry-failed", action="store_true", help="fail at once where just this has failed before"),
)
COMMANDS: dict[str, Command] = {
    "start": Command(
        "start processes of ./pm3.toml",
        (_NAMES, _ENV, _argument("-w", "--wait", action="store_true", help="return when all of them are online")),
        more="What they depend on is started first. What runs already and has changed in the file becomes what the file says.",
    ),
    "stop": Command(
        "stop processes, and those that depend on them",
        (_NAMES,),
        more="They stay known, and stay stopped until somebody starts them.",
    ),
    "restart": Command(
        "restart processes, and those that depend on them",
        (_NAMES,),
        more="As the agent knows them: pm3.toml is not read again; start and apply do that.",
    ),
    "reload": Command(
        "replace processes by new copies of them, without a gap where they have a check",
        (_NAMES,),
        more="The old copy ends when the new one is ready; one without a check is restarted. pm3.toml is not read again.",
    ),
    "delete": Command(
        "stop processes and forget them",
        (
            _argument("names", nargs="*", metavar="NAME", help="a process or a group"),
            _argument("--all", action="store_true", help="all of them"),
        ),
        ("rm", "remove"),
    ),
    "list": Command("show all processes", aliases=("ls", "view", "status")),
    "info": Command(
        "show everything about processes",
        (_argument("names", nargs="+", metavar="NAME", help="a process, an instance (web:0) or a group"),),
    ),
    "log": Command(
        "show the last lines of output",
        (
            _NAMES,
            _argument(
                "-n",
                "--lines",
                type=int,
                metavar="N",
                help="lines per stream; default 15, with --since all (at most 10000)",
            ),
            _argument("-f", "--follow", action="store_true", help="go on with what comes"),
            _argument("--out", action="store_true", help="only what was written to stdout"),
            _argument("--err", action="store_true", help="only what was written to stderr"),
            _argument("--since", metavar="TIME", help="only what came later: 10m (ago), 2h, or 2026-01-31T12:00"),
            _argument("-t", "--timestamps", action="store_true", help="say when each line came"),
        ),
        module="log",
    ),
    "flush": Command("empty the logs of processes", (_NAMES,), more="Rotated copies are removed."),
    "signal": Command(
        "send a signal to processes",
        (
            _argument("name", metavar="NAME", help="a process, an instance (web:0) or a group"),
            _argument("signal", metavar="SIG", help="such as HUP, SIGHUP or hup"),
        ),
    ),
    "apply": Command("make a project what a file says, and report what changed", _APPLY, module="projects"),
    "plan": Command("say what apply would change, and change nothing", _APPLY, module="projects"),
    "history": Command(
        "show the revisions of a project",
        (_argument("project", nargs="?", metavar="PROJECT", help="default: the name of the current folder"),),
        module="revisions",
        more="Oldest first: when it was applied, by whom, what that changed, and what became of it.",
    ),
    "rollback": Command(
        "bring back what a project was before, and report what changed",
        (
            _argument("project", metavar="PROJECT"),
            _argument("--to", metavar="REVISION|LABEL", help="default: the newest good one before the current one"),
            _argument("--from", dest="origin", metavar="LABEL", help="only if that is the current label; away from it"),
            _argument("--dry-run", action="store_true", help="say what would change, and change nothing"),
        ),
        module="revisions",
        more="What it brings back becomes a revision of its own.",
    ),
    "hold": Command(
        "have apply leave processes alone, or a whole project, until release",
        (
            _HELD,
            _HELD_PROJECT,
            _argument("--reason", required=True, metavar="TEXT", help="for whoever wonders; apply and list show it"),
        ),
        more="For incidents. By hand what is held can still be started, stopped and restarted. An apply that is under way goes on.",
    ),
    "release": Command(
        "end a hold", (_HELD, _HELD_PROJECT), more="The next apply makes the changes that were left out meanwhile."
    ),
    "check": Command("say all that is wrong with a file", (_FILE, _ENV), module="projects"),
    "save": Command("write down all processes, for resurrect", more="Into dump.json of the data dir."),
    "resurrect": Command(
        "start what was saved and is not there",
        more="An agent that starts anew does it by itself, for what was started by hand. What belongs to a project is for apply to say.",
    ),
    "kill": Command(
        "stop all processes and the agent",
        more="It stays down, under systemd as well, until somebody starts it or the next boot. What was applied comes back with it; what"
        " was started by hand is forgotten.",
    ),
    "doctor": Command(
        "say what is well and what is not: agent, host, boot service",
        module="doctor",
        more="Starts no agent. A line that begins with ✗ is an error, and makes the exit status 1; one with ! is a warning.",
    ),
    "init": Command(
        "ask a few questions and write ./pm3.toml",
        module="init",
        speaks_json=False,
        more="Where stdin is no terminal it takes the answers from there, one per line.",
    ),
    "startup": Command(
        "let systemd start the agent at boot, and keep it from now on",
        module="startup",
        speaks_json=False,
        more="As a user: with the user's own systemd, which is made to go on without a session (lingering). As root, where root has no "
        "agent of its own: for the whole host. Processes that run already run on.",
    ),
    "unstartup": Command(
        "undo startup",
        module="startup",
        speaks_json=False,
        more="Processes that run go on running, and so does the agent, but only until the next boot.",
    ),
    "help": Command("show this, or the help of a command", (_argument("command", nargs="?", metavar="COMMAND"),)),
}
_NAMED = {alias: name for name, command in COMMANDS.items() for alias in (name, *command.aliases)}


def main(words: list[str] | None = None) -> int:
    """Runs the command line `words` (sys.argv's by default) and gives the exit status."""
    words = sys.argv[1:] if words is None else words
    if sys.stdout is None or sys.stderr is None:  # `pm3 list >&-`
        return _unheard()
    any_text(sys.stdout)
    any_text(sys.stderr)
    try:
        status = run(words, os.environ)
        sys.stdout.flush()
    except BrokenPipeError:  # `pm3 log | head -1`: the reader has what it wanted
        _say_no_more()
        return 141
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # a full disk, most likely, below our output
        _say_no_more()
        sys.stderr.write(f"error: {': '.join(str(one) for one in (error.filename, error.strerror or error) if one)}\n")
        return 1
    return status


def _say_no_more() -> None:
    """Lets Python's own flush at the end succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _unheard() -> int:
    """A stream is closed, and the next file that is opened would take its place: nothing is done."""
    if sys.stderr is not None:
        sys.stderr.write("error: standard output is closed; > /dev/null is how to hear nothing\n")
    return 1


def run(words: list[str], environ: Mapping[str, str]) -> int:
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    console = Console(sys.stdout, sys.stderr, environ, as_json)
    name, rest = (words[0], words[1:]) if words else ("help", [])
    if name in ("-V", "--version"):
        console.line(f"pm3 {VERSION}")
        return 0
    if name in ("-h", "--help"):
        name = "help"
    if name not in _NAMED:
        return _unknown(name, console)
    try:
        options = parser(_NAMED[name]).parse_intermixed_args(rest)
    except SystemExit as exit_:  # argparse has said why, or shown the help
        return exit_.code if isinstance(exit_.code, int) else 2
    if name == "help":
        return _help(options.command, console)
    if as_json and not COMMANDS[_NAMED[name]].speaks_json:
        console = Console(sys.stdout, sys.stderr, environ)
    return _dispatch(_NAMED[name], options, console, environ)


def parser(name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    made = argparse.ArgumentParser(
        prog=f"pm3 {name}", description=command.help, epilog=command.more or None, allow_abbrev=False
    )
    for flags, about in command.arguments:
        made.add_argument(*flags, **about)
    # Taken out before, because it may stand anywhere; here for the help.
    if command.speaks_json:
        made.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    return made


def _dispatch(name: str, options: argparse.Namespace, console: Console, environ: Mapping[str, str]) -> int:
    from .autostart import Agent

    module = importlib.import_module(f".{COMMANDS[name].module}", __package__)
    try:
        status: int = module.RUN[name](options, Agent(paths.data_dir(environ)), console)
        return status
    except ClientError as error:
        return console.failure(str(error))


def _help(name: str | None, console: Console) -> int:
    if name is not None:
        if name not in _NAMED:
            return _unknown(name, console)
        console.line(parser(_NAMED[name]).format_help().rstrip())
        return 0
    console.line("usage: pm3 [--json] COMMAND …\n\nKeeps processes running as pm3.toml describes them.\n")
    for known, command in COMMANDS.items():
        aliases = f" ({', '.join(command.aliases)})" if command.aliases else ""
        console.line(f"  {known:<10}{command.help}{aliases}")
    console.line("\n--json shows one line of JSON instead of text; --version the version; pm3 help COMMAND more.")
    return 0


def _unknown(name: str, console: Console) -> int:
    from ..model.problems import nearest

    meant = nearest(name, _NAMED)
    hint = f"; did you mean {meant}?" if meant else ""
    console.error(f"unknown command {name!r}{hint} (pm3 help lists them)")
    return 2
