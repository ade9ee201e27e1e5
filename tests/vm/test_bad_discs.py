# SPDX-License-Identifier: Apache-2.0
"""A disc that cannot start says so, with its name, the reason and the next step.

Pictures of the screen are kept where REBUILDKIT_PICTURES says.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from imagebuilder.disc.plan import INITRD
from imagebuilder.environment.build import BootEnvironment
from imagebuilder.environment.python_runtime import SITE
from rebuild.disc_image import IsoImage
from tests.vm.small_discs import START_TIMEOUT_S, machine_of, make_disc, real_environment
from vm import marks
from vm.errors import MachineError

pytestmark = [pytest.mark.vm, pytest.mark.tools]
STOPPED = marks.pattern("stopped")


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


def name_of(disc: Path) -> str:
    """Return what messages call a disc."""
    with IsoImage.open(disc) as image:
        return image.set_id[:8]


def said_by(disc: Path, name: str, *, firmware: str = "bios", memory_mib: int = 512) -> str:
    """Start a disc that stops by itself; return all that its serial line says."""
    with machine_of(disc, firmware, memory_mib=memory_mib) as machine:
        try:
            machine.wait_for(STOPPED, START_TIMEOUT_S)
        finally:
            place = os.environ.get("REBUILDKIT_PICTURES")
            if place:
                machine.screenshot(Path(place) / "failures" / f"{name}.png")
        return machine.text


def damaged(disc: Path, path: Path, position: int) -> Path:
    """Return a copy of a disc with one bit flipped."""
    shutil.copyfile(disc, path)
    with path.open("r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes((value ^ 1,)))
    return path


def test_too_little_memory_is_told(disc: Path) -> None:
    """With 192 MiB: what there is, what it takes, and where to go; no panic."""
    text = said_by(disc, "memory", memory_mib=192)

    assert f"The recovery disc {name_of(disc)} cannot start: this machine has " in text
    assert " MiB of memory that can be used, and it needs " in text
    assert "Start from this disc on a machine with more memory." in text
    assert "panic" not in text


@pytest.mark.parametrize("place", ["base", pytest.param("own", marks=pytest.mark.slow), "python"])
def test_flipped_bit_in_the_initial_root_filesystem_is_told(
    disc: Path, tmp_path: Path, place: str
) -> None:
    """In the archive of libraries, in that of our code, or in a part of Python that is not used
    at the start: the file is named."""
    with IsoImage.open(disc) as image:
        extent = image.extent_of(INITRD)
        data = image.read(INITRD, 0, extent.size)
    names = {"base": b"first/base.zst\0", "own": b"first/own.zst\0", "python": b"usr/bin/python"}
    at = data.index(names[place]) + {"base": 9_000_000, "own": 200_000, "python": 5_500_000}[place]
    bad = damaged(disc, tmp_path / "bad.iso", extent.position + at)

    text = said_by(bad, f"flipped-{place}")

    assert f"The recovery disc {name_of(disc)} cannot start: what was read from it is dam" in text
    assert names[place].rstrip(b"\0").decode() in text
    assert "use another copy of it." in text
    assert "panic" not in text
    assert "Traceback" not in text
    assert SITE not in text


@pytest.mark.slow
def test_missing_kernel_is_told(disc: Path, tmp_path: Path) -> None:
    """ISOLINUX does not find the kernel: it says so once and stops."""
    path = Path(shutil.copyfile(disc, tmp_path / "bad.iso"))
    data = path.read_bytes()
    assert data.count(b"VMLINUZ.;1") == 1
    path.write_bytes(data.replace(b"VMLINUZ.;1", b"VMLINUX.;1").replace(b"vmlinuz", b"vmlinux", 1))
    directory = Path(os.environ.get("REBUILDKIT_PICTURES", tmp_path)) / "failures"
    with machine_of(path) as machine:
        with suppress(MachineError):
            machine.wait_for(STOPPED, 30.0)
        pictures = set()
        for number in range(8):
            time.sleep(0.7)
            machine.screenshot(directory / f"missing-{number}.png")
            pictures.add((directory / f"missing-{number}.png").read_bytes())
        machine.press(*"recovery", "spc", *"rdinit", "equal", "x", "ret")
        machine.press("slash", *"boot", "slash", *"vmlinux", "ret")
        with suppress(MachineError):
            machine.wait_for(".", 10.0)
        machine.screenshot(directory / "missing-typed.png")
        said = machine.text

    with_and_without_cursor = 2
    assert len(pictures) <= with_and_without_cursor, "the screen goes on scrolling"
    assert "Linux version" not in said
    assert "panic" not in said
