# SPDX-License-Identifier: Apache-2.0
"""Images of virtual machines are named, and no command takes one for a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder.cli.main import main

SIZE = 4 << 20
IMAGES = {
    "qcow2": b"QFI\xfb\0\0\0\3",
    "VMDK": b"KDMV\1\0\0\0",
    "VHD": b"conectix",
    "VHDX": b"vhdxfile",
    "VDI": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(0x40, b"\0") + b"\x7f\x10\xda\xbe",
    "E01 (EnCase)": b"EVF\x09\x0d\x0a\xff\0",
}
Output = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    """The options for a store with an id."""
    password = tmp_path / "password"
    password.write_text("wolke gitarre tisch")
    where = ["--store", str(tmp_path / "store"), "--user", "anna"]
    where += ["--password-file", str(password)]
    assert main(["register", *where]) == 0
    return where


@pytest.mark.parametrize("name", [*IMAGES, "fixed VHD"])
def test_an_image_is_named_with_what_converts_it(
    name: str, tmp_path: Path, place: list[str], capsys: Output
) -> None:
    """At a backup, even a raw one, and by `fs`; nothing is stored."""
    image = tmp_path / "image"
    if name == "fixed VHD":
        image.write_bytes(bytes(SIZE) + b"conectix".ljust(512, b"\0"))
    else:
        image.write_bytes(IMAGES[name].ljust(SIZE, b"\0"))
    form = name.removeprefix("fixed ")
    converter = f"ewfexport -t disk -f raw {image}" if "E01" in name else f"-O raw {image} disk.img"
    backup = ["backup", *place, "--machine", "pc", "--disk", str(image)]
    for words, code in (
        (backup, 23),
        ([*backup, "--allow-raw"], 23),
        (["fs", "probe", str(image)], 6),
        (["fs", "ls", str(image)], 6),
    ):
        capsys.readouterr()
        assert main(words) == code
        said = capsys.readouterr().err
        assert f"it is a {form} image, not a disk" in said
        assert converter in said
    assert main(["snapshots", *place]) == 0
    assert "pc" not in capsys.readouterr().out
