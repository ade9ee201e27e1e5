# SPDX-License-Identifier: Apache-2.0
"""Machines on NTFS start after recovery, and hold what they held.

Microsoft's own boot record, on a volume that Windows formatted, loads BOOTMGR; GRUB loads a
kernel from NTFS; a disk laid out as Windows 11 does it is equal for ntfs-3g, sfdisk and the
kernel's ntfs3.  All of it by the real commands.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fsdrivers.partitions.chs import Geometry
from imagebuilder.environment.build import prepare_boot_environment
from tests.fsdrivers.ntfs.volumes import Seen, get_xattr, seen_by_ntfs3g
from tests.judges import Part, check_volumes, compare_disks, parts_of
from tests.scenario import Scenario, Store, must, rebuildkit
from tests.vm.dos_disks import part_of_dos
from tests.vm.kernel_guest import views_of
from tests.vm.ntfs3 import assert_alike, mount_of
from tests.vm.ntfs_machines import (
    ATTRIBUTES,
    BOOTMGR_SIZE,
    COMPRESSED,
    MARK,
    MIB,
    SECTOR,
    WINDOWS_START,
    boot_sector_of,
    change_boot_sector,
    make_grub_disk,
    make_windows_11_disk,
    make_windows_disk,
    ntfs,
    start_linux,
)
from tests.vm.old_pc import start

pytestmark = [pytest.mark.vm, pytest.mark.tools, pytest.mark.root]

STARTED = "BOOTMGR-STARTED"
COMPRESSED_ONLY = pytest.mark.parametrize("windows", [True], ids=["compressed"], indirect=True)
PAGE_FILE = b"pagefile.sys"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module", params=[True, False], ids=["compressed-root", "plain-root"])
def windows(request: pytest.FixtureRequest, store: Store) -> Path:
    """A disk with Microsoft's boot record, backed up."""
    name = "compressed" if request.param else "plain"
    path = store.place.parent / f"{name}.img"
    make_windows_disk(path, is_root_compressed=request.param)
    store.backup(path)
    return path


def test_boot_record_starts(windows: Path, tmp_path: Path) -> None:
    """The disk starts as it is, and not with another number of hidden sectors."""
    broken = tmp_path / "broken.img"
    shutil.copy(windows, broken)
    change_boot_sector(broken, WINDOWS_START, hidden_sectors=WINDOWS_START - 1)

    assert start(windows) == STARTED
    assert start(broken, timeout_s=4) != STARTED


@COMPRESSED_ONLY
def test_compressed_bootmgr_does_not_start(windows: Path, tmp_path: Path) -> None:
    """A BOOTMGR that took over the compression of its directory is refused; so it must not."""
    disk = tmp_path / "compressed.img"
    shutil.copy(windows, disk)
    place, boot = boot_sector_of(disk)
    size = (boot.total_sectors + 1) * SECTOR
    with ntfs(disk, "compression", place * SECTOR, size) as root:
        content = (root / "bootmgr").read_bytes()
        (root / "bootmgr").unlink()
        (root / "bootmgr").write_bytes(content)

    assert start(disk, timeout_s=4) != STARTED


def test_boot_record_in_the_same_place(windows: Path, store: Store, tmp_path: Path) -> None:
    """Recovered to a disk of the same size, it starts."""
    image = store.restore(windows, tmp_path / "new.img")
    place, boot = boot_sector_of(image)

    assert (place, boot.hidden_sectors) == (WINDOWS_START, WINDOWS_START)
    assert start(image) == STARTED
    assert_same_bootmgr(windows, image)


@pytest.mark.parametrize("size", ["200M", "600M"])
def test_boot_record_in_another_place(
    windows: Path, store: Store, size: str, tmp_path: Path
) -> None:
    """Moved by a partition that grew in front of it, the volume says where it is; it starts."""
    options = ("--disk-size", size, "--grow", "1")
    image = store.restore(windows, tmp_path / "new.img", *options)
    place, boot = boot_sector_of(image)

    assert place > WINDOWS_START
    assert boot.hidden_sectors == place
    assert start(image) == STARTED
    assert_same_bootmgr(windows, image)


@COMPRESSED_ONLY
@pytest.mark.parametrize("geometry", [Geometry(16, 32), Geometry(8, 63), Geometry(16, 63)], ids=str)
def test_boot_record_in_another_geometry(
    windows: Path, store: Store, geometry: Geometry, tmp_path: Path
) -> None:
    """Whatever the BIOS counts, the recovered disk starts."""
    image = store.restore(windows, tmp_path / "new.img", "--disk-size", "600M")

    assert start(image, geometry) == STARTED


@pytest.mark.parametrize("size", ["", "600M"], ids=["same-size", "larger"])
def test_master_boot_record_by_cylinders(store: Store, size: str, tmp_path: Path) -> None:
    """A master boot record that counts cylinders, as that of Windows 2000, finds the volume."""
    disk = tmp_path / f"cylinders{size}.img"
    make_windows_disk(disk, is_root_compressed=False, mbr=part_of_dos(0))
    assert start(disk) == STARTED
    store.backup(disk)
    options = ("--disk-size", size) if size else ()
    image = store.restore(disk, tmp_path / "new.img", *options)

    assert start(image) == STARTED


@COMPRESSED_ONLY
def test_boot_record_from_a_disc(windows: Path, scenario: Scenario) -> None:
    """The same from a recovery disc that was started on an empty machine."""
    disc = scenario.directory / f"{windows.stem}.iso"
    must(scenario.backup(windows.stem, windows))
    must(scenario.build(windows.stem, disc))
    options = ("--firmware", "bios", "--bus", "ide", "--disk-size", "600M", "--expect", STARTED)
    outcome = scenario.rehearse(disc, *options)

    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.json["proven"]
    assert outcome.json["comparison"]["differences"] == []


def assert_same_bootmgr(disk: Path, image: Path) -> None:
    """BOOTMGR and the root directory are stored as they were: what is compressed does not start."""
    facts = []
    for path in (disk, image):
        place, boot = boot_sector_of(path)
        with ntfs(path, "ro", place * SECTOR, (boot.total_sectors + 1) * SECTOR) as root:
            flags = [get_xattr(os.fsencode(name), ATTRIBUTES) for name in (root, root / "bootmgr")]
            facts.append((flags, seen_by_ntfs3g(root)))
    (here, seen_here), (there, seen_there) = facts

    assert here == there
    assert int.from_bytes(there[1] or b"", "little") & COMPRESSED == 0
    assert seen_there[b"bootmgr"].size == BOOTMGR_SIZE
    assert seen_here == seen_there


@pytest.fixture(scope="module")
def grub(scenario: Scenario) -> tuple[Path, Path]:
    """A machine with GRUB on NTFS, and its recovery disc."""
    disk, disc = scenario.directory / "grub.img", scenario.directory / "grub.iso"
    environment = prepare_boot_environment(compression="zstd-fast")
    make_grub_disk(disk, environment.kernel)
    assert MARK in start_linux(disk)
    must(scenario.backup("grub", disk))
    must(scenario.build("grub", disc))
    return disk, disc


@pytest.mark.parametrize(
    "size_mib",
    [
        pytest.param(96, id="same-size", marks=pytest.mark.slow),
        pytest.param(160, id="larger"),
    ],
)
def test_grub_on_ntfs_comes_back(
    grub: tuple[Path, Path], scenario: Scenario, size_mib: int
) -> None:
    """The disc restores an empty disk, which GRUB then starts from NTFS."""
    _, disc = grub
    options = ("--firmware", "bios", "--disk-size", f"{size_mib}M", "--expect", MARK)
    outcome = scenario.rehearse(disc, *options)

    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.json["proven"]
    assert outcome.json["comparison"]["differences"] == []


def test_grub_on_ntfs_is_equal(grub: tuple[Path, Path], scenario: Scenario, tmp_path: Path) -> None:
    """The same on a host: equal for ntfs-3g, and GRUB finds its way."""
    disk, disc = grub
    image = tmp_path / "new.img"
    must(rebuildkit("restore", "--from", disc, *scenario.credentials, "--disk", image, "--yes"))

    compare_disks(disk, image)
    assert_same_volumes(disk, image)
    assert MARK in start_linux(image)


@pytest.mark.parametrize("size_mib", [144, 240], ids=["same-size", "larger"])
def test_windows_11_layout_comes_back(store: Store, size_mib: int, tmp_path: Path) -> None:
    """ESP, reserved, system and recovery partitions come back with all that NTFS has."""
    disk, image = tmp_path / f"windows-11-{size_mib}.img", tmp_path / "new.img"
    make_windows_11_disk(disk)
    store.backup(disk)
    store.restore(disk, image, "--disk-size", f"{size_mib}M")

    compare_disks(disk, image)
    check_volumes(image)
    assert_same_volumes(disk, image, blank=PAGE_FILE)
    assert_same_attributes(disk, image)


@pytest.mark.slow
@pytest.mark.parametrize("size_mib", [144, 240], ids=["same-size", "larger"])
def test_windows_11_layout_starts(scenario: Scenario, size_mib: int) -> None:
    """A recovery disc restores that layout on an empty UEFI machine, which then starts from it."""
    disk, disc = scenario.directory / "uefi.img", scenario.directory / "uefi.iso"
    if not disc.exists():
        environment = prepare_boot_environment(compression="zstd-fast")
        make_windows_11_disk(disk, environment.kernel)
        must(scenario.backup("uefi", disk))
        must(scenario.build("uefi", disc))
    options = ("--firmware", "uefi", "--disk-size", f"{size_mib}M", "--expect", MARK)
    outcome = scenario.rehearse(disc, *options)

    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.json["proven"]
    assert outcome.json["comparison"]["differences"] == []


def assert_same_volumes(disk: Path, image: Path, *, blank: bytes = b"") -> None:
    """ntfs-3g sees the same on the NTFS volumes; and ntfs3 sees on the new ones what we do."""
    pairs = [
        (here, there)
        for here, there in zip(parts_of(disk), parts_of(image), strict=True)
        if here.type == "ntfs"
    ]
    for here, there in pairs:
        seen, found = seen_on(disk, here), seen_on(image, there)
        if blank in seen:
            seen[blank] = seen[blank]._replace(content="")
            found[blank] = found[blank]._replace(content="")
        assert seen == found
    views = views_of([mount_of(image, there.start) for _, there in pairs])
    for view, (_, there) in zip(views, pairs, strict=True):
        assert_alike(view, image, there.start, there.size)


def seen_on(disk: Path, part: Part) -> dict[bytes, Seen]:
    """Return what ntfs-3g sees on a partition."""
    with ntfs(disk, "ro", part.start, part.size) as root:
        return seen_by_ntfs3g(root)


def assert_same_attributes(disk: Path, image: Path) -> None:
    """Both disks name their partitions and attributes alike, and the page file is blank."""
    assert [part.identity for part in parts_of(disk)] == [part.identity for part in parts_of(image)]
    assert any("RequiredPartition" in word for part in parts_of(image) for word in part.identity)
    system = parts_of(image)[2]
    with ntfs(image, "ro", system.start, system.size) as root:
        assert (root / "pagefile.sys").read_bytes() == bytes(2 * MIB)
