# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in front of a disc, in real firmware: one sentence each, never a prompt.

The machine restored here is a small one, so that each test is little more than one start.
Pictures of the screen are kept where REBUILDKIT_PICTURES says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from backup.objects.disc_files import KEY_FILE, TABLE, pack_file
from fsdrivers.device import FileDevice
from rebuild.compare.disks import compare_machine
from rebuild.disc_image import IsoImage
from rebuild.errors import TargetFailedError
from rebuild.fixups.firmware import parse_load_option
from rebuild.restore import NEXT_STEPS
from tests.rebuild.machines import (
    MACHINE,
    USER,
    SmallMachine,
    make_gpt_machine,
    make_mbr_machine,
)
from tests.scenario import must, rebuildkit
from tests.vm.variables import read_variables
from vm import marks
from vm.errors import MachineError
from vm.machine import Machine
from vm.qemu import Disk, MachineConfig, variables_template

pytestmark = [pytest.mark.vm, pytest.mark.tools]
MIB = 1 << 20
START_S, STEP_S, RESTORE_S = 300.0, 90.0, 300.0
KEYMAP, ID, SECRET = map(marks.pattern, ("ask-keymap", "ask-id", "ask-secret"))
CONFIRM, END = map(marks.pattern, ("ask-confirm", "ask-end"))
# Typed by where the keys are: French caps say other letters than American ones.
PASSWORD = "Aqwzm1&é_@"
FRENCH_ID = ("q", "n", "n", "q")
FRENCH_PASSWORD = (
    "shift-q",
    "a",
    "z",
    "w",
    "semicolon",
    "shift-1",
    "1",
    "2",
    "8",
    "alt_r-0",
)


@dataclass(frozen=True)
class Case:
    """A machine, and the disc made of it."""

    machine: SmallMachine
    disc: Path

    @property
    def size(self) -> int:
        """Bytes of the machine's disk."""
        return self.machine.disks[0].stat().st_size


def build(machine: SmallMachine, disc: Path, *options: str | Path) -> Path:
    """Build a disc of a machine's store."""
    password_file = machine.store.with_name("password")
    password_file.write_text(machine.password + "\n")
    must(
        rebuildkit(
            "image",
            "build",
            "--store",
            machine.store,
            "--user",
            USER,
            "--password-file",
            password_file,
            "--machine",
            MACHINE,
            "-o",
            disc,
            "--fast",
            *options,
        )
    )
    return disc


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An MBR machine with a password that an American layout cannot type, and its disc."""
    directory = tmp_path_factory.mktemp("failures")
    machine = make_mbr_machine(directory, PASSWORD)
    return Case(machine, build(machine, directory / "disc.iso"))


def blank(path: Path, size: int) -> Path:
    """Make an empty disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def is_blank(path: Path) -> bool:
    """Tell whether a disk is as it was made."""
    data = path.read_bytes()
    return data.count(0) == len(data)


def picture(machine: Machine, name: str) -> None:
    """Take a picture, if they are wanted and the machine still has a screen."""
    place = os.environ.get("REBUILDKIT_PICTURES")
    if place:
        with suppress(MachineError):
            machine.screenshot(Path(place) / "failures" / f"{name}.png")


@contextmanager
def started(config: MachineConfig, name: str) -> Iterator[Machine]:
    """Start a machine; at the end take a picture, and check what no screen may show."""
    with Machine(config) as machine:
        try:
            yield machine
        finally:
            picture(machine, name)
        assert "Traceback" not in machine.text
        assert "panic" not in machine.text


def log_in(machine: Machine, password: str = PASSWORD) -> None:
    """Answer up to the password, on the serial line."""
    machine.wait_for(KEYMAP, START_S)
    machine.send("\r")
    machine.wait_for(ID, STEP_S)
    machine.send(f"{USER}\r")
    machine.wait_for(SECRET, STEP_S)
    machine.send(f"{password}\r")


def differences(case: Case, *disks: Path) -> list[str]:
    """Return how disks differ from the data set."""
    unlocked = case.machine.unlocked()
    devices = {
        disk.number: FileDevice.open(path)
        for disk, path in zip(unlocked.machine.disks, disks, strict=True)
    }
    found = compare_machine(unlocked.machine, devices, unlocked.key).differences
    for device in devices.values():
        device.close()
    return found


def flip(disc: Path, file: str, offset: int) -> None:
    """Change one byte of a file on a disc."""
    with IsoImage.open(disc) as image:
        position = image.extent_of(file).position + offset
    flip_byte(disc, position)


def flip_byte(disc: Path, position: int) -> None:
    """Change one byte of a disc."""
    with disc.open("r+b") as stream:
        stream.seek(position)
        value = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes((value ^ 1,)))


def place_of(case: Case, name: bytes) -> tuple[int, int]:
    """Return (pack, offset in it) of the middle of a file's first piece."""
    for tree in case.machine.unlocked().machine.trees.values():
        for item in tree.nodes:
            if item.name == name and item.pieces:
                piece = item.pieces[0]
                return piece.pack, piece.pack_offset + piece.sealed_length // 2
    raise AssertionError(f"no file {name!r}")


def test_wrong_password_halts_and_nothing_leads_out(case: Case, tmp_path: Path) -> None:
    """Three wrong tries halt the machine; no key, break or garbage leads anywhere else."""
    disk = blank(tmp_path / "disk.img", case.size)
    config = MachineConfig(disks=(Disk(disk),), disc=case.disc)

    with started(config, "halted") as machine:
        machine.wait_for(KEYMAP, START_S)
        machine.press("ctrl-alt-delete", "alt-f2", "ctrl-alt-f3", "ctrl-c", "ctrl-z", "ctrl-d")
        machine.press("alt-sysrq-b", "alt-sysrq-e", "ctrl-backslash", "scroll_lock", "scroll_lock")
        machine.execute("chardev-send-break", {"id": "serial0"})
        machine.send(b"b")  # behind a break this is the kernel's key to restart
        machine.send(b"\x03\x04\x1a\x1c\x00\xff\xfe\x1b[A\x1bOP\x1b[[B\x9b\x80" * 8)
        machine.send(b"x" * 1500 + b"\r")
        machine.wait_for(KEYMAP, STEP_S)
        machine.send("us\r")
        for attempt in range(3):
            machine.wait_for(ID, STEP_S)
            machine.press("ctrl-alt-delete", "alt-f2", "ctrl-c")
            machine.send(f"{USER}\r")
            machine.wait_for(SECRET, STEP_S)
            machine.send(b"\x00\xff\x03" * 50 + str(attempt).encode() + b"\r")
        machine.wait_for(marks.pattern("halted"), STEP_S)
        machine.wait_for("System halted", STEP_S)
        said = machine.text
        machine.press("ret", "ctrl-alt-delete", "alt-f2", "alt-sysrq-b")
        machine.execute("chardev-send-break", {"id": "serial0"})
        machine.send("b\r\r")
        registers = machine.execute("human-monitor-command", {"command-line": "info registers"})

        assert "HLT=1" in str(registers)
        assert "'status': 'running'" in str(machine.execute("query-status"))
        assert machine.text.strip() == said.strip()
    assert is_blank(disk)


def test_damaged_disc_restores_all_but_the_damaged_file(case: Case, tmp_path: Path) -> None:
    """One byte each of a pack, key file, table, volume descriptor and directory flipped: one file
    is named, all else equal.

    Id and password are typed on the keyboard, by the caps of a French one.
    """
    disc = Path(shutil.copyfile(case.disc, tmp_path / "disc.iso"))
    pack, offset = place_of(case, b"file-0007")
    flip(disc, pack_file(pack), offset)
    flip(disc, KEY_FILE, 100)
    flip(disc, TABLE, 500)
    data = disc.read_bytes()
    flip_byte(disc, data.index(b"\x01CD001"))
    flip_byte(disc, data.index(b"OBJTAB.DAT;1"))
    disk = blank(tmp_path / "disk.img", case.size)
    config = MachineConfig(disks=(Disk(disk),), disc=disc)

    with started(config, "partial") as machine:
        machine.wait_for(KEYMAP, START_S)
        machine.press("f", "r", "ret")
        machine.wait_for(ID, STEP_S)
        machine.press(*FRENCH_ID, "ret")
        machine.wait_for(rf"^{USER}|{USER}\r", STEP_S)
        machine.wait_for(SECRET, STEP_S)
        machine.press(*FRENCH_PASSWORD, "ret")
        machine.wait_for(CONFIRM, STEP_S)
        machine.press(*(letter.lower() for letter in "vd"), "q", "ret")  # "vda"
        said = machine.wait_for(marks.pattern("partial"), RESTORE_S)
        assert "1 object" in said["value"]
        assert "2:/many/file-0007: " in machine.text
        machine.wait_for(END, STEP_S)
        picture(machine, "partial")
        machine.send("p\r")
        machine.wait_until_off(STEP_S)

    found = differences(case, disk)
    assert [text.split(": content")[0] for text in found] == ["2:/many/file-0007"]


@pytest.mark.slow
def test_stick_cut_short_is_told_and_never_offered(case: Case, tmp_path: Path) -> None:
    """A stick that is too short says what is missing; itself it is never a target."""
    with IsoImage.open(case.disc) as image:
        cut = max(e.position for path, e in image.files.items() if path.endswith(".pak"))
    stick = Path(shutil.copyfile(case.disc, tmp_path / "stick.iso"))
    os.truncate(stick, cut + 64 * 1024)
    disk = blank(tmp_path / "disk.img", case.size)
    config = MachineConfig(disks=(Disk(disk, serial=""),), disc=stick, disc_medium="usb")

    with started(config, "cut-short") as machine:
        log_in(machine)
        said = machine.wait_for(marks.pattern("ask-incomplete"), STEP_S)
        assert "1 of" in said["value"]
        machine.send("yes\r")
        for answer in ("sda\r", "vda\r"):  # the stick, which cannot be a target; the disk
            said = machine.wait_for(CONFIRM, STEP_S)
            assert said["value"] == "vda"
            machine.send(answer)
        machine.wait_for(marks.pattern("partial"), RESTORE_S)
        machine.wait_for(END, STEP_S)
        machine.send("l\r")
        machine.wait_for(marks.pattern("ask-page"), STEP_S)


@pytest.mark.slow
def test_target_that_fails_is_told(case: Case, tmp_path: Path) -> None:
    """A disk that returns errors when written: the reason, the state and the next step stay."""
    disk = blank(tmp_path / "disk.img", case.size)
    rules = tmp_path / "rules"
    rules.write_text(f'[inject-error]\nevent = "write_aio"\nerrno = "5"\nsector = "{16 * 2048}"\n')
    config = MachineConfig(disks=(Disk(disk, error_rules=rules),), disc=case.disc)

    with started(config, "target-fails") as machine:
        log_in(machine)
        machine.wait_for(CONFIRM, STEP_S)
        machine.send("vda\r")
        said = machine.wait_for(marks.pattern("stopped"), RESTORE_S)
        assert "/dev/vda" in said["value"]
        assert "Input/output error" in said["value"]
        assert NEXT_STEPS[TargetFailedError] in machine.text
        machine.wait_for(END, STEP_S)


@pytest.mark.slow
def test_disc_with_unreadable_sectors_is_partial(case: Case, tmp_path: Path) -> None:
    """Where the drive cannot read, the objects there are named and all others restored."""
    pack, offset = place_of(case, b"large")
    with IsoImage.open(case.disc) as image:
        sector = (image.extent_of(pack_file(pack)).position + offset) // 2048 * 4
    rules = tmp_path / "rules"
    rules.write_text(
        "".join(
            f'[inject-error]\nevent = "read_aio"\nerrno = "5"\nsector = "{sector + at}"\n'
            for at in range(4)
        )
    )
    disk = blank(tmp_path / "disk.img", case.size)
    config = MachineConfig(disks=(Disk(disk),), disc=case.disc, disc_error_rules=rules)

    with started(config, "unreadable") as machine:
        log_in(machine)
        machine.wait_for(CONFIRM, STEP_S)
        machine.send("vda\r")
        said = machine.wait_for(marks.pattern("partial"), RESTORE_S)
        assert "1 object" in said["value"]
        assert "2:/large: " in machine.text
        machine.wait_for(END, STEP_S)

    assert {text.split(": content")[0] for text in differences(case, disk)} == {"2:/large"}


@pytest.mark.slow
def test_too_small_a_disk_is_refused(case: Case, tmp_path: Path) -> None:
    """A disk the data does not fit on: the numbers; nothing written.  The recovery key opens."""
    disk = blank(tmp_path / "disk.img", 16 * MIB)
    config = MachineConfig(disks=(Disk(disk, bus="ide"),), disc=case.disc)

    with started(config, "too-small") as machine:
        log_in(machine, case.machine.recovery_key)
        said = machine.wait_for(marks.pattern("stopped"), STEP_S)
        assert "/dev/sda" in said["value"]
        assert f"{16 * MIB:,}" in said["value"]
        machine.wait_for(END, STEP_S)

    assert is_blank(disk)


@pytest.mark.slow
def test_sd_card_is_a_target_like_any_other(case: Case, tmp_path: Path) -> None:
    """A card, which the kernel names in `uevent` alone, is offered, restored and equal."""
    card = blank(tmp_path / "card.img", 64 * MIB)
    config = MachineConfig(disks=(Disk(card, bus="sd"),), disc=case.disc)

    with started(config, "sd-card") as machine:
        log_in(machine)
        machine.wait_for(CONFIRM, STEP_S)
        machine.send("mmcblk0\r")
        machine.wait_for(marks.pattern("complete"), RESTORE_S)
        machine.wait_for(END, STEP_S)

    assert differences(case, card) == []


@pytest.mark.slow
def test_answers_on_the_disc_leave_only_id_and_password(case: Case, tmp_path: Path) -> None:
    """Target, layout and end come from answer file and kernel arguments; all is verified."""
    answers = tmp_path / "answers.json"
    answers.write_text('{"target": "REBUILD0001", "verify": 1, "keymap": "de"}')
    disc = build(
        case.machine,
        tmp_path / "disc.iso",
        "--answers",
        answers,
        "--argument",
        "rebuildkit.after=poweroff",
    )
    other, disk = blank(tmp_path / "other.img", case.size), blank(tmp_path / "disk.img", case.size)
    config = MachineConfig(disks=(Disk(other), Disk(disk, bus="nvme")), disc=disc)

    with started(config, "unattended") as machine:
        said = machine.wait_for(marks.pattern("ask-keymap", "ask-id"), START_S)
        assert said["name"] == "ask-id"
        machine.send(f"{USER}\r")
        machine.wait_for(SECRET, STEP_S)
        machine.send(f"{PASSWORD}\r")
        assert int(machine.wait_for(marks.pattern("verified"), RESTORE_S)["value"]) > 0
        machine.wait_for(marks.pattern("complete"), STEP_S)
        assert machine.wait_for(marks.pattern("next"), STEP_S)["value"] == "poweroff"
        machine.wait_until_off(STEP_S)

    assert differences(case, disk) == []
    assert is_blank(other)


@pytest.mark.slow
@pytest.mark.parametrize("firmware", ["uefi", "secure-boot"])
def test_firmware_gets_one_entry_however_often_it_is_restored(
    tmp_path: Path, firmware: str
) -> None:
    """Two restores leave one boot entry for the machine's loader, first in the order."""
    machine = make_gpt_machine(tmp_path)
    disc = build(machine, tmp_path / "disc.iso")
    variables = tmp_path / "variables.fd"
    shutil.copyfile(variables_template(firmware), variables)
    for number in range(2):
        disk = blank(tmp_path / f"disk{number}.img", 128 * MIB)
        config = MachineConfig(
            firmware=firmware, disks=(Disk(disk),), disc=disc, variables=variables
        )
        with started(config, f"{firmware}-{number}") as started_machine:
            log_in(started_machine, machine.password)
            started_machine.wait_for(CONFIRM, STEP_S)
            started_machine.send("vda\r")
            started_machine.wait_for(marks.pattern("complete"), RESTORE_S)
            started_machine.wait_for(END, STEP_S)
            started_machine.send("p\r")
            started_machine.wait_until_off(STEP_S)
        found = read_variables(variables)
        entries = {
            name: option
            for name in found
            if len(name) == 8
            and name.startswith("Boot")
            and (option := parse_load_option(found[name])) is not None
            and option.path
        }
        assert [option.description for option in entries.values()] == ["debian"]
        (name,) = entries
        assert found["BootOrder"][:2] == int(name[4:], 16).to_bytes(2, "little")
        assert entries[name].path == "\\EFI\\debian\\shimx64.efi"
        assert entries[name].partition is not None
