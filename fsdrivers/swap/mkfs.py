# SPDX-License-Identifier: Apache-2.0
"""Planning a blank swap area that keeps a recorded identity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.record import words_codec
from fsdrivers.swap.format import (
    BAD_PAGES_LIMIT,
    LAST_PAGE_LIMIT,
    MAGIC,
    MINIMUM_PAGES,
    PAGE_SIZE,
    SwapHeader,
)
from fsdrivers.volume import Description, Entry, Extent, Plain

WIPED_START = 1 << 20  # bytes at the start and at the end in which other formats keep signatures:
WIPED_END = 1 << 17  # a stale one would make blkid doubt the new swap area


@dataclass(frozen=True, slots=True)
class SwapLayout:
    """A planned swap area: one page."""

    size: int
    page: bytes
    type: str = "swap"
    used_size: int = PAGE_SIZE
    block_size: int = PAGE_SIZE

    def placements(self, number: int) -> Sequence[Extent]:
        """Return nothing: a swap area has no content."""
        return ()

    def iter_metadata(self) -> Iterator[tuple[int, bytes | bytearray | memoryview]]:
        """Yield zeros over whatever signatures were there, then the header.

        Pages are never read before they are written, so nothing else is needed.
        """
        for start, end in (
            (PAGE_SIZE, min(WIPED_START, self.size)),
            (max(self.size - WIPED_END, WIPED_START), self.size),
        ):
            if start < end:
                yield start, bytes(end - start)
        yield 0, self.page


def plan_volume(
    description: Description,
    *,
    size: int,
    **unused: object,
) -> SwapLayout:
    """Plan a blank swap area with the recorded UUID and label.

    A hibernated system is gone: the area is plain again.  Bad pages are kept where they are
    still inside, since they speak of the same partition when nothing moved; on another disk
    they cost a few pages.

    Args:
        description: from `SwapVolume.describe`.
        size: bytes of the new area.
        unused: what a swap area has no use for: it holds nothing, and a page is a multiple of
            any sector.

    Raises:
        NoSpaceError: `size` is less than ten pages.
        CorruptError: `description` is not a swap area's.
    """
    header = SwapHeader.from_plain(description.get("header"))
    pages = size // PAGE_SIZE
    if pages < MINIMUM_PAGES:
        raise NoSpaceError("swap area", MINIMUM_PAGES * PAGE_SIZE, size)
    last_page = min(pages - 1, LAST_PAGE_LIMIT)
    bad_pages = [page for page in _bad_pages(description.get("bad_pages")) if page <= last_page]
    header = replace(header, last_page=last_page, bad_pages=len(bad_pages))
    data = header.pack() + words_codec(len(bad_pages)).pack(*bad_pages)
    return SwapLayout(size, data.ljust(PAGE_SIZE - len(MAGIC), b"\0") + MAGIC)


def minimum_size(description: Description, entries: Sequence[Entry] = (), **unused: object) -> int:
    """Return the bytes of the smallest area that mkswap would make."""
    return MINIMUM_PAGES * PAGE_SIZE


def _bad_pages(value: Plain) -> list[int]:
    if not isinstance(value, list | tuple) or len(value) > BAD_PAGES_LIMIT:
        raise CorruptError("description of a swap area: its bad pages", None, "a list", value)
    pages = [page for page in value if isinstance(page, int) and 0 < page <= LAST_PAGE_LIMIT]
    if len(pages) != len(value):
        raise CorruptError("description of a swap area: its bad pages", None, "numbers", value)
    return pages
