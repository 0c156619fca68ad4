# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rotated copies of a log: `L.1` is the newest, `L.2.gz` an older one that was compressed. Owns their names and their order.

Copies are counted by their exact names and without gaps, so neither the logs of `L.old` nor those of `my-L` are ever touched. Only
renames and removals happen here, each of which happens or does not, relative to a folder's descriptor, and none follows a link. A
crash between two renames leaves a gap, which the next rotation fills: it shifts the copies below the gap only, and drops none. The
index of a copy goes where the copy goes; what cannot be done with an index is no error.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from .points import reached

PACKED, HALF = b".gz", b".gz.tmp"  # a compressed copy; one that is being made


class Copy(NamedTuple):
    number: int
    name: bytes
    identity: tuple[int, int]  # device and inode
    size: int

    @property
    def packed(self) -> bool:
        return self.name.endswith(PACKED)


def copies(folder: int, log: bytes) -> list[Copy]:
    """All rotated copies, the newest first. Changes nothing, so that it may be asked while another thread renames."""
    found: list[Copy] = []
    while True:
        copy = _copy(folder, log, len(found) + 1)
        if copy is None:
            return found
        found.append(copy)


def mend(folder: int, log: bytes) -> list[Copy]:
    """All rotated copies, after finishing what a crash left half done: a copy beside its compressed form."""
    found = copies(folder, log)
    for copy in found:
        if copy.packed:
            try:
                os.unlink(_numbered(log, copy.number), dir_fd=folder)
            except FileNotFoundError:
                pass
    return found


def make_room(folder: int, log: bytes, index: bytes | None, keep: int) -> None:
    """Frees the number 1 (or, where none is kept, only removes), so that afterwards at most `keep` - 1 copies are left."""
    found = mend(folder, log)
    for copy in reversed(found[max(0, keep - 1) :]):
        remove(folder, log, index, copy)
    reached("rotation.begun")
    for copy in reversed(found[: max(0, keep - 1)]):
        ending = PACKED if copy.packed else b""
        _move_index(index, copy.number, copy.number + 1)
        reached("rotation.index_shifted")
        _rename(folder, copy.name, _numbered(log, copy.number + 1) + ending)
        reached("rotation.shifted")


def shelve(folder: int, log: bytes, index: bytes | None) -> None:
    """The live log becomes the newest copy; number 1 must be free."""
    _move_index(index, 0, 1)
    reached("rotation.index_shelved")
    _rename(folder, log, _numbered(log, 1))
    reached("rotation.shelved")


def limit(folder: int, log: bytes, index: bytes | None, total_size: int, spare_plain: bool = False) -> None:
    """Removes the oldest copies until the rest has no more than `total_size` bytes.

    `spare_plain`: the newest ones neither count nor go while they wait for being compressed.
    """
    found = copies(folder, log)
    while spare_plain and found and not found[0].packed:
        del found[0]
    total = sum(copy.size for copy in found)
    while found and total > total_size:
        total -= found[-1].size
        remove(folder, log, index, found.pop())


def remove(folder: int, log: bytes, index: bytes | None, copy: Copy) -> None:
    os.unlink(copy.name, dir_fd=folder)
    reached("rotation.removed")
    if index is not None:
        try:
            os.unlink(_numbered(index, copy.number))
        except OSError:
            pass


def replace(folder: int, log: bytes, identity: tuple[int, int], half: bytes) -> bool:
    """Puts the compressed `half` in the place of the copy that it was made of, wherever that is by now. False: it is gone."""
    for copy in copies(folder, log):
        if copy.identity == identity:
            reached("packing.made")
            _rename(folder, half, copy.name + PACKED)
            reached("packing.placed")
            os.unlink(copy.name, dir_fd=folder)  # killed right before: `mend` does it
            return True
    os.unlink(half, dir_fd=folder)
    return False


def _copy(folder: int, log: bytes, number: int) -> Copy | None:
    plain = _numbered(log, number)
    for name in (plain + PACKED, plain):
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return Copy(number, name, (status.st_dev, status.st_ino), status.st_size)
    return None


def _numbered(name: bytes, number: int) -> bytes:
    return b"%b.%d" % (name, number) if number else name


def _rename(folder: int, old: bytes, new: bytes) -> None:
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def _move_index(index: bytes | None, old: int, new: int) -> None:
    # Before its log: a crash in between leaves the log without an index, and then the index is found where the log goes next.
    if index is not None:
        try:
            os.rename(_numbered(index, old), _numbered(index, new))
        except OSError:
            pass
