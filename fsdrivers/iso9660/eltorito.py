# SPDX-License-Identifier: Apache-2.0
"""The boot catalogue of El Torito.

Source: [El Torito] 2.1 to 2.5; [UEFI] 13.3.2.1.  A catalogue whose checksum is wrong is read
all the same: `BootCatalogue.is_checksum_right` says so, and `check` lists it.

Not here: what the boot images hold; the boot information table inside those of isolinux.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError
from fsdrivers.iso9660 import format as iso
from fsdrivers.volume import Plain

MAXIMUM_SIZE = 16 * iso.SECTOR_SIZE  # bytes of a catalogue that are looked at: 1024 entries
_ENTRY = iso.ValidationEntry.SIZE


@dataclass(frozen=True, slots=True)
class BootImage:
    """One entry of the catalogue.

    Attributes:
        platform: of its section, see `format.Platform`.
        is_bootable: whether firmware may start it.
        media: 0 no emulation, 1 to 3 floppy, 4 hard disk.
        load_segment: 0 stands for 7C0.
        system_type: of the partition, for a hard disk.
        load_size: bytes that firmware loads; of EFI images often 0 or too few.
        position: of the image, bytes from the start of the volume.
        section: identifier of the section, empty for the default entry.
    """

    platform: int
    is_bootable: bool
    media: int
    load_segment: int
    system_type: int
    load_size: int
    position: int
    section: bytes

    def to_plain(self) -> dict[str, Plain]:
        """Return the fields by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class BootCatalogue:
    """A boot catalogue.

    Attributes:
        position: bytes from the start of the volume.
        size: bytes up to behind its last entry.
        maker: of the validation entry.
        is_checksum_right: whether the validation entry adds up to zero.
        has_last_header: whether its sections, if any, end with a header that says so.
        images: the default entry first.
    """

    position: int
    size: int
    maker: bytes
    is_checksum_right: bool
    has_last_header: bool
    images: tuple[BootImage, ...]


def read_catalogue(device: Device, position: int) -> BootCatalogue:
    """Read the boot catalogue at a byte of the volume.

    Raises:
        CorruptError: it is outside, or does not start with a validation entry.
    """
    size = min(MAXIMUM_SIZE, device.size - position)
    if size < 2 * _ENTRY:
        raise CorruptError("boot catalogue beyond the end of the image", position)
    data = device.read(position, size)
    validation = iso.ValidationEntry.unpack(data)
    if validation.header != iso.CATALOGUE_HEADER or validation.key != iso.CATALOGUE_KEY:
        found = f"{validation.header:02x} and {validation.key.hex()}"
        raise CorruptError("validation entry of the boot catalogue", position, "01 and 55aa", found)
    images = [_image_of(iso.BootEntry.unpack(data, _ENTRY), validation.platform, b"")]
    end, has_last_header = _read_sections(data, 2 * _ENTRY, images)
    return BootCatalogue(
        position,
        end,
        validation.maker.rstrip(b"\0 "),
        validation.is_checksum_right,
        has_last_header,
        tuple(images),
    )


def _read_sections(data: bytes, offset: int, images: list[BootImage]) -> tuple[int, bool]:
    """Add the images of all sections; return where they end and whether as they must."""
    has_last_header = True
    while offset + _ENTRY <= len(data) and data[offset] in (iso.SECTION_MORE, iso.SECTION_LAST):
        header = iso.SectionHeader.unpack(data, offset)
        offset += _ENTRY
        for _ in range(header.entries):
            if offset + _ENTRY > len(data):
                return offset, False
            entry = iso.BootEntry.unpack(data, offset)
            images.append(_image_of(entry, header.platform, header.section_id.rstrip(b"\0 ")))
            offset += _ENTRY
            more = entry.media & iso.HAS_EXTENSION
            while more and offset + _ENTRY <= len(data) and data[offset] == iso.EXTENSION:
                more = data[offset + 1] & iso.EXTENSION_MORE
                offset += _ENTRY
        has_last_header = header.indicator == iso.SECTION_LAST
        if has_last_header:
            break
    return offset, has_last_header


def _image_of(entry: iso.BootEntry, platform: int, section: bytes) -> BootImage:
    """Return what an entry of a section for `platform` says."""
    return BootImage(
        platform,
        entry.indicator == iso.BOOTABLE,
        entry.media & iso.MEDIA_MASK,
        entry.load_segment,
        entry.system_type,
        entry.load_sectors * iso.LOAD_UNIT,
        entry.sector * iso.SECTOR_SIZE,
        section,
    )
