# SPDX-License-Identifier: Apache-2.0
"""What a volume says of itself while it is edited: marks of use, FSInfo, label, serial.

A volume that was marked as in use before stays so: only a checker may say that it is sound.
"""

from __future__ import annotations

from dataclasses import replace

from fsdrivers.device import Device
from fsdrivers.fat import format as fat
from fsdrivers.fat.description import Template
from fsdrivers.fat.edit.table import TableEditor, WriteAt

_CLEAN = {12: 0, 16: 0x8000, 32: 0x08000000}  # the bit of FAT[1] that says "not in use"


class Marks:
    """The marks of one volume that is being edited.

    Args:
        device: that holds it, for reading.
        template: its boot sector and FAT[1] as they were found.
        fats: writes FAT[1].
        write: writes bytes at a position of the volume.
    """

    def __init__(
        self, device: Device, template: Template, fats: TableEditor, write: WriteAt
    ) -> None:
        self._device = device
        self._write = write
        self._fats = fats
        self._template = template
        boot = template.boot
        self._has_flags = boot.boot_signature in fat.EXTENDED_SIGNATURES
        self.is_set = False
        if (hint := self._fsinfo()) is not None and hint.next_free > fat.FIRST_CLUSTER:
            fats.next_free = hint.next_free

    @property
    def boot(self) -> fat.BootSector16 | fat.BootSector32:
        """The boot sector's fields as they are without the mark of use."""
        return self._template.boot

    def set(self) -> None:
        """Mark the volume as in use; 1 of the order of writes."""
        self.is_set = True
        boot, head = self._template.boot, self._template.heads[1]
        if self._has_flags:
            flags = boot.boot_flags | fat.BootFlag.DIRTY.value
            self._write(boot.OFFSETS["boot_flags"], bytes([flags]))
        clean = _CLEAN[self._fats.geometry.bits]
        if head & clean:
            self._fats.set_head(head & ~clean)
        self._device.flush()

    def clear(self) -> None:
        """Bring FSInfo up to date and give the marks their former values; 6 of the order."""
        fsinfo = self._fsinfo()
        if fsinfo is not None:
            last = self._fats.geometry.last_cluster
            now = replace(
                fsinfo,
                free_count=self._fats.free_count,
                next_free=min(max(self._fats.next_free, fat.FIRST_CLUSTER), last),
            )
            self._write(self._fsinfo_position(), now.pack())
        self._device.flush()
        boot, head = self._template.boot, self._template.heads[1]
        if head & _CLEAN[self._fats.geometry.bits]:
            self._fats.set_head(head)
        if self._has_flags:
            self._write(boot.OFFSETS["boot_flags"], bytes([boot.boot_flags]))
        self._device.flush()
        self.is_set = False

    def patch_boot_sector(self, field: str, data: bytes) -> None:
        """Change a field of the boot sector, in its backup first if that is one."""
        boot = self._template.boot
        at = boot.OFFSETS[field]
        backup = self._template.backup_sector
        if backup is not None:
            position = backup * self._fats.geometry.sector_size
            if self._is_backup(position):
                self._write(position + at, data)
        self._write(at, data)
        fields = boot.pack()
        boot = type(boot).unpack(fields[:at] + data + fields[at + len(data) :])
        self._template = replace(self._template, boot=boot)

    def _is_backup(self, position: int) -> bool:
        """Whether the sector at `position` is a copy of the boot sector, but for its flags."""
        boot = self._template.boot
        found = type(boot).unpack(self._device.read(position, boot.SIZE))
        return replace(found, boot_flags=boot.boot_flags).pack() == boot.pack()

    def _fsinfo_position(self) -> int:
        """Return the position of FSInfo, 0 if the volume has none."""
        return (self._template.fsinfo_sector or 0) * self._fats.geometry.sector_size

    def _fsinfo(self) -> fat.FsInfo | None:
        """Return FSInfo as it is on the medium, None if there is none with its signatures."""
        position = self._fsinfo_position()
        if not position:
            return None
        fsinfo = fat.FsInfo.unpack(self._device.read(position, fat.FsInfo.SIZE))
        return fsinfo if fsinfo.is_valid else None
