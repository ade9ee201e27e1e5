# SPDX-License-Identifier: Apache-2.0
"""The description of an NTFS volume as plain data: what it takes to format the same one again.

Keys:
    type, size, sector_size, cluster_size, cluster_count, record_size, index_block_size,
    serial, label, version ("3.1")
                        for people, and to compare two volumes by
    device_size         bytes of the device it was found on; may be larger than the volume
    bpb                 every field of the boot sector's record by name; these count
    boot                $Boot: boot sector with its code and what follows, without the header of
                        shadow copies, trailing zeros cut
    volume_flags        VolumeFlag
    version_major, version_minor
    object_id           the volume's $OBJECT_ID, empty if it has none
    upcase              $UpCase, 131072 bytes: every directory is ordered by it; empty if it
                        cannot be read
    upcase_info         its stream $Info, empty if it has none
    attribute_definitions  $AttrDef, empty if it cannot be read
    log_file_size       bytes, 0 if it cannot be read
    log_state           "empty", "clean", "dirty", "damaged"
    mft                 {"size", "allocated", "records": bytes and the count in use at the source}
    system_files        for each system file that is in use: {"number", "sequence", "flags",
                        "file_attributes", "created_ns", "modified_ns", "changed_ns",
                        "accessed_ns", "security" (its descriptor), "has_own_security",
                        "information_size" (48 or 72), "name" (in $Extend, else empty)}
    quota               {"$O": [[key, data]...], "$Q": [...]} raw, None without $Extend\\$Quota
    usn_maximum         the change journal's $Max, None without a journal
    extend              names in $Extend
    is_dirty, is_hibernated, is_deduplicated, was_mounted_by_nt4
                        in what state it was when it was read

This module and `mkfs.description`, which reads them, are the only ones that know the keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.losses import DAMAGE
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.logfile import LogState
from fsdrivers.ntfs.mft import FileRecord, Mft
from fsdrivers.ntfs.nodes import XATTR_ACL, NodeReader
from fsdrivers.ntfs.system import SystemFiles, VolumeFacts
from fsdrivers.volume import Description, Kept, KeptKind, Plain, kept_facts

SHADOW_HEADER_AT: Final = 0x1E00  # in $Boot
SHADOW_HEADER: Final = bytes.fromhex("6b87083876c1484eb7ae04046e6cc752")
SHADOW_HEADER_SIZE: Final = 512
_KEPT: Final = (
    "serial",
    "cluster_size",
    "index_block_size",
    "version",
    "object_id",
    "upcase_info",
)
_MADE_UP: Final = ("upcase", "attribute_definitions")  # the usual ones where they are empty
_PLANNED: Final = frozenset(  # by the size of the volume, its sectors, and where things went
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


def serial_of(boot: ntfs.BootSector) -> str:
    """Return the serial as blkid prints it: 16 upper-case hexadecimal digits."""
    return f"{boot.serial:016X}"


def pack_description(
    boot: ntfs.BootSector,
    mft: Mft,
    facts: VolumeFacts,
    system: SystemFiles,
    nodes: NodeReader,
    *,
    is_hibernated: bool,
) -> dict[str, Plain]:
    """Return what describes a volume as plain data."""
    geometry, spared = mft.geometry, system.spared
    log_size, log = spared(
        system.log_file, (0, LogState.DAMAGED), "the log gets the size it usually has"
    )
    extended: dict[str, tuple[int, int]] = spared(
        system.extend, {}, "what is in $Extend is made anew"
    )
    extend = sorted(extended)
    names = {number: name for name, (number, _) in extended.items()}
    system_files: list[Plain] = []
    frames: list[tuple[int, FileRecord]] = spared(system.frames, [], "system files are made anew")
    for number, file in frames:
        with suppress(*DAMAGE):
            system_files.append(_system_file(file, nodes, names.get(number, "")))
    quota: dict[str, Plain] | None = None
    if "$Quota" in extend:
        limits: dict[str, list[tuple[bytes, bytes]]] = spared(
            system.quota, {}, "quotas are not kept"
        )
        quota = {name: [[key, data] for key, data in limits[name]] for name in limits}
    boot_code = spared(system.boot_file, b"", "the code of the boot sector alone is kept")
    if not boot_code:
        boot_code = spared(
            lambda: mft.device.read(0, ntfs.BOOT_SECTOR_SIZE), b"", "the boot code is not kept"
        )
    return {
        **_identity(boot, geometry, facts),
        "device_size": mft.device.size,
        "bpb": boot.to_plain(),
        "boot": _boot_code(boot_code),
        "volume_flags": facts.flags,
        "version_major": facts.major,
        "version_minor": facts.minor,
        "object_id": facts.object_id,
        "upcase": spared(system.upcase, b"", "it gets the usual upper case of letters"),
        "upcase_info": spared(system.upcase_info, b"", "$UpCase gets no $Info"),
        "attribute_definitions": spared(
            system.attribute_definitions, b"", "it gets the usual definitions of attributes"
        ),
        "log_file_size": log_size,
        "log_state": log.value,
        "mft": {
            "size": mft.content.size,
            "allocated": mft.content.clusters * geometry.cluster_size,
            "records": mft.record_count,
        },
        "system_files": system_files,
        "quota": quota,
        "usn_maximum": spared(system.usn_maximum, None, "the change journal is not made again"),
        "extend": list(extend),
        "is_dirty": facts.is_dirty,
        "is_hibernated": is_hibernated,
        "is_deduplicated": spared(
            system.is_deduplicated, False, "whether files were deduplicated is not known"
        ),
        "was_mounted_by_nt4": bool(facts.flags & ntfs.VolumeFlag.MOUNTED_ON_NT4.value),
    }


def _boot_code(data: bytes) -> bytes:
    """Return what is kept of $Boot: shadow copies are not, so nothing may lead to them.

    Source: [libvshadow] "The NTFS volume header".
    """
    if data[SHADOW_HEADER_AT : SHADOW_HEADER_AT + len(SHADOW_HEADER)] == SHADOW_HEADER:
        data = data[:SHADOW_HEADER_AT] + data[SHADOW_HEADER_AT + SHADOW_HEADER_SIZE :]
    return data.rstrip(b"\0")


def _identity(boot: ntfs.BootSector, geometry: Geometry, facts: VolumeFacts) -> dict[str, Plain]:
    """Return what people compare volumes by."""
    return {
        "type": "ntfs",
        "size": geometry.size,
        "sector_size": geometry.sector_size,
        "cluster_size": geometry.cluster_size,
        "cluster_count": geometry.cluster_count,
        "record_size": geometry.record_size,
        "index_block_size": geometry.index_block_size,
        "serial": serial_of(boot),
        "label": facts.label,
        "version": f"{facts.major}.{facts.minor}",
    }


def _system_file(file: FileRecord, nodes: NodeReader, name: str) -> dict[str, Plain]:
    """Return what is to be kept of a system file."""
    node = nodes.frame_node(file)
    information = file.find(AttributeType.STANDARD_INFORMATION)
    return {
        "number": file.number,
        "sequence": file.sequence,
        "flags": file.flags,
        "file_attributes": node.flags,
        "created_ns": node.created_ns,
        "modified_ns": node.modified_ns,
        "changed_ns": node.changed_ns,
        "accessed_ns": node.accessed_ns,
        "security": dict(node.xattrs).get(XATTR_ACL, b""),
        "has_own_security": bool(file.find(AttributeType.SECURITY_DESCRIPTOR)),
        "information_size": information[0].value_length if information else 0,
        "name": name,
    }


def kept(recorded: Description, found: Description) -> Iterator[Kept]:
    """Yield what a volume made again must have as it was; see `fsdrivers.volume.IterKept`."""
    yield from kept_facts(recorded, found, *_KEPT)
    for key in _MADE_UP:
        if recorded.get(key):
            yield from kept_facts(recorded, found, key)
    if found.get("sector_size") == 512:  # a record is one sector at least
        yield from kept_facts(recorded, found, "record_size")
    old, new = recorded.get("bpb"), found.get("bpb")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name, want in old.items():
            if name not in _PLANNED:
                yield Kept(name, want, new.get(name), KeptKind.BOOT_FIELD)
    if "boot" not in recorded:
        return
    cluster_size = found.get("cluster_size")
    size = max(ntfs.BOOT_FILE_SIZE, cluster_size if isinstance(cluster_size, int) else 0)
    want, have = recorded["boot"], found.get("boot")
    if not isinstance(want, bytes) or not isinstance(have, bytes):
        raise CorruptError(
            "description of an NTFS volume, boot", None, "bytes", type(want).__name__
        )
    made = bytearray(want[:size].ljust(size, b"\0"))
    made[ntfs.BOOT_SIGNATURE_OFFSET : ntfs.BOOT_SIGNATURE_OFFSET + 2] = ntfs.BOOT_SIGNATURE
    # A data set that is older has the header of shadow copies.
    made = bytearray(_boot_code(bytes(made)))
    made[: ntfs.BootSector.SIZE] = have[: ntfs.BootSector.SIZE].ljust(ntfs.BootSector.SIZE, b"\0")
    yield Kept("$Boot", bytes(made), have, KeptKind.BOOT_CODE)
