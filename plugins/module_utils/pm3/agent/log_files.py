# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an instance's output goes, and how: from its definition to the files that the pump fills and that `pm3 log` reads."""

from __future__ import annotations

import functools
import os
from typing import Any

from ..model.definition import Definition
from ..model.log_options import LogOptions
from .instance import Instance
from .log import LogFile


def of(instance: Instance, folder: str) -> tuple[LogFile, LogFile]:
    """The logs of stdout and stderr. `folder` is the agent's own for logs. Raises `Unfit`."""
    definition = instance.definition
    return (
        _file(instance, folder, "out", definition.stdout_file),
        _file(instance, folder, "err", definition.stderr_file),
    )


def _file(instance: Instance, folder: str, stream: str, named: str | None) -> LogFile:
    usual = f"{instance.name}-{stream}.log"
    path = os.path.join(folder, instance.filled(named) if named is not None else usual)
    index = os.path.join(folder, ".index", usual)
    # Who may write the folder of a file that was named could lead us anywhere by a link.
    return LogFile(path, index, options(instance.definition), instance.name, instance.process, follow=named is None)


def options(definition: Definition) -> LogOptions:
    return _one_of(
        definition.log_max_size,
        float(definition.log_max_age),
        definition.log_keep,
        definition.log_total_size,
        definition.log_compress,
        definition.log_date_format,
        definition.log_format,
    )


@functools.lru_cache(maxsize=256)
def _one_of(*values: Any) -> LogOptions:
    """Equal options are one object: there are few of them, and two logs for each instance."""
    return LogOptions(*values)
