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

from dataclasses import replace

from backup.objects.model import NodeObject, ObjectKind
from rebuild.machine import VolumeTree

FALLBACK_LOADER = b"BOOTX64.EFI"
LOADERS = (b"shimx64.efi", b"grubx64.efi", b"systemd-bootx64.efi")  # in order of preference
COMPANIONS = (b"grubx64.efi", b"mmx64.efi", b"fbx64.efi")  # what shim looks for beside itself
ADDED_NUMBERS_START = 1 << 40  # object numbers no table reaches


def add_fallback_loader(tree: VolumeTree) -> list[str]:
    """Give an EFI system partition a loader at `\\EFI\\BOOT\\BOOTX64.EFI` if it has none.

    Adds objects to `tree` that share the content of the distribution's own loader.  Returns
    one note for the report for what was added, or none.
    """
    children: dict[int, dict[bytes, NodeObject]] = {}
    for item in tree.nodes:
        children.setdefault(item.parent, {})[item.name.lower()] = item
    root = next((item for item in tree.nodes if not item.parent), None)
    if root is None:
        return []
    efi = children.get(root.number, {}).get(b"efi")
    if efi is None:
        return []
    vendors = children.get(efi.number, {})
    boot = vendors.get(b"boot")
    if boot is not None and FALLBACK_LOADER.lower() in children.get(boot.number, {}):
        return []
    for wanted in LOADERS:
        for name, vendor in sorted(vendors.items()):
            files = children.get(vendor.number, {})
            if name == b"boot" or wanted not in files:
                continue
            number = ADDED_NUMBERS_START
            if boot is None:
                boot = replace(vendor, number=number, name=b"BOOT", short_name=b"")
                tree.nodes.append(boot)
                number += 1
            present = children.get(boot.number, {})
            companions = COMPANIONS if wanted == LOADERS[0] else ()
            for source, target in ((wanted, FALLBACK_LOADER), *((c, c) for c in companions)):
                file = files.get(source)
                if file is None or target in present or file.kind != ObjectKind.FILE:
                    continue
                copy = replace(file, number=number, parent=boot.number, name=target, short_name=b"")
                tree.nodes.append(copy)
                number += 1
            place = f"\\EFI\\{vendor.name.decode('utf-8', 'replace')}"
            return [f"Added \\EFI\\BOOT\\BOOTX64.EFI, a copy of the loader in {place}."]
    return []
