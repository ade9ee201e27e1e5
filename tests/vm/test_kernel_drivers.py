# SPDX-License-Identifier: Apache-2.0
"""The kernel's own drivers read what our drivers read: vfat, msdos and isofs; ext grows in use.

All volumes of a kind are read in one start of the guest; every name that the kernel lists, it
also looks up.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fsdrivers import open_volume
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.editing import find
from fsdrivers.fat.edit import open_editor
from fsdrivers.fat.geometry import with_clusters
from fsdrivers.fat.volume import FatVolume
from fsdrivers.iso9660.volume import Namespace
from fsdrivers.iso9660.volume import open_volume as open_iso
from fsdrivers.volume import Kind, Node, Volume
from tests.fsdrivers.ext.mkfs_images import assert_clean, copy_volume
from tests.fsdrivers.ext.volumes import make_image
from tests.fsdrivers.fat.images import STAMP_NS, geometry_for, tree_entries, volume_in_memory
from tests.fsdrivers.iso9660.images import HandMade, Made, make_tree
from tests.programs import run as run_tool
from tests.vm.kernel_guest import Mount, Seen, View, view_of, views_of
from tests.vm.small_discs import make_disc, real_environment
from tests.vm.volumes import assert_sound, digest, paths_of

pytestmark = [pytest.mark.vm, pytest.mark.tools]

KINDS = {
    Kind.DIRECTORY: "directory",
    Kind.FILE: "file",
    Kind.SYMLINK: "symlink",
    Kind.CHARACTER_DEVICE: "character device",
    Kind.BLOCK_DEVICE: "block device",
    Kind.FIFO: "fifo",
    Kind.SOCKET: "socket",
}
VFAT = "utf8=1,tz=UTC,codepage=437,iocharset=iso8859-1"
MSDOS = "tz=UTC,codepage=437"
SECOND_NS = 10**9
KEPT_BY_KERNEL = 0xFF  # isofs takes a device number in one word for one of 16 bits
# bits, clusters, bytes of a sector, sectors of a cluster
FAT_SHAPES = {
    "fat12": (12, 1500, 512, 1),
    "fat12-largest": (12, 4084, 512, 8),
    "fat12-4096": (12, 500, 4096, 1),
    "fat16-smallest": (16, 4085, 512, 1),
    "fat16": (16, 9000, 512, 4),
    "fat16-4096": (16, 4200, 4096, 1),
    "fat32": (32, 66000, 512, 1),
    "fat32-4096": (32, 65525, 4096, 1),
}
FAT_TREE = [
    ("A.TXT", 700),
    ("EMPTY", 0),
    ("lower.txt", 1),
    ("Mixed Case.Text", 30_000),
    ("dir/", 0),
    ("dir/sub/", 0),
    ("dir/sub/deeper/", 0),
    ("dir/sub/deeper/big.bin", 90_000),
    ("dir/café naïve.txt", 513),
    ("dir/日本語のファイル.txt", 4097),
    ("dir/𐍈.txt", 2),
    ("n" * 251 + ".txt", 10),
    ("many/", 0),
    ("a.b.c.d", 5),
    (" leading", 6),
    ("+,;=[]", 7),
    *((f"many/a rather long name {number:03}.data", number) for number in range(70)),
]
GENISOIMAGE = {
    "rock ridge": ["-R"],
    "joliet too": ["-R", "-J", "-joliet-long"],
    "level 4": ["-R", "-iso-level", "4"],
    "deep": ["-R", "-D", "-l"],
}
XORRISO = {
    "rock ridge 1.12": ["-compliance", "new_rr"],
    "hard links": ["-hardlinks", "on", "-joliet", "on"],
    "relocation": ["-compliance", "deep_paths_off:long_paths_off"],
}


@pytest.fixture(scope="module")
def fat_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Volumes that our planner made, and the same ones after our editor was at them."""
    directory = tmp_path_factory.mktemp("fat")
    images = {}
    for name, (bits, clusters, sector_size, per_cluster) in FAT_SHAPES.items():
        geometry = geometry_for(
            bits, clusters, sector_size=sector_size, sectors_per_cluster=per_cluster
        )
        if sector_size > 512 and bits != 32:  # the kernel wants whole sectors of root entries
            geometry = with_clusters(replace(geometry, root_entries=256), clusters)
        device = volume_in_memory(geometry, tree_entries(FAT_TREE))
        images[name] = directory / f"{name}.img"
        write_sparse(images[name], device)
        images[f"{name} edited"] = directory / f"{name}-edited.img"
        shutil.copy(images[name], images[f"{name} edited"])
        edit(images[f"{name} edited"])
    return images


def write_sparse(path: Path, device: MemoryDevice) -> None:
    """Write a device to a file that has holes where it is blank."""
    with path.open("wb") as file:
        file.truncate(device.size)
        for start in range(0, device.size, 1 << 16):
            data = device.read(start, min(1 << 16, device.size - start))
            if data.count(0) != len(data):
                file.seek(start)
                file.write(data)


def edit(path: Path) -> None:
    """Do everything to a volume that the editor can do."""
    with FileDevice.open(path, writable=True) as device:
        editor = open_editor(device, clock=lambda: STAMP_NS + 4 * SECOND_NS)
        many = find(editor, [b"many"]).number
        deeper = find(editor, [b"dir", b"sub", b"deeper"]).number
        file = Node(0, Kind.FILE, modified_ns=STAMP_NS)
        new = editor.create(1, b"New Directory", Node(0, Kind.DIRECTORY, modified_ns=STAMP_NS))
        for number in range(0, 70, 3):
            editor.unlink(many, b"a rather long name %03d.data" % number)
        for number in range(90):
            made = editor.create(new.number, b"Another name %d" % number, file)
            editor.write(made.number, 100 * number, b"written" * number)
        editor.truncate(find(editor, [b"Mixed Case.Text"]).number, 900)
        editor.truncate(find(editor, [b"EMPTY"]).number, 5000)
        editor.rename(deeper, b"big.bin", new.number, "größer.bin".encode())
        editor.rename(1, b"dir", new.number, b"moved dir")
        editor.rename(1, b"lower.txt", 1, b"LOWER.TXT")
        number = find(editor, [b"A.TXT"]).number
        editor.set_attributes(number, flags=0x27, modified_ns=STAMP_NS + 86400 * SECOND_NS)
        editor.close()


@pytest.fixture(scope="module")
def fat_views(fat_images: dict[str, Path]) -> dict[str, tuple[View, View]]:
    """What vfat and msdos see."""
    found: dict[str, tuple[View, View]] = {}
    names = list(fat_images)
    for some in (names[0::2], names[1::2]):
        mounts = [Mount(fat_images[name], "vfat", VFAT) for name in some]
        mounts += [Mount(fat_images[name], "msdos", MSDOS) for name in some]
        views = views_of(mounts)
        pairs = zip(views[: len(some)], views[len(some) :], strict=True)
        found |= dict(zip(some, pairs, strict=True))
    return found


@pytest.mark.parametrize("edited", ["", " edited"], ids=["planned", "edited"])
@pytest.mark.parametrize("name", FAT_SHAPES)
def test_fat_by_vfat(
    fat_images: dict[str, Path], fat_views: dict[str, tuple[View, View]], name: str, edited: str
) -> None:
    """vfat sees the names, contents, attributes and times that our reader sees."""
    view, _ = fat_views[name + edited]
    with FileDevice.open(fat_images[name + edited]) as device:
        volume = open_volume(device)
        ours = {
            path: (KINDS[node.kind], node.size, digest(volume, node), *fat_facts(node))
            for path, node, _ in paths_of(volume)
            if path
        }

    assert_sound(view)
    assert ours == {
        path: (seen.kind, 0 if seen.kind == "directory" else seen.size, seen.sha256,
               seen.attributes, *seen.times[:2])
        for path, seen in view.names.items()
        if path
    }  # fmt: skip
    assert len(ours) > 80


def fat_facts(node: Node) -> tuple[int, int, int | None]:
    """Return attributes, and the times that the kernel shows."""
    return node.flags, node.modified_ns, node.accessed_ns


@pytest.mark.parametrize("edited", ["", " edited"], ids=["planned", "edited"])
@pytest.mark.parametrize("name", FAT_SHAPES)
def test_fat_by_msdos(
    fat_images: dict[str, Path], fat_views: dict[str, tuple[View, View]], name: str, edited: str
) -> None:
    """msdos finds the same files by the short names alone."""
    _, view = fat_views[name + edited]
    with FileDevice.open(fat_images[name + edited]) as device:
        volume = open_volume(device)
        assert isinstance(volume, FatVolume)
        ours = dict(short_paths(volume))

    assert_sound(view)
    assert ours == {
        path: seen.sha256
        for path, seen in view.names.items()
        if path and path.isascii()  # others are shown in another character set
    }


def short_paths(volume: FatVolume) -> Iterator[tuple[bytes, str]]:
    """Yield the path in short names, as the kernel spells them, and the digest; ASCII only."""
    directories: dict[int, bytes] = {}
    for entry in volume.walk():
        if not directories:
            directories[entry.node.number] = b""
            continue
        base, extension = entry.short_name[:8].rstrip(), entry.short_name[8:].rstrip()
        name = (base + b"." + extension if extension else base).lower()
        above = directories[entry.parent]
        path = above + b"/" + name if above else name
        if entry.node.kind is Kind.DIRECTORY:
            directories[entry.node.number] = path
        if path.isascii():
            yield path, digest(volume, entry.node)


@pytest.fixture(scope="module")
def iso_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recovery disc, discs of two mastering programs, and some put together by hand."""
    directory = tmp_path_factory.mktemp("iso")
    tree = make_tree(directory / "tree")
    images = {"recovery disc": directory / "disc.iso"}
    make_disc(images["recovery disc"], real_environment())
    for name, options in GENISOIMAGE.items():
        images[f"genisoimage {name}"] = path = directory / f"g{len(images)}.iso"
        run_tool("genisoimage", "-quiet", *options, "-o", path, tree)
    for name, options in XORRISO.items():
        images[f"xorriso {name}"] = path = directory / f"x{len(images)}.iso"
        run_tool("xorriso", *options, "-outdev", path, "-map", tree, "/", "-commit")
    for name, image in hand_made().items():
        images[f"by hand: {name}"] = path = directory / f"h{len(images)}.iso"
        path.write_bytes(image.build())
    return images


def hand_made() -> dict[str, HandMade]:
    """Return images that no mastering program of today writes."""
    block = 49152 // 2048
    return {
        "blocks of 512 bytes": HandMade(
            [Made(b"A.TXT;1", 4 * block + 1, 700)],
            {4 * block + 1: b"odd block".ljust(700, b"!")},
            block_size=512,
        ),
        "extended attribute record": HandMade(
            [Made(b"FILE.;1", block, 4, attribute_blocks=2)], {block: b"EAR", block + 2: b"text"}
        ),
        "several sections": HandMade(
            [Made(b"LONG.;1", block, 4096, flags=0x80), Made(b"LONG.;1", block + 4, 100)],
            {block: b"1" * 4096, block + 4: b"2" * 100},
        ),
        "hidden and associated": HandMade(
            [Made(b"FORK.;1", block + 1, 4, flags=4), Made(b"FORK.;1", block, 4)],
            {block: b"data", block + 1: b"fork"},
        ),
    }


ISO_NAMES = [
    "recovery disc",
    *(f"genisoimage {name}" for name in GENISOIMAGE),
    *(f"xorriso {name}" for name in XORRISO),
    *(f"by hand: {name}" for name in hand_made()),
]


# Discs with other names than those of Rock Ridge, and how the kernel is made to show them.
OTHER_NAMES: dict[tuple[str, Namespace], str] = {
    ("genisoimage joliet too", "joliet"): "norock,iocharset=utf8",
    ("xorriso hard links", "joliet"): "norock,iocharset=utf8",
    ("genisoimage joliet too", "plain"): "norock,nojoliet",
    ("genisoimage deep", "plain"): "norock,nojoliet",
}


@pytest.fixture(scope="module")
def iso_views(iso_images: dict[str, Path]) -> dict[tuple[str, str], View]:
    """What isofs sees, by disc and namespace; an empty one is what it prefers."""
    options: dict[tuple[str, str], str] = {
        (name, ""): "block=512" if "512" in name else "" for name in iso_images
    }
    options |= OTHER_NAMES
    mounts = [Mount(iso_images[name], "iso9660", how) for (name, _), how in options.items()]
    return dict(zip(options, views_of(mounts), strict=True))


@pytest.mark.root
@pytest.mark.parametrize("name", ISO_NAMES)
def test_iso_by_isofs(
    iso_images: dict[str, Path], iso_views: dict[tuple[str, str], View], name: str
) -> None:
    """isofs sees what our reader sees, with all that Rock Ridge says."""
    view = iso_views[name, ""]
    with FileDevice.open(iso_images[name]) as device:
        volume = open_iso(device)
        has_rock_ridge = volume.namespace == "rockridge"
        ours = {
            path if has_rock_ridge else path.lower(): iso_facts(volume, node, has_rock_ridge)
            for path, node, _ in paths_of(volume)
        }

    assert_sound(view)
    assert ours == {path: kernel_facts(seen, has_rock_ridge) for path, seen in view.names.items()}


@pytest.mark.root
@pytest.mark.parametrize(("name", "namespace"), OTHER_NAMES)
def test_other_names_by_isofs(
    iso_images: dict[str, Path],
    iso_views: dict[tuple[str, str], View],
    name: str,
    namespace: Namespace,
) -> None:
    """So it does without Rock Ridge, by the names of Joliet and of ISO 9660 itself."""
    view = iso_views[name, namespace]
    with FileDevice.open(iso_images[name]) as device:
        volume = open_iso(device, prefer=namespace)
        ours = {
            path if namespace == "joliet" else path.lower(): iso_facts(volume, node, False)
            for path, node, _ in paths_of(volume)
        }

    assert_sound(view)
    assert ours == {path: kernel_facts(seen, False) for path, seen in view.names.items()}


def iso_facts(volume: Volume, node: Node, has_rock_ridge: bool) -> tuple[object, ...]:
    """Return what must be seen alike of a node of ours."""
    facts: tuple[object, ...] = (KINDS[node.kind], digest(volume, node))
    if has_rock_ridge:
        device = (node.device[0], node.device[1] & KEPT_BY_KERNEL)
        facts += (node.mode, (node.uid, node.gid), node.modified_ns, device, node.target)
    return facts


def kernel_facts(seen: Seen, has_rock_ridge: bool) -> tuple[object, ...]:
    """Return the same of what the kernel saw."""
    facts: tuple[object, ...] = (seen.kind, seen.sha256)
    if has_rock_ridge:
        device = (seen.device[0], seen.device[1] & KEPT_BY_KERNEL)
        facts += (seen.mode, seen.owner, seen.times[0], device, seen.target)
    return facts


@pytest.mark.parametrize("kind", ["ext4", "ext3"])
def test_a_restored_ext_volume_grows_while_mounted(tmp_path: Path, kind: str) -> None:
    """It grows tenfold, into the descriptor blocks that are kept for that, and stays sound."""
    source = make_image(tmp_path / "source", 48 << 20, "-t", kind, "-b", 4096)
    target = tmp_path / "target"
    copy_volume(source, target, 300 << 20)
    os.truncate(target, 3000 << 20)

    view = view_of(Mount(target, kind, grown_blocks=(3000 << 20) // 4096))

    assert view.refused == ""
    assert view.names[b"file"].size == 1 << 20
    with FileDevice.open(target) as device:
        assert open_volume(device).size > 2700 << 20
    assert_clean(target)
