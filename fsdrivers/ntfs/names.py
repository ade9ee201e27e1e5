# SPDX-License-Identifier: Apache-2.0
"""Names of NTFS: UTF-16 on disk, bytes to everybody else, and the order that $UpCase gives them.

Any 16-bit units make a name on NTFS.  Outside they are UTF-8 in which a lone surrogate is three
bytes of its own (WTF-8), so that every name survives both ways.

Source: [ntfs-3g] layout.h, COLLATION_FILE_NAME; libntfs-3g/unistr.c.
"""

from __future__ import annotations

from fsdrivers.errors import InvalidNameError, name_too_long
from fsdrivers.printable import printable

MAXIMUM_UNITS = 255


def name_of(raw: bytes | memoryview) -> bytes:
    """Return UTF-16LE units as bytes."""
    return str(raw, "utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")


def units_of(name: bytes) -> bytes:
    """Return a name as UTF-16LE units.

    Raises:
        InvalidNameError: it is not what `name_of` gives.
    """
    try:
        return name.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
    except UnicodeError as error:
        raise InvalidNameError(f"{printable(name)} cannot be stored as UTF-16") from error


def check_name(name: bytes) -> bytes:
    """Return a file's name as units, if it can be one.

    Raises:
        InvalidNameError: it is empty, too long, or has a character no file name has.
    """
    units = units_of(name)
    if len(units) > 2 * MAXIMUM_UNITS:
        raise name_too_long(name, MAXIMUM_UNITS, "UTF-16 units")
    if not name:
        raise InvalidNameError("a name cannot be empty")
    if b"/" in name or b"\0" in name:
        raise InvalidNameError(f"{printable(name)} has a character that separates names")
    return units
