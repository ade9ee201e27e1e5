# SPDX-License-Identifier: Apache-2.0
"""Boot loaders on an EFI system partition: which there are, and a copy at the fallback path.

Firmware starts `\\EFI\\BOOT\\BOOTX64.EFI` without any boot entry.  If it is missing, the best
loader of the partition is copied there, with the files that it needs beside itself.  The copies
share the content of the originals.

Source: UEFI 2.10, 3.5.1.1, 13.3.3.
Not done: loaders for firmware of other architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backup.objects.model import NodeObject, ObjectKind
from backup.shared.text import printable
from fsdrivers import Starts
from fsdrivers.partitions import PartitionTable
from rebuild.fixups.protocol import Fixup, VolumeChange
from rebuild.machine import Machine, VolumeTree
from rebuild.sites import Site

FALLBACK_LOADER = b"BOOTX64.EFI"

_Children = dict[int, dict[bytes, NodeObject]]  # by parent's number, then by name in lower case


@dataclass(frozen=True, slots=True)
class _System:
    """Where the loader of a system is; names in lower case."""

    directory: tuple[bytes | None, ...]  # below \\EFI; None is any but the fallback's own
    names: tuple[bytes, ...]  # of the loader, in order of preference
    title: str = ""  # of its boot entry; empty for the name of its directory
    # By a loader's name, what it starts or needs beside itself.
    companions: Mapping[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    is_named_by_architecture: bool = (
        True  # else any loader at the fallback path may be the right one
    )


# In order of preference.
SYSTEMS = (
    _System(  # Linux, one directory for each distribution
        (None,),
        (b"shimx64.efi", b"grubx64.efi", b"systemd-bootx64.efi"),
        # What shim starts and what it enrols keys with.  Not its fbx64.efi: that would write boot
        # entries of its own and restart the machine.
        companions={b"shimx64.efi": (b"grubx64.efi", b"mmx64.efi")},
    ),
    _System(
        (b"microsoft", b"boot"),
        (b"bootmgfw.efi",),
        title="Windows Boot Manager",  # as Windows names its entry
        is_named_by_architecture=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Loader:
    """A system's own boot loader on an EFI system partition."""

    title: str  # as the system names its boot entry
    path: str  # from the partition's root, with backslashes


@dataclass(frozen=True, slots=True)
class _Found:
    system: _System
    efi: NodeObject
    directory: NodeObject
    directory_path: str
    file: NodeObject


class FallbackLoader(Fixup):
    """Copies a loader to the fallback path of every EFI system partition that has none there."""

    def changes(self, machine: Machine, sites: Sequence[Site]) -> Iterator[VolumeChange]:
        """Plan what to add to the EFI system partitions."""
        for site in sites:
            if site.disk.scheme == "none":
                continue
            table = PartitionTable.from_description(site.disk.table)
            for tree, _ in site.volumes(machine):
                entry = table.entry(tree.volume.partition)
                if entry is not None and entry.is_efi_system and tree.may_start(Starts.UEFI):
                    yield from fallback_of(tree)


def find_loader(tree: VolumeTree) -> Loader | None:
    """Return the best loader that a system installed on an EFI system partition, if any."""
    found = _find(_children_of(tree))
    if found is None:
        return None
    path = f"{found.directory_path}\\{_text(found.file)}"
    return Loader(found.system.title or _text(found.directory), path)


def has_fallback_loader(tree: VolumeTree) -> bool:
    """Tell whether `\\EFI\\BOOT\\BOOTX64.EFI` is there."""
    children = _children_of(tree)
    efi = _efi_directory(children)
    return efi is not None and FALLBACK_LOADER.lower() in _in_fallback(children, efi)


def fallback_of(tree: VolumeTree) -> Iterator[VolumeChange]:
    """Yield what to add to an EFI system partition; nothing if its fallback path has a loader."""
    children = _children_of(tree)
    found = _find(children)
    if found is None:
        return
    present = _in_fallback(children, found.efi)
    is_there = FALLBACK_LOADER.lower() in present
    if not found.system.is_named_by_architecture:
        is_there = any(name.startswith(b"boot") and name.endswith(b".efi") for name in present)
    if is_there:
        return
    added: list[NodeObject] = []

    def add(item: NodeObject, parent: NodeObject, name: bytes) -> NodeObject:
        number = -1 - len(added)
        flags = item.name_flags if name == item.name else 0  # of the case of a short name
        copy = replace(item, number=number, parent=parent.number, name=name, name_flags=flags)
        copy.short_name = b""
        added.append(copy)
        return copy

    boot = children[found.efi.number].get(b"boot") or add(found.directory, found.efi, b"BOOT")
    add(found.file, boot, FALLBACK_LOADER)
    beside = children[found.directory.number]
    for name in found.system.companions.get(found.file.name.lower(), ()):
        file = beside.get(name)
        if file is not None and name not in present and file.kind == ObjectKind.FILE:
            add(file, boot, name)
    source = f"{found.directory_path}\\{_text(found.file)}"
    if not found.system.title:
        source = f"the loader in {found.directory_path}"
    note = f"Added \\EFI\\BOOT\\BOOTX64.EFI, a copy of {printable(source)}."
    yield VolumeChange(volume=tree.volume.number, nodes=tuple(added), notes=(note,))


def _find(children: _Children) -> _Found | None:
    """Return the best loader outside the fallback path."""
    efi = _efi_directory(children)
    if efi is None:
        return None
    for system in SYSTEMS:
        directories = [(f"\\{_text(efi)}", efi)]
        for wanted in system.directory:
            directories = [
                (f"{path}\\{_text(item)}", item)
                for path, parent in directories
                for name, item in sorted(children.get(parent.number, {}).items())
                if name == wanted or (wanted is None and name != b"boot")
            ]
        for wanted_name in system.names:
            for path, directory in directories:
                file = children.get(directory.number, {}).get(wanted_name)
                if file is not None and file.kind == ObjectKind.FILE:
                    return _Found(system, efi, directory, path, file)
    return None


def _children_of(tree: VolumeTree) -> _Children:
    children: _Children = {}
    for item in tree.nodes:
        children.setdefault(item.parent, {})[item.name.lower()] = item
    return children


def _efi_directory(children: _Children) -> NodeObject | None:
    root = children.get(0, {}).get(b"")
    return children.get(root.number, {}).get(b"efi") if root is not None else None


def _in_fallback(children: _Children, efi: NodeObject) -> dict[bytes, NodeObject]:
    """Return the files in the directory of the fallback path, if it exists."""
    boot = children.get(efi.number, {}).get(b"boot")
    return children.get(boot.number, {}) if boot is not None else {}


def _text(item: NodeObject) -> str:
    return item.name.decode("utf-8", "replace")
