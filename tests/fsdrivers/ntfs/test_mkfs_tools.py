# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes that we planned and wrote, as others read and judge them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.mkfs import default_description
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Description, Kind
from tests.fsdrivers.ntfs.trees import (
    MIB,
    ROOT,
    T0,
    Forest,
    compare,
    draw_forest,
    forest_of,
    seen_on,
)
from tests.fsdrivers.ntfs.volumes import (
    load,
    make_image,
    mounted,
    populate,
    seen_by_ntfs3g,
    seen_by_us,
    windows_volume,
)
from tests.programs import run

pytestmark = pytest.mark.tools

READ_ONLY = "ro,permissions,acl,streams_interface=xattr"
READABLE = ("abcXYZ 0.", "äöÜßéñ", "日本語テスト", "\U00010348\U0001f600")  # what UTF-8 can say
GEOMETRIES = {
    "512 B clusters": (48 * MIB, ("-c", 512)),
    "4 KiB clusters": (64 * MIB, ()),
    "4 KiB sectors": (64 * MIB, ("-s", 4096, "-c", 4096)),
    "64 KiB clusters": (96 * MIB, ("-c", 65536)),
}


def save(device: MemoryDevice, path: Path) -> Path:
    """Write a device to a file."""
    path.write_bytes(device.read(0, device.size))
    return path


def tree(files: int = 60) -> Forest:
    """Return a tree whose names others can show."""
    return draw_forest(2026, files=files, alphabets=READABLE)


def judge(image: Path) -> None:
    """Let every program that looks at whole volumes look at one, and read what it says."""
    said = run("ntfsfix", "-n", image)
    assert "processed successfully" in said
    assert "Checking the alternate boot sector... OK" in said
    said = run("ntfsresize", "--info", "--force", "--no-progress-bar", image)
    assert "You might resize" in said
    said = run("ntfsinfo", "--mft", image)
    assert "NTFS 3.1" in said or "Version: 3.1" in said or "Volume Version: 3.1" in said
    said = run("ntfssecaudit", "-a", image)
    # It reads on behind the end of $SDS, and complains of what it finds there on Windows' own too.
    for where in ("$SDS-1", "$SII", "$SDH"):
        assert f"0 errors in {where}" in said
    assert "All keys are present in all lists" in said
    run("ntfscluster", "--info", image)
    said = run("fsntfsinfo", image)
    assert "Version\t\t\t\t: 3.1" in said
    said = run("fsstat", image)
    assert "File System Type: NTFS" in said


def test_a_new_volume_is_what_others_call_one(tmp_path: Path) -> None:
    """Label, serial and geometry of a new volume are read alike, and nobody finds a fault."""
    for cluster_size in (512, 4096, 65536):
        description = default_description(
            48 * MIB,
            cluster_size=cluster_size,
            label="Neu ü".encode(),
            serial=0xABCD_EF01,
            now_ns=T0,
        )
        forest = Forest()
        forest.add(ROOT, b"", forest.node(ROOT, Kind.DIRECTORY, flags=6))
        image = save(forest.write(description, 48 * MIB), tmp_path / "image")
        judge(image)
        shown = run("blkid", "--probe", "-o", "export", image)
        assert "LABEL=Neu" in shown
        assert "UUID=00000000ABCDEF01" in shown
        assert "TYPE=ntfs" in shown


def test_a_full_volume_passes_every_judge(tmp_path: Path) -> None:
    """A volume with everything on it, and a copy of one that Windows made, pass."""
    judge(save(tree().write(default_description(64 * MIB, now_ns=T0), 64 * MIB), tmp_path / "one"))
    source = load(windows_volume())
    copy = forest_of(source).write(source.describe(), source.size)
    judge(save(copy, tmp_path / "two"))


@pytest.mark.root
def test_ntfs3g_reads_what_was_planned(tmp_path: Path) -> None:
    """Every name that ntfs-3g lists it also finds, with the content and attributes we read."""
    device = tree(120).write(default_description(128 * MIB, now_ns=T0), 128 * MIB)
    image = save(device, tmp_path / "image")
    with mounted(image, tmp_path / "mount", READ_ONLY) as root:
        expected = seen_by_ntfs3g(root)
    found = seen_by_us(open_volume(device))
    assert found.keys() == expected.keys()
    for path, seen in expected.items():
        mine = found[path]
        if seen.links > mine.links:  # ntfs-3g counts the DOS name too
            assert seen.links == mine.links + 1
            mine = mine._replace(links=seen.links)
        if mine.links > 2:  # ntfs-3g tells no DOS name of such files
            mine = mine._replace(dos_name=seen.dos_name)
        if mine.attributes & 0x400:  # a link on the mount, whose streams are not listed
            mine = mine._replace(streams=seen.streams)
        assert mine == seen, path


@pytest.mark.root
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_copy_of_what_ntfs3g_wrote_is_read_alike(tmp_path: Path, name: str) -> None:
    """Compressed, sparse, linked, named, guarded: ntfs-3g sees no difference to the original."""
    size, options = GEOMETRIES[name]
    image = make_image(tmp_path / "image", size, "-L", "source", *options)
    with mounted(image, tmp_path / "mount") as root:
        populate(root)
    with mounted(image, tmp_path / "mount", READ_ONLY) as root:
        expected = seen_by_ntfs3g(root)
    with FileDevice.open(image) as opened:
        source = open_volume(opened)
        description: Description = source.describe()
        sector_size = source.geometry.sector_size
        device, _ = forest_of(source).write_layout(description, size, sector_size)
        assert check_volume(device) == []
        compare(seen_on(source), seen_on(open_volume(device)))
    copy = save(device, tmp_path / "copy")
    with mounted(copy, tmp_path / "mount", READ_ONLY) as root:
        found = seen_by_ntfs3g(root)
    assert found.keys() == expected.keys()
    for path, seen in expected.items():
        assert found[path] == seen, path
    if "sectors" not in name:
        judge(copy)


@pytest.mark.root
def test_ntfs3g_can_go_on_writing(tmp_path: Path) -> None:
    """A planned volume takes changes by ntfs-3g, which split nodes and add records, soundly."""
    forest = Forest()
    forest.add(ROOT, b"", forest.node(ROOT, Kind.DIRECTORY, flags=6))
    forest.add(ROOT, b"large", forest.node(99, Kind.DIRECTORY))
    for number in range(100, 1100):
        forest.add(99, b"a name to be between %d" % number, forest.node(number), b"x" * number)
    image = save(forest.write(default_description(64 * MIB), 64 * MIB), tmp_path / "image")
    with mounted(image, tmp_path / "mount") as root:
        for number in range(100, 1100, 3):
            (root / "large" / f"a name to be between {number}").unlink()
        for number in range(3000):
            (root / "large" / f"a name to be between {number} and others").write_bytes(
                b"y" * number
            )
        expected = sorted(os.listdir(root / "large"))
    with FileDevice.open(image) as device:
        volume = open_volume(device)
        found = sorted(entry.name.decode() for entry in volume.walk() if entry.parent != ROOT)
        assert found == expected
        left = [finding for finding in check_volume(device) if finding.rule != "allocated-size"]
        assert left == []


def test_sleuthkit_finds_every_name_and_its_content(tmp_path: Path) -> None:
    """fls lists the names we planned, and icat gives the content of each file."""
    forest = Forest()
    forest.add(ROOT, b"", forest.node(ROOT, Kind.DIRECTORY, flags=6))
    for number in range(100, 160):
        name = "файл".encode() + b"%d" % number
        forest.add(ROOT, name, forest.node(number), bytes([number]) * (number * 37 % 9000))
    device, layout = forest.write_layout(default_description(16 * MIB), 16 * MIB)
    image = save(device, tmp_path / "image")
    listed = run("fls", "-r", "-p", "-F", image)
    for entry in forest.entries[1:]:
        record = layout.record_of(entry.node.number)
        assert f"r/r {record}-128-2:\t{entry.name.decode()}\n" in listed
        content = subprocess.run(
            ["icat", str(image), str(record)], check=True, capture_output=True
        ).stdout
        expected = forest.contents.get((entry.node.number, b""), b"")
        assert hashlib.sha256(content).digest() == hashlib.sha256(expected).digest()
    shown = run("istat", image, str(layout.record_of(100)))
    assert "Allocated File" in shown


def test_7z_tests_every_file(tmp_path: Path) -> None:
    """7-Zip reads all streams of a volume without holes and finds no error."""
    forest = tree()
    for entry in forest.entries:
        node = entry.node
        if node.number in forest.regions:
            forest.contents.pop((node.number, b""))
            node.size, node.flags = 0, 0x20
            node.streams = tuple(stream for stream in node.streams if stream.name)
    forest.regions.clear()
    image = save(forest.write(default_description(64 * MIB), 64 * MIB), tmp_path / "image")
    said: Any = run("7z", "t", image)
    assert "Everything is Ok" in said
