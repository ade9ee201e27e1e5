# SPDX-License-Identifier: Apache-2.0
"""The checker of NTFS volumes: silent about sound ones, and what it finds in others."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import FilesystemError
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.format.attributes import AttributeType, StandardInformation3
from fsdrivers.ntfs.format.index import SECURITY_BLOCK_SIZE
from fsdrivers.ntfs.format.records import RecordHead
from fsdrivers.ntfs.system import SECURITY_STREAM
from fsdrivers.ntfs.volume import NtfsVolume, open_volume
from tests.fsdrivers.ntfs.volumes import MIB, make_image, mounted, populate, windows_volume

pytestmark = [pytest.mark.tools, pytest.mark.root]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a volume that ntfs-3g filled."""
    where = tmp_path_factory.mktemp("sound")
    image = make_image(where / "image", 32 * MIB)
    with mounted(image, where / "mount") as root:
        populate(root)
    return image.read_bytes()


def rules(image: bytes) -> set[str]:
    """Return the rules that a volume breaks."""
    return {finding.rule for finding in check_volume(MemoryDevice.of(image))}


def test_sound(sound: bytes) -> None:
    """A volume that ntfs-3g made has no findings, nor has one that Windows made."""
    assert check_volume(MemoryDevice.of(sound)) == []
    with FileDevice.open(windows_volume()) as device:
        assert check_volume(device) == []


Change = Callable[[NtfsVolume, bytearray], None]


def change_record(volume: NtfsVolume, image: bytearray, number: int, edit: Change) -> None:
    """Edit an MFT record under its fixups."""
    record = volume.mft.raw_record(number)
    edit(volume, record)
    fixups.seal(record, 77)
    position = volume.mft.record_position(number)
    image[position : position + len(record)] = record


def number_of(volume: NtfsVolume, name: bytes) -> int:
    """Return the record that a name leads to."""
    return next(entry.node.number for entry in volume.walk() if entry.name == name)


def add_to(field: str, amount: int) -> Change:
    """Return an edit of a record's head."""

    def edit(volume: NtfsVolume, record: bytearray) -> None:
        head = RecordHead.unpack(record)
        setattr(head, field, getattr(head, field) + amount)
        record[: RecordHead.SIZE] = head.pack()

    return edit


def security_id(volume: NtfsVolume, record: bytearray) -> None:
    """Give a file a security id that is not there."""
    at = RecordHead.unpack(record).attributes_offset + 24
    struct.pack_into("<I", record, at + StandardInformation3.OFFSETS["security_id"], 0x7777)


def duplicate_id(volume: NtfsVolume, record: bytearray) -> None:
    """Give the first attribute the id of the second."""
    first = RecordHead.unpack(record).attributes_offset
    second = first + int.from_bytes(record[first + 4 : first + 8], "little")
    record[first + 14 : first + 16] = record[second + 14 : second + 16]


def rename(volume: NtfsVolume, record: bytearray) -> None:
    """Change the name in a record."""
    at = bytes(record).find("hidden.sys".encode("utf-16-le"))
    record[at] ^= 1


RECORD_CHANGES: dict[str, tuple[Change, str]] = {
    "link count": (add_to("links", 1), "links"),
    "used size": (add_to("used_size", 8), "used-size"),
    "allocated size": (add_to("allocated_size", 512), "record-size"),
    "next id": (add_to("next_attribute_id", -3), "attribute-id"),
    "same id": (duplicate_id, "attribute-id"),
    "name": (rename, "name-not-listed"),
    "sequence": (add_to("sequence", 1), "listed-not-named"),
    "security id": (security_id, "secure-missing"),
    "not in use": (add_to("flags", -1), "mft-bitmap"),
}


@pytest.mark.parametrize("name", RECORD_CHANGES)
def test_changed_record(sound: bytes, name: str) -> None:
    """One wrong field of one record is found."""
    edit, rule = RECORD_CHANGES[name]
    volume, image = open_volume(MemoryDevice.of(sound)), bytearray(sound)
    change_record(volume, image, number_of(volume, b"hidden.sys"), edit)

    assert rule in rules(bytes(image))


def place(volume: NtfsVolume, number: int, kind: int, name: bytes, offset: int) -> int:
    """Return where a byte of an attribute is on the volume."""
    content = volume.mft.content_of(volume.mft.file(number), kind, name)
    assert content is not None
    for start, length, position in content.mapped:
        if start <= offset < start + length:
            return position + offset - start
    raise AssertionError("not mapped")


def test_changed_bitmap(sound: bytes) -> None:
    """A bit too many and a bit too few in $Bitmap are told apart; so are those behind the end."""
    volume = open_volume(MemoryDevice.of(sound))
    where = place(volume, 6, AttributeType.DATA, b"", 0)
    used, free = bytearray(sound), bytearray(sound)
    free[where] &= 0xFE
    clusters = volume.geometry.cluster_count
    used[where + clusters // 8 - 1] |= 0x80

    assert rules(bytes(free)) == {"bitmap-free"}
    assert rules(bytes(used)) == {"bitmap-used"}


def test_changed_frame(sound: bytes) -> None:
    """The copy of the boot sector, $MFTMirr, and the copies of descriptors are compared."""
    volume = open_volume(MemoryDevice.of(sound))
    for position, rule in (
        (len(sound) - 512 + 300, "boot-copy"),
        (volume.geometry.position(volume.geometry.mft_mirror_lcn) + 8, "mirror"),
        (place(volume, 9, AttributeType.DATA, SECURITY_STREAM, SECURITY_BLOCK_SIZE + 30),
         "secure-copy"),
        (place(volume, 9, AttributeType.DATA, SECURITY_STREAM, 4), "secure-index"),
    ):  # fmt: skip
        image = bytearray(sound)
        image[position] ^= 0xFF
        assert rule in rules(bytes(image)), rule


def test_swapped_names(sound: bytes) -> None:
    """Two names of a directory in the wrong order are found, which no free tool notices."""
    first, second = (f"a rather long name of a file {n:04}".encode("utf-16-le") for n in (3, 4))
    swapped = sound.replace(first, b"?" * len(first)).replace(second, first)
    swapped = swapped.replace(b"?" * len(first), second)

    assert rules(swapped) & {"index-order", "listed-not-named"}


def test_every_byte_of_the_root(sound: bytes, tmp_path: Path) -> None:
    """Whatever byte of the root's record is wrong, checking ends with findings or our error."""
    position = open_volume(MemoryDevice.of(sound)).mft.record_position(5)
    device = MemoryDevice.of(sound)
    for at in range(position, position + 1024, 37):
        device.write(at, bytes([sound[at] ^ 0xFF]))
        try:
            check_volume(device)
        except FilesystemError:
            pytest.fail(f"byte {at - position}")
        device.write(at, sound[at : at + 1])
