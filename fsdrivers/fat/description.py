# SPDX-License-Identifier: Apache-2.0
"""The description of a FAT volume as plain data: what it takes to format the same one again.

Keys:
    type, size, sector_size, cluster_size, cluster_count, serial, label, oem_name, media
                   for people, and to compare two volumes by
    device_size    bytes of the device it was found on; may be larger than the volume
    bpb            every field of the boot sector's record by name; these count, not the raw bytes
    reserved       [sector number, content] of the reserved sectors that are not all zeros,
                   trailing zeros cut; number 0 is the boot sector with its code
    heads          FAT[0] and FAT[1] with all their bits
    root_label     None, or {"index": entries of the root before it, "entry": its 32 bytes}
    is_dirty       the volume was in use or had errors when it was read
    code_page      in which its 8.3 names were read; "cp437" if missing
    fsinfo         None, or the {"free_count", "next_free"} it had

This module is the only one that knows the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import construct

from fsdrivers.errors import CorruptError
from fsdrivers.fat import format as fat
from fsdrivers.fat.codepage import DEFAULT_CODE_PAGE
from fsdrivers.fat.geometry import Geometry, geometry_of
from fsdrivers.volume import Description, Kept, KeptKind, Plain, kept_facts

_TRANSIENT_FLAGS: Final = (fat.BootFlag.DIRTY | fat.BootFlag.NEEDS_SURFACE_TEST).value
_PLANNED: Final = frozenset(  # by the size of the volume and its sectors; and what are facts
    (
        "sector_size",
        "sectors_per_cluster",
        "root_entries",
        "total_sectors_16",
        "total_sectors_32",
        "fat_sectors_16",
        "fat_sectors_32",
        "root_cluster",
        "oem_name",
        "media",
    )
)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Template:
    """A FAT volume without its content."""

    boot: fat.BootSector16 | fat.BootSector32
    geometry: Geometry
    device_size: int
    reserved: dict[int, bytes]  # by sector number, trailing zeros cut
    heads: tuple[int, int]
    root_label: tuple[int, bytes] | None = None  # index among the entries of the root, 32 bytes
    is_dirty: bool = False
    code_page: str = DEFAULT_CODE_PAGE

    @property
    def fsinfo_sector(self) -> int | None:
        """Number of the reserved sector with FSInfo, None if there is none."""
        return self._reserved_sector("fsinfo_sector")

    @property
    def backup_sector(self) -> int | None:
        """Number of the reserved sector with a copy of the boot sector, None if there is none."""
        return self._reserved_sector("backup_sector")

    def fsinfo(self, sector: int) -> fat.FsInfo:
        """Return what the reserved sector `sector` says as FSInfo, valid or not."""
        return fat.FsInfo.unpack(
            self.reserved.get(sector, b"")[: fat.FsInfo.SIZE].ljust(fat.FsInfo.SIZE, b"\0")
        )

    def _reserved_sector(self, field: str) -> int | None:
        """Return a sector number that FAT32 names, if it is one of the reserved sectors."""
        if not isinstance(self.boot, fat.BootSector32):
            return None
        sector: int = getattr(self.boot, field)
        return (
            sector if sector not in fat.NO_SECTOR and sector < self.boot.reserved_sectors else None
        )


def serial_of(boot: fat.BootSector16 | fat.BootSector32) -> str:
    """Return the serial as "5EC0-FEED", or nothing if the volume has none."""
    if boot.boot_signature not in fat.EXTENDED_SIGNATURES:
        return ""
    return f"{boot.serial >> 16:04X}-{boot.serial & 0xFFFF:04X}"


def label_of(template: Template) -> bytes:
    """Return the label: that of the root directory, else that of the boot sector."""
    if template.root_label is not None:
        return fat.DirectoryEntry.unpack(template.root_label[1]).name.rstrip(b" ")
    boot = template.boot
    if boot.boot_signature != fat.EXTENDED_SIGNATURES[-1] or boot.label == fat.NO_LABEL:
        return b""
    return boot.label.rstrip(b" \0")


def pack_description(template: Template) -> dict[str, Plain]:
    """Return the template as plain data."""
    boot, geometry = template.boot, template.geometry
    bpb: dict[str, Plain] = {name: getattr(boot, name) for name in boot.OFFSETS}
    reserved: list[Plain] = [[sector, data] for sector, data in sorted(template.reserved.items())]
    root_label: dict[str, Plain] | None = None
    if template.root_label is not None:
        root_label = {"index": template.root_label[0], "entry": template.root_label[1]}
    fsinfo: dict[str, Plain] | None = None
    if template.fsinfo_sector is not None:
        found = template.fsinfo(template.fsinfo_sector)
        if found.is_valid:
            fsinfo = {"free_count": found.free_count, "next_free": found.next_free}
    return {
        "type": geometry.type,
        "size": geometry.size,
        "sector_size": geometry.sector_size,
        "cluster_size": geometry.cluster_size,
        "cluster_count": geometry.cluster_count,
        "serial": serial_of(boot),
        "label": label_of(template),
        "oem_name": boot.oem_name,
        "media": boot.media,
        "device_size": template.device_size,
        "bpb": bpb,
        "reserved": reserved,
        "heads": list(template.heads),
        "root_label": root_label,
        "is_dirty": template.is_dirty,
        "code_page": template.code_page,
        "fsinfo": fsinfo,
    }


def unpack_description(description: Description) -> Template:
    """Return the template that `description` holds.

    Raises:
        CorruptError: something is missing, of the wrong kind, or not of a FAT volume.
    """
    bpb = _get(description, "bpb", dict)
    kind = fat.BootSector32 if "fat_sectors_32" in bpb else fat.BootSector16
    try:
        boot = kind.unpack(kind(**bpb).pack())
    except (TypeError, ValueError, construct.ConstructError) as error:
        raise CorruptError(f"description of a FAT volume, bpb: {error}") from error
    reserved: dict[int, bytes] = {}
    for item in _get_list(description, "reserved"):
        sector, data = item if isinstance(item, list | tuple) and len(item) == 2 else (None, None)
        if not isinstance(sector, int) or not isinstance(data, bytes):
            raise CorruptError("description of a FAT volume, reserved", None, "[int, bytes]", item)
        reserved[sector] = data
    heads = [head for head in _get_list(description, "heads") if isinstance(head, int)]
    if len(heads) != 2:
        raise CorruptError("description of a FAT volume, heads", None, "two numbers", heads)
    root_label = None
    if description.get("root_label") is not None:
        label = _get(description, "root_label", dict)
        data = _get(label, "entry", bytes)
        if len(data) != fat.DirectoryEntry.SIZE or not (
            fat.DirectoryEntry.unpack(data).attributes & fat.Attribute.VOLUME_LABEL.value
        ):
            raise CorruptError("description of a FAT volume, root_label", None, "a label", data)
        # A label has no content: a cluster in its entry would be one that nothing owns.
        entry = replace(
            fat.DirectoryEntry.unpack(data), first_cluster_high=0, first_cluster_low=0, size=0
        )
        root_label = (_get(label, "index", int), entry.pack())
    return Template(
        boot=boot,
        geometry=geometry_of(boot),
        device_size=_get(description, "device_size", int),
        reserved=reserved,
        heads=(heads[0], heads[1]),
        root_label=root_label,
        is_dirty=bool(description.get("is_dirty")),
        code_page=_get({"code_page": DEFAULT_CODE_PAGE, **description}, "code_page", str),
    )


def boot_sector_bytes(
    boot: fat.BootSector16 | fat.BootSector32, raw: bytes, sector_size: int
) -> bytes:
    """Return a whole boot sector: the code of `raw` under the fields of `boot`."""
    sector = bytearray(raw[:sector_size].ljust(max(sector_size, fat.BOOT_SECTOR_SIZE), b"\0"))
    sector[: boot.SIZE] = boot.pack()
    return bytes(sector)


def _get_list(description: Description, key: str) -> list[Plain]:
    """Return a list of a description; serialisers may have made a tuple of it."""
    value: object = description.get(key)
    return list(value) if isinstance(value, tuple) else _get(description, key, list)


def _get(description: Description, key: str, kind: type[_T]) -> _T:
    """Return a value of a description.

    Raises:
        CorruptError: it is not there, or not of `kind`.
    """
    value = description.get(key)
    if not isinstance(value, kind):
        raise CorruptError(
            f"description of a FAT volume, {key}", None, kind.__name__, type(value).__name__
        )
    return value


def kept(recorded: Description, found: Description) -> Iterator[Kept]:
    """Yield what a volume made again must have as it was; see `fsdrivers.volume.IterKept`."""
    yield from kept_facts(recorded, found, "oem_name", "media")
    if "reserved" not in recorded:
        return
    old, new = unpack_description(recorded), unpack_description(found)
    planned = _PLANNED
    has_flags = (
        old.boot.boot_signature in fat.EXTENDED_SIGNATURES
    )  # else they and the serial are code
    if has_flags:
        planned |= {"serial", "boot_flags"}
        flags = [template.boot.boot_flags & ~_TRANSIENT_FLAGS for template in (old, new)]
        yield Kept("boot_flags", flags[0], flags[1], KeptKind.BOOT_FIELD)
    for name in old.boot.OFFSETS:
        if name not in planned:
            have = getattr(new.boot, name, None)
            yield Kept(name, getattr(old.boot, name), have, KeptKind.BOOT_FIELD)
    expected = _expected_sectors(old, new)
    for number in sorted(expected.keys() | new.reserved.keys()):
        name = f"reserved sector {number}" if number else "boot sector"
        sector = new.reserved.get(number, b"")
        if has_flags and number in (0, old.backup_sector):
            sector = _without_transient_flags(sector, new.boot)
        yield Kept(name, expected.get(number, b""), sector, KeptKind.BOOT_CODE)


def _expected_sectors(old: Template, new: Template) -> dict[int, bytes]:
    """Return what the reserved sectors of a volume with the fields of `new` have to be."""
    size = new.geometry.sector_size
    made = {number: data[:size] for number, data in old.reserved.items()}
    boot = new.boot
    if old.boot.boot_signature in fat.EXTENDED_SIGNATURES:
        boot = replace(boot, boot_flags=boot.boot_flags & ~_TRANSIENT_FLAGS)
    sector = made[0] = boot_sector_bytes(boot, made.get(0, b""), size)
    at, backup = old.fsinfo_sector, old.backup_sector
    if at is not None:
        sectors = made.get(at, b"")
        made[at] = _with_hints(sectors, new.fsinfo(at))
        if backup is not None and old.fsinfo(backup + at).is_valid:
            made[backup + at] = _with_hints(sectors, new.fsinfo(backup + at))
    if backup is not None:
        made[backup] = sector
    count = new.geometry.reserved_sectors
    return {number: data for number, data in made.items() if 0 <= number < count}


def _with_hints(sector: bytes, found: fat.FsInfo) -> bytes:
    """Return an FSInfo sector that says of free clusters, and of itself, what `found` says."""
    known = fat.FsInfo.unpack(sector[: fat.FsInfo.SIZE].ljust(fat.FsInfo.SIZE, b"\0"))
    made = replace(found, reserved_4=known.reserved_4, reserved_1f0=known.reserved_1f0)
    return made.pack() + sector[fat.FsInfo.SIZE :]


def _without_transient_flags(sector: bytes, boot: fat.BootSector16 | fat.BootSector32) -> bytes:
    """Return a boot sector without what a user of the volume leaves behind."""
    at = boot.OFFSETS["boot_flags"]
    made = bytearray(sector.ljust(at + 1, b"\0"))
    made[at] &= ~_TRANSIENT_FLAGS
    return bytes(made)
