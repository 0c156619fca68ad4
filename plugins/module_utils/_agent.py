# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `agent`: compares what is on the host with what is wanted, then makes or predicts the difference, step by step.

What there is to do is found first (`Step`s, each with its words for the result); check mode ends there. Private to this collection.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import typing as t

from . import _place, _service, _unpacked
from ._place import Document, Place, Refused, Unanswered
from ._service import Service, Step, Trouble
from .pm3.wire import units
from .pm3.wire.units import File

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

OPTIONS: dict[str, t.Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "service_manager": {"type": "str", "choices": ["auto", "systemd", "none"], "default": "auto"},
    "python": {"type": "path"},
    "admin_group": {"type": "str", "default": "pm3"},
    "stop_instances": {"type": "bool", "default": False},
    "purge": {"type": "bool", "default": False},
    "package": {
        "type": "dict",
        "options": {
            "identity": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "libraries": {"type": "dict", "default": {}},
            "archive": {"type": "path"},
        },
    },
    **_place.OPTIONS,
}
UPGRADE_SECONDS = 60.0

# What an agent (or this module) writes into a data dir. Nothing else is ever removed there: people put things into folders. Where none of
# the first ones is, no agent ever was, and what has one of the other names is somebody else's.
_SIGNS = ("pm3.sock", "pm3.pid", "store.sqlite", "keeper.lock", "managed")
_OURS = (
    *_SIGNS,
    "lock",
    "store.sqlite-wal",
    "store.sqlite-shm",
    "agent.log",
    "start.lock",
    "dump.json",
    "dump.json.new",
    "upgrade.json",
    "upgrade.json.new",
    "store.sqlite.before",
)
_INSIDE = {  # names of ours in its folders
    "logs": r".+-(out|err)\.log(\.\d+(\.gz(\.tmp)?)?)?|\.index",
    "run": r"\d+\.[a-z]+|store\.lowered|upgrade\.log",
}


def run(module: AnsibleModule) -> None:
    """Does what the options ask for and ends the module."""
    try:
        result = _present(module) if module.params["state"] == "present" else _absent(module)
    except (Trouble, Refused, Unanswered) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        place = _place_of(module)
        hint = "; use become" if isinstance(error, PermissionError) and place.scope == "system" else ""
        module.fail_json(msg=f"{error.strerror or error}: {error.filename or place.data_dir}{hint}")
    module.exit_json(**result)


def _place_of(module: AnsibleModule) -> Place:
    return Place(module.params["scope"], module.params["data_dir"])


def _hello(place: Place, silent: str | None = None) -> Document | None:
    """What the running agent says of itself, or None where none runs. Raises `Unanswered` where it will not talk to us.

    `silent="timeout"`: None also where it says nothing for long, as one does on a slow host that becomes another one.
    """
    try:
        return place.ask({"type": "hello"}, 10)
    except Unanswered as error:
        if error.reason in ("absent", "closed", silent):
            return None
        raise


def _service_for(module: AnsibleModule, place: Place, running: Document | None) -> Service:
    params = module.params
    now = running.get("manager") if running else None
    manager = _service.manager_for(params["service_manager"], place, now)
    if now not in (None, "none") and now != ("keeper" if manager == "none" else manager):
        raise Trouble(
            f"the agent runs under {'systemd' if now == 'systemd' else 'a keeper of its own'}, and service_manager is {manager};"
            " remove it first with state: absent (data is kept), or leave service_manager alone"
        )
    environment = units.environment(place.scope, place.data_dir, params["admin_group"])
    main = os.path.join(place.current, "pm3", "__main__.py")
    program = _service.Program(params["python"] or sys.executable, main, environment)
    return (_service.Systemd if manager == "systemd" else _service.Keeper)(module, place, program)


def _told(hello: Document | None, place: Place) -> Document:
    """An agent as the result tells of it."""
    if hello is None:
        return {"identity": _unpacked.in_use(place), "version": None, "running": False, "pid": None}
    return {
        "identity": hello.get("identity"),
        "version": hello.get("version"),
        "running": True,
        "pid": hello.get("pid"),
    }


# --- present -----------------------------------------------------------------------------------------------------------


def _present(module: AnsibleModule) -> Document:
    params, place = module.params, _place_of(module)
    package = params["package"]
    if not package:
        raise Trouble("package is missing: this module works through its action plugin only")
    _check_group(module, place)
    running = _hello(place)
    service = _service_for(module, place, running)
    python = params["python"] or sys.executable
    before = _told(running, place)
    present = _unpacked.is_there(place, package["identity"])
    version = sys.version_info[:2] if present and not params["python"] else _unpacked.version_of(module, python)
    lacking = present and _unpacked.lacks_library(place, package["identity"], package["libraries"], version)
    if (not present or lacking) and not package["archive"] and not module.check_mode:
        return {"changed": False, "upload": {"python": ".".join(map(str, version))}}

    on_trial = bool(running and running["features"].get("trial"))
    steps = service.prepared() + _program_steps(module, place, package, python, not present or lacking, on_trial)
    written = [file for file in [_launcher(place, python), *service.files] if _read(file.path) != file.text]
    diff = [_difference(file) for file in written]
    steps += [Step(f"wrote {file.path}", functools.partial(_write, file)) for file in written]
    steps += service.missing()
    if running is None:
        steps.append(Step("started the agent", lambda: _start(place, service, package, before)))
    elif running.get("identity") != package["identity"] or lacking or any(file in service.files for file in written):
        again = on_trial and _unpacked.in_use(place) == package["identity"]
        change = _try_out if on_trial else _exchange
        steps.append(
            Step("upgraded the running agent in place", lambda: change(place, service, package, running or {}, again))
        )

    now, after = running, _promised(package, before)
    if not module.check_mode:
        _do(steps)
        _unpacked.tidy(place, package["identity"], before["identity"])
        now = _hello(place) if steps else running
        after = _told(now, place)
    _warn_of_boot(module, place, service, running is None)
    result = _result(place, service, steps, before, after, _kept(running, now), _gap(running, now))
    return {**result, "diff": diff} if module._diff else result


def _warn_of_boot(module: AnsibleModule, place: Place, service: Service, new: bool) -> None:
    """What nobody promises without a service manager: said at every run, or where that was asked for, when an agent is started."""
    if service.name == "keeper" and (new or module.params["service_manager"] == "auto"):
        module.warn(
            "no service manager keeps this agent: it comes back by itself when it dies, but nothing starts it at boot, and a shutdown does"
            f" not wait for what it runs to stop in order; have the host run this at boot: {_service.begin(place)}"
        )


def _promised(package: Document, before: Document) -> Document:
    return {"identity": package["identity"], "version": package["version"], "running": True, "pid": before["pid"]}


def _do(steps: list[Step]) -> None:
    for step in steps:
        step.do()


def _result(
    place: Place,
    service: Service,
    steps: list[Step],
    before: Document,
    after: Document,
    kept: int,
    gap: float | None = None,
) -> Document:
    return {
        "changed": bool(steps),
        "actions": [step.words for step in steps if step.words],
        "before": before,
        "after": after,
        "instances_kept": kept,
        "gap": gap,
        "data_dir": place.data_dir,
        "command": place.command,
        "service_manager": "none" if service.name == "keeper" else service.name,
    }


def _kept(before: Document | None, after: Document | None) -> int:
    """How many instances ran before and still do."""
    return min(one["instances"]["running"] for one in (before, after)) if before and after else 0


def _gap(before: Document | None, after: Document | None) -> float | None:
    """For how long the upgrade kept the agent from answering, in milliseconds; None where there was none."""
    told = (after or {}).get("upgrade") or {}
    return told.get("gap") if before and _upgrades(after) > _upgrades(before) else None


def _upgrades(hello: Document | None) -> int:
    """How many upgrades in place the agent has gone through or refused."""
    return int((((hello or {}).get("upgrade")) or {}).get("count") or 0)


def _program_steps(
    module: AnsibleModule, place: Place, package: Document, python: str, unpack: bool, on_trial: bool
) -> list[Step]:
    """On trial it is the agent itself that makes a version the current one, when that has shown that it can do the work."""
    identity, steps = package["identity"], []
    if not os.path.isdir(place.data_dir):
        steps.append(Step(f"made {place.data_dir}", lambda: _make_data_dir(place)))
    if unpack:
        steps.append(
            Step(
                f"installed version {package['version']} ({identity})",
                lambda: _unpacked.unpack(module, place, identity, package["archive"], python),
            )
        )
    if _unpacked.in_use(place) != identity and not on_trial:
        steps.append(Step(f"made {identity} the current version", lambda: _unpacked.use(place, identity)))
    return steps


def _check_group(module: AnsibleModule, place: Place) -> None:
    import grp

    name = module.params["admin_group"]
    if place.scope != "system":
        return
    try:
        grp.getgrnam(name)
    except KeyError:
        said = f"the group {name}, whose members may use the agent, does not exist; the role pm3.fleet.agent makes it"
        if not module.check_mode:
            raise Trouble(f"{said}, or name another in admin_group") from None
        module.warn(said)


def _start(place: Place, service: Service, package: Document, before: Document) -> None:
    try:
        service.start()
        _verify(place, package, None)
    except (Trouble, Unanswered):
        _return(place, package, before)
        raise


def _try_out(place: Place, service: Service, package: Document, running: Document, again: bool) -> None:
    """Has the agent become the version. It does so only if that can go on with what there is, and stays it only if it comes up."""
    if not again:
        _unpacked.offer(place, package["identity"])
    service.reload()
    deadline = time.monotonic() + UPGRADE_SECONDS
    hello = _hello(place, "timeout")
    while _upgrades(hello) <= _upgrades(running):
        if time.monotonic() > deadline:
            _unpacked.withdraw(place)
            raise Trouble(
                f"the agent was told to change to version {package['version']} ({package['identity']}), and in"
                f" {UPGRADE_SECONDS:g} s it neither has nor has said why not; its log may"
            )
        time.sleep(0.02)  # nobody tells us when a process has executed another program
        hello = _hello(place, "timeout")
    told = hello["upgrade"] if hello else {}
    if told["result"] != "done":
        kept = _kept(running, hello)
        what = "cannot take over" if told["result"] == "refused" else "has failed, and the one before it is back"
        raise Trouble(
            f"version {package['version']} ({package['identity']}) {what}: {told['why']}\n"
            f"version {(hello or {}).get('version')} ({(hello or {}).get('identity')}) runs, with all {kept} instances"
        )


def _exchange(place: Place, service: Service, package: Document, running: Document, again: bool) -> None:
    """As `_try_out`, with an agent that knows no trial yet: it becomes what is the current version, and that has to work."""
    before = _told(running, place)
    try:
        service.reload()
        _verify(place, package, before)
    except (Trouble, Unanswered):
        # The agent that runs has refused the new program, and the next start must not meet it.
        _return(place, package, before)
        raise


def _return(place: Place, package: Document, before: Document) -> None:
    old = before["identity"]
    if old and old != package["identity"] and _unpacked.is_there(place, old):
        _unpacked.use(place, old)


def _verify(place: Place, package: Document, before: Document | None) -> None:
    """Waits until the agent that answers is the one that was installed. While it is exchanged it may not answer for a moment."""
    deadline = time.monotonic() + UPGRADE_SECONDS
    while True:
        hello = _hello(place, "timeout")
        if hello is not None and hello.get("identity") == package["identity"]:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)  # nobody tells us when a process has executed another program
    if hello is None:
        raise Trouble(f"the agent was started, but does not answer at {place.data_dir}")
    was = f", and version {before['version']} is still the current one" if before else ""
    raise Trouble(
        f"the agent was told to change to {package['identity']}, but {hello.get('identity')} (version {hello.get('version')}) goes on"
        f" running{was}; its log says why"
    )


def _launcher(place: Place, python: str) -> File:
    named = "" if place.usual else f': "${{PM3_DATA_DIR:={_shell(place.data_dir)}}}"\nexport PM3_DATA_DIR\n'
    main = os.path.join(place.current, "pm3", "__main__.py")
    text = (
        "#!/bin/sh\n# Written by the Ansible module pm3.fleet.agent, and written again when it differs.\n"
        f'{named}exec "{_shell(python)}" -I -S "{_shell(main)}" "$@"\n'
    )
    return File(place.command, text, 0o755)


def _shell(word: str) -> str:
    """A word inside double quotes of sh."""
    return "".join("\\" + letter if letter in '\\"`$' else letter for letter in word)


def _make_data_dir(place: Place) -> None:
    os.makedirs(place.data_dir, mode=0o755, exist_ok=True)
    os.chmod(place.data_dir, 0o755 if place.scope == "system" else 0o700)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(file: File) -> None:
    """Replaces the file in one move."""
    os.makedirs(os.path.dirname(file.path), mode=0o755, exist_ok=True)
    new = file.path + ".tmp"
    with open(new, "w", encoding="utf-8") as target:
        target.write(file.text)
    os.chmod(new, file.mode)
    os.replace(new, file.path)


def _difference(file: File) -> Document:
    return {"before": _read(file.path) or "", "after": file.text, "before_header": file.path, "after_header": file.path}


# --- absent ------------------------------------------------------------------------------------------------------------


def _absent(module: AnsibleModule) -> Document:
    params, place = module.params, _place_of(module)
    running = _hello(place)
    service = _service_for(module, place, running)
    before = _told(running, place)
    state = "up" if running else service.state() if place.installed else "down"
    _refuse_to_orphan(running, state, params["stop_instances"])
    steps = []
    if state != "down":
        steps.append(Step("stopped the agent and everything it ran", lambda: _stop(service, state)))
    files = [place.command, *(file.path for file in service.files if os.path.basename(file.path) != "managed")]
    files = [path for path in files if os.path.lexists(path)]
    steps += [Step(f"removed {path}", functools.partial(os.unlink, path)) for path in files]
    if os.path.lexists(os.path.join(place.data_dir, "managed")):
        steps.append(Step("forgot the service manager", lambda: os.unlink(os.path.join(place.data_dir, "managed"))))
    if os.path.isdir(place.library):
        steps.append(Step(f"removed {place.library}", lambda: _remove_tree(place.library)))
    if steps:
        steps.append(Step("", service.forget))
    if params["purge"] and _was_here(place):
        steps.append(Step(f"removed {place.data_dir}", lambda: _purge(module, place)))
    if steps and not module.check_mode:
        _do(steps)
        _remove_empty(place)
    gone = {"identity": None, "version": None, "running": False, "pid": None}
    return _result(place, service, steps, before, gone, 0)


def _refuse_to_orphan(running: Document | None, state: str, allowed: bool) -> None:
    if allowed:
        return
    if running is not None and running["instances"]["running"]:
        count = running["instances"]["running"]
        raise Trouble(
            f"{count} instance{'s' if count > 1 else ''} of the agent still run{'' if count > 1 else 's'}; remove their projects first,"
            " or say stop_instances: true"
        )
    if state == "lost":
        raise Trouble(
            "the agent does not answer and has not ended in order, so that instances of it may still run; start it again, or say"
            " stop_instances: true, which starts it once more to stop them"
        )


def _stop(service: Service, state: str) -> None:
    if state == "lost":
        service.start()  # it finds what it ran before, and stops that
    service.stop()


def _remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path)


def _was_here(place: Place) -> bool:
    if os.path.isdir(place.library) and place.prefix == place.data_dir:
        return True
    return any(os.path.lexists(os.path.join(place.data_dir, name)) for name in _SIGNS)


def _belongings(place: Place) -> list[str]:
    """What is in the data dir that is the agent's, if one was here. A folder comes after what is in it."""
    there = functools.partial(os.path.join, place.data_dir)
    found = [there(name) for name in _OURS if os.path.lexists(there(name))]
    for folder, names in _INSIDE.items():
        if os.path.isdir(there(folder)) and not os.path.islink(there(folder)):
            inside = os.listdir(there(folder))
            found += [there(folder, name) for name in inside if re.fullmatch(names, name)]
            found.append(there(folder))
    return found


def _purge(module: AnsibleModule, place: Place) -> None:
    folders = [os.path.join(place.data_dir, name) for name in _INSIDE]
    for path in _belongings(place):
        if path in folders:
            _remove_if_empty(path)
        elif os.path.isdir(path) and not os.path.islink(path):
            _remove_tree(path)
        else:
            os.unlink(path)
    _remove_empty(place)
    left = sorted(os.listdir(place.data_dir)) if os.path.isdir(place.data_dir) else []
    if left:
        module.warn(f"{place.data_dir} stays, because somebody else's files are in it: {', '.join(left[:10])}")


def _remove_empty(place: Place) -> None:
    """Folders that we made and that nothing is in any more; those of the system and of a home are not ours."""
    ours = (
        [place.data_dir]
        if place.usual
        else [*(os.path.join(place.prefix, name) for name in ("bin", "lib")), place.data_dir]
    )
    for path in ours if place.scope == "user" else [place.data_dir]:
        _remove_if_empty(path)


def _remove_if_empty(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass
