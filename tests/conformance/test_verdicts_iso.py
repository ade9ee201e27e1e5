# SPDX-License-Identifier: Apache-2.0
"""Discs as sleuthkit reads them: the same when sound, and no damage it objects to is missed.

Sleuthkit shows the Joliet tree where there is one, else the plain one.  It objects to little;
isoinfo goes beside it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.iso9660.check import check_volume
from fsdrivers.iso9660.volume import Namespace, open_volume
from fsdrivers.volume import Kind
from tests.conformance.damage import assert_nothing_missed
from tests.fsdrivers.iso9660.images import paths_of
from tests.programs import run

pytestmark = pytest.mark.tools

_TIMEOUT_S = 1  # isoinfo goes on for ever on some damage


def made(directory: Path, *options: str) -> Path:
    """Return a disc with small directories, a large one and files of several sizes."""
    root = directory / "tree"
    for size in (1, 2047, 2048, 2049, 70_001):
        where = root / f"directory {size}" / "below"
        where.mkdir(parents=True)
        (where / f"a file of {size} bytes.data").write_bytes(bytes(range(1, 252)) * size)
    (root / "many").mkdir()
    for number in range(25):
        (root / "many" / f"file number {number:04}").write_bytes(b"%d" % number)
    run("genisoimage", "-quiet", *options, "-o", directory / "image", root)
    return directory / "image"


@pytest.mark.parametrize(
    ("options", "prefer"),
    [(("-J",), "joliet"), (("-J", "-R"), "joliet"), (("-R",), "plain"), ((), "plain")],
    ids=["Joliet", "Joliet and Rock Ridge", "Rock Ridge", "plain"],
)
def test_sleuthkit_reads_the_same(
    tmp_path: Path, options: tuple[str, ...], prefer: Namespace
) -> None:
    """fls lists the paths that we do, and icat gives the same content."""
    image = made(tmp_path, *options)
    volume = open_volume(MemoryDevice.of(image.read_bytes(), 2048), prefer=prefer)
    listed: dict[bytes, str] = {}
    for line in run("fls", "-r", "-p", image).splitlines():
        kind, number, path = line.replace(":\t", " ", 1).split(" ", 2)
        if kind != "V/V":
            listed[path.encode()] = number
    found = {
        path: entry.node for path, entry in paths_of(volume).items() if path not in (b"", b"/")
    }
    assert found.keys() == listed.keys()
    for path, node in found.items():
        if node.kind is Kind.FILE:
            command = ["icat", str(image), listed[path]]
            content = subprocess.run(command, check=True, capture_output=True).stdout
            assert volume.read(node, 0, node.size) == content, path


def complaints(path: Path) -> list[str]:
    """Return what sleuthkit and isoinfo have to say against a disc."""
    found = []
    for command in (
        ["fsstat", "-f", "iso9660"],
        ["fls", "-f", "iso9660", "-r", "-p"],
        ["isoinfo", "-l", "-i"],
        ["isoinfo", "-J", "-l", "-i"],
    ):
        try:
            done = subprocess.run(
                [*command, str(path)], capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            found.append(f"{command[0]}: without end")
            continue
        if done.returncode or done.stderr:
            found.append(f"{command[0]}: {done.stderr.decode(errors='replace')}")
    return found


def check_verdicts(count: int, seed: int, image: Path) -> None:
    device = MemoryDevice.of(image.read_bytes(), 2048)
    assert_nothing_missed(
        device,
        open_volume(device),
        image,
        complaints,
        check_volume,
        count=count,
        seed=seed,
        share=50,
    )


def test_a_sample(tmp_path: Path) -> None:
    """Of some damaged discs, none that the others object to is clean to us."""
    check_verdicts(60, 1, made(tmp_path, "-J", "-R"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_a_large_corpus(seed: int, run_seed: int, tmp_path: Path) -> None:
    """The same for thousands."""
    check_verdicts(3000, run_seed + seed, made(tmp_path, "-J", "-R"))
