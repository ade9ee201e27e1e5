# SPDX-License-Identifier: Apache-2.0
"""What Linux needs to start on the new disk, beyond its own files.

Most of it needs no fixing, because identities are kept: disk signature, GPT and partition
GUIDs, filesystem UUIDs and labels, so fstab, GRUB's `search` and `root=UUID=` keep resolving;
boot code and the gap sectors that hold GRUB's core image are restored as they were; swap areas
come back blank under their old UUID.

What is added: a loader at the fallback path of an EFI system partition, which firmware starts
without any boot entry.  Source: UEFI 2.10, 3.5.1.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backup.objects.model import NodeObject, ObjectKind
from rebuild.machine import VolumeTree

FALLBACK_LOADER = b"BOOTX64.EFI"
LOADERS = (b"shimx64.efi", b"grubx64.efi", b"systemd-bootx64.efi")  # in order of preference
# What shim starts and what it enrols keys with, beside itself.  Not its fbx64.efi: that would
# write boot entries of its own and restart the machine.
COMPANIONS = (b"grubx64.efi", b"mmx64.efi")
ADDED_NUMBERS_START = 1 << 40  # object numbers no table reaches

_Children = dict[int, dict[bytes, NodeObject]]  # by parent's number, then by name in lower case


@dataclass(frozen=True, slots=True)
class Loader:
    """A distribution's boot loader on an EFI system partition."""

    vendor: str  # directory below \\EFI, such as "debian"
    path: str  # from the partition's root, with backslashes


def find_loader(tree: VolumeTree) -> Loader | None:
    """Return the distribution's own loader on an EFI system partition, if there is one."""
    found = _find_loader(_children_of(tree))
    if found is None:
        return None
    efi, vendor, file = (_text(item.name) for item in found)
    return Loader(vendor, f"\\{efi}\\{vendor}\\{file}")


def has_fallback_loader(tree: VolumeTree) -> bool:
    """Tell whether `\\EFI\\BOOT\\BOOTX64.EFI` is there."""
    children = _children_of(tree)
    efi = _efi_directory(children)
    boot = children.get(efi.number, {}).get(b"boot") if efi is not None else None
    return boot is not None and FALLBACK_LOADER.lower() in children.get(boot.number, {})


def add_fallback_loader(tree: VolumeTree) -> list[str]:
    """Give an EFI system partition a loader at `\\EFI\\BOOT\\BOOTX64.EFI` if it has none.

    Adds objects to `tree` that share the content of the distribution's own loader.  Returns
    one note for the report for what was added, or none.
    """
    children = _children_of(tree)
    found = _find_loader(children)
    if found is None or has_fallback_loader(tree):
        return []
    efi, vendor, loader = found
    boot = children[efi.number].get(b"boot")
    number = ADDED_NUMBERS_START
    if boot is None:
        boot = replace(vendor, number=number, name=b"BOOT", short_name=b"", name_flags=0)
        tree.nodes.append(boot)
        number += 1
    beside, present = children[vendor.number], children.get(boot.number, {})
    companions = COMPANIONS if loader.name.lower() == LOADERS[0] else ()
    for source, target in ((loader.name.lower(), FALLBACK_LOADER), *((c, c) for c in companions)):
        file = beside.get(source)
        if file is None or target in present or file.kind != ObjectKind.FILE:
            continue
        flags = file.name_flags if target == file.name else 0  # of the case of a short name
        copy = replace(file, number=number, parent=boot.number, name=target, name_flags=flags)
        copy.short_name = b""
        tree.nodes.append(copy)
        number += 1
    return [f"Added \\EFI\\BOOT\\BOOTX64.EFI, a copy of the loader in \\EFI\\{_text(vendor.name)}."]


def _children_of(tree: VolumeTree) -> _Children:
    children: _Children = {}
    for item in tree.nodes:
        children.setdefault(item.parent, {})[item.name.lower()] = item
    return children


def _efi_directory(children: _Children) -> NodeObject | None:
    root = children.get(0, {}).get(b"")
    return children.get(root.number, {}).get(b"efi") if root is not None else None


def _find_loader(children: _Children) -> tuple[NodeObject, NodeObject, NodeObject] | None:
    """Return (the EFI directory, the vendor's directory, the loader) of the best loader."""
    efi = _efi_directory(children)
    if efi is None:
        return None
    for wanted in LOADERS:
        for name, vendor in sorted(children.get(efi.number, {}).items()):
            loader = children.get(vendor.number, {}).get(wanted)
            if name != b"boot" and loader is not None and loader.kind == ObjectKind.FILE:
                return efi, vendor, loader
    return None


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
