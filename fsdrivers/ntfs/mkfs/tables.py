# SPDX-License-Identifier: Apache-2.0
"""Tables that every NTFS volume carries, for volumes that are made after no other.

Measured: $UpCase of Windows 8 and later, SHA-256 41c26bc7..., which mkntfs writes too; $AttrDef of
Windows XP to 10 and mkntfs, SHA-256 d7de5b1b....
"""

from __future__ import annotations

import re
import sys
from array import array
from typing import Final

from fsdrivers.ntfs.format.attributes import AttributeDefinition
from fsdrivers.ntfs.upcase import UNITS

# $UpCase where it is not the unit itself: first unit, ":" for each following one or "." for every
# other one, how many, what is added.
_UPPER: Final = """
0061:26-32 00e0:23-32 00f8:7-32 00ff:1+121 0101.24-1 0133.3-1 013a.8-1 014b.23-1 017a.3-1
0180:1+195 0183.2-1 0188:1-1 018c:1-1 0192:1-1 0195:1+97 0199:1-1 019a:1+163 019e:1+130
01a1.3-1 01a8:1-1 01ad:1-1 01b0:1-1 01b4.2-1 01b9:1-1 01bd:1-1 01bf:1+56 01c6:1-2 01c9:1-2
01cc:1-2 01ce.8-1 01dd:1-79 01df.9-1 01f3:1-2 01f5:1-1 01f9.20-1 0223.9-1 023c:1-1 0242:1-1
0247.5-1 0250:1+10783 0251:1+10780 0253:1-210 0254:1-206 0256:2-205 0259:1-202 025b:1-203
0260:1-205 0263:1-207 0268:1-209 0269:1-211 026b:1+10743 026f:1-211 0271:1+10749 0272:1-213
0275:1-214 027d:1+10727 0280:1-218 0283:1-218 0288:1-218 0289:1-69 028a:2-217 028c:1-71
0292:1-219 0371.2-1 0377:1-1 037b:3+130 03ac:1-38 03ad:3-37 03b1:17-32 03c3:9-32 03cc:1-64
03cd:2-63 03d7:1-8 03d9.12-1 03f2:1+7 03f8:1-1 03fb:1-1 0430:32-32 0450:16-80 0461.17-1
048b.27-1 04c2.7-1 04cf:1-15 04d1.42-1 0561:38-48 1d79:1+35332 1d7d:1+3814 1e01.75-1 1ea1.48-1
1f00:8+8 1f10:6+8 1f20:8+8 1f30:8+8 1f40:6+8 1f51.4+8 1f60:8+8 1f70:2+74 1f72:4+86 1f76:2+100
1f78:2+128 1f7a:2+112 1f7c:2+126 1f80:8+8 1f90:8+8 1fa0:8+8 1fb0:2+8 1fb3:1+9 1fc3:1+9
1fd0:2+8 1fe0:2+8 1fe5:1+7 1ff3:1+9 214e:1-28 2170:16-16 2184:1-1 24d0:26-26 2c30:47-48
2c61:1-1 2c65:1-10795 2c66:1-10792 2c68.3-1 2c73:1-1 2c76:1-1 2c81.50-1 2d00:38-7264 a641.16-1
a663.6-1 a681.12-1 a723.7-1 a733.31-1 a77a.2-1 a77f.5-1 a78c:1-1 ff41:26-32
"""
_RANGE: Final = re.compile(r"([0-9a-f]{4})([:.])(\d+)([+-]\d+)")
# $Info of that table: its size, a checksum of it, and the Windows that wrote it.
UPCASE_INFO: Final = bytes.fromhex(
    "20000000000000000c691b6b777edcda0a00000000000000f055000000000000"
)
_NO_LIMIT: Final = (1 << 64) - 1
# Name, type, flags, smallest and largest size.
_DEFINITIONS: Final = (
    ("$STANDARD_INFORMATION", 0x10, 0x40, 48, 72),
    ("$ATTRIBUTE_LIST", 0x20, 0x80, 0, _NO_LIMIT),
    ("$FILE_NAME", 0x30, 0x42, 68, 578),
    ("$OBJECT_ID", 0x40, 0x40, 0, 256),
    ("$SECURITY_DESCRIPTOR", 0x50, 0x80, 0, _NO_LIMIT),
    ("$VOLUME_NAME", 0x60, 0x40, 2, 256),
    ("$VOLUME_INFORMATION", 0x70, 0x40, 12, 12),
    ("$DATA", 0x80, 0, 0, _NO_LIMIT),
    ("$INDEX_ROOT", 0x90, 0x40, 0, _NO_LIMIT),
    ("$INDEX_ALLOCATION", 0xA0, 0x80, 0, _NO_LIMIT),
    ("$BITMAP", 0xB0, 0x80, 0, _NO_LIMIT),
    ("$REPARSE_POINT", 0xC0, 0x80, 0, 16 << 10),
    ("$EA_INFORMATION", 0xD0, 0x40, 8, 8),
    ("$EA", 0xE0, 0, 0, 64 << 10),
    ("$LOGGED_UTILITY_STREAM", 0x100, 0x80, 0, 64 << 10),
)


def upcase_table() -> bytes:
    """Return $UpCase of Windows 8 and later: 131072 bytes."""
    made = array("H", range(UNITS))
    for first, mark, count, added in _RANGE.findall(_UPPER):
        step = 1 if mark == ":" else 2
        start = int(first, 16)
        for unit in range(start, start + step * int(count), step):
            made[unit] += int(added)
    if sys.byteorder == "big":
        made.byteswap()
    return made.tobytes()


def attribute_definitions() -> bytes:
    """Return $AttrDef: 2560 bytes."""
    made = [
        AttributeDefinition(
            name.encode("utf-16-le").ljust(128, b"\0"), kind, 0, 0, flags, smallest, largest
        ).pack()
        for name, kind, flags, smallest, largest in _DEFINITIONS
    ]
    return b"".join((*made, bytes(AttributeDefinition.SIZE)))
