# SPDX-License-Identifier: Apache-2.0
"""The main job, end to end: a Debian machine dies and comes back from its disc.

Nothing here is a stand-in: real commands, a real server over HTTPS, a real disc in a real
firmware, a real system that starts.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.judges import check_volumes, compare_disks
from tests.scenario import Scenario, must, rebuildkit
from tests.vm.debian import DiskLayout
from tests.vm.machines import UP, debian_disk, pictures

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.tools]
SIZE_MIB, LARGER_MIB, SMALLER_MIB = 800, 1600, 600
UP_SECURE = UP.replace("MACHINE-UP", r"MACHINE-SECURE-BOOT 1[\s\S]*MACHINE-UP")
UP_CHANGED = UP.removeprefix(r"MACHINE-FILES-OK[\s\S]*")  # one of its files is another
MBR, GPT = DiskLayout("mbr", SIZE_MIB), DiskLayout("gpt", SIZE_MIB)


def disc_of(scenario: Scenario, layout: DiskLayout, root: str = "plain") -> tuple[Path, Path]:
    """Return a machine's disk and its recovery disc, made when first asked for."""
    disk = debian_disk(layout, root)
    machine = f"{root}-{layout.scheme}-{layout.filesystem}-{layout.size_mib}"
    disc = scenario.directory / f"{machine}.iso"
    if not disc.exists():
        must(scenario.backup(machine, disk))
        must(scenario.build(machine, disc))
    return disk, disc


def prove(
    scenario: Scenario, disc: Path, size_mib: int, *options: str, expect: str = UP
) -> dict[str, Any]:
    """Rehearse a disc, and have every part of the result be as it must; return the report."""
    name = "-".join((disc.stem, *options[1::2], str(size_mib)))
    size = ("--disk-size", f"{size_mib}M", "--expect-pattern", expect)
    outcome = scenario.rehearse(disc, *options, *size, *pictures(name))
    assert outcome.code == 0, outcome.out + outcome.err
    report: dict[str, Any] = outcome.json
    assert report["proven"]
    assert report["comparison"]["differences"] == []
    assert report["comparison"]["objects"] > 5000
    return report


@pytest.mark.parametrize(
    ("layout", "firmware", "size_mib"),
    [
        pytest.param(MBR, "bios", LARGER_MIB, id="mbr-bios-larger"),
        pytest.param(GPT, "uefi", SIZE_MIB, id="gpt-uefi-same-size"),
    ],
)
def test_machine_comes_back(
    scenario: Scenario, layout: DiskLayout, firmware: str, size_mib: int
) -> None:
    """The disc restores an empty disk to an equal machine that starts to its login prompt."""
    _, disc = disc_of(scenario, layout)

    report = prove(scenario, disc, size_mib)  # with the firmware that was recorded
    assert report["firmware"] == firmware
    assert report["machine"] == disc.stem


@pytest.mark.slow
@pytest.mark.parametrize("size_mib", [SIZE_MIB, LARGER_MIB, SMALLER_MIB])
def test_machine_comes_back_under_secure_boot(scenario: Scenario, size_mib: int) -> None:
    """Disc and restored machine start where nothing unsigned does; the machine says so."""
    _, disc = disc_of(scenario, GPT)

    prove(scenario, disc, size_mib, "--firmware", "secure-boot", expect=UP_SECURE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "firmware", "bus", "size_mib"),
    [
        pytest.param(MBR, "bios", "virtio", SIZE_MIB, id="bios-same-size"),
        pytest.param(MBR, "bios", "nvme", SMALLER_MIB, id="bios-nvme-smaller"),
        pytest.param(GPT, "uefi", "virtio", SMALLER_MIB, id="uefi-smaller"),
        pytest.param(GPT, "uefi", "nvme", LARGER_MIB, id="uefi-nvme-larger"),
    ],
)
def test_machine_comes_back_on_other_disks(
    scenario: Scenario, layout: DiskLayout, firmware: str, bus: str, size_mib: int
) -> None:
    """Other disks, other sizes: the same machine."""
    _, disc = disc_of(scenario, layout)

    prove(scenario, disc, size_mib, "--firmware", firmware, "--bus", bus)


@pytest.mark.slow
@pytest.mark.parametrize("filesystem", ["ext2", "ext3"])
def test_machine_with_older_filesystem_comes_back(scenario: Scenario, filesystem: str) -> None:
    """A root without extents, without a journal even, starts as well."""
    _, disc = disc_of(scenario, DiskLayout("mbr", SIZE_MIB, filesystem=filesystem))

    prove(scenario, disc, SIZE_MIB, "--firmware", "bios")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "firmware", "bus", "medium"),
    [
        pytest.param("mbr", "bios", "ide", "cd", id="bios-ide"),
        pytest.param("mbr", "bios", "ahci", "usb", id="bios-ahci-from-stick"),
        pytest.param("gpt", "uefi", "ahci", "cd", id="uefi-ahci"),
        pytest.param("gpt", "uefi", "usb", "usb", id="uefi-usb-from-stick"),
    ],
)
def test_machine_with_generic_kernel_comes_back(
    scenario: Scenario, scheme: str, firmware: str, bus: str, medium: str
) -> None:
    """Debian's generic kernel on the disks of real machines, from a CD and from a USB stick."""
    layout = DiskLayout(scheme, LARGER_MIB)
    _, disc = disc_of(scenario, layout, "full")

    prove(scenario, disc, LARGER_MIB, "--firmware", firmware, "--bus", bus, "--medium", medium)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/dev/vda", "/dev/disk/by-id/virtio-OLD-part"])
def test_machine_that_names_its_disks_by_hardware_comes_back(
    scenario: Scenario, tmp_path: Path, name: str
) -> None:
    """A root, a swap area and an EFI partition by names that the new disk does not have."""
    disk = tmp_path / "vda"
    shutil.copyfile(debian_disk(GPT), disk)
    lines = must(rebuildkit("fs", "cat", disk, "/etc/fstab", "-p", "2")).out.splitlines()
    numbers = {"/": 2, "/boot/efi": 1, "none": 3}
    fields = [line.split() for line in lines]
    changed = [[f"{name}{numbers[rest[0]]}", *rest] for _, *rest in fields]
    fstab = tmp_path / "fstab"
    fstab.write_text("".join(f"{' '.join(line)}\n" for line in changed))
    must(rebuildkit("fs", "put", disk, fstab, "/etc/fstab", "-p", "2", "--force"))
    disc = tmp_path / "named.iso"
    must(scenario.backup(f"named-{'id' in name}", disk))
    must(scenario.build(f"named-{'id' in name}", disc))

    prove(scenario, disc, SIZE_MIB, "--firmware", "uefi", "--bus", "nvme", expect=UP_CHANGED)


@pytest.mark.parametrize("size_mib", [SIZE_MIB, LARGER_MIB, SMALLER_MIB])
@pytest.mark.parametrize("layout", [MBR, GPT], ids=["mbr", "gpt"])
def test_host_restore_is_equal(
    scenario: Scenario, tmp_path: Path, layout: DiskLayout, size_mib: int
) -> None:
    """The same engine on a host gives disks that are equal, for our drivers and for Debian's."""
    disk, disc = disc_of(scenario, layout)
    image = tmp_path / "new.img"

    restore = ("restore", "--from", disc, *scenario.credentials, "--disk", image)
    must(rebuildkit(*restore, "--disk-size", f"{size_mib}M", "--yes", "--verify"))

    must(rebuildkit("compare", disc, *scenario.credentials, "--disk", image))
    check_volumes(image)
    compare_disks(disk, image)
    assert image.stat().st_size == size_mib << 20


def test_restore_from_server_is_equal(scenario: Scenario, tmp_path: Path) -> None:
    """Without a disc, straight from the server, comes the same machine."""
    disk, disc = disc_of(scenario, MBR)
    image = tmp_path / "new.img"

    place = ("--fingerprint", scenario.server.fingerprint, "--machine", disc.stem)
    source = ("--from", scenario.server.url, *place, *scenario.credentials)
    must(rebuildkit("restore", *source, "--disk", image, "--yes"))

    compare_disks(disk, image)
    assert image.stat().st_size == disk.stat().st_size
