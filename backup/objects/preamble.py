# SPDX-License-Identifier: Apache-2.0
"""The eight bytes every file starts with: a magic, a major and a minor version.

A reader refuses another major version before it looks at anything else, and accepts any minor
one: a minor version only adds what older readers may ignore.
Source: docs/formats.md "Preamble".
"""

from __future__ import annotations

import struct

from backup.objects.errors import DamagedError, UnknownVersionError

MAJOR = 1  # of everything but object tables of machines that have a key of their own
MINOR = 0  # of everything but object tables, which have their own
_PREAMBLE = struct.Struct("<6sBB")  # magic, major version, minor version
PREAMBLE_SIZE = _PREAMBLE.size

Buffer = bytes | bytearray | memoryview


def make_preamble(magic: bytes, minor: int = MINOR, major: int = MAJOR) -> bytes:
    """Return the preamble of a new file.  `magic`: six bytes."""
    return _PREAMBLE.pack(magic, major, minor)


def check_preamble(data: Buffer, magic: bytes, what: str, newest: int = MAJOR) -> bytes:
    """Return the preamble at the start of `data`; `what` names the file in errors.

    `newest`: the highest major version that the caller reads.

    Raises:
        DamagedError: `data` does not start with `magic`, or is too short to tell.
        UnknownVersionError: the major version is not ours.
    """
    preamble = bytes(data[:PREAMBLE_SIZE])
    if preamble[: len(magic)] != magic:
        reason = "is empty" if not preamble else "does not start with its magic"
        raise DamagedError(what, reason)
    if len(preamble) < PREAMBLE_SIZE:
        raise DamagedError(what, "is cut short")
    _, major, _ = _PREAMBLE.unpack(preamble)
    if not MAJOR <= major <= newest:
        raise UnknownVersionError(what, major, newest)
    return preamble
