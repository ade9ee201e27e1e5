# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs describe`, `mkfs` and `check`: whole volumes.

A description is what a driver's `Volume.describe` gives, as JSON; formatting from it gives the
same kind of volume again, not what a newer tool would make.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fsdrivers.device import Device, FileDevice
from fsdrivers.errors import UnsupportedError
from imagebuilder.cli.common import UsageError, print_json
from imagebuilder.cli.fs.open import driver_for, open_volume

if TYPE_CHECKING:
    from fsdrivers.volume import Description, Layout, Plain

OpenWindow = Callable[[argparse.Namespace, Device], Device]
CORRUPT = 5  # exit code of `check` when it finds something


def pack_description(description: Description) -> str:
    """Return a description as JSON; bytes become {"base64": text}."""

    def plain(value: object) -> object:
        assert isinstance(value, bytes), "all else is plain"
        return {"base64": base64.b64encode(value).decode()}

    return json.dumps(dict(description), indent=2, sort_keys=True, default=plain)


def unpack_description(text: str) -> dict[str, Plain]:
    """Return the description that `pack_description` made a text of.

    Raises:
        UsageError: it is none.
    """

    def restored(value: dict[str, Plain]) -> Plain:
        coded = value.get("base64")
        if len(value) == 1 and isinstance(coded, str):
            return base64.b64decode(coded)
        return value

    try:
        made = json.loads(text, object_hook=restored)
    except ValueError as error:
        raise UsageError(f"the description is no JSON: {error}") from error
    if not isinstance(made, dict) or not isinstance(made.get("type"), str):
        raise UsageError("the description names no type of volume")
    return made


def describe(args: argparse.Namespace, device: Device) -> int:
    """Print the description of a volume."""
    print(pack_description(open_volume(args, device).describe()))
    return 0


def _description_of(args: argparse.Namespace, open_window: OpenWindow) -> dict[str, Plain]:
    """Return the description that the options name."""
    if [args.like, args.description, args.type].count(None) != 2:
        raise UsageError("name one of --like, --description and --type")
    if args.type is not None:
        return _new_description(args, open_window)
    if args.label is not None or args.cluster_size is not None:
        raise UsageError("--label and --cluster-size go with --type")
    if args.description is not None:
        return unpack_description(Path(args.description).read_text(encoding="utf-8"))
    chosen = argparse.Namespace(image=args.like, partition=args.like_partition)
    with FileDevice.open(args.like, sector_size=args.sector_size) as device:
        return open_volume(args, open_window(chosen, device)).describe()


def _new_description(args: argparse.Namespace, open_window: OpenWindow) -> dict[str, Plain]:
    """Return the description of a volume that is made after no other."""
    from fsdrivers.ntfs import default_description

    size, sector_size = args.size, args.sector_size or 512
    if Path(args.image).exists():
        with FileDevice.open(args.image, sector_size=args.sector_size) as device:
            size, sector_size = open_window(args, device).size, device.sector_size
    elif not size:
        raise UsageError(f"{args.image} does not exist; name its size with --size")
    label = (args.label or "").encode("utf-8", "surrogateescape")
    return default_description(
        size, sector_size=sector_size, cluster_size=args.cluster_size, label=label
    )


def run_mkfs(args: argparse.Namespace, open_window: OpenWindow) -> int:
    """Format a volume; IMAGE is made if it does not exist."""
    from fsdrivers import FAT_TYPES, ISO_TYPES, driver_of

    description = _description_of(args, open_window)
    type = str(description["type"])
    if args.codepage is not None:
        if type not in FAT_TYPES:
            raise UsageError(f"--codepage is for FAT; this is {type}")
        description["code_page"] = args.codepage
    driver = driver_of(type)
    if type in ISO_TYPES or not hasattr(driver, "plan_volume"):
        raise UnsupportedError(f"{type} volumes are read and not made")
    path = Path(args.image)
    is_blank = not path.exists()
    if is_blank:
        recorded = description.get("size")
        size = args.size or (recorded if isinstance(recorded, int) else 0)
        if not size:
            raise UsageError(f"{path} does not exist; name its size with --size")
        with open(path, "xb") as file:
            file.truncate(size)
    elif args.size:
        raise UsageError(f"{path} is there already and has a size")
    try:
        return _make(args, open_window, driver.plan_volume, description, is_blank=is_blank)
    except BaseException:
        if is_blank:
            path.unlink(missing_ok=True)
        raise


def _make(
    args: argparse.Namespace,
    open_window: OpenWindow,
    plan: Callable[..., Layout],
    description: Description,
    *,
    is_blank: bool,
) -> int:
    """Format the volume that the options name, and fill it if they say so."""
    with FileDevice.open(
        args.image,
        writable=True,
        sector_size=args.sector_size,
        direct=args.source is not None,
    ) as device:
        window = open_window(args, device)
        if args.source is not None:
            from imagebuilder.cli.fs.populate import populate

            return populate(args, plan, description, window, is_blank=is_blank)
        _format(plan, description, window)
        window.flush()
        if args.json:
            fields = {"type": str(description["type"]), "size": window.size}
            print_json({"action": "mkfs", **fields})
    return 0


def _format(plan: Callable[..., Layout], description: Description, device: Device) -> None:
    import time

    from fsdrivers.volume import Entry, Kind, Node

    root = Node(1, Kind.DIRECTORY, mode=0o755, modified_ns=time.time_ns())
    entries = [] if description["type"] == "swap" else [Entry(1, b"", root)]
    layout: Layout = plan(
        description, size=device.size, sector_size=device.sector_size, entries=entries, order=()
    )
    for position, data in layout.iter_metadata():
        device.write(position, data)


def check(args: argparse.Namespace, device: Device) -> int:
    """Print what is wrong with a volume; return 5 if anything is."""
    type, driver, options = driver_for(args, device)
    if not hasattr(driver, "check_volume"):
        raise UnsupportedError(f"checking {type} volumes")
    findings = driver.check_volume(device, **options)
    if args.json:
        print_json([{"what": item.what, "position": item.position} for item in findings])
    else:
        for item in findings:
            where = "" if item.position is None else f" (byte {item.position:#x})"
            print(f"{item.what}{where}")
    return CORRUPT if findings else 0
