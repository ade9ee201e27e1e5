# SPDX-License-Identifier: Apache-2.0
"""What the kernel's ntfs3 says of NTFS volumes, and the same of our reader, to be compared.

ntfs3 shows neither named streams nor DOS names nor object ids nor creation times.  It does not
give the descriptors that volumes without an id of $Secure in a record have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from fsdrivers.device import FileDevice, Window
from fsdrivers.ntfs.format.records import BootSector
from fsdrivers.ntfs.volume import NtfsVolume, open_volume
from fsdrivers.volume import Kind, Node
from tests.vm.kernel_guest import Mount, Seen, View
from tests.vm.volumes import assert_sound, digest, paths_of

ATTRIBUTES, DESCRIPTOR = "system.ntfs_attrib", "system.ntfs_security"
DIRECTORY_FLAG, REPARSE_FLAG = 0x10000000, 0x400
SECTOR_SIZE_AT = BootSector.OFFSETS["sector_size"]
EA_HEAD = struct.Struct("<IBBH")
Facts = tuple[object, ...]


def mount_of(image: Path, offset: int = 0) -> Mount:
    """Return how the guest is to mount a volume."""
    with image.open("rb") as file:
        file.seek(offset + SECTOR_SIZE_AT)
        sector_size = int.from_bytes(file.read(2), "little")
    return Mount(image, "ntfs3", "", offset, (ATTRIBUTES, DESCRIPTOR), sector_size)


def assert_alike(view: View, image: Path, offset: int = 0, size: int = 0) -> None:
    """ntfs3 could look up every name and sees what our reader does."""
    with FileDevice.open(image) as device:
        volume = open_volume(Window(device, offset, size or device.size - offset, "volume"))
        ours = {path: (node, our_facts(volume, node)) for path, node, _ in paths_of(volume)}
    assert_sound(view)
    theirs = {path: kernel_facts(seen) for path, seen in view.names.items()}

    assert ours.keys() == theirs.keys()
    different = {
        path: (facts, theirs[path]) for path, (_, facts) in ours.items() if facts != theirs[path]
    }
    assert not different, f"{len(different)} differ: {dict(list(different.items())[:3])}"
    for path, (node, _) in ours.items():
        if DESCRIPTOR in view.names[path].xattrs:
            assert view.names[path].xattrs[DESCRIPTOR] == xattrs_of(node)["system.ntfs_acl"]


def our_facts(volume: NtfsVolume, node: Node) -> Facts:
    """Return what must be seen alike of a node of ours."""
    is_directory, is_reparse = node.kind is Kind.DIRECTORY, bool(node.flags & REPARSE_FLAG)
    content = None
    if not is_directory and not is_reparse:
        content = (node.size, node.links, digest(volume, node))
    times = (node.modified_ns, node.accessed_ns, node.changed_ns)
    attributes = xattrs_of(node).get("system.ntfs_ea", b"")
    return (
        is_directory or is_reparse,
        node.flags & ~DIRECTORY_FLAG,
        times,
        content,
        dict(eas_of(attributes)),
    )


def kernel_facts(seen: Seen) -> Facts:
    """Return the same of what the kernel saw."""
    flags = int.from_bytes(seen.xattrs[ATTRIBUTES], "little") & ~DIRECTORY_FLAG
    is_reparse = bool(flags & REPARSE_FLAG)
    content = None
    if seen.kind == "file" and not is_reparse:
        content = (seen.size, seen.links, seen.sha256)
    eas = {
        name: value for name, value in seen.xattrs.items() if name not in (ATTRIBUTES, DESCRIPTOR)
    }
    return seen.kind == "directory" or is_reparse, flags, seen.times, content, eas


def xattrs_of(node: Node) -> dict[str, bytes]:
    """Return a node's extended attributes."""
    return {name.decode(): value for name, value in node.xattrs}


def eas_of(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and value of each attribute in an $EA."""
    at = 0
    while at < len(data):
        step, _, name_size, value_size = EA_HEAD.unpack_from(data, at)
        name_at = at + EA_HEAD.size
        value_at = name_at + name_size + 1
        yield data[name_at : value_at - 1].decode(), data[value_at : value_at + value_size]
        at = at + step if step else len(data)
