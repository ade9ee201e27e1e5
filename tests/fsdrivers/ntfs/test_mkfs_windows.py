# SPDX-License-Identifier: Apache-2.0
"""Copies of volumes that Windows made, compared with them record by record and field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsdrivers.device import FileDevice
from fsdrivers.ntfs.attributes import Attribute, unpack_attributes
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.format.attributes import (
    AttributeType,
    FileName,
    NonResidentHead,
    ResidentHead,
    StandardInformation,
)
from fsdrivers.ntfs.format.index import IndexRoot
from fsdrivers.ntfs.format.records import FileAttribute, NumberedRecordHead, SystemRecord
from fsdrivers.ntfs.mkfs import default_description
from fsdrivers.ntfs.mkfs.plan import NtfsLayout
from fsdrivers.ntfs.volume import NtfsVolume, open_volume
from tests.fsdrivers.ntfs.trees import compare, forest_of, seen_on
from tests.fsdrivers.ntfs.volumes import WINDOWS_SOURCE, windows_volume
from tests.fsdrivers.source_packages import unpacked_member

SYSTEM_RECORDS = (*range(SystemRecord.FIRST_FREE), 24, 25, 26)
# How much these hold follows from what is on the volume, and from what is left out in $Extend.
OF_OTHER_SIZE = {
    (SystemRecord.MFT, AttributeType.DATA),
    (SystemRecord.MFT, AttributeType.BITMAP),
    (SystemRecord.SECURE, AttributeType.DATA),
}
TRANSACTION = "$TXF_DATA".encode("utf-16-le")  # Windows makes its own


def cloud_volume() -> Path:
    """Return a volume with OneDrive on it: journal, holes, reparse points."""
    return unpacked_member(WINDOWS_SOURCE, "tests/_data/ntfs-cloud.bin.gz", "windows-cloud.img")


@pytest.fixture(
    scope="module",
    params=[windows_volume, pytest.param(cloud_volume, marks=pytest.mark.slow)],
    ids=["plain", "cloud"],
)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[NtfsVolume, NtfsVolume, NtfsLayout]]:
    """Return a volume that Windows made, our copy, and the copy's layout."""
    with FileDevice.open(request.param()) as device:
        source = open_volume(device)
        copy, layout = forest_of(source).write_layout(source.describe(), source.size)
        assert check_volume(copy) == []
        yield source, open_volume(copy), layout


def test_what_is_made_after_no_other_is_what_windows_makes() -> None:
    """Tables, descriptors, attributes and quota of a new volume are those Windows formatted."""
    with FileDevice.open(windows_volume()) as device:
        windows: dict[str, Any] = open_volume(device).describe()
    serial = int(windows["serial"], 16)
    made: dict[str, Any] = default_description(
        windows["size"], label=windows["label"], serial=serial, now_ns=0
    )
    differ = {key for key in made if made[key] != windows[key]}
    assert differ == {"volume_flags", "bpb", "boot", "quota", "system_files"}
    places = ("hidden_sectors", "mft_lcn", "mft_mirror_lcn")
    assert {key for key in made["bpb"] if made["bpb"][key] != windows["bpb"][key]} == set(places)
    assert made["quota"]["$O"] == [list(item) for item in windows["quota"]["$O"]]
    expected = {item["number"]: item for item in windows["system_files"]}
    assert len(made["system_files"]) == len(expected)
    for item in made["system_files"]:
        number = item["number"]
        kept = {key: value for key, value in item.items() if not key.endswith("_ns")}
        if number == SystemRecord.ROOT:  # it was made compressed later
            kept["file_attributes"] |= FileAttribute.COMPRESSED
        assert kept == {key: expected[number][key] for key in kept}, number


def fields_of(volume: NtfsVolume, number: int) -> dict[tuple[int, bytes], list[Any]]:
    """Return what the attributes of a record say of themselves, by type and name."""
    record = volume.mft.raw_record(number)
    head = NumberedRecordHead.unpack(record)
    found: dict[tuple[int, bytes], list[Any]] = {
        (0, b""): [
            (head.magic, head.fixups_offset, head.fixups_count, head.attributes_offset),
            (head.links, head.flags, head.allocated_size, head.base_reference),
        ]
    }
    for part in unpack_attributes(record, 0):
        if part.name != TRANSACTION:
            found.setdefault((part.type, part.name), []).append(_fields(number, part))
    return found


def _fields(number: int, part: Attribute) -> tuple[Any, ...]:
    """Return what one attribute says of itself, but its place, its id and what depends on them."""
    if not part.is_resident:
        head = NonResidentHead.unpack(part.record, part.start)
        sizes = (head.allocated_size, head.data_size, head.initialised_size)
        if (number, part.type) in OF_OTHER_SIZE or part.type == AttributeType.INDEX_ALLOCATION:
            sizes = (0, 0, 0)
        return (part.flags, head.compression_unit, head.runs_offset, sizes)
    resident = ResidentHead.unpack(part.record, part.start)
    shown: Any = part.value
    if part.type == AttributeType.STANDARD_INFORMATION:
        shown = StandardInformation.unpack(part.value)
    elif part.type == AttributeType.FILE_NAME:
        name = FileName.unpack(part.value)
        # Windows leaves sizes, flags and tag as they were when the name was made.
        shown = replace(name, parent=0, allocated_size=0, data_size=0, flags=0, reparse_tag=0)
        if number in SYSTEM_RECORDS:
            shown = replace(shown, accessed=0)  # is not described
        shown = (shown, part.value[FileName.SIZE :])
    elif part.type == AttributeType.INDEX_ROOT:
        shown = IndexRoot.unpack(part.value)
    elif part.type == AttributeType.BITMAP:
        shown = len(part.value) % 8
    return (part.flags, resident.value_offset, resident.resident_flags, shown)


def test_system_records_are_those_of_windows(
    pair: tuple[NtfsVolume, NtfsVolume, NtfsLayout],
) -> None:
    """Every system file has the attributes that Windows gives it, field by field."""
    source, copy, _ = pair
    for number in SYSTEM_RECORDS:
        expected, found = fields_of(source, number), fields_of(copy, number)
        if number == SystemRecord.ROOT:  # what the root's name says is not described
            expected.pop((AttributeType.FILE_NAME, b""))
            found.pop((AttributeType.FILE_NAME, b""))
        assert found == expected, number
        assert copy.mft.file(number).sequence == source.mft.file(number).sequence


def test_files_records_are_those_of_windows(
    pair: tuple[NtfsVolume, NtfsVolume, NtfsLayout],
) -> None:
    """Every file has the attributes that it had, but small content comes into its record."""
    source, copy, layout = pair
    compare(seen_on(source), seen_on(copy))
    for entry in source.walk():
        number = entry.node.number
        if number == SystemRecord.ROOT:
            continue
        expected = fields_of(source, number)
        found = fields_of(copy, layout.record_of(number))
        for key in expected.keys() | found.keys():
            kind = key[0]
            if kind in (AttributeType.INDEX_ALLOCATION, AttributeType.BITMAP):
                continue  # a denser tree may need none
            is_moved = layout.resident_place(number, b"") is not None
            if kind != AttributeType.DATA or not is_moved:
                assert found.get(key) == expected.get(key), (entry.name, key)
