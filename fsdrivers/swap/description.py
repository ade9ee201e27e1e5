# SPDX-License-Identifier: Apache-2.0
"""The description of a swap area as plain data.

Keys: header (every field of its record by name), bad_pages (their numbers), hibernated, block_size,
size (bytes of the device).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fsdrivers.swap.format import LAST_PAGE_LIMIT, PAGE_SIZE, SwapHeader
from fsdrivers.volume import Description, Kept, Plain, kept_facts


def pack_description(
    header: SwapHeader, bad_pages: tuple[int, ...], *, is_hibernated: bool, size: int
) -> dict[str, Plain]:
    """Return what `plan_volume` needs to make the same swap area again."""
    return {
        "header": header.to_plain(),
        "bad_pages": list(bad_pages),
        "hibernated": is_hibernated,
        "block_size": PAGE_SIZE,
        "size": size,
    }


def kept(recorded: Description, found: Description) -> Iterator[Kept]:
    """Yield what an area made again must have as it was; see `fsdrivers.volume.IterKept`."""
    yield from kept_facts(recorded, found, "block_size")
    old, new = recorded.get("header"), found.get("header")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return
    fields = set(SwapHeader.OFFSETS) - {"last_page", "bad_pages"}  # they depend on the size
    yield from kept_facts(old, new, *sorted(fields))
    last_page, size = new.get("last_page"), found.get("size")
    if not isinstance(last_page, int) or not isinstance(size, int):
        return
    yield Kept("last_page", min(size // PAGE_SIZE - 1, LAST_PAGE_LIMIT), last_page)
    bad_pages = recorded.get("bad_pages")
    if isinstance(bad_pages, list | tuple):
        left: list[Plain] = [
            page for page in bad_pages if isinstance(page, int) and page <= last_page
        ]
        yield Kept("bad_pages", left, found.get("bad_pages"))
