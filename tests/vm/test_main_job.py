# SPDX-License-Identifier: Apache-2.0
"""The main job, end to end: a Debian machine dies and comes back from its disc.

Nothing here is a stand-in: real commands, a real server over HTTPS, a real disc in a real
firmware, a real system that starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.scenario import Scenario, Server, debian_disk, must, run
from vm.debian import DiskLayout

pytestmark = [pytest.mark.vm, pytest.mark.root]
SIZE_MIB = 800
# What the machine says of itself once it is up; see vm/debian.py.
UP = r"MACHINE-FILES-OK[\s\S]*MACHINE-SWAP [\s\S]*MACHINE-UP[\s\S]*login: "


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    """A registered user of a running server."""
    directory = tmp_path_factory.mktemp("job")
    (directory / "server").mkdir()
    with Server(directory / "server") as server:
        made = Scenario(directory, server)
        must(made.register())
        yield made


def discs(scenario: Scenario, scheme: str) -> tuple[Path, Path]:
    """Return the machine's disk and its recovery disc, made when first asked for."""
    disk = debian_disk(DiskLayout(scheme, SIZE_MIB))
    disc = scenario.directory / f"{scheme}.iso"
    if not disc.exists():
        must(scenario.backup(scheme, disk))
        must(scenario.build(scheme, disc))
    return disk, disc


def pictures(name: str) -> list[str]:
    """Options for screenshots, kept where REBUILDKIT_PICTURES says."""
    place = os.environ.get("REBUILDKIT_PICTURES")
    return ["--screenshots", os.path.join(place, name)] if place else []


@pytest.mark.parametrize(
    ("scheme", "firmware", "size_mib"),
    [
        pytest.param("mbr", "bios", 1600, id="mbr-bios-larger"),
        pytest.param("gpt", "uefi", 800, id="gpt-uefi-same-size"),
    ],
)
def test_machine_comes_back(scenario: Scenario, scheme: str, firmware: str, size_mib: int) -> None:
    """The disc restores an empty disk to an equal machine that starts to its login prompt."""
    _, disc = discs(scenario, scheme)

    outcome = scenario.rehearse(
        *(disc, "--firmware", firmware, "--disk-size", f"{size_mib}M"),
        *("--expect", UP, *pictures(f"{scheme}-{firmware}")),
    )

    assert outcome.code == 0, outcome.out + outcome.err
    report = outcome.json
    assert report["proven"]
    assert report["comparison"]["differences"] == []
    assert report["comparison"]["objects"] > 5000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "firmware", "bus", "size_mib"),
    [
        pytest.param("gpt", "secure-boot", "virtio", 800, id="secure-boot"),
        pytest.param("gpt", "secure-boot", "virtio", 700, id="secure-boot-smaller"),
        pytest.param("mbr", "bios", "virtio", 700, id="bios-smaller"),
        pytest.param("mbr", "bios", "nvme", 800, id="bios-nvme"),
        pytest.param("gpt", "uefi", "nvme", 1600, id="uefi-nvme-larger"),
    ],
)
def test_machine_comes_back_on_other_hardware(
    scenario: Scenario, scheme: str, firmware: str, bus: str, size_mib: int
) -> None:
    """Other firmware, other disks, other sizes: the same machine."""
    _, disc = discs(scenario, scheme)

    outcome = scenario.rehearse(
        *(disc, "--firmware", firmware, "--bus", bus, "--disk-size", f"{size_mib}M"),
        *("--expect", UP, *pictures(f"{scheme}-{firmware}-{bus}")),
    )

    assert outcome.code == 0, outcome.out + outcome.err


def test_host_restore_is_equal(scenario: Scenario, tmp_path: Path) -> None:
    """The same engine on a host, from the disc and from the server, gives equal disks."""
    disk, disc = discs(scenario, "mbr")
    image = tmp_path / "new.img"

    place = ("--fingerprint", scenario.server.fingerprint, "--machine", "mbr")
    for source, options in ((str(disc), ()), (scenario.server.url, place)):
        image.unlink(missing_ok=True)
        restore = ("restore", "--from", source, *options, *scenario.credentials)
        must(run(*restore, "--disk", image, "--yes", "--verify"))
        must(run("compare", disc, *scenario.credentials, "--disk", image))
    assert image.stat().st_size == disk.stat().st_size
