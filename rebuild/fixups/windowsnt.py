# SPDX-License-Identifier: Apache-2.0
"""What Windows NT and its successors need to start on the new disk.

Most of it needs no fixing, because it stays: disk signature, GUIDs, volume serials, and the
places of partitions wherever the new disk allows it.  The boot sector is told its new place by
the layout of its volume, as `rebuild.fixups.dos` asks for.  Paging and hibernation files come back
without content, by their initialised size alone; what shadow copies kept is left out at the
backup, and the change journal starts anew.

This module does the rest: if partitions of a disk with an MBR had to move, the boot configuration
and the registry follow them (`windowsnt_hives`).  BOOT.INI of Windows 2000 and XP counts
partitions, and their order is kept.

Source: as `windowsnt_hives`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from backup.objects.model import NodeObject, ObjectKind
from backup.shared.text import plural, printable
from fsdrivers import Starts
from fsdrivers.partitions import PartitionTable
from rebuild.fixups.protocol import Edits, Fixup, RestoredFile, VolumeChange
from rebuild.fixups.windowsnt_hives import (
    SIGNATURE_SIZE,
    Hive,
    Moves,
    State,
    moved_hive,
    state_of,
)
from rebuild.machine import Machine, VolumeTree
from rebuild.sites import Site

Pattern = tuple[bytes | None, ...]  # names from the root, lower case; None is any

HIVES: tuple[tuple[Hive, Pattern], ...] = (
    (Hive.SYSTEM, (None, b"system32", b"config", b"system")),  # \Windows, \WINNT, ...
    (Hive.BCD, (b"boot", b"bcd")),
    (Hive.BCD, (b"efi", b"microsoft", b"boot", b"bcd")),
)
EFI_LOADER: Pattern = (b"efi", b"microsoft", b"boot", b"bootmgfw.efi")
LOADERS: tuple[Pattern, ...] = ((b"ntldr",), (b"bootmgr",), EFI_LOADER)
# Attributes of files that are stored compressed or encrypted; FAT has no such bits.
_TRANSFORMED = 0x4800
_SMALLEST, _LARGEST = 4096, 512 << 20  # bytes of a hive worth reading


class WindowsNT(Fixup):
    """Lets the registry and the boot configuration follow partitions that moved."""

    def keeps_places(self, machine: Machine) -> bool:
        """Tell whether Windows NT, or what starts it, is on a volume of the machine.

        Its directory on an EFI system partition alone is often all that is left of one.
        """
        trees = [tree for tree in machine.trees.values() if tree.may_start(Starts.WINDOWS)]
        patterns = [pattern for _, pattern in HIVES] + list(LOADERS)
        if all(tree.may_start(Starts.UEFI) for tree in trees):
            patterns = [pattern for pattern in patterns if pattern[0] != EFI_LOADER[0]]
        return any(any(True for _ in _find(tree, patterns)) for tree in trees)

    def plan_notes(self, site: Site, could_grow: bool) -> tuple[str, ...]:
        """Say what becomes of the places by which Windows finds its partitions."""
        if site.moved:
            if site.disk.scheme != "mbr":
                return ()  # GUIDs stay
            return ("Partitions move: Windows' boot configuration and registry follow them.",)
        if could_grow and all(part.new_size == part.old_size for part in site.solid):
            return ("No partition moves and none grows unasked, so that Windows finds them all.",)
        return ()

    def changes(self, machine: Machine, sites: Sequence[Site]) -> Iterator[VolumeChange]:
        """Plan what to change in the files that name partitions by their places."""
        moves = {place: new for site in sites for place, new in moves_of(site).items()}
        if not moves:
            return
        for site in sites:
            for tree, _ in site.volumes(machine):
                hives = {
                    item.number: _HiveFile(hive, path, bool(item.flags & _TRANSFORMED))
                    for hive, item, path in find_hives(tree)
                    if _SMALLEST <= item.size <= _LARGEST  # else Windows did not write it
                }
                if hives:
                    yield MovedPlaces(
                        volume=tree.volume.number,
                        files=frozenset(n for n, item in hives.items() if not item.is_transformed),
                        hives=hives,
                        moves=moves,
                    )


class _HiveFile(NamedTuple):
    hive: Hive
    path: str
    is_transformed: bool  # stored compressed or encrypted


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedPlaces(VolumeChange):
    """The places of partitions of the whole machine, in files of one volume."""

    hives: Mapping[int, _HiveFile]  # by number of the file
    moves: Moves

    def edits(self, boot_code: bytes, files: Mapping[int, RestoredFile]) -> Edits:
        """Change all places in all files."""
        parts: dict[int, bytes] = {}
        notes: list[str] = []
        for number, (hive, path, is_transformed) in self.hives.items():
            try:
                if is_transformed:
                    raise ValueError("is compressed or encrypted")
                data = files[number].read()
                state = state_of(data)
                if state is not State.CLEAN:
                    raise ValueError(state.value)
                made, count = moved_hive(data, hive, self.moves)
            except ValueError as error:
                notes.append(
                    f"Partitions moved, but {path} {error}: it still names their old places. "
                    "Windows may not start, or give other drive letters."
                )
                continue
            if count:
                parts[number] = made
                places = plural(count, "place")
                notes.append(
                    f"Partitions moved; {places} in {path} ({hive.value}) changed with them."
                )
        return Edits(boot_code, parts, tuple(notes))

    def content_before(self, number: int, file: RestoredFile) -> bytes:
        """Change the places back, if the file can be changed at all."""
        data = file.read()
        back = {(signature, new): old for (signature, old), new in self.moves.items()}
        try:
            if state_of(data) is State.CLEAN:
                return moved_hive(data, self.hives[number].hive, back)[0]
        except ValueError:
            pass
        return data


def find_hives(tree: VolumeTree) -> list[tuple[Hive, NodeObject, str]]:
    """Return the files of a volume that name partitions by their places, with their paths."""
    if not tree.may_start(Starts.WINDOWS):
        return []
    hives, patterns = zip(*HIVES, strict=True)
    return [(hives[index], item, path) for index, item, path in _find(tree, patterns)]


def moves_of(site: Site) -> dict[tuple[bytes, int], int]:
    """Return where the partitions of a disk with an MBR went, by the disk's signature and place."""
    if site.disk.scheme != "mbr":
        return {}
    table = PartitionTable.from_description(site.disk.table)
    signature = int(table.disk_id or "0", 16).to_bytes(SIGNATURE_SIZE, "little")
    if not any(signature):
        return {}  # Windows would give the disk a signature, and look for nothing before
    return {(signature, part.old_start): part.new_start for part in site.moved}


def _find(tree: VolumeTree, patterns: Iterable[Pattern]) -> Iterator[tuple[int, NodeObject, str]]:
    """Yield (index of the pattern, file, its path) of the files that match a pattern.

    One pass over the tree, in which parents come before children.
    """
    if not tree.nodes:
        return
    # By number of a directory: what is left of the patterns that have led there, and its path.
    open_at = {tree.nodes[0].number: (list(enumerate(patterns)), "")}
    for item in tree.nodes:
        ways, above = open_at.get(item.parent, ((), ""))
        name = item.name.lower()
        matched = [(index, left[1:]) for index, left in ways if left[0] in (None, name)]
        if not matched:
            continue
        path = f"{above}\\{printable(item.name.decode('utf-8', 'replace'))}"
        if item.kind == ObjectKind.DIRECTORY:
            open_at[item.number] = ([(index, left) for index, left in matched if left], path)
        elif item.kind == ObjectKind.FILE:
            yield from ((index, item, path) for index, left in matched if not left)
