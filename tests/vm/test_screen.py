# SPDX-License-Identifier: Apache-2.0
"""A restored machine that says nothing on a serial line is judged by its screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.old_pc import SECTOR, assembled
from vm import screen
from vm.errors import MachineError
from vm.machine import Machine
from vm.qemu import Disk, MachineConfig
from vm.rehearsal import RehearsalConfig, RehearsalReport, watch

SHOWS = Path(__file__).with_name("shows.s")


def test_text_is_read_by_rows() -> None:
    """Characters are those of code page 437, and colours are no text."""
    rows = [b"Starting MS-DOS...", b"", b"\x81ber", b"C:\\>"]
    cells = b"".join(row.ljust(screen.COLUMNS, b"\0") for row in rows).ljust(2000)
    memory = b"".join(bytes((cell, 7)) for cell in cells)

    text = screen.text_of(memory)
    assert text == "Starting MS-DOS...\n\n\u00fcber\nC:\\>"
    assert screen.last_line(text) == "C:\\>"
    assert screen.last_line("") == ""


@pytest.mark.parametrize("text", ["C:\\>", "up\nC:\\DOS>", "Debian\n\nbox login:"])
def test_prompts(text: str) -> None:
    """What waits for a person is known at the end of a screen, and there alone."""
    assert screen.PROMPT.search(text)
    assert not screen.PROMPT.search(f"{text}\nNon-System disk")


@pytest.mark.parametrize(
    "text",
    ["Missing operating system", "grub rescue>", "No bootable device.", "x\n(initramfs) \n"],
)
def test_failures(text: str) -> None:
    """Sentences of boot sectors, firmware and boot loaders are known."""
    assert screen.FAILURE.search(text)
    assert not screen.PROMPT.search(text)


def look(directory: Path, shown: str | None, rest_timeout_s: float) -> tuple[RehearsalReport, str]:
    """Start a disk whose boot sector shows a text; return what the rehearsal reports of it."""
    path = directory / "disk.img"
    code = b"" if shown is None else assembled(SHOWS) + shown.encode() + b"\0"
    mark = b"" if shown is None else b"\x55\xaa"
    path.write_bytes((code.ljust(SECTOR - 2, b"\0") + mark).ljust(1 << 20, b"\0"))
    config = RehearsalConfig(
        path, [1 << 20], "anna", "secret", start_timeout_s=60.0, rest_timeout_s=rest_timeout_s
    )
    report, failure = RehearsalReport("bios", "ide", (1 << 20,)), ""
    machine_config = MachineConfig(memory_mib=64, disks=(Disk(path, "ide"),))
    with Machine(machine_config) as machine:
        try:
            watch(machine, config, report)
        except MachineError as error:
            failure = str(error)
    return report, failure


@pytest.mark.vm
@pytest.mark.tools
@pytest.mark.parametrize(
    ("shown", "seen", "failure"),
    [
        ("Starting...\r\nC:\\>", "'C:\\\\>' on the screen", ""),
        ("Missing operating system", "'Missing operating system' on the screen", "does not start"),
        (None, "'No bootable device' on the screen", "does not start"),
        ("Please wait", "'Please wait' on the screen", "has not changed for"),
    ],
)
def test_screen_of_a_silent_machine(
    tmp_path: Path, shown: str | None, seen: str, failure: str
) -> None:
    """A prompt is proof, a known sentence ends at once, and a still screen before the time is over.

    What was looked for and seen is in the report.
    """
    report, failed = look(tmp_path, shown, 8.0)

    assert report.seen == seen
    assert (failure in failed) if failure else not failed
    report.pictures.append("bios-restored.png")
    lines = "\n".join(report.lines())
    assert "picture: bios-restored.png" in lines
    assert f"looked for 'login: ' on the serial line, a prompt on the screen; seen {seen}" in lines
    assert screen.last_line(report.screen) in str(report.to_dict()["screen"])
