# SPDX-License-Identifier: Apache-2.0
"""Bring the files of a DOS system to where its boot sector looks, on a volume that is there.

What lies in their place moves: entries of the root directory to other slots, clusters of any
file or directory to free ones.  Each step is whole by itself, in the editor's order of writes: a
copy of an entry before the old one goes; the content of a cluster, its FAT entry, what leads to
it, and only then the old cluster is freed.

Not done: a bad cluster, or one that belongs to nothing, where a system file must lie is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fsdrivers.errors import CorruptError, NoSpaceError, UnsupportedError
from fsdrivers.fat.directory import ROOT_NUMBER
from fsdrivers.fat.edit.directory import SLOT_SIZE, Group
from fsdrivers.fat.edit.editor import FatEditor
from fsdrivers.fat.edit.session import Session, with_cluster
from fsdrivers.fat.format import (
    DOT,
    DOT_DOT,
    FIRST_CLUSTER,
    FREE,
    ROOT_CLUSTER,
    DirectoryEntry,
)
from fsdrivers.fat.table import is_cluster_bad
from fsdrivers.printable import printable
from fsdrivers.volume import SystemFiles


def fix_system_files(editor: FatEditor, system: SystemFiles) -> list[str]:
    """Put the files of `system` into their places; return what was done, a sentence each.

    Raises:
        NoSpaceError: there is no room for what has to move.
        UnsupportedError: something lies in the way that cannot move.
        CorruptError: the volume is damaged.
    """
    with editor.session.changing():
        mover = _Mover(editor.session)
        numbers = mover.arrange(system.entries)
        mover.gather([numbers.get(number, number) for number in system.contiguous])
        return mover.done


def fix_place(
    editor: FatEditor, *, hidden_sectors: int, geometry: tuple[int, int] | None = None
) -> list[str]:
    """Make the boot sector say where it is and, if given, what heads and sectors the disk has."""
    session, done = editor.session, list[str]()
    boot = editor.template.boot
    wanted = {"hidden_sectors": (hidden_sectors, 4)}
    if geometry is not None:
        wanted |= {"heads": (geometry[0], 2), "sectors_per_track": (geometry[1], 2)}
    with session.changing():
        for field, (value, size) in wanted.items():
            old: int = getattr(boot, field)
            if old != value:
                session.patch_boot_sector(field, value.to_bytes(size, "little"))
                done.append(f"The boot sector's {field.replace('_', ' ')}: {value}, was {old}.")
    return done


class _Mover:
    """Moves entries and clusters of one volume."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.done: list[str] = []
        self._numbers: list[int] = []  # of the system files, as they are now
        self._firsts: dict[int, int] = {}  # number of the node by first cluster
        self._names: dict[int, str] = {}  # by number

    def arrange(self, wanted: Sequence[int | None]) -> dict[int, int]:
        """Put entries into the first slots; return the new numbers of those that moved."""
        numbers: dict[int, int] = {}
        for index, number in enumerate(wanted):
            if number is None:
                continue
            group = self.session.directory(ROOT_NUMBER).group_of(numbers.get(number, number))
            if (group.start, group.end) != (index, index + 1):
                self._clear(index, group, numbers)
                group = self.session.directory(ROOT_NUMBER).group_of(numbers.get(number, number))
                numbers[number] = self._place(index, group)
        last = max((i for i, number in enumerate(wanted) if number is not None), default=-1)
        for index, number in enumerate(wanted[:last]):
            label = self.session.directory(ROOT_NUMBER).label
            is_free = self.session.directory(ROOT_NUMBER).is_free(index)
            if number is None and is_free and label is not None and label.start > last:
                self._place(index, label)
        return numbers

    def _clear(self, index: int, group: Group, numbers: dict[int, int]) -> None:
        """Free a slot; `numbers` follows what moves."""
        root = self.session.directory(ROOT_NUMBER)
        for other in root.groups:
            if other is group or not other.start <= index < other.end:
                continue
            slots = b"".join(root.slot(at) for at in range(other.start, other.end))
            new = self.session.add_name(root, slots)
            self.session.write_slots(root.remove(other))
            for old, number in list(numbers.items()):
                if number == other.number:
                    numbers[old] = new
            numbers.setdefault(other.number, new)
            shown = printable(other.slot.name)
            self.done.append(f"Moved the entry of {shown} out of the way.")
            self.session.forget_all()
            return
        if not root.is_free(index) and not group.start <= index < group.end:
            self.session.write_slots(root.mark_deleted(index))

    def _place(self, index: int, group: Group) -> int:
        """Make the 8.3 entry of `group` the one in slot `index`; return its number."""
        session = self.session
        root = session.directory(ROOT_NUMBER)
        shown = printable(group.slot.name)
        entry = group.slot.entry
        if group.start <= index < group.end:  # in the way of itself: its long form goes
            session.write_slots(root.remove(group))
            session.write_slots(root.put(index, entry.pack()))
        else:
            session.write_slots(root.put(index, entry.pack()))
            session.write_slots(root.remove(group))
        number = root.position_of(index)
        session.forget_all()
        self.done.append(f"{shown} is entry {index + 1} of the root directory.")
        return number

    def gather(self, numbers: Sequence[int]) -> None:
        """Make files lie one behind the other from the first cluster of the data area on."""
        session, geometry = self.session, self.session.geometry
        start = FIRST_CLUSTER
        if geometry.root_cluster == ROOT_CLUSTER:
            start += session.chain_from(ROOT_CLUSTER)[0][1]
        chains = [self._clusters(number) for number in numbers]
        targets: list[list[int]] = []
        for chain in chains:
            targets.append(list(range(start, start + len(chain))))
            start += len(chain)
        if chains == targets:
            return
        area = {cluster for target in targets for cluster in target}
        settled = {
            cluster
            for chain, target in zip(chains, targets, strict=True)
            for cluster, place in zip(chain, target, strict=True)
            if cluster == place
        }
        self._read_firsts()
        in_the_way = sorted(c for c in area - settled if session.table.entries[c] != FREE)
        self._check(in_the_way, area)
        hint = max(area)
        moved: Counter[str] = Counter()
        self._numbers = list(numbers)
        for cluster in in_the_way:
            hint = self._free_outside(area, hint)
            owner = self._owner(cluster)
            if owner is not None and owner not in self._numbers:
                moved[self._names[owner]] += 1
            self._move(cluster, hint)
        for order, target in enumerate(targets):
            for index, place in enumerate(target):
                cluster = self._clusters(self._numbers[order])[index]
                if cluster != place:
                    self._move(cluster, place)
            shown = self._names[self._numbers[order]]
            if target:
                self.done.append(
                    f"{shown} lies in clusters {target[0]} to {target[-1]}, in one piece."
                )
        for name, count in moved.items():
            self.done.append(f"Moved {count} clusters of {name} out of the way.")

    def _clusters(self, number: int) -> list[int]:
        runs = self.session.chain(self.session.group(number))
        return [cluster for start, count in runs for cluster in range(start, start + count)]

    def _check(self, in_the_way: Sequence[int], area: set[int]) -> None:
        """Raise unless everything in the way can move and there is room for it."""
        session = self.session
        free_inside = sum(session.table.entries[cluster] == FREE for cluster in area)
        available = session.fats.free_count - free_inside
        if len(in_the_way) > available:
            size = session.geometry.cluster_size
            raise NoSpaceError(
                "clusters to move things to", len(in_the_way) * size, available * size
            )
        for cluster in in_the_way:
            if is_cluster_bad(session.table.entries[cluster], session.geometry.bits):
                raise UnsupportedError(f"a system file where cluster {cluster} is marked bad")
            if self._owner(cluster) is None:
                raise UnsupportedError(f"a system file where cluster {cluster} belongs to nothing")

    def _free_outside(self, area: set[int], hint: int) -> int:
        """Return a free cluster that is not in `area`, behind `hint` if there is one."""
        entries, stop = self.session.table.entries, self.session.geometry.last_cluster + 1
        for low, high in ((hint + 1, stop), (max(area) + 1, hint + 1), (FIRST_CLUSTER, min(area))):
            try:
                return entries.index(FREE, low, high)
            except ValueError:
                continue
        raise AssertionError("the number of free clusters has been checked")

    def _read_firsts(self) -> None:
        """Find the first cluster of everything, the root directory included."""
        session = self.session
        session.forget_all()
        self._firsts = {session.geometry.root_cluster: ROOT_NUMBER}
        self._names = {ROOT_NUMBER: "the root directory"}
        for entry in session.volume.walk():
            number = entry.node.number
            if number == ROOT_NUMBER:
                continue
            slot = session.group(number).slot
            self._names[number] = printable(entry.name)
            first = slot.entry.first_cluster(session.geometry.bits)
            if first:
                self._firsts[first] = number

    def _owner(self, cluster: int) -> int | None:
        """Return the number of the node whose chain a cluster is in."""
        for _ in range(self.session.geometry.cluster_count):
            if cluster in self._firsts:
                return self._firsts[cluster]
            before = self._before(cluster)
            if before is None:
                return None
            cluster = before
        return None

    def _before(self, cluster: int) -> int | None:
        """Return the cluster that leads to `cluster`."""
        try:
            return self.session.table.entries.index(cluster, FIRST_CLUSTER)
        except ValueError:
            return None

    def _move(self, old: int, new: int) -> None:
        """Move one cluster of whatever it belongs to."""
        session, geometry = self.session, self.session.geometry
        owner = self._owner(old)
        assert owner is not None, "everything in the way has an owner"
        is_directory = owner == ROOT_NUMBER or session.group(owner).slot.is_directory
        data = session.device.read(geometry.cluster_position(old), geometry.cluster_size)
        session.write_at(geometry.cluster_position(new), data)
        session.fats.change({new: session.table.entries[old]})
        before = self._before(old) if old not in self._firsts else None
        if before is not None:
            session.fats.change({before: new})
        else:
            self._lead(owner, new)
        session.fats.change({old: FREE})
        if old in self._firsts:
            self._firsts[new] = self._firsts.pop(old)
        if is_directory:  # the entries in it have moved along, and are numbered by their places
            shift = geometry.cluster_position(new) - geometry.cluster_position(old)
            start = geometry.cluster_position(old)
            self._numbers = [
                number + shift if start <= number < start + geometry.cluster_size else number
                for number in self._numbers
            ]
            self._read_firsts()
        else:
            session.forget_all()

    def _lead(self, owner: int, new: int) -> None:
        """Make a node start in cluster `new`, which holds its content, and tell its directories."""
        session, bits = self.session, self.session.geometry.bits
        if owner == ROOT_NUMBER:
            session.move_root(new)
            return
        group = session.group(owner)
        below: list[int] = []
        if group.slot.is_directory:
            slots = [child.slot for child in session.directory(owner).names]
            below = [slot.entry.first_cluster(bits) for slot in slots if slot.is_directory]
            self._set_cluster(session.geometry.cluster_position(new), new)
        session.replace_entry(group, with_cluster(group.slot.entry, new, bits))
        for child in below:
            self._set_cluster(session.geometry.cluster_position(child) + SLOT_SIZE, new)

    def _set_cluster(self, position: int, cluster: int) -> None:
        """Make the dot entry at `position` lead to another cluster."""
        entry = DirectoryEntry.unpack(self.session.device.read(position, SLOT_SIZE))
        if entry.name not in (DOT, DOT_DOT):
            raise CorruptError("directory without its dot entries", position)
        changed = with_cluster(entry, cluster, self.session.geometry.bits)
        self.session.write_at(position, changed.pack())
