# SPDX-License-Identifier: Apache-2.0
"""Names of the files on a recovery disc.  Source: docs/formats.md "The disc"."""

from __future__ import annotations

from typing import Final

KEY_FILE: Final = "hash.dat"
TABLE: Final = "objtab.dat"
# Directory with second copies of KEY_FILE, TABLE and MANIFEST, byte for byte.
COPIES: Final = "copies"
MANIFEST: Final = "manifest.json"
ANSWERS: Final = "answers.json"
ANSWERS_CODE: Final = "answers.code"  # says that whoever wrote ANSWERS has the master key
OBJECTS: Final = "objects"
README: Final = "README.txt"
INFO: Final = ".disk/info"
INFO_TITLE: Final = "rebuildkit recovery disc"  # the first line of INFO
SMALL_FILE_LIMIT: Final = 64 << 10  # bytes of INFO, ANSWERS and ANSWERS_CODE, at most
INFO_SET: Final = "set "  # how the line of INFO begins that names the data set, in hex


def copy_of(path: str) -> str:
    """Return the name of the second copy of KEY_FILE, TABLE or MANIFEST."""
    return f"{COPIES}/{path}"


def pack_file(index: int) -> str:
    """Return the name of the pack with that place in the data set's list."""
    return f"{OBJECTS}/{index:08}.pak"
