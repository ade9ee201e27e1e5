# SPDX-License-Identifier: Apache-2.0
"""Names: from file identifiers of each kind of tree to bytes and their order on the medium.

Source: [ECMA-119] 7.5, 7.6 (identifiers), 9.3 (order in a directory), 6.9.1 (in a path table);
[Joliet] "Identifiers".  Joliet names come as UTF-8; a surrogate without its other half is
encoded as three bytes, so that every name survives and none meets another.
"""

from __future__ import annotations

from fsdrivers.errors import CorruptError
from fsdrivers.printable import printable

FIRST_VERSION = b";1"
_FORBIDDEN = (b"", b".", b"..")


def plain_name(identifier: bytes, *, is_directory: bool) -> bytes:
    """Return the name of an identifier of the primary tree: as stored, but version 1 dropped.

    A dot that ends the name goes with the version, as it does for Linux.  Other versions than
    the first keep theirs: they stand beside each other in one directory.
    """
    if is_directory:
        return identifier
    name = identifier.removesuffix(FIRST_VERSION)
    if len(name) > 1 and name.endswith(b"."):
        return name[:-1]
    return name


def joliet_name(identifier: bytes, *, is_directory: bool, position: int) -> bytes:
    """Return the name of an identifier in UCS-2 or UTF-16, big-endian, as UTF-8.

    Raises:
        CorruptError: half a character, at the record at byte `position`.
    """
    if len(identifier) % 2:
        raise CorruptError("Joliet name of half a character", position, None, len(identifier))
    text = identifier.decode("utf-16-be", "surrogatepass")
    if not is_directory:
        text = text.removesuffix(FIRST_VERSION.decode())
    return text.encode("utf-8", "surrogatepass")


def checked_name(name: bytes, position: int) -> bytes:
    """Return `name` if a directory can have it.

    Raises:
        CorruptError: it is empty, "." or "..", or has a slash or NUL in it.
    """
    if name in _FORBIDDEN or b"/" in name or b"\0" in name:
        raise CorruptError(f"name {printable(name)} in a directory record", position)
    return name


def order_key(identifier: bytes, *, is_joliet: bool) -> tuple[bytes, bytes, bytes]:
    """Return what identifiers in one directory are sorted by.

    Names, then extensions, both as if padded with spaces, then versions, highest first.
    Identifiers of Joliet and of directories have extensions only where a dot is in them.
    """
    dot, mark = (b"\0.", b"\0;") if is_joliet else (b".", b";")
    rest, _, version = identifier.partition(mark)
    name, _, extension = rest.partition(dot)
    inverted = bytes(255 - byte for byte in version.rjust(5, b"0"))
    return name, extension, inverted
