# SPDX-License-Identifier: Apache-2.0
"""An opened swap area: an identity and a size; it holds no objects."""

from __future__ import annotations

from collections.abc import Iterator

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, NotRecognisedError, UnsupportedError
from fsdrivers.losses import OnDamage
from fsdrivers.record import words_codec
from fsdrivers.swap.description import pack_description
from fsdrivers.swap.format import (
    BAD_PAGES_LIMIT,
    HIBERNATED_MAGICS,
    MAGIC,
    PAGE_SIZE,
    VERSION,
    SwapHeader,
)
from fsdrivers.volume import Entry, Extent, Node, Plain, Volume


class SwapVolume(Volume):
    """A Linux swap area of version 1."""

    type = "swap"
    block_size = PAGE_SIZE

    def __init__(
        self, header: SwapHeader, bad_pages: tuple[int, ...], magic: bytes, device_size: int
    ) -> None:
        self.header = header
        self.bad_pages = bad_pages
        self.is_hibernated = magic != MAGIC  # holds the memory of a suspended system
        self.size = (header.last_page + 1) * PAGE_SIZE
        self._device_size = device_size
        text = header.uuid.hex()
        parts = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
        self.uuid = "-".join(parts) if any(header.uuid) else ""
        self.label = header.label.split(b"\0", 1)[0]

    def describe(self) -> dict[str, Plain]:
        """Return what `plan_volume` needs to make the same swap area again."""
        return pack_description(
            self.header, self.bad_pages, is_hibernated=self.is_hibernated, size=self._device_size
        )

    def used_size(self) -> int:
        """Return the size of the header: what is swapped out dies with its system."""
        return PAGE_SIZE

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield nothing: not even a root."""
        yield from ()

    def extents(self, node: Node) -> list[Extent]:
        """Return nothing: there are no files."""
        return []

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return nothing: there are no files."""
        return b""


def open_volume(device: Device) -> SwapVolume:
    """Read the header of the swap area on `device`.

    Raises:
        NotRecognisedError: there is no swap signature for 4 KiB pages.
        UnsupportedError: another version.
        CorruptError: the header contradicts itself or the device.
    """
    if device.size < PAGE_SIZE:
        raise NotRecognisedError(f"{device.name} is too small for a swap area")
    page = device.read(0, PAGE_SIZE)
    magic = page[-len(MAGIC) :]
    if magic == b"SWAP-SPACE":
        raise UnsupportedError("swap area of version 0")
    if magic != MAGIC and magic not in HIBERNATED_MAGICS:
        raise NotRecognisedError(f"{device.name} has no swap area with 4 KiB pages")
    header = SwapHeader.unpack(page)
    version = SwapHeader.OFFSETS["version"]
    if header.version != VERSION:
        if header.version == VERSION << 24:
            raise UnsupportedError("swap area of a big-endian machine")
        raise UnsupportedError(f"swap area of version {header.version}")
    if header.last_page < 1 or (header.last_page + 1) * PAGE_SIZE > device.size:
        pages = f"1 to {device.size // PAGE_SIZE - 1}"
        raise CorruptError("swap area's last page", version + 4, pages, header.last_page)
    if header.bad_pages > BAD_PAGES_LIMIT:
        limit = f"at most {BAD_PAGES_LIMIT}"
        raise CorruptError("number of bad pages", version + 8, limit, header.bad_pages)
    bad_pages = words_codec(header.bad_pages).unpack_from(page, SwapHeader.SIZE)
    return SwapVolume(header, bad_pages, magic, device.size)
