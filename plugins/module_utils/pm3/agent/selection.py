# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a name means: an instance, else a process with all its instances, else a group (spec: pm3.md, section 2). In every command.

While a process goes from one instance to several there is an instance of its name beside others of it: the name means all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..model import graph
from ..model.definition import Definition
from ..model.order import natural
from ..model.plan import instance_names
from ..model.problems import nearest
from . import walks
from .instance import Instance
from .projects import Projects
from .supervisor import Supervisor
from .work import Refused


def ordered(instances: Iterable[Instance]) -> list[Instance]:
    return sorted(instances, key=lambda one: natural(one.name))


class _Families:
    """Instances by their process, and by their group."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._processes: dict[str, list[Instance]] = {}
        self._groups: dict[str, list[Instance]] = {}
        for one in instances:
            self._processes.setdefault(one.process, []).append(one)
            if one.definition.group:
                self._groups.setdefault(one.definition.group, []).append(one)

    def of(self, name: str) -> list[Instance]:
        return self._processes.get(name) or self._groups.get(name, [])


class Selection:
    """The instances that names mean at this moment. A process that is defined to have none here means none, and is no mistake."""

    def __init__(self, supervisor: Supervisor, projects: Projects) -> None:
        self._supervisor = supervisor
        self._projects = projects

    def meant(self, names: Iterable[str] | None) -> list[Instance]:
        """What the names mean, each once, in no order; None, which is not the same as no name at all, is everything (spec: pm3.md,
        section 6.2). Raises `Refused` for a name that is none."""
        everything = self._supervisor.instances
        if names is None:
            return list(everything.values())
        found: dict[str, Instance] = {}
        families: _Families | None = None
        for name in names:
            one = everything.get(name)
            if one is not None and one.process != name:
                found[name] = one
                continue
            families = families or _Families(everything.values())
            matches = families.of(name)
            if not matches and name not in self._uninhabited():
                raise Refused(f"process or group not found: {name}{self._hint(name)}")
            found.update((one.name, one) for one in matches)
        return list(found.values())

    def named(self, names: Iterable[str] | None) -> list[Instance]:
        """As `meant`, in the order in which they are shown."""
        return ordered(self.meant(names))

    def one_or_more(self, name: str) -> list[Instance]:
        """As `named`, where an answer is about an instance. Raises `Refused` also if there is none here."""
        found = self.named([name])
        if not found:
            raise Refused(f"process '{name}' has no instance here")
        return found

    def with_dependents(self, names: Iterable[str] | None) -> list[Instance]:
        """What is named, and what depends on it."""
        found = self.meant(names)
        return ordered(walks.with_dependents(self._supervisor, found) if names is not None else found)

    def _uninhabited(self) -> set[str]:
        """Names and groups of the processes that are defined to have no instance here."""
        revisions = self._projects.of(None).values()
        defined = [entry for one in revisions for entry in one.definitions.items() if entry[1].instance_ids == ()]
        return {word for name, one in defined for word in (name, one.group) if word}

    def _hint(self, name: str) -> str:
        everything = self._supervisor.instances.values()
        known = {word for one in everything for word in (one.name, one.process, one.definition.group) if word}
        meant = nearest(name, known | self._uninhabited())
        return f"; did you mean {meant}?" if meant else ""


def chosen(
    configs: Mapping[str, Definition], names: Sequence[str] | None, cpus: int
) -> tuple[list[str], dict[str, set[str]]]:
    """The processes that `start` names among those that it brings: by name, by one of their instances, else by group.

    Of those that are only named by instances, beside them which; unless something else that is named needs the whole process.
    """
    if names is None:
        return list(configs), {}
    found: list[str] = []
    instances: dict[str, set[str]] = {}
    for name in names:
        process = graph.base(name)
        if name in configs:
            found.append(name)
        elif process in configs and name in dict(instance_names(configs[process], cpus)):
            instances.setdefault(process, set()).add(name)
        else:
            matches = [one for one in configs if configs[one].group == name]
            if not matches:
                raise Refused(f"process or group '{name}' not found in configs")
            found.extend(matches)
    needed = [graph.base(other) for process in instances for other in configs[process].depends_on]
    whole = with_dependencies(configs, [*found, *needed])
    return [*found, *instances], {name: some for name, some in instances.items() if name not in whole}


def with_dependencies(configs: Mapping[str, Definition], names: Iterable[str]) -> list[str]:
    """The processes and those of the same file that they need, so that each can be started on its own (W2)."""
    found: dict[str, None] = {}
    left = list(names)
    while left:
        name = left.pop(0)
        if name in configs and name not in found:
            found[name] = None
            left.extend(graph.base(other) for other in configs[name].depends_on)
    return sorted(found)
