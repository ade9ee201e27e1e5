# SPDX-License-Identifier: Apache-2.0
"""ISO 9660 with Rock Ridge, Joliet and El Torito: read and check volumes; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from fsdrivers.errors import UnsupportedError
from fsdrivers.iso9660.check import check_volume
from fsdrivers.iso9660.descriptors import find_sessions
from fsdrivers.iso9660.eltorito import BootCatalogue, BootImage
from fsdrivers.iso9660.volume import NAMESPACES, IsoVolume, Namespace, open_volume
from fsdrivers.volume import Description, Entry

__all__ = [
    "NAMESPACES",
    "BootCatalogue",
    "BootImage",
    "IsoVolume",
    "Namespace",
    "check_volume",
    "find_sessions",
    "minimum_size",
    "open_volume",
    "plan_volume",
]


def plan_volume(
    description: Description,
    *,
    size: int,
    sector_size: int,
    entries: Sequence[Entry],
    order: Sequence[int] = (),
) -> NoReturn:
    """Refuse: recovery discs are mastered elsewhere, and nothing else writes such volumes.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError("writing iso9660")


def minimum_size(description: Description, entries: Sequence[Entry] = ()) -> NoReturn:
    """Refuse, as `plan_volume` does.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError("writing iso9660")
