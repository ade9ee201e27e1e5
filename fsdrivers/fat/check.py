# SPDX-License-Identifier: Apache-2.0
"""Check a FAT volume against the rules of its format and list what breaks them.

Source: [fatgen103]; the set of rules is what fsck.fat, mtools and Windows were seen to mind.
Findings are data: nothing is repaired, nothing is printed.  Bounded: every cluster is followed
at most once, every directory read once.

Not done: content of files, clusters marked bad, what may be a name in which code page.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError
from fsdrivers.fat import format as fat
from fsdrivers.fat.codepage import DEFAULT_CODE_PAGE, fold
from fsdrivers.fat.directory import Fault, Slot
from fsdrivers.fat.names import BASE_SIZE, is_legal_long_name, is_legal_short_name
from fsdrivers.fat.table import is_cluster_bad, table_size
from fsdrivers.fat.volume import FatVolume, active_fats, open_volume
from fsdrivers.findings import Finding, Findings
from fsdrivers.losses import Losses
from fsdrivers.printable import printable

# DIR_NTRes: the 8.3 name is not to be shown.  Source: Linux fs/fat patents work-around; fsck.fat.
_NO_SHORT_NAME = 0x20
_EA_DATA = b"EA DATA  SF"  # of OS/2, with a space inside
_COMPARE_SIZE = 1 << 20  # bytes of two FATs compared at a time


@dataclass(slots=True)
class _Check(Findings):
    """The state of one check."""

    volume: FatVolume
    claimed: bytearray = field(default_factory=bytearray)  # one byte per cluster number


def check_volume(device: Device, *, code_page: str = DEFAULT_CODE_PAGE) -> list[Finding]:
    """Return everything that is wrong with the FAT volume on `device`.

    Args:
        device: that holds it.
        code_page: of its 8.3 names; says which of them are legal.

    Raises:
        NotRecognisedError: there is none.
        UnsupportedError: no such code page is known.
        DeviceError: the medium failed.
    """
    try:
        volume = open_volume(device, code_page=code_page)
    except CorruptError as error:
        return [Finding("boot-sector", str(error), error.position)]
    check = _Check(volume, claimed=bytearray(volume.geometry.last_cluster + 1))
    for damage, _ in volume.tolerated:
        check.add_error("boot-sector", damage)
    passes = [_check_boot_sector, _check_table_heads, _check_table_copies]
    if volume.geometry.bits == 32:
        passes += [_check_backup, _check_fsinfo]
    for check_part in (*passes, _check_tree, _check_lost_clusters):
        try:
            check_part(check)
        except DeviceError as error:
            check.add_error("boot-sector", error)
    return check.findings


def _check_boot_sector(check: _Check) -> None:
    """Signature, dirty flags, label."""
    boot, device = check.volume.template.boot, check.volume.device
    signature = device.read(fat.BOOT_SIGNATURE_OFFSET, len(fat.BOOT_SIGNATURE))
    if signature != fat.BOOT_SIGNATURE:
        check.add("boot-signature", f"the boot sector ends in {signature.hex()}, not 55aa", 510)
    root_size = boot.root_entries * fat.DirectoryEntry.SIZE
    if root_size % boot.sector_size:
        check.add(
            "root-size",
            f"a root directory of {boot.root_entries} entries fills no whole sectors",
            boot.OFFSETS["root_entries"],
        )
    if boot.boot_signature not in fat.EXTENDED_SIGNATURES:
        if boot.type_text.startswith(b"FAT"):  # fields that only an extended boot sector has
            check.add(
                "boot-signature",
                f"the extended boot signature is {boot.boot_signature:#x}, not 0x29",
                boot.OFFSETS["boot_signature"],
            )
        return
    if boot.boot_flags & fat.BootFlag.DIRTY.value:
        check.add("dirty", "the boot sector says the volume is in use", boot.OFFSETS["boot_flags"])
    label = check.volume.template.root_label
    in_root = fat.DirectoryEntry.unpack(label[1]).name if label else fat.NO_LABEL
    in_boot = boot.label if boot.label.strip(b" \0") else fat.NO_LABEL
    if boot.boot_signature == fat.EXTENDED_SIGNATURES[-1] and in_root != in_boot:
        check.add(
            "label",
            f"label {printable(in_boot)} in the boot sector, "
            f"{printable(in_root)} in the root directory",
        )


def _check_table_heads(check: _Check) -> None:
    """FAT[0] holds the media byte, FAT[1] an end mark and the clean flags."""
    volume, bits = check.volume, check.volume.geometry.bits
    second = volume.table.entries[1]
    media = fat.END[bits] & ~0xFF | volume.template.boot.media
    for index in active_fats(volume.template.boot):
        position = volume.geometry.fat_position(index)
        data = volume.device.read(position, 4)
        first = int.from_bytes(data, "little") & fat.END[bits]
        if first != media:
            check.add("fat-media", f"FAT[0] is {first:#x}, not {media:#x}", position)
    if not volume.table.is_clean():
        check.add("dirty", f"FAT[1] is {second:#x}: in use, or with errors")
    elif second < fat.END_MINIMUM[bits]:
        check.add("fat-end", f"FAT[1] is {second:#x}, not an end mark")


def _check_table_copies(check: _Check) -> None:
    """All FATs are equal, as far as clusters exist."""
    geometry, device = check.volume.geometry, check.volume.device
    size = table_size(geometry)
    first, *others = active_fats(check.volume.template.boot)
    for index in others:
        for offset in range(0, size, _COMPARE_SIZE):
            length = min(_COMPARE_SIZE, size - offset)
            position = geometry.fat_position(index) + offset
            expected = device.read(geometry.fat_position(first) + offset, length)
            if expected != device.read(position, length):
                check.add("fat-copies", f"FAT {index} differs from FAT {first}", position)
                break


def _check_backup(check: _Check) -> None:
    """The backup boot sector is equal to the boot sector."""
    template, device = check.volume.template, check.volume.device
    if template.backup_sector is None:
        check.add("backup", "no backup boot sector")
        return
    size = check.volume.geometry.sector_size
    position = template.backup_sector * size
    if device.read(0, size) != device.read(position, size):
        check.add("backup", "the backup boot sector differs from the boot sector", position)


def _check_fsinfo(check: _Check) -> None:
    """Signatures and counts of FSInfo."""
    template, geometry = check.volume.template, check.volume.geometry
    if template.fsinfo_sector is None:
        check.add("fsinfo", "no FSInfo sector")
        return
    position = template.fsinfo_sector * geometry.sector_size
    fsinfo = fat.FsInfo.unpack(check.volume.device.read(position, fat.FsInfo.SIZE))
    if not fsinfo.is_valid:
        check.add("fsinfo", "FSInfo without its signatures", position)
        return
    free = check.volume.table.free_count()
    if fsinfo.free_count not in (free, fat.FSINFO_UNKNOWN):
        check.add("fsinfo", f"FSInfo counts {fsinfo.free_count} free clusters of {free}", position)
    is_hint = fat.FIRST_CLUSTER <= fsinfo.next_free <= geometry.last_cluster
    if not is_hint and fsinfo.next_free != fat.FSINFO_UNKNOWN:
        check.add("fsinfo", f"FSInfo starts the search in cluster {fsinfo.next_free}", position)


def _check_tree(check: _Check) -> None:
    """All directories, from the root on; each is read once."""
    volume = check.volume
    faults: list[Fault] = []
    losses = Losses(lambda loss: check.add_error("chain", loss.error))
    root = volume.geometry.root_cluster
    if root:
        _claim(check, root, None, None)
    pending: list[tuple[int, int | None, int]] = [(root, None, 0)]  # cluster, position, parent
    while pending:
        first, position, parent = pending.pop()
        slots = (
            volume.iter_root(faults, losses)
            if position is None
            else volume.iter_directory(first, position, faults, losses)
        )
        try:
            listed = list(slots)
        except CorruptError as error:
            check.add("chain", str(error), error.position)
            continue
        if position is not None:
            _check_dots(check, listed, position, first, parent)
        _check_names(check, listed, is_root=position is None)
        for slot in listed:
            if slot.is_dots or slot.is_label:
                continue
            cluster = _check_entry(check, slot)
            if cluster and slot.is_directory:
                pending.append((cluster, slot.position, 0 if position is None else first))
    for fault in faults:
        check.add(fault.rule, fault.what, fault.position)


def _check_dots(check: _Check, listed: list[Slot], position: int, first: int, parent: int) -> None:
    """A directory starts with "." and "..", which lead where they should."""
    bits = check.volume.geometry.bits
    found = [(slot.entry.name, slot.entry.first_cluster(bits)) for slot in listed[:2]]
    if found != [(fat.DOT, first), (fat.DOT_DOT, parent)]:
        check.add("dots", f"directory in cluster {first} starts with {found}", position)
    elif not all(slot.is_directory for slot in listed[:2]):
        check.add("dots", f"a dot entry of the directory in cluster {first} is a file", position)
    if any(slot.is_dots for slot in listed[2:]):
        check.add("dots", f"directory in cluster {first} has more than two dot entries", position)


def _check_names(check: _Check, listed: list[Slot], *, is_root: bool) -> None:
    """Names are legal and unique; only the root has a label, and one."""
    seen: set[bytes] = set()
    folded: set[str] = set()
    labels = 0
    is_fat32 = check.volume.geometry.bits == 32
    for slot in listed:
        if is_fat32 and slot.entry.first_cluster_high & ~(fat.END[32] >> 16):
            what = f"{printable(slot.name)} starts in a cluster with a number of more than 28 bits"
            check.add("chain", what, slot.position)
        if slot.is_label:
            labels += 1
            if not is_root or labels > 1:
                check.add("label", "a volume label where none belongs", slot.position)
            if slot.entry.first_cluster(32) or slot.entry.size:
                check.add("label", "a volume label with a cluster or a size", slot.position)
            continue
        name = slot.entry.name
        if slot.entry.case_flags & _NO_SHORT_NAME and not slot.has_long_name:
            check.add(
                "short-name",
                f"{printable(name)} is marked as not to be shown, and there is no other name",
                slot.position,
            )
        elif is_root and slot.is_dots:
            check.add("dots", "a dot entry in the root directory", slot.position)
        elif not slot.is_dots and not _is_sound_short_name(check, slot):
            check.add("short-name", f"illegal 8.3 name {printable(name)}", slot.position)
        if name in seen:
            check.add(
                "short-name", f"8.3 name {printable(name)} twice in one directory", slot.position
            )
        seen.add(name)
        if slot.has_long_name and not is_legal_long_name(slot.name):
            check.add("long-name", f"illegal long name {printable(slot.name)}", slot.position)
        key = fold(slot.name.decode("utf-8", "surrogatepass"))
        if key in folded:
            what = f"name {printable(slot.name)} twice in one directory, but for case"
            check.add("long-name", what, slot.position)
        folded.add(key)


def _is_sound_short_name(check: _Check, slot: Slot) -> bool:
    """Whether an 8.3 name is one that DOS makes: legal, and spaces at the ends of its parts only.

    Where the entry says that it has no 8.3 name, any bytes will do.
    """
    name = slot.entry.name
    if slot.entry.case_flags & _NO_SHORT_NAME:
        return True
    parts = (name[:BASE_SIZE].rstrip(b" "), name[BASE_SIZE:].rstrip(b" "))
    is_spaced = any(b" " in part for part in parts) and name != _EA_DATA
    has_pairs = bool(check.volume.page.first_bytes)
    return is_legal_short_name(name, has_pairs=has_pairs) and not is_spaced and 0x7F not in name


def _check_entry(check: _Check, slot: Slot) -> int:
    """Check size and chain of an entry; return the first cluster if it can be followed."""
    geometry, entry = check.volume.geometry, slot.entry
    first = entry.first_cluster(geometry.bits)
    if slot.is_directory and entry.size:
        check.add("size", f"directory with a size of {entry.size}", slot.position)
    if not first:
        if slot.is_directory or entry.size:
            check.add("chain", f"{printable(slot.name)} has no cluster", slot.position)
        return 0
    if not slot.is_directory and not entry.size:
        check.add(
            "chain", f"{printable(slot.name)} is empty and has cluster {first}", slot.position
        )
    needed = None if slot.is_directory else geometry.clusters_of(entry.size)
    return first if _claim(check, first, needed, slot.position) else 0


def _claim(check: _Check, first: int, needed: int | None, position: int | None) -> bool:
    """Mark a chain as used; report where it is wrong.  False if it crosses another."""
    volume, claimed = check.volume, check.claimed
    try:
        runs = volume.table.runs(first, volume.geometry.cluster_count, is_whole=True)
    except CorruptError as error:
        check.add("chain", str(error), position if error.position is None else error.position)
        return False
    length = sum([count for _, count in runs])
    if needed is not None and length != needed:
        check.add("chain", f"{length} clusters where the size needs {needed}", position)
    for start, count in runs:
        at = claimed.find(1, start, start + count)
        if at >= 0:
            check.add(
                "cross-link",
                f"cluster {at} belongs to two chains",
                volume.geometry.cluster_position(at),
            )
            return False
        claimed[start : start + count] = b"\x01" * count
    return True


def _check_lost_clusters(check: _Check) -> None:
    """Every cluster in use belongs to a chain."""
    volume, claimed = check.volume, check.claimed
    bits = volume.geometry.bits
    lost = [
        cluster
        for cluster, value in enumerate(volume.table.entries)
        if value != fat.FREE
        and cluster >= fat.FIRST_CLUSTER
        and not claimed[cluster]
        and not is_cluster_bad(value, bits)
    ]
    if lost:
        check.add("lost", f"{len(lost)} clusters in no chain, the first is {lost[0]}")
