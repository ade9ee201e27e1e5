# SPDX-License-Identifier: Apache-2.0
"""The disc in real firmware: it starts from every medium, and nobody gets anything else of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuilder.disc.files import DiscOptions
from imagebuilder.environment.build import BootEnvironment
from tests.vm.small_discs import (
    BARE_PROMPT,
    FIRST_QUESTION,
    START_TIMEOUT_S,
    bare_environment,
    machine_of,
    make_disc,
    real_environment,
)
from vm import marks
from vm.machine import Machine

pytestmark = pytest.mark.vm
MIB = 1 << 20
BOOT_PART_LIMIT = 40 * MIB
# Of a bare kernel and Python; see docs/performance.md.
START_RATIO_LIMIT = 1.5
TO_KERNEL_S = 4.0  # from power-on until ISOLINUX has long read its keys
ESCAPES = ("esc", "c", "e", "tab", "shift-tab", "f10", "ctrl-c", "alt", "spc")


@pytest.fixture(scope="module")
def environment() -> BootEnvironment:
    """Return the boot environment."""
    return real_environment()


@pytest.fixture(scope="module")
def disc(environment: BootEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a disc's image."""
    path = tmp_path_factory.mktemp("disc") / "disc.iso"
    make_disc(path, environment)
    return path


@pytest.fixture
def started(disc: Path) -> Iterator[Machine]:
    """Return a BIOS machine that asks the first question."""
    with machine_of(disc) as machine:
        machine.wait_for(FIRST_QUESTION, START_TIMEOUT_S)
        yield machine


@pytest.mark.parametrize(
    ("firmware", "medium", "memory_mib"),
    [
        pytest.param("bios", "cd", 256, id="bios-cd-256MiB"),
        pytest.param("secure-boot", "cd", 512, id="secure-boot-cd"),
        pytest.param("uefi", "usb", 512, id="uefi-usb", marks=pytest.mark.slow),
        pytest.param("bios", "usb", 512, id="bios-usb", marks=pytest.mark.slow),
        pytest.param("uefi", "cd", 512, id="uefi-cd", marks=pytest.mark.slow),
        pytest.param("secure-boot", "usb", 512, id="secure-boot-usb", marks=pytest.mark.slow),
    ],
)
def test_first_question_comes_up(disc: Path, firmware: str, medium: str, memory_mib: int) -> None:
    """The dialogue appears on the serial line, from power-on, without a key pressed."""
    with machine_of(disc, firmware, medium, memory_mib) as machine:
        machine.wait_for(FIRST_QUESTION, START_TIMEOUT_S)
        assert "rdinit" not in machine.text


@pytest.mark.slow
@pytest.mark.parametrize("firmware", ["bios", "uefi", "secure-boot"])
def test_start_takes_little_longer_than_a_bare_system(
    environment: BootEnvironment, disc: Path, firmware: str, tmp_path: Path
) -> None:
    """Power-on to the first question costs at most 1.5 times a bare kernel and Python.

    Processor seconds, the better of two runs each: the clock of a shared host says little.
    """
    make_disc(tmp_path / "bare.iso", bare_environment(environment, tmp_path / "bare"))
    best = {}
    for image, prompt in ((tmp_path / "bare.iso", BARE_PROMPT), (disc, FIRST_QUESTION)):
        costs = []
        for _ in range(2):
            with machine_of(image, firmware) as machine:
                machine.wait_for(prompt, START_TIMEOUT_S)
                costs.append(machine.cpu_s)
        best[prompt] = min(costs)
    ratio = best[FIRST_QUESTION] / best[BARE_PROMPT]
    print(f"{firmware}: bare {best[BARE_PROMPT]:.1f} s, disc {best[FIRST_QUESTION]:.1f} s")

    assert ratio < START_RATIO_LIMIT


def test_boot_part_is_small(environment: BootEnvironment) -> None:
    """Kernel, initial root filesystem and loaders take no more than 40 MiB."""
    size = sum(path.stat().st_size for path in environment.directory.iterdir())

    assert size < BOOT_PART_LIMIT


@pytest.mark.parametrize("firmware", ["bios", pytest.param("uefi", marks=pytest.mark.slow)])
def test_keys_pressed_while_it_starts_change_nothing(disc: Path, firmware: str) -> None:
    """Whatever is typed on keyboard and serial line, the boot loader shows no prompt."""
    with machine_of(disc, firmware) as machine:
        while machine.elapsed_s < TO_KERNEL_S * (1 if firmware == "bios" else 3):
            machine.press(*ESCAPES)
            machine.send("\x1b c e \t recovery rdinit=/bin/sh\r")
        machine.wait_for(FIRST_QUESTION, START_TIMEOUT_S)
        assert "grub>" not in machine.text
        assert "boot:" not in machine.text


def test_alt_held_from_power_on_gives_no_boot_prompt(disc: Path) -> None:
    """A modifier key that is down before ISOLINUX starts does not open its prompt."""
    with machine_of(disc, "bios", "cd", 512, "-boot", "menu=on,splash-time=3000") as machine:
        alt: dict[str, object] = {
            "events": [
                {"type": "key", "data": {"down": True, "key": {"type": "qcode", "data": name}}}
                for name in ("alt", "shift", "caps_lock")
            ]
        }
        time.sleep(1.0)
        machine.execute("input-send-event", alt)
        machine.wait_for(FIRST_QUESTION, START_TIMEOUT_S)


def test_keys_of_the_kernel_do_nothing(started: Machine) -> None:
    """Ctrl-Alt-Del, SysRq, a serial break and other consoles: the dialogue stays."""
    started.press("ctrl-alt-delete", "alt-sysrq-b", "alt-sysrq-k", "alt-f2", "ctrl-c", "ctrl-z")
    started.execute("human-monitor-command", {"command-line": "chardev-send-break serial0"})
    started.send("b")
    time.sleep(2.0)
    started.send("\x15us\r")

    started.wait_for(marks.pattern("ask-id"), 30.0)


def test_three_wrong_passwords_halt_the_machine(disc: Path) -> None:
    """After the third wrong password there is a sentence, and no question any more."""
    with machine_of(disc) as machine:
        machine.wait_for(FIRST_QUESTION, START_TIMEOUT_S)
        machine.send("us\r")
        for _ in range(3):
            machine.wait_for(marks.pattern("ask-id"), 60.0)
            machine.send("anna\r")
            machine.wait_for(marks.pattern("ask-secret"), 30.0)
            machine.send("wrong\r")
        machine.wait_for(marks.pattern("halted") + r"[\s\S]*System halted", 90.0)
        seen = len(machine.text)
        machine.send("\r\rus\ranna\r")
        time.sleep(3.0)

        assert machine.text[seen:].strip() == ""


@pytest.mark.slow
def test_disc_of_another_set_is_not_taken(
    environment: BootEnvironment, tmp_path: Path, disc: Path
) -> None:
    """A machine whose command line names another data set says which disc it waits for."""
    other = tmp_path / "other.iso"
    wanted = "ab" * 16
    make_disc(other, environment, DiscOptions(kernel_arguments=(f"rebuildkit.set={wanted}",)))
    with machine_of(other) as machine:
        said = machine.wait_for(marks.pattern(), START_TIMEOUT_S)
        assert (said["name"], said["value"]) == ("waiting", wanted)
