# SPDX-License-Identifier: Apache-2.0
"""Filesystem and partition drivers; they import nothing else of this project.

    probe(device) -> str              what is on it, by signature
    open_volume(device) -> Volume     opens it with the driver that knows it
    driver_of(type) -> module         for planning a volume of that type

A driver is imported when it is first needed: the declarations of its records take their time,
which the boot environment pays in front of a waiting human.
"""

from __future__ import annotations

from types import ModuleType

from fsdrivers.device import Device
from fsdrivers.errors import NotRecognisedError, UnsupportedError
from fsdrivers.probing import EMPTY, UNKNOWN, probe
from fsdrivers.volume import Volume

__all__ = ["ISO_TYPES", "READABLE_TYPES", "TYPES", "driver_of", "open_volume", "probe"]

FAT_TYPES = ("fat12", "fat16", "fat32")
EXT_TYPES = ("ext2", "ext3", "ext4")
SWAP_TYPES = ("swap",)
ISO_TYPES = ("iso9660",)
NTFS_TYPES = ("ntfs",)
STREAM_TYPES = (*NTFS_TYPES,)  # whose nodes have streams: they offer StreamVolume and StreamLayout
# Everything that can be read and laid out again.
TYPES = (*FAT_TYPES, *EXT_TYPES, *NTFS_TYPES, *SWAP_TYPES)
READABLE_TYPES = (*TYPES, *ISO_TYPES)  # everything that can be read


def driver_of(type: str) -> ModuleType:
    """Return the package of the driver of a volume type.

    It offers what `fsdrivers.volume` says; what a driver takes beyond that is its own.

    Raises:
        NotRecognisedError: `type` is "empty" or "unknown".
        UnsupportedError: no driver implements it.
    """
    if type in EXT_TYPES:
        from fsdrivers import ext

        return ext
    if type in FAT_TYPES:
        from fsdrivers import fat

        return fat
    if type in SWAP_TYPES:
        from fsdrivers import swap

        return swap
    if type in ISO_TYPES:
        from fsdrivers import iso9660

        return iso9660
    if type in NTFS_TYPES:
        from fsdrivers import ntfs

        return ntfs
    if type in (EMPTY, UNKNOWN):
        raise NotRecognisedError("nothing there that any driver knows")
    raise UnsupportedError(type)


def open_volume(device: Device) -> Volume:
    """Open the filesystem or swap area on `device` for reading.

    Raises:
        NotRecognisedError: nothing known is there.
        UnsupportedError: it is known, but not implemented; `feature` names it.
        CorruptError: it breaks its own format.
        DeviceError: the medium failed.
    """
    type = probe(device)
    # Of an ext volume whose start is damaged there may be copies, which no probe looks for.
    driver = driver_of("ext4" if type in (EMPTY, UNKNOWN) else type)
    try:
        volume: Volume = driver.open_volume(device)
    except NotRecognisedError as error:
        if type not in (EMPTY, UNKNOWN):
            raise
        what = "is empty" if type == EMPTY else "holds nothing that any driver knows"
        raise NotRecognisedError(f"{device.name} {what}") from error
    return volume
