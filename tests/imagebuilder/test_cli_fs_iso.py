# SPDX-License-Identifier: Apache-2.0
"""Discs as `rebuildkit fs` and the agent see them: foreign ones, hybrid ones and our own."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import pytest

from backup.agent.inspection import inspect_disk
from fsdrivers import ISO_TYPES, READABLE_TYPES, TYPES, probe
from fsdrivers.device import FileDevice
from fsdrivers.iso9660 import check_volume, open_volume
from imagebuilder import cli_fs
from imagebuilder.boot_environment import BootEnvironment
from imagebuilder.build import build_disc
from imagebuilder.iso_reader import IsoImage
from tests.fsdrivers.iso_images import paths_of, run
from tests.imagebuilder.small_repository import SmallRepository


def fs(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="rebuildkit")
    cli_fs.add_parser(parser.add_subparsers(dest="command", required=True))
    return cli_fs.run(parser.parse_args(["fs", *map(str, arguments)]))


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    """A disc that is also a disk: an MBR whose second partition is a boot image on it."""
    boot = tmp_path / "boot"
    boot.mkdir()
    (boot / "bios.img").write_bytes(bytes(range(256)) * 32)
    (boot / "efi.img").write_bytes(b"EFI" * 22_000)
    (tmp_path / "mbr.bin").write_bytes(b"\x33\xed".ljust(432, b"\x90"))
    image = tmp_path / "hybrid.iso"
    run(
        *("xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", "HYBRID", "-o", image),
        *("-isohybrid-mbr", tmp_path / "mbr.bin", "-c", "boot.cat", "-b", "bios.img"),
        *("-no-emul-boot", "-boot-load-size", "4", "-eltorito-alt-boot", "-e", "efi.img"),
        *("-no-emul-boot", "-isohybrid-gpt-basdat", boot),
    )
    return image


@pytest.mark.tools
def test_hybrid_disc(hybrid: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its files are shown without naming a partition, and its partitions beside it."""
    assert fs("cat", hybrid, "/bios.img") == 0
    assert capfd.readouterr().out.encode("utf-8", "surrogateescape")
    assert fs("probe", hybrid, "--json") == 0
    rows = json.loads(capfd.readouterr().out)["partitions"]
    assert [(row["number"], row["filesystem"]) for row in rows] == [
        (0, "iso9660"),
        (1, "iso9660"),
        (2, "unknown"),
    ]
    assert rows[0]["label"] == "HYBRID"
    assert fs("manifest", hybrid, "--json") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    digests = {line["path"]: line.get("sha256") for line in lines}
    assert digests["/bios.img"] == hashlib.sha256(bytes(range(256)) * 32).hexdigest()


@pytest.mark.tools
def test_compressed_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A compressed file is shown with the size and hash that it has for its users."""
    content = b"text\n" * 40_000
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "text").write_bytes(content)
    image = tmp_path / "image.iso"
    run(
        *("xorriso", "-outdev", image, "-map", tmp_path / "tree", "/"),
        *("-set_filter_r", "--zisofs", "/", "--", "-commit"),
    )
    assert fs("stat", image, "/text") == 0
    assert f"Size: {len(content)}" in capfd.readouterr().out
    assert fs("manifest", image) == 0
    assert hashlib.sha256(content).hexdigest() in capfd.readouterr().out


def test_our_own_disc(hollow_environment: BootEnvironment, tmp_path: Path) -> None:
    """A recovery disc has no findings, and the driver finds in it what the restore reads."""
    repository = SmallRepository()
    path = build_disc(
        repository,
        repository.master,
        repository.data_set,
        tmp_path / "disc.iso",
        environment=hollow_environment,
        created_s=1_700_000_000,
    ).path
    with FileDevice.open(path) as device, IsoImage.open(path) as image:
        volume = open_volume(device)
        found = paths_of(volume)
        assert volume.namespace == "rockridge"
        assert volume.problems == ()
        for name, place in image.files.items():
            node = found[name.encode()].node
            assert node.size == place.size
            if node.size:
                assert volume.extents(node)[0].position == place.position
        catalogue = volume.boot_catalogue()
        assert catalogue is not None
        assert catalogue.is_checksum_right
        assert check_volume(device) == []


@pytest.mark.tools
def test_what_was_tolerated_is_said(hybrid: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A disc image without its end is shown with what is wrong with it."""
    data = hybrid.read_bytes()
    cut = hybrid.with_name("cut.iso")
    cut.write_bytes(bytes(512) + data[512:150_000])
    assert fs("probe", cut) == 0
    assert "the image 150000" in capfd.readouterr().out


@pytest.mark.tools
def test_discs_are_read_but_not_backed_up(hybrid: Path) -> None:
    """What cannot be made again is no type that a backup keeps, and the agent says why."""
    assert set(ISO_TYPES) <= set(READABLE_TYPES) - set(TYPES)
    with FileDevice.open(hybrid) as device:
        assert probe(device) == "iso9660"
        disk = inspect_disk("disc", device)
    assert any("can be read but not made again" in problem.reason for problem in disk.problems)
