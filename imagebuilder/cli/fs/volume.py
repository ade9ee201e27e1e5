# SPDX-License-Identifier: Apache-2.0
"""The verbs of `rebuildkit fs` for whole volumes: describe, mkfs, check, extract.

A description is what a driver's `Volume.describe` gives, as JSON; formatting from it gives the
same kind of volume again, not what a newer tool would make.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import fsdrivers.volume
from fsdrivers import Can, Driver, driver_of, signatures, types_that
from fsdrivers.device import Device, FileDevice
from fsdrivers.volume import Description, Entry, Kind, Node, Plain
from imagebuilder.cli.commands import flag, option
from imagebuilder.cli.common import UsageError, print_json, size_of_text
from imagebuilder.cli.fs.made import made_fields, made_line, refuse_content
from imagebuilder.cli.fs.open import (
    Volume,
    driver_for,
    open_tree,
    open_volume,
    open_window,
    partition_number,
)
from imagebuilder.cli.targets import refuse_missing_device
from rebuild.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Mkfs(Volume):
    like: str | None = option(
        "--like IMAGE", "make a volume like the one on this image", group="kind!"
    )
    description: str | None = option("--description FILE", "what `describe` printed", group="kind!")
    type: str | None = option(
        "--type", "make a new volume, like no other", choices=types_that(Can.CREATE), group="kind!"
    )
    like_partition: int | None = option(
        "--like-partition N", "with --like: which partition", type=int
    )
    label: str | None = option("--label TEXT", "with --type: label of the volume")
    cluster_size: int | None = option(
        "--cluster-size SIZE",
        "with --type: size of its clusters or blocks, such as 4K",
        type=size_of_text,
    )
    size: int | None = option(
        "--size SIZE", "size of a new image file, such as 4G or 512M", type=size_of_text
    )
    source: str | None = option("--from DIRECTORY", "fill it with what is in this directory")
    force: bool = flag("-f --force", "write even over what holds something")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract(Volume):
    paths: tuple[str, ...] = option("PATH", "from the volume's root; may have wildcards", nargs="+")
    target: str = option(
        "DIRECTORY", "new or empty; for single files any directory, in which nothing is overwritten"
    )


def described(volume: fsdrivers.volume.Volume) -> dict[str, Plain]:
    """Return the description of a volume, its type and size among it."""
    return {"type": volume.type, "size": volume.size, **volume.describe()}


def pack_description(description: Description) -> str:
    """Return a description as JSON; bytes become {"base64": text}."""

    def plain(value: object) -> object:
        assert isinstance(value, bytes), "all else is plain"
        return {"base64": base64.b64encode(value).decode()}

    return json.dumps(dict(description), indent=2, sort_keys=True, default=plain)


def unpack_description(text: str) -> dict[str, Plain]:
    """Return the description that `pack_description` made a text of.

    Raises:
        UsageError: it is not a description.
    """

    def restored(value: dict[str, Plain]) -> Plain:
        coded = value.get("base64")
        if len(value) == 1 and isinstance(coded, str):
            return base64.b64decode(coded)
        return value

    try:
        made = json.loads(text, object_hook=restored)
    except ValueError as error:
        raise UsageError(f"the description is not JSON: {error}") from error
    if not isinstance(made, dict) or not isinstance(made.get("type"), str):
        raise UsageError("the description does not name the type of the volume")
    return made


def describe(options: Volume, device: Device) -> int:
    """Print as JSON all that formatting the same volume again needs."""
    print(pack_description(described(open_volume(options, device))))
    return ExitCode.DONE


def _description_of(options: Mkfs) -> dict[str, Plain]:
    """Return the description that the options name."""
    if options.type is not None:
        return _new_description(options)
    if options.label is not None or options.cluster_size is not None:
        raise UsageError("--label and --cluster-size need --type")
    if options.description is not None:
        return unpack_description(Path(options.description).read_text(encoding="utf-8"))
    assert options.like is not None, "one of the three is required"
    like = replace(options, image=options.like, partition=options.like_partition)
    with FileDevice.open(like.image, sector_size=like.sector_size) as device:
        return described(open_volume(like, open_window(like, device)))


def _new_description(options: Mkfs) -> dict[str, Plain]:
    """Return the description of a volume that is made after no other."""
    size, sector_size = options.size, options.sector_size or 512
    if Path(options.image).exists():
        with FileDevice.open(options.image, sector_size=options.sector_size) as device:
            size, sector_size = open_window(options, device).size, device.sector_size
    elif not size:
        raise UsageError(f"{options.image} does not exist; give its size with --size")
    label = (options.label or "").encode("utf-8", "surrogateescape")
    assert options.type is not None, "that is what brings us here"
    made = driver_of(options.type).default_description(
        size,
        kind=options.type,
        sector_size=sector_size,
        cluster_size=options.cluster_size,
        label=label,
    )
    return {"size": size, **made, "type": options.type}


def mkfs(options: Mkfs) -> int:
    """Format a volume, with --force over another one. IMAGE is made if it does not exist."""
    refuse_missing_device(options.image)
    options = _with_number(options)
    description = _description_of(options)
    kind = str(description["type"])
    driver = driver_of(kind)
    if options.codepage is not None:
        if not driver.has_code_page:
            raise UsageError(f"--codepage is for FAT; this is {kind}")
        description["code_page"] = options.codepage
    driver.check_description(description)
    path = Path(options.image)
    is_blank = not path.exists()
    if is_blank:
        recorded = description.get("size")
        size = options.size or (recorded if isinstance(recorded, int) else 0)
        if not size:
            raise UsageError(f"{path} does not exist; give its size with --size")
        with open(path, "xb") as file:
            file.truncate(size)
    elif options.size:
        raise UsageError(f"{path} exists and keeps its size; leave out --size")
    try:
        return _make(options, driver, description, is_blank=is_blank)
    except BaseException:
        if is_blank:
            path.unlink(missing_ok=True)
        raise


def _with_number(options: Mkfs) -> Mkfs:
    """Return the options with the number of the partition, whose label will be another."""
    if not isinstance(options.partition, str):
        return options
    with FileDevice.open(options.image, sector_size=options.sector_size) as device:
        return replace(options, partition=partition_number(options.partition, device))


def _make(options: Mkfs, driver: Driver, description: Description, *, is_blank: bool) -> int:
    """Format the volume that the options name, and fill it if they say so."""
    with FileDevice.open(
        options.image,
        writable=True,
        sector_size=options.sector_size,
        direct=options.source is not None,
    ) as device:
        window = open_window(options, device)
        if not is_blank and not options.force:
            refuse_content(window)
        if options.source is not None:
            from imagebuilder.cli.fs.populate import populate

            code = populate(options, options.source, driver, description, window, is_blank=is_blank)
        else:
            _format(driver, description, window)
            window.flush()
            code = ExitCode.DONE
            if options.json:
                print_json(made_fields(options, window))
    if not options.json:
        with FileDevice.open(options.image, sector_size=options.sector_size) as device:
            print(made_line(options, open_window(options, device)))
    return code


def _format(driver: Driver, description: Description, device: Device) -> None:
    root = Node(1, Kind.DIRECTORY, mode=0o755, modified_ns=time.time_ns())
    entries = [Entry(1, b"", root)] if driver.has_files else []
    layout = driver.plan_volume(
        description, size=device.size, sector_size=device.sector_size, entries=entries, order=()
    )
    signatures.wipe(device)
    for position, data in layout.iter_metadata():
        device.write(position, data)


def check(options: Volume, device: Device) -> int:
    """List everything that is wrong with the volume; exit code 5 if anything is."""
    driver, keywords = driver_for(options, device)
    findings = driver.check_volume(device, **keywords)
    if options.json:
        print_json(
            [{"rule": item.rule, "what": item.what, "position": item.position} for item in findings]
        )
    else:
        for item in findings:
            print(item)
        if not findings:
            print(f"{device.name}: clean")
    return ExitCode.CORRUPT if findings else ExitCode.DONE


def extract(options: Extract, device: Device) -> int:
    """Restore an object and all below it to a host directory."""
    from imagebuilder.cli.fs.extract import extract

    tree = open_tree(options, device)
    return extract(tree, options.paths, options.target, json=options.json)
