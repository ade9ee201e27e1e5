# SPDX-License-Identifier: Apache-2.0
"""What Windows NT and its successors need to start on the new disk.

Most of it needs no fixing, because it is kept: disk signature, GUIDs, volume serials, and the
places of partitions wherever the new disk allows it.  The boot sector is told its new place by
the layout of its volume (`rebuild.fixups.dos.layout_options`, which is right for NTFS too).  Paging
and hibernation files come back without content, by their initialised size alone; what
shadow copies kept is left out at the backup, and the change journal starts anew.

Here is what is left: on a disk with an MBR whose partitions had to move, the boot configuration
and the registry follow them (`windowsnt_hives`); and an EFI system partition without a loader at
the fallback path gets Windows' own.  BOOT.INI of Windows 2000 and XP counts partitions, whose
order is kept.

Source: as `windowsnt_hives`; UEFI 2.10, 3.5.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from backup.objects.model import DiskObject, NodeObject, ObjectKind
from fsdrivers.device import Device
from fsdrivers.partitions import PartitionTable
from fsdrivers.volume import Layout
from rebuild.fixups.linux import ADDED_NUMBERS_START, FALLBACK_LOADER, Loader
from rebuild.fixups.windowsnt_hives import (
    SIGNATURE_SIZE,
    Hive,
    Moves,
    State,
    moved_hive,
    state_of,
)
from rebuild.machine import Machine, VolumeTree
from rebuild.text import plural, printable

Pattern = tuple[bytes | None, ...]  # names from the root, lower case; None is any

HIVES: tuple[tuple[Hive, Pattern], ...] = (
    (Hive.SYSTEM, (None, b"system32", b"config", b"system")),  # \Windows, \WINNT, ...
    (Hive.BCD, (b"boot", b"bcd")),
    (Hive.BCD, (b"efi", b"microsoft", b"boot", b"bcd")),
)
EFI_LOADER: Pattern = (b"efi", b"microsoft", b"boot", b"bootmgfw.efi")
LOADERS: tuple[Pattern, ...] = ((b"ntldr",), (b"bootmgr",), EFI_LOADER)
DESCRIPTION = "Windows Boot Manager"  # as Windows names its entry
_TRANSFORMED = 0x4800  # attributes of files that are stored otherwise: compressed, encrypted
_LOADER_NAME = re.compile(rb"boot.*\.efi")
_SMALLEST, _LARGEST = 4096, 512 << 20  # bytes of a hive worth reading


def has_windows(machine: Machine) -> bool:
    """Tell whether Windows NT, or what starts it, is on a volume of the machine.

    Its directory on an EFI system partition alone is often all that is left of one.
    """
    trees = [
        tree for tree in machine.trees.values() if tree.volume.type.startswith(("fat", "ntfs"))
    ]
    patterns = [pattern for _, pattern in HIVES] + list(LOADERS)
    if not any(tree.volume.type == "ntfs" for tree in trees):
        patterns = [pattern for pattern in patterns if pattern[0] != EFI_LOADER[0]]
    return any(any(True for _ in _find(tree, patterns)) for tree in trees)


def find_hives(tree: VolumeTree) -> list[tuple[Hive, NodeObject, str]]:
    """Return the files of a volume that name partitions by their places, with their paths."""
    if not tree.volume.type.startswith(("fat", "ntfs")):
        return []
    patterns = [pattern for _, pattern in HIVES]
    return [(HIVES[index][0], item, path) for index, item, path in _find(tree, patterns)]


def moves_of(disk: DiskObject, starts: Mapping[int, int]) -> dict[tuple[bytes, int], int]:
    """Return where the partitions of a disk with an MBR went.

    Args:
        disk: as it was recorded.
        starts: first byte on the new disk by number of the partition.
    """
    if disk.scheme != "mbr":
        return {}
    table = PartitionTable.from_description(disk.table)
    signature = int(table.disk_id or "0", 16).to_bytes(SIGNATURE_SIZE, "little")
    if not any(signature):
        return {}  # Windows would give the disk a signature, and look for nothing before
    return {
        (signature, entry.start): starts[entry.number]
        for entry in table.entries
        if not entry.is_extended and starts.get(entry.number, entry.start) != entry.start
    }


def reversed_moves(moves: Moves) -> dict[tuple[bytes, int], int]:
    """Return the moves back."""
    return {(signature, new): old for (signature, old), new in moves.items()}


def move_places(tree: VolumeTree, layout: Layout, window: Device, moves: Moves) -> list[str]:
    """Let the registry and the boot configuration of a volume follow partitions that moved.

    Args:
        tree: the volume, whose content has been restored.
        layout: where its files are.
        window: the volume on the new disk.
        moves: of all disks of the machine.

    Returns:
        Notes for the report on what was changed and what could not be.

    Raises:
        DeviceError: the disk failed.
    """
    notes = []
    for hive, item, path in find_hives(tree) if moves else ():
        if not _SMALLEST <= item.size <= _LARGEST:
            continue  # nothing that Windows wrote
        try:
            if item.flags & _TRANSFORMED and tree.volume.type == "ntfs":
                raise ValueError("is compressed or encrypted")
            count = _move_in_file(hive, item, layout, window, moves)
        except ValueError as error:
            notes.append(
                f"Partitions moved, but {path} {error}: it still has their old places. Windows "
                "may not start, or give other drive letters."
            )
            continue
        if count:
            places = plural(count, "place")
            notes.append(f"Partitions moved; {places} in {path} ({hive.value}) changed with them.")
    return notes


def _move_in_file(
    hive: Hive, item: NodeObject, layout: Layout, window: Device, moves: Moves
) -> int:
    """Change one file in place; return how many places in it were changed.

    Raises:
        ValueError: it cannot be changed; says why, as the end of a sentence.
    """
    data = bytearray(item.size)
    extents = [
        (extent.offset, extent.position, min(extent.length, item.size - extent.offset))
        for extent in layout.placements(item.number)
    ]
    for offset, position, length in extents:
        data[offset : offset + length] = window.read(position, length)
    state = state_of(bytes(data))
    if state is not State.CLEAN:
        raise ValueError(state.value)
    made, count = moved_hive(bytes(data), hive, moves)
    if count:
        for offset, position, length in extents:
            if made[offset : offset + length] != data[offset : offset + length]:
                window.write(position, made[offset : offset + length])
    return count


def moved_back(hive: Hive, data: bytes, moves: Moves) -> bytes:
    """Return a restored file as it was before its places were changed.

    Args:
        hive: which file it is.
        data: the whole of it.
        moves: back to where the partitions were.
    """
    if state_of(data) is not State.CLEAN:
        return data
    try:
        return moved_hive(data, hive, moves)[0]
    except ValueError:
        return data


def find_loader(tree: VolumeTree) -> Loader | None:
    """Return Windows' loader on an EFI system partition, if it is there."""
    for _, _, path in _find(tree, [EFI_LOADER]):
        return Loader(DESCRIPTION, path)
    return None


def add_fallback_loader(tree: VolumeTree) -> list[str]:
    """Give an EFI system partition Windows' loader at the fallback path if it has no other.

    Adds objects to `tree` that share the loader's content.  A `\\EFI\\BOOT` with a loader of
    any architecture in it stays as it is.  Returns one note for the report, or none.
    """
    found = next(_find(tree, [EFI_LOADER]), None)
    if found is None:
        return []
    _, loader, path = found
    children: dict[int, dict[bytes, NodeObject]] = {}
    by_number = {item.number: item for item in tree.nodes}
    for item in tree.nodes:
        children.setdefault(item.parent, {})[item.name.lower()] = item
    efi = by_number[by_number[by_number[loader.parent].parent].parent]
    boot = children[efi.number].get(b"boot")
    number = ADDED_NUMBERS_START
    if boot is None:
        directory = by_number[loader.parent]
        boot = replace(directory, number=number, parent=efi.number, name=b"BOOT")
        boot.short_name, boot.name_flags = b"", 0
        tree.nodes.append(boot)
        number += 1
    elif any(
        name.startswith(b"boot") and name.endswith(b".efi")
        for name in children.get(boot.number, {})
    ):
        return []
    copy = replace(loader, number=number, parent=boot.number, name=FALLBACK_LOADER)
    copy.short_name, copy.name_flags = b"", 0
    tree.nodes.append(copy)
    return [f"Added \\EFI\\BOOT\\BOOTX64.EFI, a copy of {path}."]


def _find(tree: VolumeTree, patterns: list[Pattern]) -> Iterator[tuple[int, NodeObject, str]]:
    """Yield (index of the pattern, file, its path) of the files that match a pattern.

    One pass over the tree, in which parents come before children.
    """
    if not tree.nodes:
        return
    # By number of a directory: which patterns have led there, how far, and its path.
    open_at = {tree.nodes[0].number: ([(index, 0) for index in range(len(patterns))], "")}
    get = open_at.get
    for item in tree.nodes:
        led = get(item.parent)
        if led is None:
            continue
        name = item.name.lower()
        matched = [way for way in led[0] if patterns[way[0]][way[1]] in (None, name)]
        if not matched:
            continue
        path = f"{led[1]}\\{printable(item.name.decode('utf-8', 'replace'))}"
        if item.kind == ObjectKind.DIRECTORY:
            further = [(i, depth + 1) for i, depth in matched if depth + 1 < len(patterns[i])]
            open_at[item.number] = (further, path)
            continue
        for index, depth in matched:
            if depth + 1 == len(patterns[index]) and item.kind == ObjectKind.FILE:
                yield index, item, path
