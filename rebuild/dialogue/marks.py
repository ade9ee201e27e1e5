# SPDX-License-Identifier: Apache-2.0
"""Marks: where the dialogue is, for a program on the serial line, whatever the words say.

A mark is an operating system command (ECMA-48 8.3.89), which terminals do not show.  Names and
values: docs/formats.md "Marks on the serial line".
"""

from __future__ import annotations

from backup.shared.text import printable

VERSION = 1


def mark(name: str, value: str = "") -> str:
    """Return the mark that says that `name` is on the screen."""
    return f"\x1b]7717;rebuildkit;{VERSION};{name};{printable(value)}\x1b\\"
