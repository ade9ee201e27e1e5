# SPDX-License-Identifier: Apache-2.0
"""Damaged ext volumes: whatever e2fsck finds, our checker finds too.

Compared is "clean or not".  e2fsck's verdict is its text: anything beyond its passes and its
summary is a complaint; for some it exits with 0.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.ext.check import check_volume
from fsdrivers.ext.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.conformance.damage import assert_nothing_missed
from tests.fsdrivers.ext.editing import (
    NOW_NS,
    directory_node,
    edited,
    file_node,
    link_node,
)

SIZE = 4 << 20
KINDS = (
    "ext2",
    "ext3",
    "ext4-no-csum",
    "ext4-no-journal",
    "ext4-inline",
    "ext4-meta-bg",
    "ext4-bigalloc",
    "ext4-quota",
)


@cache
def populated(features: str) -> bytes:
    """Return a volume with one of everything, made by our own editor."""
    device, editor = edited(features, SIZE)
    many = editor.create(2, b"many", directory_node()).number
    for index in range(60):
        editor.create(many, b"a rather long name of a file %04d" % index, file_node())
    fragmented = editor.create(many, b"fragmented", file_node()).number
    for index in range(12):
        editor.write(fragmented, index * 8192, b"x%d" % index * 500)
    file = editor.create(2, b"file", file_node(uid=5)).number
    editor.write(file, 0, b"hello" * 1000)
    editor.set_xattr(file, b"user.a", b"b" * 300)
    editor.set_xattr(file, b"user.b", b"c" * 20)
    editor.link(file, many, b"hard link")
    small = editor.create(2, b"small", file_node()).number
    editor.set_xattr(small, b"user.a", b"b" * 10)
    editor.create(2, b"short link", link_node(b"x" * 20))
    editor.create(2, b"long link", link_node(b"x" * 100))
    editor.create(many, b"sub", directory_node())
    device_node = Node(0, Kind.BLOCK_DEVICE, mode=0o600, modified_ns=NOW_NS, device=(8, 1))
    editor.create(2, b"disk", device_node)
    editor.create(2, b"pipe", Node(0, Kind.FIFO, mode=0o600, modified_ns=NOW_NS))
    editor.close()
    return device.read(0, device.size)


def complaints(path: Path) -> list[str]:
    """Return what e2fsck has to say against a volume."""
    done = subprocess.run(["e2fsck", "-fn", path], capture_output=True)
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line]
    lines = [line for line in lines if not line.startswith(("Pass ", "e2fsck "))]
    lines = [line for line in lines if " files (" not in line]
    return lines or ["exit code"] * bool(done.returncode)


def check_verdicts(features: str, count: int, seed: int, image: Path) -> None:
    device = MemoryDevice.of(populated(features))
    volume = open_volume(device)
    assert_nothing_missed(device, volume, image, complaints, check_volume, count=count, seed=seed)


@pytest.mark.tools
@pytest.mark.parametrize("features", KINDS)
def test_a_sample(features: str, tmp_path: Path) -> None:
    """Of some damaged volumes, none that e2fsck objects to is clean to us."""
    check_verdicts(features, 60, 1, tmp_path / "image")


@pytest.mark.tools
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize("features", [*KINDS, "ext2-1k", "ext4-uninit-bg"])
def test_a_large_corpus(features: str, seed: int, run_seed: int, tmp_path: Path) -> None:
    """The same for thousands."""
    check_verdicts(features, 3000, run_seed + seed, tmp_path / "image")
