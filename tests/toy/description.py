# SPDX-License-Identifier: Apache-2.0
"""The description of a toy volume.  Keys: uuid (raw), label, version."""

from __future__ import annotations

from collections.abc import Iterator

from fsdrivers.volume import Description, Kept, Plain, kept_facts
from tests.toy.format import Superblock


def pack_description(superblock: Superblock) -> dict[str, Plain]:
    """Return the facts of a volume."""
    return {
        "uuid": superblock.uuid,
        "label": superblock.label.rstrip(b"\0"),
        "version": superblock.magic[-1],
    }


def kept(recorded: Description, found: Description) -> Iterator[Kept]:
    """Yield what a volume made again must have as it was; see `fsdrivers.volume.IterKept`."""
    yield from kept_facts(recorded, found, "version")
