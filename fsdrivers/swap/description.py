# SPDX-License-Identifier: Apache-2.0
"""The description of a swap area as plain data.

Keys: header (every field of its record by name), bad_pages (their numbers), hibernated, block_size.
"""

from __future__ import annotations

from collections.abc import Iterator

from fsdrivers.swap.format import PAGE_SIZE, SwapHeader
from fsdrivers.volume import Description, Kept, Plain, kept_facts


def pack_description(
    header: SwapHeader, bad_pages: tuple[int, ...], *, is_hibernated: bool
) -> dict[str, Plain]:
    """Return what `plan_volume` needs to make the same swap area again."""
    return {
        "header": header.to_plain(),
        "bad_pages": list(bad_pages),
        "hibernated": is_hibernated,
        "block_size": PAGE_SIZE,
    }


def kept(recorded: Description, found: Description) -> Iterator[Kept]:
    """Yield what an area made again must have as it was; see `fsdrivers.volume.IterKept`."""
    yield from kept_facts(recorded, found, "block_size")
