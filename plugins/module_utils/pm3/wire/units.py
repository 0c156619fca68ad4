# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd is told about an agent: its units as text, and where they belong. One template for `pm3 startup` and the Ansible module.

Asks the file system what exists; writes nothing and runs nothing. Scope is `system` (the host's systemd) or `user` (the user's own).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import paths

SERVICE, CELLS = "pm3.service", "pm3-cells.service"
MADE = "# Written by pm3 startup or the Ansible module pm3.fleet.agent, and written again when it differs."
_SYSTEM = "/etc/systemd/system"
_NEEDRESTART = "/etc/needrestart"
# What programs may need. As much as their start, the shutdown is in this order: none of it ends before the agent has stopped them.
_BEFORE = "network.target network-online.target remote-fs.target nss-user-lookup.target time-set.target"

# An agent that ends in order was told to, and stays down; with status 69 (TAKEN in agent/keeper.py) another one serves its data dir.
_SERVICE = """\
{made}
[Unit]
Description=pm3, keeps processes as their definitions say
Wants={cells}
After={cells}{after}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
{environment}
ExecStart={command} --daemon
ExecReload=/bin/kill -HUP $MAINPID
WatchdogSec=30
WatchdogSignal=SIGKILL
Restart=on-failure
RestartPreventExitStatus=69
RestartSec=100ms
KillMode=process
OOMPolicy=continue
FileDescriptorStoreMax=16384
# The first for the agent, which systemd may begin with thousands of descriptors in its hands, the second for what it runs.
LimitNOFILE=1048576
Environment=PM3_OPEN_FILES=1024
TasksMax=infinity

[Install]
WantedBy={target}
"""

# The instances' cgroups live in a unit that nobody restarts: systemd before 254 cannot restart one whose cgroup has controllers enabled
# for its children.
_CELLS = """\
{made}
[Unit]
Description=pm3, the cgroups of its instances

[Service]
Type=exec
ExecStart=/bin/sleep infinity
Delegate=yes
KillMode=process
OOMPolicy=continue
{score}TasksMax=infinity
"""

_QUIET = """\
{made}
# A restart of the agent stops everything that it keeps; after an upgrade of a library none is needed.
$nrconf{{override_rc}}{{qr(^pm3(-cells)?\\.service$)}} = 0;
"""


class File(NamedTuple):
    """A file as it has to be."""

    path: str
    text: str
    mode: int = 0o644


def files(scope: str, data_dir: str, program: Sequence[str], environment: Mapping[str, str]) -> list[File]:
    """All that has to be on a host for systemd to keep the agent of `data_dir`, which `program` runs."""
    system = scope == "system"
    service = _SERVICE.format(
        made=MADE,
        cells=CELLS,
        after=f" {_BEFORE}" if system else "",
        environment="\n".join(f"Environment={_assigned(key, value)}" for key, value in environment.items()),
        command=" ".join(_quoted(word).replace("$", "$$") for word in program),
        target="multi-user.target" if system else "default.target",
    )
    cells = _CELLS.format(made=MADE, score="OOMScoreAdjust=-900\n" if system else "")
    start = " ".join([*systemctl(scope), "start", SERVICE])
    found = [
        File(os.path.join(folder(scope), CELLS), cells),
        File(os.path.join(folder(scope), SERVICE), service),
        File(os.path.join(data_dir, "managed"), f"{start}\n"),  # for commands that find no agent
    ]
    if system and os.path.isdir(_NEEDRESTART):
        found.append(File(os.path.join(_NEEDRESTART, "conf.d", "pm3.conf"), _QUIET.format(made=MADE)))
    return found


def environment_of(service: str) -> dict[str, str]:
    """The variables that the text of one of our service units sets."""
    found = {}
    for line in re.findall(r"^Environment=(.*)$", service, re.MULTILINE):
        word = line[1:-1] if line.startswith('"') else line
        key, _equals, value = re.sub(r'\\(["\\])', r"\1", word).replace("%%", "%").partition("=")
        found[key] = value
    return found


def systemctl(scope: str) -> list[str]:
    return ["systemctl"] if scope == "system" else ["systemctl", "--user"]


def runtime(scope: str) -> dict[str, str]:
    """What has to be in the environment of `systemctl`: a session begun with su or sudo lacks it."""
    return {} if scope == "system" else {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"}


def folder(scope: str) -> str:
    """Where units are."""
    if scope == "system":
        return _SYSTEM
    shared = os.environ.get("XDG_CONFIG_HOME", "")
    return os.path.join(shared if shared.startswith("/") else os.path.expanduser("~/.config"), "systemd", "user")


def path(scope: str) -> str:
    """The service's unit."""
    return os.path.join(folder(scope), SERVICE)


def environment(scope: str, data_dir: str, admin_group: str = paths.GROUP) -> dict[str, str]:
    return {"PM3_DATA_DIR": data_dir, **({"PM3_ADMIN_GROUP": admin_group} if scope == "system" else {})}


def booted() -> bool:
    """Whether systemd runs this host, sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def user_name() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def lingers(user: str) -> bool:
    """Whether the user's systemd goes on without a session of the user."""
    return os.path.exists(f"/var/lib/systemd/linger/{user}")


def user_manager() -> str:
    """The socket of the user's systemd; it is there while that runs."""
    return f"/run/user/{os.getuid()}/systemd/private"


def _assigned(key: str, value: str) -> str:
    """A variable of `Environment=`, where $ means nothing."""
    return _quoted(f"{key}={value}")


def _quoted(word: str) -> str:
    """A word of a unit file. systemd.syntax(7): % begins a specifier."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{word}"' if any(letter.isspace() or letter in "\"'\\" for letter in word) else word
