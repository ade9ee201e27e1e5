# SPDX-License-Identifier: Apache-2.0
"""What a restored machine shows: that it is up, or that it does not start.  Pure.

Texts are read from a text screen; a picture is for people.

Source: IBM VGA, modes 2 and 3: 25 rows of 80 cells at 0xb8000, each a character of code page 437
and its colour.
"""

from __future__ import annotations

import re

TEXT_ADDRESS = 0xB8000
COLUMNS, ROWS = 80, 25
TEXT_SIZE = 2 * COLUMNS * ROWS  # bytes
# What waits for a person, at the end of what is shown: DOS, and a console of Unix.
PROMPT = re.compile(r"^(?:[A-Z]:\\[^\n>]*>|.*\blogin:)\Z", re.MULTILINE)
# What says that nothing more will come: boot sectors, BIOS, boot loaders, initial root filesystems.
FAILURE = re.compile(
    r"missing operating system|operating system not found|error loading operating system"
    r"|invalid partition table|non-system disk|no bootable device|(?:ntldr|bootmgr) is missing"
    r"|grub rescue>|\(initramfs\)|you are in emergency mode",
    re.IGNORECASE,
)


def text_of(memory: bytes) -> str:
    """Return the lines of a text screen, without what is blank at their ends."""
    cells = memory[:TEXT_SIZE:2].decode("cp437").replace("\0", " ")
    lines = (cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS))
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def last_line(text: str) -> str:
    """Return the last line that says something, "" if there is none."""
    return text.rstrip().rpartition("\n")[2].strip()
