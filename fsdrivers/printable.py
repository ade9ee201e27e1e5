# SPDX-License-Identifier: Apache-2.0
"""Names in messages and listings."""

from __future__ import annotations


def printable(name: bytes) -> str:
    """Return a name that cannot break a line: what is not printable shows as \\xNN."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and "\\" not in text and (text or not name):
        return text
    pieces = []
    for character in name.decode("utf-8", "surrogateescape"):
        if character == "\\":
            pieces.append("\\\\")
        elif character.isprintable():
            pieces.append(character)
        else:
            data = character.encode("utf-8", "surrogateescape")
            pieces.append("".join(f"\\x{byte:02x}" for byte in data))
    return "".join(pieces)
