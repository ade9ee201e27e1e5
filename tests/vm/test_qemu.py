# SPDX-License-Identifier: Apache-2.0
"""QEMU command lines: what is asked for is there, and QEMU takes every combination."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from tests.vm.old_pc import assembled
from vm import qemu
from vm.errors import MachineError
from vm.machine import MOST_RESTARTS, Machine
from vm.qemu import BUSES, FIRMWARES, MEDIA, Disk, MachineConfig, arguments_of, variables_template

PATHS = {"serial": Path("/s"), "qmp": Path("/q"), "log": Path("/l")}


def test_arguments_name_disk_and_disc() -> None:
    """Disk and disc come with their files, their order of starting and a serial number."""
    config = MachineConfig(disks=(Disk(Path("/a,b.img")),), disc=Path("/disc.iso"))

    arguments = " ".join(arguments_of(config, **PATHS))

    assert "file.filename=/a,,b.img" in arguments
    assert "virtio-blk-pci,drive=disk0,bootindex=1,serial=REBUILD0000" in arguments
    assert "ide-cd,drive=disc,bootindex=0" in arguments


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MachineConfig(firmware="coreboot"), id="firmware"),
        pytest.param(MachineConfig(disc_medium="floppy"), id="medium"),
        pytest.param(MachineConfig(disks=(Disk(Path("/a"), "mfm"),)), id="bus"),
        pytest.param(MachineConfig(firmware="uefi"), id="no-variables"),
    ],
)
def test_unknown_hardware_is_refused(config: MachineConfig) -> None:
    """What is not known is refused before QEMU is started."""
    with pytest.raises(ValueError, match=r"unknown|variable store"):
        arguments_of(config, **PATHS)


def test_what_is_missing_is_named_by_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without QEMU or its UEFI firmware nothing is tried, and the package to install is named."""
    with pytest.raises(MachineError, match="install the package qemu-system-x86"):
        qemu.check_programs("bios", path=str(tmp_path))
    program = tmp_path / qemu.PROGRAM
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(qemu, "OVMF_DIRECTORY", tmp_path)
    qemu.check_programs("bios", path=str(tmp_path))
    with pytest.raises(MachineError, match="install the package ovmf"):
        qemu.check_programs("uefi", path=str(tmp_path))


@pytest.mark.vm
@pytest.mark.parametrize(
    ("firmware", "bus", "medium"), list(itertools.product(FIRMWARES, BUSES, MEDIA))
)
def test_qemu_takes_every_combination(tmp_path: Path, firmware: str, bus: str, medium: str) -> None:
    """Two disks of any kind beside any medium, under any firmware, make a machine that runs."""
    disc = tmp_path / "disc.iso"
    disks = tuple(Disk(tmp_path / f"disk{number}.img", bus) for number in range(2))
    for path in (disc, *(disk.path for disk in disks)):
        path.write_bytes(bytes(1 << 20))
    variables = None
    if firmware != "bios":
        variables = tmp_path / "variables.fd"
        shutil.copyfile(variables_template(firmware), variables)
    config = MachineConfig(
        firmware=firmware, disks=disks, disc=disc, disc_medium=medium, variables=variables
    )

    with Machine(config) as machine:
        assert machine.execute("query-status") is not None


@pytest.mark.vm
@pytest.mark.parametrize("panics", [1, MOST_RESTARTS])
def test_lost_timer_is_no_failure(tmp_path: Path, panics: int) -> None:
    """A machine whose Linux took the emulator's delay for a broken board starts anew."""
    disk = tmp_path / "disk.img"
    code = assembled(Path(__file__).with_name("lost_timer.s"), "--defsym", f"PANICS={panics}")
    disk.write_bytes(code.ljust(1 << 20, b"\0"))
    with Machine(MachineConfig(disks=(Disk(disk, "ide"),))) as machine:
        machine.wait_for("STARTED", 60)

        assert machine.restarts == panics


@pytest.mark.vm
def test_restart_of_its_own_ends_a_machine(tmp_path: Path) -> None:
    """Resetting a machine leaves it as it was: when it restarts itself, it ends."""
    disk = tmp_path / "disk.img"
    code = assembled(Path(__file__).with_name("lost_timer.s"), "--defsym", "PANICS=1")
    disk.write_bytes(code.ljust(1 << 20, b"\0"))
    with Machine(MachineConfig(disks=(Disk(disk, "ide"),))) as machine:
        machine.wait_for("STARTED", 60)

        machine.wait_until_off(30)


@pytest.mark.vm
def test_error_has_the_words_of_qemu(tmp_path: Path) -> None:
    """A machine that cannot be made is refused with what QEMU says of it."""
    config = MachineConfig(disks=(Disk(tmp_path / "missing.img"),))

    with pytest.raises(MachineError, match=r"missing\.img.*No such file"):
        Machine(config)
