# SPDX-License-Identifier: Apache-2.0
"""Image files in use: no second writer is let in, and the sentence names who is there."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice
from fsdrivers.errors import DeviceError
from fsdrivers.in_use import find_use
from imagebuilder.cli.main import main
from tests.fsdrivers.ext import volumes as ext_volumes
from tests.fsdrivers.ntfs import volumes as ntfs_volumes
from tests.programs import run

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image file whose path has blanks in it."""
    path = tmp_path / "a disk.img"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    return path


def refusal(path: Path) -> str:
    """Return why an image may not be written; empty when it may."""
    with FileDevice.open(path) as device:  # reading is let in
        use = device.find_use()
    if not use:
        FileDevice.open(path, writable=True).close()
        return ""
    with pytest.raises(DeviceError) as caught:
        FileDevice.open(path, writable=True)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.reason == f"it is in use: {use}"
    return use


def test_listings_of_the_kernel(tmp_path: Path, image: Path) -> None:
    """Loop devices, FUSE mounts and swap files are found by what a path leads to, also where the
    listings escape it; the file that has another's name, or is gone, does not count."""
    mounts, swaps = tmp_path / "mounts", tmp_path / "swaps"
    block = tmp_path / "block"
    listed = block / "loop7" / "loop" / "backing_file"
    listed.parent.mkdir(parents=True)
    (block / "loop1").mkdir()
    (block / "sda").mkdir()
    link = tmp_path / "a link"
    link.symlink_to(image)
    with image.open("rb") as file:

        def use(*, loop: Path, mount: str = "", swap: str = "") -> str:
            listed.write_text(f"{loop}\n")
            mounts.write_text(f"proc /proc proc rw 0 0\n{mount}\n\n")
            swaps.write_text(f"Filename Type Size\n{swap}\n")
            places = {"sys_block": block, "mounts": mounts, "swaps": swaps}
            return find_use(file.fileno(), **{key: str(path) for key, path in places.items()})

        other = tmp_path / "nothing"
        escaped = str(link).replace(" ", "\\040")
        assert use(loop=other) == ""
        assert use(loop=link) == "/dev/loop7 is attached to it"
        assert (
            use(loop=image, mount="/dev/loop7p2 /mnt/a\\040b ext4 rw 0 0")
            == "/dev/loop7 is attached to it and mounted at /mnt/a b"
        )
        assert use(loop=image, mount="/dev/loop70 /mnt ext4 rw 0 0").endswith("attached to it")
        assert use(loop=other, mount=f"{escaped} /mnt fuse rw 0 0") == "it is mounted at /mnt"
        assert use(loop=other, swap=f"{escaped} file 1024 0 -2") == "it is swap"
        assert find_use(file.fileno(), sys_block="/none", mounts="/none", swaps="/none") == ""


def test_locked_by_another_program(image: Path) -> None:
    """A lock on any byte, as QEMU holds on the disks of a machine, is a use."""
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'rb');"
        "fcntl.lockf(file, fcntl.LOCK_SH, 1, 201); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert refusal(image) == "another program has locked it"
        holder.communicate()

    assert refusal(image) == ""
    with image.open("r+b") as file:  # a lock of our own, not of another program
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert find_use(file.fileno()) == ""


@pytest.mark.tools
@pytest.mark.root
def test_loop_device(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A volume mounted through a loop device is changed by no verb, and stays whole; neither is
    one of which a partition is; afterwards it is changed."""
    run("mke2fs", "-q", "-t", "ext4", image)
    hard = image.with_name("hard")
    os.link(image, hard)
    with ext_volumes.mounted(image) as point:
        device = run("findmnt", "-no", "SOURCE", point).strip()
        expected = f"{device} is attached to it and mounted at {point}"
        for path in (image, hard):
            assert refusal(path) == expected
        for arguments in (
            ("mkdir", image, "/x"),
            ("put", image, "/etc/hostname", "/x"),
            ("label", image, "NEW"),
            ("mkfs", image, "--like", image),
            ("fix-dos", image),
        ):
            assert main(["fs", *map(str, arguments)]) == 9
            shown = capsys.readouterr().err
            assert shown == f"rebuildkit: {image}: cannot open: it is in use: {expected}\n"
        (point / "file").write_bytes(b"x")
        assert main(["fs", "ls", str(image)]) == 0
    run("e2fsck", "-fn", image)
    assert main(["fs", "mkdir", str(image), "/x"]) == 0
    run("e2fsck", "-fn", image)

    device = run("losetup", "--show", "-f", "-o", MIB, image).strip()
    try:
        assert refusal(image) == f"{device} is attached to it"
    finally:
        run("losetup", "-d", device)
    assert refusal(image) == ""


@pytest.mark.tools
@pytest.mark.root
def test_fuse(tmp_path: Path) -> None:
    """A volume that ntfs-3g has mounted is not changed."""
    path = ntfs_volumes.make_image(tmp_path / "an ntfs.img", 8 * MIB)
    with ntfs_volumes.mounted(path, tmp_path / "mount") as point:
        assert refusal(path) == f"it is mounted at {point}"
        assert main(["fs", "mkdir", str(path), "/x"]) == 9
    assert refusal(path) == ""


@pytest.mark.parametrize("verb", ["ls", "label"])
def test_what_is_no_image(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory, a character device and a path without anything are code 9 and one sentence,
    for reading and writing."""
    rest = ["NEW"] if verb == "label" else []
    for path, reason in (
        (tmp_path, "it is a directory, no image file or block device"),
        (Path("/dev/null"), "it is neither an image file nor a block device"),
        (tmp_path / "none", "No such file or directory"),
    ):
        assert main(["fs", verb, str(path), *rest]) == 9
        assert capsys.readouterr().err == f"rebuildkit: {path}: cannot open: {reason}\n"
