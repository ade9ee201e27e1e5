# SPDX-License-Identifier: Apache-2.0
"""Opening the volume that a verb of `rebuildkit fs` works on, with what its options say of it.

`--codepage` is for FAT: no volume says in which code page its 8.3 names and its label are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from fsdrivers.device import Device
from fsdrivers.errors import InvalidNameError, NotRecognisedError, UnsupportedError
from imagebuilder.cli.common import UsageError, report_error

if TYPE_CHECKING:
    from fsdrivers.editing import Editor
    from fsdrivers.tree import Tree
    from fsdrivers.volume import Volume


def add_codepage(parser: argparse.ArgumentParser) -> None:
    """Add the option for the code page."""
    parser.add_argument(
        "--codepage",
        metavar="N",
        type=_codepage,
        help="OEM code page of 8.3 names and the label on FAT: 437 (default), 850, 932, ...",
    )


def _codepage(text: str) -> str:
    from fsdrivers.fat.codepage import code_page

    try:
        return code_page(text).name
    except UnsupportedError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def driver_for(args: argparse.Namespace, device: Device) -> tuple[str, ModuleType, dict[str, str]]:
    """Return type and driver of the volume on a device, and what its functions take beside it.

    Raises:
        NotRecognisedError, UnsupportedError: no driver knows it.
        UsageError: a code page was named, and it has none.
    """
    from fsdrivers import FAT_TYPES, driver_of, probe
    from fsdrivers.probing import EMPTY, UNKNOWN

    type = probe(device)
    if type in (EMPTY, UNKNOWN):
        what = "is empty" if type == EMPTY else "holds nothing that any driver knows"
        raise NotRecognisedError(f"{device.name} {what}")
    driver = driver_of(type)
    if args.codepage is None:
        return type, driver, {}
    if type not in FAT_TYPES:
        raise UsageError(f"--codepage is for FAT; this is {type}")
    return type, driver, {"code_page": args.codepage}


def open_volume(args: argparse.Namespace, device: Device) -> Volume:
    """Open a volume for reading.  Raises as `fsdrivers.open_volume`, and UsageError."""
    import fsdrivers

    if args.codepage is None:
        return fsdrivers.open_volume(device)
    _, driver, options = driver_for(args, device)
    volume: Volume = driver.open_volume(device, **options)
    return volume


def open_tree(args: argparse.Namespace, device: Device) -> Tree:
    """Open a volume and read its names; what makes its state doubtful goes to standard error."""
    from fsdrivers.tree import Tree

    volume = open_volume(args, device)
    tell: Callable[[], list[str]] | None = getattr(volume, "warnings", None)
    for text in tell() if tell is not None else ():
        report_error(f"warning: {text}")
    return Tree(volume)


def open_editor(args: argparse.Namespace, device: Device) -> Editor:
    """Open a volume for changes.

    Raises:
        UnsupportedError: its driver changes none.
        Else as `open_volume`.
    """
    type, driver, options = driver_for(args, device)
    if not hasattr(driver, "open_editor"):
        raise UnsupportedError(f"changing {type} volumes")
    editor: Editor = driver.open_editor(device, **options)
    return editor


def shown_label(volume: Volume) -> bytes:
    """Return the label as UTF-8 where it is stored in a code page, else as it is stored."""
    page = getattr(volume, "page", None)
    return volume.label if page is None else volume.label.decode(page.name, "replace").encode()


def stored_label(volume: Volume, label: bytes) -> bytes:
    """Return a label from the command line as it is stored.

    Raises:
        InvalidNameError: the code page lacks a character, or it is no text.
    """
    page = getattr(volume, "page", None)
    if page is None:
        return label
    try:
        return bytes(label.decode().encode(page.name))
    except UnicodeError as error:
        shown = label.decode("utf-8", "backslashreplace")
        raise InvalidNameError(f"no label in code page {page.name[2:]}: {shown}") from error
