# SPDX-License-Identifier: Apache-2.0
"""Opening the volume that a verb of `rebuildkit fs` works on, with what its options say of it.

`--codepage` is for FAT: no volume says in which code page its 8.3 names and its label are.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fsdrivers
import fsdrivers.volume
from fsdrivers import EMPTY, UNKNOWN, Driver, driver_of, find_driver, probe
from fsdrivers.device import Device
from fsdrivers.editing import Editor
from fsdrivers.errors import (
    DeviceError,
    FilesystemError,
    InvalidNameError,
    NotFoundError,
    NotRecognisedError,
    UnsupportedError,
)
from fsdrivers.tree import Tree
from fsdrivers.volume import VolumeOptions
from imagebuilder.cli.commands import option
from imagebuilder.cli.common import UsageError, json_flag, report_error
from imagebuilder.cli.fs.content import content_of

if TYPE_CHECKING:
    from fsdrivers.partitions import PartitionTable


def _codepage(text: str) -> str:
    from fsdrivers.fat.codepage import code_page

    try:
        return code_page(text).name
    except UnsupportedError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _partition(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Options of every verb."""

    image: str = option("IMAGE", "image file or block device")
    json: bool = json_flag()


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Image):
    """Options that say which volume, and how to read it."""

    partition: int | str | None = option(
        "-p --partition N",
        "partition, by the number that Linux gives it, or by label, UUID, PARTUUID or name; 0: the "
        "whole disk",
        type=_partition,
    )
    sector_size: int | None = option(
        "--sector-size BYTES",
        "sector size of the disk that the image is of, if not 512",
        type=int,
        choices=(512, 4096),
    )
    codepage: str | None = option(
        "--codepage N",
        "OEM code page of 8.3 names and the label on FAT: 437 (default), 850, 932, ...",
        type=_codepage,
    )


def open_window(options: Volume, device: Device) -> Device:
    """Return the part of a device that the options name.

    Raises:
        UsageError: there are partitions, and the options do not choose one.
        NotFoundError: the partition does not exist.
    """
    from fsdrivers.partitions import open_partition, read_table

    number = partition_number(options.partition, device)
    if number == 0 or (number is None and is_beside_partitions(device)):
        return device
    table = read_table(device)
    if number is not None:
        return open_partition(device, table, number)
    if table.entries:
        shown = [
            f"{entry.number} ({_content_text(device, table, entry.number)})"
            for entry in table.entries
            if not entry.is_extended
        ]
        raise UsageError(
            f"{options.image} has partitions; choose one with --partition: {', '.join(shown)}"
        )
    return device


def partition_number(partition: int | str | None, device: Device) -> int | None:
    """Return the number of the partition that is meant, None if none is.

    Args:
        partition: its number, or label or UUID of what it holds, or PARTUUID or name of its own.
        device: the disk.

    Raises:
        NotFoundError: no partition is called so.
        UsageError: several are.
    """
    from fsdrivers.partitions import open_partition, read_table

    if partition is None or isinstance(partition, int):
        return partition
    table = read_table(device)
    found = []
    for entry in table.entries:
        names = {entry.partuuid.lower(), entry.name}
        with contextlib.suppress(FilesystemError, DeviceError):
            volume = fsdrivers.open_volume(open_partition(device, table, entry.number))
            names |= {volume.uuid.lower(), volume.label_text()}
        if partition in names or partition.lower() in names - {entry.name}:
            found.append(entry.number)
    if not found:
        raise NotFoundError(f"{device.name} has no partition {partition}")
    if len(found) > 1:
        numbers = " or ".join(map(str, found))
        raise UsageError(f"several partitions are called {partition}: choose one with -p {numbers}")
    return found[0]


def _content_text(device: Device, table: PartitionTable, number: int) -> str:
    """Return in a few words what a partition holds."""
    from fsdrivers.partitions import open_partition

    try:
        return content_of(open_partition(device, table, number)) or EMPTY
    except (FilesystemError, DeviceError):
        return "unreadable"


def is_beside_partitions(device: Device) -> bool:
    """Tell whether a whole device holds a volume, also where there is a partition table."""
    driver = find_driver(probe(device))
    return driver is not None and driver.is_start_free


def driver_for(options: Volume, device: Device) -> tuple[Driver, VolumeOptions]:
    """Return the driver of the volume on a device, and keywords for its functions.

    Raises:
        NotRecognisedError, UnsupportedError: no driver knows it.
        UsageError: a code page was given for a volume without one.
    """
    kind = probe(device)
    if kind in (EMPTY, UNKNOWN):
        what = "is empty" if kind == EMPTY else "holds nothing that any driver knows"
        raise NotRecognisedError(f"{device.name} {what}")
    driver = driver_of(kind)
    if options.codepage is None:
        return driver, {}
    if not driver.has_code_page:
        raise UsageError(f"--codepage is for FAT; this is {kind}")
    return driver, {"code_page": options.codepage}


def open_volume(options: Volume, device: Device) -> fsdrivers.volume.Volume:
    """Open a volume for reading.  Raises as `fsdrivers.open_volume`, and UsageError."""
    if options.codepage is None:
        return fsdrivers.open_volume(device)
    driver, keywords = driver_for(options, device)
    return driver.open_volume(device, **keywords)


def open_tree(options: Volume, device: Device) -> Tree:
    """Open a volume and read its names; what makes its state doubtful goes to standard error."""
    volume = open_volume(options, device)
    tree = Tree(volume)
    for text in volume.warnings():
        report_error(f"warning: {text}")
    return tree


def open_editor(options: Volume, device: Device) -> Editor:
    """Open a volume for changes.

    Raises:
        UnsupportedError: its driver only reads.
        Else as `open_volume`.
    """
    driver, keywords = driver_for(options, device)
    return driver.open_editor(device, **keywords)


def shown_label(volume: fsdrivers.volume.Volume) -> bytes:
    """Return the label as UTF-8 where it is stored in a code page, else as it is stored."""
    return volume.label_text().encode() if volume.label_encoding else volume.label


def stored_label(volume: fsdrivers.volume.Volume, label: bytes) -> bytes:
    """Return a label from the command line as it is stored.

    Raises:
        InvalidNameError: the code page lacks a character, or it is not text.
    """
    encoding = volume.label_encoding
    if not encoding:
        return label
    try:
        return label.decode().encode(encoding)
    except UnicodeError as error:
        shown = label.decode("utf-8", "backslashreplace")
        raise InvalidNameError(f"code page {encoding[2:]} cannot hold the label {shown}") from error
