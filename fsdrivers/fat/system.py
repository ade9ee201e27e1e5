# SPDX-License-Identifier: Apache-2.0
"""Where the files of a DOS system must be: in the root directory and in the clusters.

The boot sector of DOS knows no file system: it looks at fixed entries of the root directory and
loads what lies at the start of the data area.  Which files those are,
`fsdrivers.volume.SystemFiles` says; who makes one knows the system.  Pure.

Source: EP1168174A1 [0072] and claim 10: IO.SYS is the first, MSDOS.SYS the second, CONFIG.SYS
the fourth entry.  Measured: MS-DOS 4 demands that IO.SYS begins in the first cluster of the data
area and is contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fsdrivers.volume import SystemFiles

_T = TypeVar("_T")


def arrange(
    items: Sequence[tuple[_T, int | None, int]], system: SystemFiles
) -> list[tuple[_T, int | None, int]]:
    """Return the entries of a root directory in an order that `system` accepts.

    An order that does already is kept; else the rest follows in the order it had.

    Args:
        items: (entry, number of its node or None for the label, slots it takes).
        system: what is wanted.
    """
    if complies(items, system):
        return list(items)
    wanted = {number for number in system.entries if number is not None}
    rest = [item for item in items if item[1] not in wanted]
    by_number = {item[1]: item for item in items if item[1] in wanted}
    arranged = []
    for number in system.entries:
        if number is not None:
            if number in by_number:
                arranged.append(by_number[number])
            continue
        filler = min(
            (item for item in rest if item[2] == 1),
            key=lambda item: item[1] is not None,
            default=None,
        )
        if filler is not None:
            rest.remove(filler)
            arranged.append(filler)
    return arranged + rest


def complies(items: Sequence[tuple[_T, int | None, int]], system: SystemFiles) -> bool:
    """Whether every wanted entry that exists is where it is wanted.  Arguments as `arrange`."""
    numbers = {item[1] for item in items}
    slots: dict[int, int | None] = {}
    at = 0
    for _, number, count in items:
        if count == 1:
            slots[at] = number
        at += count
    return all(
        slots.get(index) == number
        for index, number in enumerate(system.entries)
        if number is not None and number in numbers
    )
