# SPDX-License-Identifier: Apache-2.0
"""Marks with which a recovery disc says on the serial line where its dialogue is.

Source: docs/formats.md "Marks on the serial line".
"""

from __future__ import annotations

VERSION = "1"
# What the dialogue begins with on discs that were made before there were marks.
UNMARKED = "This disc restores a whole machine"


def pattern(*names: str) -> str:
    """Return a regular expression for the next mark of one of `names`, or of any name.

    Its groups are `version`, `name` and `value`.
    """
    name = "|".join(names) or "[a-z-]+"
    return rf"\x1b\]7717;rebuildkit;(?P<version>\d+);(?P<name>{name});(?P<value>[^\x1b]*)\x1b\\"
