# SPDX-License-Identifier: Apache-2.0
"""Names in directories that fold case: when two are the same, and what of them is hashed.

Source: linux Documentation/admin-guide/ext4.rst, "case-insensitive file name lookups":
canonical decomposition, full case folding and the removal of default ignorable code points, by
the tables of Unicode 12.1.  Those of this Python are newer: names with characters that were new
since may be the same here and not there.  So hashes, which must agree to the bit, are given for
ASCII alone.
"""

from __future__ import annotations

import unicodedata

from fsdrivers.errors import UnsupportedError

# Source: Unicode DerivedCoreProperties.txt, Default_Ignorable_Code_Point.
_IGNORABLE = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip


def folded(name: bytes) -> bytes:
    """Return what two names have in common exactly if they are the same name.

    A name that is not UTF-8 equals only itself.
    """
    if name.isascii():
        return name.lower()
    try:
        text = unicodedata.normalize("NFD", name.decode())
    except UnicodeDecodeError:
        return name
    text = unicodedata.normalize("NFD", text.casefold())
    return "".join(char for char in text if not _is_ignorable(ord(char))).encode()


def _is_ignorable(code: int) -> bool:
    return any(first <= code <= last for first, last in _IGNORABLE)


def hashed_name(name: bytes) -> bytes:
    """Return the bytes that the index of a directory that folds case hashes for a name.

    Raises:
        UnsupportedError: it is not ASCII.
    """
    if not name.isascii():
        raise UnsupportedError("other than ASCII names in the index of a directory that folds case")
    return name.lower()
