# SPDX-License-Identifier: Apache-2.0
"""Opening the volume that a verb of `rebuildkit fs` works on, with what its options say of it.

`--codepage` is for FAT: no volume says in which code page its 8.3 names and its label are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from fsdrivers.device import Device
from fsdrivers.errors import InvalidNameError, NotRecognisedError, UnsupportedError
from imagebuilder.cli.commands import option
from imagebuilder.cli.common import UsageError, json_flag, report_error

if TYPE_CHECKING:
    import fsdrivers.volume
    from fsdrivers.editing import Editor
    from fsdrivers.tree import Tree


def _codepage(text: str) -> str:
    from fsdrivers.fat.codepage import code_page

    try:
        return code_page(text).name
    except UnsupportedError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Options of every verb."""

    image: str = option("IMAGE", "image file or block device")
    json: bool = json_flag()


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Image):
    """Options that say which volume, and how to read it."""

    partition: int | None = option(
        "-p --partition N", "number as Linux counts; 0: the disk", type=int
    )
    sector_size: int | None = option(
        "--sector-size BYTES",
        "of an image whose disk had other sectors than 512 bytes",
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
    from fsdrivers import ISO_TYPES, probe
    from fsdrivers.partitions import open_partition, read_table

    if options.partition == 0:
        return device
    if options.partition is None and probe(device) in ISO_TYPES:  # also where there are partitions
        return device
    table = read_table(device)
    if options.partition is not None:
        return open_partition(device, table, options.partition)
    if table.entries:
        numbers = [str(entry.number) for entry in table.entries if not entry.is_extended]
        raise UsageError(
            f"{options.image} has partitions; choose one with --partition: {', '.join(numbers)}"
        )
    return device


def driver_for(options: Volume, device: Device) -> tuple[str, ModuleType, dict[str, str]]:
    """Return type and driver of the volume on a device, and keywords for its functions.

    Raises:
        NotRecognisedError, UnsupportedError: no driver knows it.
        UsageError: a code page was given for a volume without one.
    """
    from fsdrivers import FAT_TYPES, driver_of, probe
    from fsdrivers.probing import EMPTY, UNKNOWN

    type = probe(device)
    if type in (EMPTY, UNKNOWN):
        what = "is empty" if type == EMPTY else "holds nothing that any driver knows"
        raise NotRecognisedError(f"{device.name} {what}")
    driver = driver_of(type)
    if options.codepage is None:
        return type, driver, {}
    if type not in FAT_TYPES:
        raise UsageError(f"--codepage is for FAT; this is {type}")
    return type, driver, {"code_page": options.codepage}


def open_volume(options: Volume, device: Device) -> fsdrivers.volume.Volume:
    """Open a volume for reading.  Raises as `fsdrivers.open_volume`, and UsageError."""
    import fsdrivers

    if options.codepage is None:
        return fsdrivers.open_volume(device)
    _, driver, keywords = driver_for(options, device)
    volume: fsdrivers.volume.Volume = driver.open_volume(device, **keywords)
    return volume


def open_tree(options: Volume, device: Device) -> Tree:
    """Open a volume and read its names; what makes its state doubtful goes to standard error."""
    from fsdrivers.tree import Tree

    volume = open_volume(options, device)
    tell: Callable[[], list[str]] | None = getattr(volume, "warnings", None)
    for text in tell() if tell is not None else ():
        report_error(f"warning: {text}")
    return Tree(volume)


def open_editor(options: Volume, device: Device) -> Editor:
    """Open a volume for changes.

    Raises:
        UnsupportedError: its driver only reads.
        Else as `open_volume`.
    """
    type, driver, keywords = driver_for(options, device)
    if not hasattr(driver, "open_editor"):
        raise UnsupportedError(f"changing {type} volumes")
    editor: Editor = driver.open_editor(device, **keywords)
    return editor


def shown_label(volume: fsdrivers.volume.Volume) -> bytes:
    """Return the label as UTF-8 where it is stored in a code page, else as it is stored."""
    page = getattr(volume, "page", None)
    return volume.label if page is None else volume.label.decode(page.name, "replace").encode()


def stored_label(volume: fsdrivers.volume.Volume, label: bytes) -> bytes:
    """Return a label from the command line as it is stored.

    Raises:
        InvalidNameError: the code page lacks a character, or it is not text.
    """
    page = getattr(volume, "page", None)
    if page is None:
        return label
    try:
        return bytes(label.decode().encode(page.name))
    except UnicodeError as error:
        shown = label.decode("utf-8", "backslashreplace")
        raise InvalidNameError(
            f"code page {page.name[2:]} cannot hold the label {shown}"
        ) from error
