# SPDX-License-Identifier: Apache-2.0
"""The choice of kernel modules and what is read of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import zstandard

from imagebuilder.environment.modules import choose_modules, is_chosen, pack_modules, read_module
from imagebuilder.errors import BuildHostError


def make_module(*info: str) -> bytes:
    """Return an ELF object with a .modinfo section of `info` strings."""
    modinfo = b"".join(line.encode() + b"\0" for line in info)
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64
    body = modinfo + names
    body += bytes(-len(body) % 8)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        1,
        62,
        1,
        0,
        0,
        start + len(body),
        0,
        64,
        0,
        0,
        64,
        3,
        2,
    )
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, start, len(modinfo), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, start + len(modinfo), len(names), 0, 0, 1, 0),
    ]
    return header + body + b"".join(sections)


def test_modinfo_is_read() -> None:
    """Dependencies, aliases and soft dependencies come out with the kernel's spelling."""
    module = read_module(
        "ext_x",
        make_module(
            "license=GPL",
            "depends=crc-one,two",
            "alias=pci:v00008086d*",
            "alias=fs-x",
            "softdep=pre: a-b c post: d",
            "softdep=pre:e",
        ),
    )

    assert module.depends == ("crc_one", "two")
    assert module.aliases == ("pci:v00008086d*", "fs-x")
    assert module.before == ("a_b", "c", "e")
    assert module.after == ("d",)


def test_module_without_dependencies() -> None:
    """An empty `depends=` names no dependency."""
    assert read_module("x", make_module("depends=")).depends == ()


@pytest.mark.parametrize("size", [0, 10, 63, 64, 100, 130, 200])
def test_cut_module_is_refused(size: int) -> None:
    """A damaged file is an error with the module's name, never another exception."""
    with pytest.raises(BuildHostError, match="thing"):
        read_module("thing", make_module("alias=x")[:size])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("drivers/ata/ahci.ko", True),
        ("drivers/nvme/host/nvme.ko", True),
        ("drivers/usb/host/xhci-pci.ko", True),
        ("drivers/hid/usbhid/usbhid.ko", True),
        ("drivers/net/ethernet/intel/e1000e/e1000e.ko", True),
        ("fs/efivarfs/efivarfs.ko", True),
        ("drivers/net/ethernet/intel/ice/ice.ko", False),
        ("drivers/scsi/lpfc/lpfc.ko", False),
        ("drivers/net/wireless/ath/ath9k/ath9k.ko", False),
        ("drivers/gpu/drm/i915/i915.ko", False),
        ("fs/btrfs/btrfs.ko", False),
    ],
)
def test_choice(path: str, expected: bool) -> None:
    """Disks, USB, keyboards and wired networks are on the disc; big iron and screens are not."""
    assert is_chosen(path) is expected


def test_dependencies_are_taken_along(tmp_path: Path) -> None:
    """What a chosen module needs comes with it, wherever it lies; what nobody needs does not."""
    for path, info in {
        "drivers/ata/ahci.ko": ["depends=libata", "softdep=pre: helper absent"],
        "lib/odd/libata.ko": ["depends="],
        "lib/odd/helper.ko": ["depends="],
        "lib/odd/other.ko": ["depends="],
    }.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(make_module(*info))

    assert [module.name for module in choose_modules(tmp_path)] == ["ahci", "helper", "libata"]


def test_missing_dependency_is_an_error(tmp_path: Path) -> None:
    """A module that could never be loaded stops the build."""
    file = tmp_path / "drivers/ata/ahci.ko"
    file.parent.mkdir(parents=True)
    file.write_bytes(make_module("depends=libata"))

    with pytest.raises(BuildHostError, match="libata"):
        choose_modules(tmp_path)


def test_empty_tree_is_an_error(tmp_path: Path) -> None:
    """A kernel package without modules stops the build."""
    with pytest.raises(BuildHostError, match="does not contain kernel modules"):
        choose_modules(tmp_path)


def test_pack_and_index() -> None:
    """Each module is a frame of its own at the indexed place; aliases are split at wildcards."""
    data = [
        make_module("alias=pci:v1d*sv*", "alias=fs-a"),
        make_module("alias=pci:v1d2*", "depends=one"),
    ]
    pack, index = pack_modules([read_module("one", data[0]), read_module("two", data[1])], level=3)
    tables = json.loads(index)

    for name, content in zip(("one", "two"), data, strict=True):
        offset, stored, size, *_ = tables["modules"][name]
        assert zstandard.decompress(pack[offset : offset + stored]) == content
        assert size == len(content)
    assert tables["modules"]["two"][3] == ["one"]
    assert tables["exact"] == {"fs-a": ["one"]}
    assert tables["globs"] == {"pci:v1d": [["*sv*", "one"]], "pci:v1d2": [["*", "two"]]}
