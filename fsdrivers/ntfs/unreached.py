# SPDX-License-Identifier: Apache-2.0
"""How many files the MFT has to which no name leads that can be read."""

from __future__ import annotations

from contextlib import suppress

from fsdrivers.errors import CorruptError
from fsdrivers.losses import DAMAGE
from fsdrivers.ntfs.attributes import Attribute
from fsdrivers.ntfs.format.attributes import AttributeType, FileName
from fsdrivers.ntfs.format.records import FIRST_USER_RECORD, SystemRecord, number_of
from fsdrivers.ntfs.mft import Mft

_MAXIMUM_BITMAP = 64 << 20
_DEPTH = 16  # of what is kept below $Extend
_NAMES = AttributeType.FILE_NAME.value


def count_unreached(mft: Mft, reached: bytearray) -> int:
    """Return how many base records are in use, not `reached`, and no system files.

    A record that cannot be read counts if $MFT's bitmap says that it is in use.

    Args:
        mft: of the volume.
        reached: by number of the record, not zero for those that a name leads to.
    """
    used = b""
    with suppress(*DAMAGE):
        file = mft.file(SystemRecord.MFT)
        used = mft.read_all(file, AttributeType.BITMAP, limit=_MAXIMUM_BITMAP) or b""
    count = 0
    for number in range(FIRST_USER_RECORD, mft.record_count):
        if reached[number] or (used and not _has_bit(used, number)):
            continue
        try:
            (_, _, _, base), attributes = mft.attributes(number)
        except CorruptError:
            count += bool(used)  # else it may be free, and mostly is
        except OSError:
            count += 1
        else:
            count += not base and not _is_system(mft, attributes)
    return count


def _has_bit(bitmap: bytes, number: int) -> bool:
    return number >> 3 < len(bitmap) and bool(bitmap[number >> 3] >> (number & 7) & 1)


def _is_system(mft: Mft, attributes: list[Attribute]) -> bool:
    """Tell whether a record is somewhere below $Extend, by its names."""
    for _ in range(_DEPTH):
        names = [part for part in attributes if part.type == _NAMES]
        if not names or names[0].value_length < FileName.SIZE:
            return False
        parent = number_of(FileName.unpack(names[0].value).parent)
        if parent == SystemRecord.EXTEND:
            return True
        if parent < FIRST_USER_RECORD:
            return False
        try:
            _, attributes = mft.attributes(parent)
        except DAMAGE:
            return False
    return False
