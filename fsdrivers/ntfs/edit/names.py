# SPDX-License-Identifier: Apache-2.0
"""Names that are given to objects, and values of $FILE_NAME; pure.

A new name is in namespace 3 if it is a DOS name as it stands, in capitals; else in namespace 0,
without a DOS name of its own.  Measured: so do Windows 10 data volumes.

Source: [MS-FSCC] 2.1.5 for the characters; [ntfs-3g] layout.h for namespaces.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import InvalidNameError
from fsdrivers.ntfs.format.attributes import FileName, StandardInformation
from fsdrivers.ntfs.format.records import FileAttribute, Namespace
from fsdrivers.ntfs.names import check_name
from fsdrivers.printable import printable

_FORBIDDEN: Final = frozenset(b'"*/:<>?\\|') | frozenset(range(0x20))
_DOS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()-@^_`{}~")
_DEVICES: Final = frozenset(
    [b"CON", b"PRN", b"AUX", b"NUL"]
    + [b"%s%d" % (name, digit) for name in (b"COM", b"LPT") for digit in range(1, 10)]
)
MAXIMUM_LABEL: Final = 32  # UTF-16 units


def check_new_name(name: bytes) -> bytes:
    """Return a new name as UTF-16LE units.

    Raises:
        InvalidNameError: it is empty or too long, or has a character that Windows forbids.
    """
    units = check_name(name)
    bad = next((byte for byte in name if byte in _FORBIDDEN), None)
    if bad is not None or name in (b".", b".."):
        raise InvalidNameError(
            f"{printable(name)} has a character that Windows does not allow in names"
        )
    return units


def is_dos_name(name: bytes) -> bool:
    """Tell whether a name can be a DOS name: 8.3, in capitals."""
    base, dot, extension = name.partition(b".")
    return (
        1 <= len(base) <= 8
        and (1 <= len(extension) <= 3 if dot else True)
        and all(byte in _DOS for byte in base + extension)
        and base not in _DEVICES
    )


def namespace_of(name: bytes) -> int:
    """Return the namespace of a new name."""
    return (Namespace.WIN32_AND_DOS if is_dos_name(name) else Namespace.POSIX).value


def name_value(
    parent: int,
    units: bytes,
    namespace: int,
    information: StandardInformation,
    *,
    is_directory: bool,
    is_view: bool = False,
    sizes: tuple[int, int] = (0, 0),
    extra: int = 0,
) -> bytes:
    """Return the value of $FILE_NAME, which is the key in the index too.

    Args:
        parent: file reference of the directory.
        units: the name, UTF-16LE.
        namespace: Namespace.
        information: of the object; its times and attributes are copied.
        is_directory: whether the object is one.
        is_view: whether it has another index.
        sizes: allocated and data size of the content.
        extra: tag of its reparse point, or the size of its extended attributes.
    """
    flags = information.file_attributes & ~FileAttribute.DIRECTORY
    flags |= FileAttribute.INDEX if is_directory else 0
    flags |= FileAttribute.VIEW_INDEX if is_view else 0
    head = FileName(
        parent,
        information.created,
        information.modified,
        information.changed,
        information.accessed,
        *sizes,
        int(flags),
        extra,
        len(units) // 2,
        namespace,
    )
    return head.pack() + units
