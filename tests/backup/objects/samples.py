# SPDX-License-Identifier: Apache-2.0
"""Objects of every kind, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backup.objects.model import (
    BackupObject,
    DiskObject,
    LabelObject,
    MarkerObject,
    NodeObject,
    ObjectKind,
    Piece,
    Region,
    SecurityObject,
    StreamContent,
    VolumeObject,
)


def machine(shift: int = 0) -> dict[str, BackupObject]:
    """Return a small machine; `shift` is added to every number and pack position."""
    piece = Piece(0, 100, b"C" * 32, 1 + shift, 40 + shift, 90)
    n = [shift + number for number in range(20)]
    objects: dict[str, BackupObject] = {
        "disk": DiskObject(n[1], "sda", 1 << 30, 512, "mbr", {"a": [1], "b": 2}, pieces=(piece,)),
        "volume": VolumeObject(
            n[2], n[1], 1, "ext4", 1 << 29, 5, "uuid", b"MAIN", {"x": 1}, pieces=(piece,)
        ),
        "label": LabelObject(n[3], n[2], b"MAIN"),
        "security": SecurityObject(n[4], ((b"user.a", b"1"), (b"user.b", b"2")), signature=b"s"),
        "root": NodeObject(n[5], ObjectKind.DIRECTORY, n[2], 0, b""),
        "etc": NodeObject(n[6], ObjectKind.DIRECTORY, n[2], n[5], b"etc"),
        "file": NodeObject(
            n[7], ObjectKind.FILE, n[2], n[6], b"pass\xff\nwd", 100, 0o644, 1, 2, 3, 4, 5, 6, 7,
            security=n[4], source_number=shift, pieces=(piece,),
            streams=(StreamContent(b"s", 100, (piece,)),), regions=(Region(0, 100, False),),
        ),
        "link": NodeObject(n[8], ObjectKind.HARD_LINK, n[2], n[5], b"l", target_number=n[7]),
        "marker": MarkerObject(n[9], n[2], "blank-file", n[7], {"k": b"v"}, (piece,)),
        "boot": MarkerObject(n[10], n[2], "boot-sector"),
    }  # fmt: skip
    return objects


def lookup_in(objects: dict[str, BackupObject]) -> Callable[[int], BackupObject]:
    """Return what finds the objects by number."""
    return {obj.number: obj for obj in objects.values()}.__getitem__


PIECE = Piece(0, 100, b"C" * 32, 1, 40, 90)


STREAMS = (
    StreamContent(b"", 1 << 50, (), 0x8001, 300),
    StreamContent(b"empty", 0),
    StreamContent(b"holes", 1 << 40, (PIECE,), 1, 0, (Region(4096, 5, True),)),
    StreamContent(b"stream", 100, (PIECE,)),
)


def sample() -> list[BackupObject]:
    """Return one object of every kind, with every field away from its default."""
    plain: dict[str, Any] = {"list": [1, [b"x", None, True]], "text": "é\udcff", "big": 2**70}
    return [
        DiskObject(1, "sd\udcffa", 1 << 40, 4096, "gpt", plain, "model", "serial", (PIECE,), b"1"),
        VolumeObject(
            2, 1, 3, "ext4", 1 << 39, 5, "uuid", b"\xff", plain, 7, b"/mnt\xfe", (PIECE,), b"2"
        ),
        LabelObject(3, 2, b"MA\xffIN", b"3"),
        SecurityObject(4, ((b"security.x", b"\0\1"), (b"user.y", b"")), b"sd", b"4"),
        NodeObject(5, ObjectKind.DIRECTORY, 2, 0, b"", signature=b"5"),
        NodeObject(
            7, ObjectKind.FILE, 2, 5, b"\xff\n\xed\xa0\x80", 1 << 50, 0o7777, 1, 2,
            -5, 2**64, -(2**70), 10**30, 0xFFFFFFFF, (8, 1), b"target", 4, 99, 6,
            b"SHORT   TXT", 0x18, (Region(0, 10, False), Region(4096, 5, True)),
            (PIECE, PIECE), STREAMS, (1, -(2**70), 3, 4), ((b"user.z", b"\xff"),), b"6", 12,
        ),
        NodeObject(
            8, ObjectKind.HARD_LINK, 2, 5, b"link", target_number=7, name_times=(1, 2, 3, 4),
            signature=b"7",
        ),
        NodeObject(9, ObjectKind.FILE, 2, 5, b"hole", 1 << 30, regions=(), signature=b"8"),
        NodeObject(10, ObjectKind.BLOCK_DEVICE, 2, 5, b"sda", device=(8, 0), signature=b"9"),
        NodeObject(11, ObjectKind.SYMLINK, 2, 5, b"l", 2, target=b"\xff/", signature=b"10"),
        MarkerObject(12, 2, "blank-file", 9, plain, (PIECE,), b"11"),
    ]  # fmt: skip
