# SPDX-License-Identifier: Apache-2.0
"""Recognises images of virtual machines and of forensics, which hold a disk in a form of their own.

Taken for a disk they would show nothing, or a damaged partition table.  They are named, with the
program that makes a plain image of them.

Sources of the signatures: QEMU, docs/interop/qcow2.rst; VMware, Virtual Disk Format 5.0; Microsoft,
VHD specification 1.0 and [MS-VHDX] 3.1.1; VirtualBox, VDICore.h; libewf, EWF file format.
"""

from __future__ import annotations

from typing import NamedTuple

from fsdrivers.device import Device, FileDevice
from fsdrivers.errors import UnsupportedError
from fsdrivers.losses import read_where_possible

_FOOTER_SIZE = 512  # bytes at the end of a fixed VHD, whose start is that of the disk
_VHD = b"conectix"


class MachineImage(NamedTuple):
    """A form of images: what people call it, and what makes a plain image of one."""

    name: str
    converter: str  # a command; {} is the image


_QEMU = "qemu-img convert -O raw {} disk.img"
_EWF = "ewfexport -t disk -f raw {}"
# Position in bytes, signature, form.
_SIGNATURES = (
    (0, b"QFI\xfb", MachineImage("qcow2", _QEMU)),
    (0, b"KDMV", MachineImage("VMDK", _QEMU)),
    (0, b"COWD", MachineImage("VMDK", _QEMU)),
    (0, b"# Disk DescriptorFile", MachineImage("VMDK", _QEMU)),
    (0, _VHD, MachineImage("VHD", _QEMU)),
    (0, b"vhdxfile", MachineImage("VHDX", _QEMU)),
    (0x40, b"\x7f\x10\xda\xbe", MachineImage("VDI", _QEMU)),
    (0, b"WithoutFreeSpace", MachineImage("Parallels", _QEMU)),
    (0, b"WithouFreSpacExt", MachineImage("Parallels", _QEMU)),
    (0, b"EVF\x09\x0d\x0a\xff\0", MachineImage("E01 (EnCase)", _EWF)),
    (0, b"EVF2\x0d\x0a\x81\0", MachineImage("Ex01 (EnCase)", _EWF)),
)
_HEAD_SIZE = 0x44


def find_machine_image(device: Device) -> MachineImage | None:
    """Return the form of the image that a device holds in place of a disk, None for a disk.

    The end says something of files only: a disk to which a fixed VHD was copied is a disk.
    Sectors that cannot be read count as zeros.
    """
    head = read_where_possible(device, 0, min(_HEAD_SIZE, device.size))
    for position, signature, form in _SIGNATURES:
        if head[position : position + len(signature)] == signature:
            return form
    is_file = isinstance(device, FileDevice) and not device.is_block
    if is_file and device.size > _FOOTER_SIZE:
        end = read_where_possible(device, device.size - _FOOTER_SIZE, _FOOTER_SIZE)
        if end.startswith(_VHD):
            return MachineImage("VHD", _QEMU)
    return None


def image_reason(device: Device) -> str:
    """Say that a device holds an image and how it is converted, as the end of a sentence; or ""."""
    form = find_machine_image(device)
    if form is None:
        return ""
    return f"it is a {form.name} image, not a disk: convert it with `{form.converter}`".format(
        device.name
    )


def refuse_machine_image(device: Device) -> None:
    """Refuse an image that holds a disk in a form of its own.

    Raises:
        UnsupportedError: it is one; the text says how to convert it.
    """
    if reason := image_reason(device):
        raise UnsupportedError(f"{device.name}: {reason}")
