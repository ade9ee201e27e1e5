# SPDX-License-Identifier: Apache-2.0
"""Discs as `rebuildkit fs` and the agent see them: foreign ones, hybrid ones and our own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from backup.agent.inspection import inspect_disk
from fsdrivers import Can, probe, types_that
from fsdrivers.device import FileDevice
from fsdrivers.iso9660.check import check_volume
from fsdrivers.iso9660.volume import open_volume
from imagebuilder.build import build_disc
from imagebuilder.cli.main import main
from imagebuilder.environment.build import BootEnvironment
from rebuild.disc_image import IsoImage
from tests.fsdrivers.iso9660.images import paths_of
from tests.imagebuilder.small_repository import SmallRepository
from tests.programs import run


def fs(*arguments: object) -> int:
    return main(["fs", *map(str, arguments)])


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
        "xorriso",
        "-as",
        "mkisofs",
        "-quiet",
        "-R",
        "-V",
        "HYBRID",
        "-o",
        image,
        "-isohybrid-mbr",
        tmp_path / "mbr.bin",
        "-c",
        "boot.cat",
        "-b",
        "bios.img",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-eltorito-alt-boot",
        "-e",
        "efi.img",
        "-no-emul-boot",
        "-isohybrid-gpt-basdat",
        boot,
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
        "xorriso",
        "-outdev",
        image,
        "-map",
        tmp_path / "tree",
        "/",
        "-set_filter_r",
        "--zisofs",
        "/",
        "--",
        "-commit",
    )
    assert fs("stat", image, "/text") == 0
    assert f"Size: {len(content)}" in capfd.readouterr().out
    assert fs("manifest", image) == 0
    assert hashlib.sha256(content).hexdigest() in capfd.readouterr().out


@pytest.mark.tools
@pytest.mark.root
def test_every_verb(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """ls, stat, cat, manifest and extract show a Rock Ridge disc as the tree it was made of."""
    tree, image, out = tmp_path / "tree", tmp_path / "image.iso", tmp_path / "out"
    (tree / "directory").mkdir(parents=True)
    content = bytes(range(256)) * 300
    (tree / "directory" / "A Mixed Name.text").write_bytes(content)
    (tree / "empty").touch(0o600)
    (tree / "link").symlink_to("directory/A Mixed Name.text")
    os.mknod(tree / "disk", 0o60640, os.makedev(8, 1))
    os.chown(tree / "empty", 7, 8)
    for path in (tree / "directory" / "A Mixed Name.text", tree / "empty", tree / "directory"):
        os.utime(path, (1_600_000_000, 1_600_000_001))
    run("genisoimage", "-quiet", "-R", "-o", image, tree)

    def shown(*arguments: object) -> bytes:
        capfdbinary.readouterr()
        assert fs(*arguments) == 0
        return capfdbinary.readouterr().out

    assert shown("cat", image, "/link") == content
    inside = "/directory/A Mixed Name.text"
    command = ["isoinfo", "-R", "-i", str(image), "-x", inside]
    assert subprocess.run(command, capture_output=True, check=True).stdout == content
    listed = shown("ls", image).decode().splitlines()
    assert [line.split()[0] for line in listed] == [
        "drwxr-xr-x",
        "brw-r-----",
        "-rw-------",
        "lrwxrwxrwx",
    ]
    assert listed[-1].endswith("link -> directory/A Mixed Name.text")
    assert b"Size: 76800" in shown("stat", image, "/directory/A Mixed Name.text")
    rows = [json.loads(line) for line in shown("manifest", image, "--json").splitlines()]
    files = {row["path"]: row for row in rows}
    assert len(files) == 6
    found = files["/directory/A Mixed Name.text"]
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["modified_ns"] == 1_600_000_001 * 10**9
    assert fs("extract", image, "/", out) == 0
    for path in sorted(tree.rglob("*")):
        before, after = path.lstat(), (out / path.relative_to(tree)).lstat()
        assert (before.st_mode, before.st_uid, before.st_gid, before.st_rdev) == (
            after.st_mode,
            after.st_uid,
            after.st_gid,
            after.st_rdev,
        )
        if path.is_file():
            assert int(after.st_mtime) == int(before.st_mtime)
            assert (out / path.relative_to(tree)).read_bytes() == path.read_bytes()
    assert fs("put", image, tree / "empty", "/new") == 6
    assert fs("stat", image, "/none") == 8
    assert fs("check", image) == 0


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
        assert volume.warnings() == []
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
    """A backup does not keep a type that cannot be made again, and the agent says why."""
    assert "iso9660" in set(types_that(Can.READ)) - set(types_that(Can.PLAN))
    with FileDevice.open(hybrid) as device:
        assert probe(device) == "iso9660"
        disk = inspect_disk("disc", device)
    assert any("can be read but not made again" in problem.reason for problem in disk.problems)


def test_discs_are_not_made(
    hybrid: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A volume like that of a disc is code 6 and one sentence, and no file is left."""
    new, described = tmp_path / "new", tmp_path / "described"
    assert fs("describe", hybrid, "--partition", "0") == 0
    described.write_text(capfd.readouterr().out)
    for options in (("--like", hybrid), ("--description", described)):
        assert fs("mkfs", new, *options) == 6
        expected = "rebuildkit: not supported: making iso9660 volumes\n"
        assert capfd.readouterr().err == expected
    assert not new.exists()
