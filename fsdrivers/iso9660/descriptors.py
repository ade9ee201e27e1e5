# SPDX-License-Identifier: Apache-2.0
"""The set of volume descriptors of one session.

Source: [ECMA-119] 8; [El Torito] 2.0; [Joliet].  What is tolerated is named in
`DescriptorSet.problems`: copies of a number that differ (the little-endian one counts, as for
Linux, because mastering programs were seen to leave the other wrong), a set without terminator.

Not here: volume partition descriptors (skipped), High Sierra, raw sectors of 2352 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError, NotRecognisedError, UnsupportedError
from fsdrivers.iso9660 import format as iso
from fsdrivers.iso9660.geometry import Geometry, descriptors_position, next_session_sectors

MAXIMUM_SESSIONS = 100


class PlacedDescriptor(NamedTuple):
    """A volume descriptor and where it is."""

    descriptor: iso.VolumeDescriptor
    position: int

    @property
    def root(self) -> iso.DirectoryRecord:
        """The directory record of the root."""
        return iso.DirectoryRecord.unpack(self.descriptor.root)

    @property
    def root_position(self) -> int:
        """Where the directory record of the root is."""
        return self.position + iso.VolumeDescriptor.OFFSETS["root"]

    def differing(self) -> list[str]:
        """Return the names of the numbers whose two copies differ, those of the root included."""
        descriptor, root = self.descriptor, self.root
        own = [name for name in iso.VOLUME_NUMBERS if not iso.agrees(getattr(descriptor, name))]
        return own + [
            f"root.{name}" for name in iso.RECORD_NUMBERS if not iso.agrees(getattr(root, name))
        ]


@dataclass(frozen=True, slots=True)
class DescriptorSet:
    """All volume descriptors of a session.

    Attributes:
        primary: the first primary descriptor.
        supplementary: those of Joliet and unknown character sets, and the enhanced ones.
        boot_position: where the boot record of El Torito is, None if there is none.
        catalogue_sector: of the boot catalogue.
        end: bytes from the start of the device to behind the last descriptor.
        has_terminator: whether the set ended as it must.
        problems: what was tolerated, in sentences.
    """

    primary: PlacedDescriptor
    supplementary: tuple[PlacedDescriptor, ...]
    boot_position: int | None
    catalogue_sector: int
    end: int
    has_terminator: bool
    problems: tuple[str, ...]

    @property
    def joliet(self) -> PlacedDescriptor | None:
        """The first descriptor with names in UCS-2."""
        found = (item for item in self.supplementary if item.descriptor.joliet_level)
        return next(found, None)

    @property
    def enhanced(self) -> PlacedDescriptor | None:
        """The first descriptor of ISO 9660:1999."""
        for item in self.supplementary:
            if item.descriptor.version == iso.ENHANCED_VERSION:
                return item
        return None

    @property
    def ignores_big_endian(self) -> bool:
        """Whether the mastering program did not care for the second copies of numbers."""
        return bool(self.primary.differing())


def read_descriptors(device: Device, session_sector: int = 0) -> DescriptorSet:
    """Read the descriptors of the session that starts at a sector of 2048 bytes.

    Raises:
        NotRecognisedError: there are none.
        CorruptError: there is no primary one among them, or it cannot be right.
    """
    start = descriptors_position(session_sector)
    primary: PlacedDescriptor | None = None
    supplementary: list[PlacedDescriptor] = []
    problems: list[str] = []
    boot_position, catalogue_sector, has_terminator = None, 0, False
    position = start
    for _ in range(iso.MAXIMUM_DESCRIPTORS):
        if position + iso.SECTOR_SIZE > device.size:
            break
        try:
            data = device.read(position, iso.SECTOR_SIZE)
        except DeviceError as error:
            if primary is None:
                raise
            problems.append(f"a volume descriptor cannot be read: {error}")
            position += iso.SECTOR_SIZE
            continue
        head = iso.DescriptorHead.unpack(data)
        if head.standard_id != iso.STANDARD_ID:
            break
        if head.type == iso.DescriptorType.TERMINATOR:
            position += iso.SECTOR_SIZE
            has_terminator = True
            break
        placed = PlacedDescriptor(iso.VolumeDescriptor.unpack(data), position)
        if head.type == iso.DescriptorType.PRIMARY and primary is None:
            primary = placed
        elif head.type == iso.DescriptorType.SUPPLEMENTARY:
            supplementary.append(placed)
        elif head.type == iso.DescriptorType.BOOT and boot_position is None:
            boot = iso.BootDescriptor.unpack(data)
            if boot.system_id.startswith(iso.EL_TORITO_ID):
                boot_position, catalogue_sector = position, boot.catalogue
        position += iso.SECTOR_SIZE
    if position == start:
        raise NotRecognisedError(f"{device.name} has no volume descriptor at byte {start:#x}")
    if primary is None:
        raise CorruptError("no primary volume descriptor", start)
    if not has_terminator:
        problems.append(f"the volume descriptors do not end in a terminator at byte {position:#x}")
    for item in (primary, *supplementary):
        problems += [
            f"the two copies of {name} differ in the volume descriptor at byte {item.position:#x}"
            for name in item.differing()
        ]
    _check(primary)
    return DescriptorSet(
        primary,
        tuple(supplementary),
        boot_position,
        catalogue_sector,
        position,
        has_terminator,
        tuple(problems),
    )


def _check(placed: PlacedDescriptor) -> None:
    """Refuse a primary descriptor that nothing can be read by."""
    descriptor, position = placed.descriptor, placed.position
    if descriptor.block_size not in iso.BLOCK_SIZES:
        at = position + iso.VolumeDescriptor.OFFSETS["block_size_both"]
        sizes = " or ".join(map(str, iso.BLOCK_SIZES))
        if descriptor.block_size in (4096, 8192):
            raise UnsupportedError(f"iso9660 with logical blocks of {descriptor.block_size} bytes")
        raise CorruptError("logical block size", at, sizes, descriptor.block_size)
    if not placed.root.flags & iso.FileFlag.DIRECTORY:
        at = placed.root_position + iso.DirectoryRecord.OFFSETS["flags"]
        raise CorruptError("the root is not a directory", at)


def geometry_of(descriptors: DescriptorSet, device: Device) -> Geometry:
    """Return the sizes that the primary descriptor gives."""
    primary = descriptors.primary.descriptor
    return Geometry(primary.block_size, primary.blocks, device.size)


def find_sessions(device: Device) -> list[int]:
    """Return the sectors at which the sessions in an image start, the first one included.

    A volume written to by xorriso in place repeats the descriptors of its newest session at
    the start, so that one alone is found; those of a drive are in the disc's table of contents,
    which is not looked at.

    Measured: genisoimage and xorriso count the size of a further session from where it starts,
    although its blocks are counted from the start of the disc.

    Raises:
        NotRecognisedError: there is not even one.
    """
    sessions = [0]
    descriptors = read_descriptors(device)
    while len(sessions) < MAXIMUM_SESSIONS:
        size = geometry_of(descriptors, device).size  # counted from the start of its session
        for sector in next_session_sectors(sessions[-1] * iso.SECTOR_SIZE + size):
            try:
                descriptors = read_descriptors(device, sector)
            except (NotRecognisedError, CorruptError, UnsupportedError):
                continue
            sessions.append(sector)
            break
        else:
            break
    return sessions
