# SPDX-License-Identifier: Apache-2.0
"""Volumes that have every attribute of NTFS, written by our planner and by our editor."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.ntfs.edit import open_editor
from fsdrivers.ntfs.nodes import XATTR_ACL, XATTR_EA, XATTR_OBJECT_ID, XATTR_REPARSE
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.ntfs.trees import MIB, ROOT, T0, forest_of
from tests.fsdrivers.ntfs.volumes import (
    descriptor,
    ea,
    junction,
    make_image,
    mounted,
    populate,
)

TIMES: dict[str, Any] = {
    "created_ns": T0 + 100,
    "modified_ns": T0 + 200,
    "changed_ns": T0 + 300,
    "accessed_ns": T0 + 400,
}


def planned(directory: Path) -> MemoryDevice:
    """Return a volume we planned: all that ntfs-3g can write, and what it cannot."""
    image = make_image(directory / "source", 64 * MIB, "-L", "Größe")
    with mounted(image, directory / "mount") as root:
        populate(root)
    with FileDevice.open(image) as opened:
        source = open_volume(opened)
        forest = forest_of(source)
        draw = random.Random("readers")
        node = forest.node(5000, flags=0x23)
        node.xattrs = tuple(
            sorted(
                {
                    **dict(node.xattrs),
                    XATTR_EA: ea(b"OWN", draw.randbytes(3000)),
                    XATTR_OBJECT_ID: draw.randbytes(64),
                }.items()
            )
        )
        forest.add(
            ROOT,
            "длинное имя".encode(),
            node,
            b"content " * 999,
            name_flags=1,
            short_name=b"LONG~1",
            name_times=(T0, T0 + 100, T0 + 200, T0 + 300),
        )
        for index in range(30):
            forest.add_stream(node, b"stream %d" % index, draw.randbytes(100 * index + 1))
        return forest.write(source.describe(), source.size)


def edited(device: MemoryDevice) -> None:
    """Give a volume new objects, and an old one new attributes."""
    draw = random.Random("edited")
    editor = open_editor(device)
    editor.set_label("später".encode())
    home = editor.create(editor.root, b"new directory", Node(0, Kind.DIRECTORY, **TIMES)).number
    number = editor.create(home, b"neue Datei.txt", Node(0, Kind.FILE, flags=0x22, **TIMES)).number
    for file in (number, editor.lookup(editor.root, b"hidden.sys").number):
        editor.write(file, 0, draw.randbytes(30_000))
        editor.truncate(file, 25_000)
        editor.write(file, 400_000, b"behind a hole")
        for name in (b"Zone.Identifier", b"large"):
            editor.write_stream(file, name, 0, draw.randbytes(20 * len(name) ** 2))
        editor.set_xattr(file, XATTR_ACL, descriptor("S-1-5-21-7-8-9-1010", "S-1-5-18"))
        editor.set_xattr(file, XATTR_OBJECT_ID, draw.randbytes(64))
        editor.set_xattr(file, XATTR_EA, ea(b"EDITED", draw.randbytes(700)))
    editor.link(number, editor.root, b"its other name")
    editor.set_short_name(home, b"neue Datei.txt", b"NEUEDA~1.TXT")
    where = editor.create(home, b"junction", Node(0, Kind.DIRECTORY, **TIMES)).number
    editor.set_xattr(where, XATTR_REPARSE, junction("C:\\new directory"))
    editor.rename(editor.root, b"Case", home, b"case of another directory")
    for each in (number, home, where):
        times = {f"{key}_ns": T0 + 12345600 * each for key in ("modified", "accessed")}
        editor.set_attributes(each, **times, created_ns=T0 + 700, changed_ns=T0 + 800)
    editor.close()
