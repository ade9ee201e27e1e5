# SPDX-License-Identifier: Apache-2.0
"""The kernel's ntfs3 reads NTFS volumes as our reader does: of Windows, of ntfs-3g, of ours."""

from __future__ import annotations

import lzma
import os
import shutil
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice, Window
from fsdrivers.ntfs.edit import open_editor
from fsdrivers.ntfs.edit.editor import NtfsEditor
from tests.fsdrivers.ntfs.editing import NOW_NS, directory_node, make_file
from tests.fsdrivers.ntfs.volumes import (
    MIB,
    descriptor,
    ea,
    make_image,
    mounted,
    populate,
    windows_volume,
)
from tests.scenario import Store
from tests.vm.kernel_guest import View, views_of
from tests.vm.ntfs3 import assert_alike, kernel_facts, mount_of
from tests.vm.ntfs_machines import SECTOR, WINDOWS_SECTORS

pytestmark = [pytest.mark.vm, pytest.mark.tools, pytest.mark.root]

SAMPLE = Path("/usr/share/forensics-samples/fs.ntfs.xz")
SAMPLE_OFFSET, SAMPLE_SIZE = 2048 * 512, 100352 * 512  # the sample is a disk
# name -> options of mkntfs
FOREIGN = {
    "ntfs-3g": (),
    "ntfs-3g, clusters of 512 bytes": ("-c", 512),
    "ntfs-3g, clusters of 64 KiB": ("-c", 65536),
    "ntfs-3g, sectors of 4096 bytes": ("-s", 4096),
}
NAMES = ["Windows", "Debian's sample", *FOREIGN]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Volumes and the bytes that lie before them."""
    directory = tmp_path_factory.mktemp("ntfs")
    sample = directory / "sample.img"
    sample.write_bytes(lzma.decompress(SAMPLE.read_bytes()))
    made = {"Windows": (windows_volume(), 0), "Debian's sample": (sample, SAMPLE_OFFSET)}
    for name, options in FOREIGN.items():
        path = make_image(directory / f"{len(made)}.img", 48 * MIB, *options)
        with mounted(path, directory / "mount") as root:
            populate(root)
        made[name] = path, 0
    return made


@pytest.fixture(scope="module")
def views(images: dict[str, tuple[Path, int]]) -> dict[str, View]:
    """What ntfs3 sees of them."""
    mounts = [mount_of(path, offset) for path, offset in images.values()]
    return dict(zip(images, views_of(mounts), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_foreign_volume(
    images: dict[str, tuple[Path, int]], views: dict[str, View], name: str
) -> None:
    """ntfs3 and our reader see the same on a volume that neither made."""
    path, offset = images[name]

    assert_alike(views[name], path, offset, SAMPLE_SIZE if offset else 0)


@pytest.fixture(scope="module")
def restored(
    images: dict[str, tuple[Path, int]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same volumes after backup and recovery, laid out by our planner."""
    directory = tmp_path_factory.mktemp("restored")
    store = Store(directory)
    found = {}
    for number, (name, (path, _)) in enumerate(images.items()):
        disk = directory / f"disk{number}.img"
        shutil.copy(path, disk)
        if name == "Windows":
            os.truncate(disk, WINDOWS_SECTORS * SECTOR)
        store.backup(disk)
        found[name] = store.restore(disk, directory / f"new{number}.img")
    return found


@pytest.fixture(scope="module")
def views_of_restored(
    images: dict[str, tuple[Path, int]], restored: dict[str, Path]
) -> dict[str, View]:
    """What ntfs3 sees of those."""
    mounts = [mount_of(path, images[name][1]) for name, path in restored.items()]
    return dict(zip(restored, views_of(mounts), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_own_volume(
    images: dict[str, tuple[Path, int]],
    restored: dict[str, Path],
    views: dict[str, View],
    views_of_restored: dict[str, View],
    name: str,
) -> None:
    """ntfs3 sees on a volume that we laid out what it saw on the one it was made from."""
    _, offset = images[name]
    before, after = views[name].names, views_of_restored[name].names

    assert_alike(views_of_restored[name], restored[name], offset, SAMPLE_SIZE if offset else 0)
    assert {path: kernel_facts(seen) for path, seen in after.items()} == {
        path: kernel_facts(seen) for path, seen in before.items()
    }


@pytest.fixture(scope="module")
def edited(
    images: dict[str, tuple[Path, int]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same volumes after our editor was at them."""
    directory = tmp_path_factory.mktemp("edited")
    found = {}
    for number, (name, (path, offset)) in enumerate(images.items()):
        found[name] = directory / f"{number}.img"
        shutil.copy(path, found[name])
        with FileDevice.open(found[name], writable=True) as device:
            size = SAMPLE_SIZE if offset else device.size
            volume = Window(device, offset, size, "volume")
            edit(open_editor(volume, clock=lambda: NOW_NS), files_on(name))
    return found


def files_on(name: str) -> int:
    """Return how many files the editor makes on a volume; that of Windows is almost full."""
    return 90 if name == "Windows" else 300


def edit(editor: NtfsEditor, count: int) -> None:
    """Do everything to a volume that the editor can do, in names, content and attributes."""
    top = editor.create(editor.root, b"edited", directory_node()).number
    for number in range(count):
        content = b"%d " % number * (number * number // 100)
        made = make_file(editor, top, b"a name that is long enough %04d" % number, content)
        if number % 50 == 7:
            editor.set_attributes(made, flags=0x23, modified_ns=NOW_NS + 86400 * 10**9)
            editor.link(made, editor.root, "Größe %d".encode() % number)
    for number in range(0, count, 3):
        editor.unlink(top, b"a name that is long enough %04d" % number)
    pieces = make_file(editor, top, b"pieces")
    for at in (300_000, 0, 100_000, 200_000):
        editor.write(pieces, at, b"piece" * 3000)
    editor.truncate(pieces, 250_001)
    editor.write_stream(pieces, b"a stream", 0, b"stream" * 1000)
    editor.set_xattr(pieces, b"system.ntfs_acl", descriptor("S-1-5-18", "S-1-5-32-544"))
    editor.set_xattr(pieces, b"system.ntfs_ea", ea(b"EA.NAME", b"value"))
    editor.set_short_name(top, b"pieces", b"PIECES~1")
    deep = editor.create(top, b"deep", directory_node()).number
    editor.rename(top, b"pieces", deep, b"in other pieces")
    editor.create(top, b"empty", directory_node())
    editor.rmdir(top, b"empty")
    editor.rename(editor.root, b"edited", editor.root, b"Edited and renamed")
    editor.set_label(b"NEW LABEL")
    editor.close()


@pytest.fixture(scope="module")
def views_of_edited(
    images: dict[str, tuple[Path, int]], edited: dict[str, Path]
) -> dict[str, View]:
    """What ntfs3 sees of those."""
    mounts = [mount_of(path, images[name][1]) for name, path in edited.items()]
    return dict(zip(edited, views_of(mounts), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_edited_volume(
    images: dict[str, tuple[Path, int]],
    edited: dict[str, Path],
    views_of_edited: dict[str, View],
    name: str,
) -> None:
    """ntfs3 and our reader see the same on a volume that our editor has changed."""
    _, offset = images[name]
    view = views_of_edited[name]

    assert_alike(view, edited[name], offset, SAMPLE_SIZE if offset else 0)
    assert view.names[b"Edited and renamed/deep/in other pieces"].size == 250_001
    assert len([path for path in view.names if b"long enough" in path]) == files_on(name) * 2 // 3
