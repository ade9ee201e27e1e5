# SPDX-License-Identifier: Apache-2.0
"""The locator of a disc: where its list of files is, for whoever cannot read its directories.

One sector, in places that no other sector of the disc leads to: twice before the volume
descriptors, and in the last sector of the image.  It names the data set and both copies of
`manifest.json`, which has the position of every file.  It also has a digest of what starts the
disc and describes it, which no other file can have: it is written last.

Authenticity is not its business: what is found through it is proven by its own seals.
Source: docs/formats.md "Locator".  Pure: bytes in, bytes out.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from backup.objects.errors import DamagedError
from backup.objects.preamble import PREAMBLE_SIZE, check_preamble, make_preamble

LOCATOR_MAGIC: Final = b"RKLOCA"
SECTOR_SIZE: Final = 2048
# In the system area of ISO 9660, behind where a partition table and its entries may be.
POSITIONS: Final = (12 * SECTOR_SIZE, 15 * SECTOR_SIZE)
MANIFEST_LIMIT: Final = 256 << 20  # bytes that a list of files may have

_WHAT = "the locator"
# Data set id, position and size of the list, position of its copy, where the first file is,
# position of the boot catalogue, digest of what starts and describes the disc.
_BODY = struct.Struct("<16sQQQQQ32s")
_CHECKED = PREAMBLE_SIZE + _BODY.size
_DIGEST_SIZE = 32
_POSITION_LIMIT = 1 << 48  # bytes; a disc has fewer than 2^32 sectors


class Locator(NamedTuple):
    """What a locator says; positions and sizes in bytes."""

    data_set_id: bytes  # 16 bytes
    manifest: int
    manifest_size: int
    manifest_copy: int
    first_file: int
    boot_catalogue: int
    digest: bytes  # SHA-256 of `parts`, one after another

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(position, size) of what the digest covers: boot sector, descriptors, catalogue."""
        return (
            (0, 512),
            (16 * SECTOR_SIZE, self.first_file - 16 * SECTOR_SIZE),
            (self.boot_catalogue, SECTOR_SIZE),
        )


def pack_locator(locator: Locator) -> bytes:
    """Return the sector."""
    data = make_preamble(LOCATOR_MAGIC) + _BODY.pack(*locator)
    return (data + hashlib.sha256(data).digest()).ljust(SECTOR_SIZE, b"\0")


def unpack_locator(data: bytes, image_size: int) -> Locator:
    """Decode a sector.

    Args:
        data: the sector, or less if the image ends in it.
        image_size: bytes that there are; a disc that was cut short has less than it names.

    Raises:
        UnknownVersionError: of another major version; checked first.
        DamagedError: no locator, a damaged one, or one whose list is larger than it may be.
    """
    check_preamble(data, LOCATOR_MAGIC, _WHAT)
    if hashlib.sha256(data[:_CHECKED]).digest() != data[_CHECKED : _CHECKED + _DIGEST_SIZE]:
        raise DamagedError(_WHAT)
    locator = Locator(*_BODY.unpack_from(data, PREAMBLE_SIZE))
    if locator.manifest_size > min(MANIFEST_LIMIT, image_size):
        raise DamagedError(_WHAT, "names a list of files that is too long")
    if not 16 * SECTOR_SIZE <= locator.first_file <= image_size:
        raise DamagedError(_WHAT, "names a wrong place for the first file")
    if max(locator.manifest, locator.manifest_copy, locator.boot_catalogue) > _POSITION_LIMIT:
        raise DamagedError(_WHAT, "names a place that no disc has")
    return locator
