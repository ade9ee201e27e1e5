# SPDX-License-Identifier: Apache-2.0
"""Is what starts from a volume what the data set says: its boot sector and the code behind it?

Taken from the description that was recorded and that of the volume found: the boot block of ext,
$Boot of NTFS, the reserved sectors of FAT.  What has to be another in another place or size is
left out, of the rest every field and every byte counts.  What fix-ups change is expected as they
leave it.

Not done: swap areas and ISO 9660, whose descriptions hold no code; a copy of the boot sector
outside what a description holds, as at the end of NTFS.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from fsdrivers.fat.description import Template, boot_sector_bytes, unpack_description
from fsdrivers.fat.format import (
    EXTENDED_SIGNATURES,
    BootFlag,
    BootSector16,
    BootSector32,
    FsInfo,
)
from fsdrivers.ntfs.description import SHADOW_HEADER, SHADOW_HEADER_AT, SHADOW_HEADER_SIZE
from fsdrivers.ntfs.format.records import BOOT_SIGNATURE, BOOT_SIGNATURE_OFFSET, BootSector
from fsdrivers.volume import Description
from rebuild.fixups.protocol import RestoredFile, VolumeChanges
from rebuild.text import cut

_BOOT_BLOCK_SIZE: Final = 1024  # bytes of ext before its superblock
_BOOT_FILE_SIZE: Final = 8192  # bytes that $Boot has at least
_SHOWN_WIDTH: Final = 80  # columns of a value
# Fields that follow from the size of the volume, from its sectors, and from where things went;
# and identities, which are compared with the volume.
_PLANNED_BY_FAT: Final = frozenset(
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
_PLANNED_BY_NTFS: Final = frozenset(
    (
        "sector_size",
        "sectors_per_cluster",
        "total_sectors",
        "mft_lcn",
        "mft_mirror_lcn",
        "record_size_code",
        "index_block_size_code",
        "serial",
    )
)
_TRANSIENT_FLAGS: Final = (BootFlag.DIRTY | BootFlag.NEEDS_SURFACE_TEST).value


@dataclass(frozen=True, slots=True)
class Expected:
    """What fix-ups did to what starts from a volume."""

    changes: VolumeChanges
    files: Mapping[int, RestoredFile]  # by number, those that they may have changed

    def code(self, recorded: bytes) -> bytes:
        """Return boot code as they left it."""
        return self.changes.boot_code_after(recorded, self.files)


def boot_code_differences(
    recorded: Description, found: Description, expected: Expected
) -> Iterator[str]:
    """Yield in what the boot code of a volume differs, each the end of a sentence.

    Args:
        recorded: the description in the data set; what an older one lacks is not compared.
        found: that of the volume.
        expected: what fix-ups did.

    Raises:
        CorruptError: `recorded` is damaged.
    """
    kind = str(found.get("type", ""))
    if kind.startswith("ext"):
        yield from _ext_differences(recorded, found, expected)
    elif kind == "ntfs":
        yield from _ntfs_differences(recorded, found, expected)
    elif kind.startswith("fat") and "reserved" in recorded:
        yield from _fat_differences(recorded, found, expected)


def _ext_differences(
    recorded: Description, found: Description, expected: Expected
) -> Iterator[str]:
    if "boot_block" not in recorded:
        return
    want = _bytes_of(recorded["boot_block"]).ljust(_BOOT_BLOCK_SIZE, b"\0")
    yield from _code_differences(
        expected.code(want), _bytes_of(found.get("boot_block")), "boot block"
    )


def _ntfs_differences(
    recorded: Description, found: Description, expected: Expected
) -> Iterator[str]:
    old, new = recorded.get("bpb"), found.get("bpb")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _field_differences(old, new, expected, _PLANNED_BY_NTFS)
    if "boot" not in recorded:
        return
    cluster_size = found.get("cluster_size")
    size = max(_BOOT_FILE_SIZE, cluster_size if isinstance(cluster_size, int) else 0)
    want = bytearray(_bytes_of(recorded["boot"])[:size].ljust(size, b"\0"))
    want[BOOT_SIGNATURE_OFFSET : BOOT_SIGNATURE_OFFSET + 2] = BOOT_SIGNATURE
    if want[SHADOW_HEADER_AT : SHADOW_HEADER_AT + len(SHADOW_HEADER)] == SHADOW_HEADER:
        # An older data set has it, a description has it no more.
        del want[SHADOW_HEADER_AT : SHADOW_HEADER_AT + SHADOW_HEADER_SIZE]
    have = _bytes_of(found.get("boot"))
    want[: BootSector.SIZE] = have[: BootSector.SIZE].ljust(BootSector.SIZE, b"\0")
    yield from _code_differences(expected.code(bytes(want)), have, "$Boot")


def _fat_differences(
    recorded: Description, found: Description, expected: Expected
) -> Iterator[str]:
    old, new = unpack_description(recorded), unpack_description(found)
    has_flags = old.boot.boot_signature in EXTENDED_SIGNATURES
    planned = _PLANNED_BY_FAT
    if has_flags:
        planned |= {"serial", "boot_flags"}  # else they are code
        flags = [template.boot.boot_flags & ~_TRANSIENT_FLAGS for template in (old, new)]
        if flags[0] != flags[1]:
            yield f"boot_flags of the boot sector is {flags[1]}, not {flags[0]}"
    fields = [
        {name: getattr(template.boot, name) for name in template.boot.OFFSETS}
        for template in (old, new)
    ]
    yield from _field_differences(fields[0], fields[1], expected, planned)
    sectors = _expected_sectors(old, new)
    for number in sorted(sectors.keys() | new.reserved.keys()):
        name = "boot sector" if not number else f"reserved sector {number}"
        have = new.reserved.get(number, b"")
        if has_flags and number in (0, old.backup_sector):
            have = _without_transient_flags(have, new.boot)
        yield from _code_differences(sectors.get(number, b""), have, name)


def _expected_sectors(old: Template, new: Template) -> dict[int, bytes]:
    """Return what the reserved sectors of a volume with the fields of `new` have to be."""
    size = new.geometry.sector_size
    made = {number: data[:size] for number, data in old.reserved.items()}
    boot = new.boot
    if old.boot.boot_signature in EXTENDED_SIGNATURES:
        boot = replace(boot, boot_flags=boot.boot_flags & ~_TRANSIENT_FLAGS)
    sector = made[0] = boot_sector_bytes(boot, made.get(0, b""), size)
    at, backup = old.fsinfo_sector, old.backup_sector
    if at is not None:
        kept = made.get(at, b"")
        made[at] = _with_hints(kept, new.fsinfo(at))
        if backup is not None and old.fsinfo(backup + at).is_valid:
            made[backup + at] = _with_hints(kept, new.fsinfo(backup + at))
    if backup is not None:
        made[backup] = sector
    count = new.geometry.reserved_sectors
    return {number: data for number, data in made.items() if 0 <= number < count}


def _with_hints(sector: bytes, found: FsInfo) -> bytes:
    """Return an FSInfo sector that says of free clusters, and of itself, what `found` says."""
    kept = FsInfo.unpack(sector[: FsInfo.SIZE].ljust(FsInfo.SIZE, b"\0"))
    made = replace(found, reserved_4=kept.reserved_4, reserved_1f0=kept.reserved_1f0)
    return made.pack() + sector[FsInfo.SIZE :]


def _without_transient_flags(sector: bytes, boot: BootSector16 | BootSector32) -> bytes:
    """Return a boot sector without what a user of the volume leaves behind."""
    at = boot.OFFSETS["boot_flags"]
    made = bytearray(sector.ljust(at + 1, b"\0"))
    made[at] &= ~_TRANSIENT_FLAGS
    return bytes(made)


def _field_differences(
    old: Mapping[str, object],
    new: Mapping[str, object],
    expected: Expected,
    left_out: Collection[str],
) -> Iterator[str]:
    """Yield the fields of boot sectors that differ."""
    for name, want in old.items():
        have = new.get(name)
        if want == have or name in left_out or expected.changes.accepts(name, have):
            continue
        texts = [cut(repr(value), _SHOWN_WIDTH) for value in (have, want)]
        yield f"{name} of the boot sector is {texts[0]}, not {texts[1]}"


def _code_differences(want: bytes, have: bytes, name: str) -> Iterator[str]:
    """Yield where code differs first, if it does; zeros at the end do not count."""
    size = max(len(want), len(have))
    want, have = want.ljust(size, b"\0"), have.ljust(size, b"\0")
    if want != have:
        position = next(at for at in range(size) if want[at] != have[at])
        yield f"boot code differs at byte {position} of the {name}"


def _bytes_of(value: object) -> bytes:
    """Return the bytes of a description; none where there are none."""
    return value if isinstance(value, bytes) else b""
