# SPDX-License-Identifier: Apache-2.0
"""Check an ISO 9660 volume against the rules of its formats and list what breaks them.

Source: [ECMA-119] 6 to 9, [Joliet], [El Torito], [RRIP].  Every tree is checked: that of the
primary descriptor, with what Rock Ridge says on top of it, and those of the others.  Findings
are data: nothing is repaired, nothing is printed.  Bounded: each directory is read once.

Not done: which characters names may have, content of files, the boot information table, times
of the System Use entries.  A volume that is smaller than its image is a finding only where
nothing explains the rest: a drive's run-out, another session, a partition table.
"""

from __future__ import annotations

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, FilesystemError
from fsdrivers.findings import Finding
from fsdrivers.iso9660 import format as iso
from fsdrivers.iso9660.check_paths import check_path_tables
from fsdrivers.iso9660.check_tree import Check, Claim, check_tree
from fsdrivers.iso9660.descriptors import PlacedDescriptor, find_sessions, read_descriptors
from fsdrivers.iso9660.geometry import descriptors_position
from fsdrivers.iso9660.times import is_digit_time_legal
from fsdrivers.iso9660.volume import IsoVolume, Namespace, open_volume
from fsdrivers.losses import DAMAGE

__all__ = ["check_volume"]

PARTITION_MARKS = ((510, b"\x55\xaa"), (512, b"EFI PART"), (0, b"ER"))  # MBR, GPT, Apple's map
PADDING_SIZE = 150 * iso.SECTOR_SIZE  # of zeros, which xorriso writes behind the volume
_TIMES = ("created", "modified", "expires", "effective")


def check_volume(device: Device, *, session: int = 0) -> list[Finding]:
    """Return everything that is wrong with the volume on `device`.

    Args:
        device: an image or a drive.
        session: sector at which the session to be checked starts.

    Raises:
        NotRecognisedError: there is none.
        UnsupportedError: it cannot be read by this driver.
        DeviceError: the medium failed.
    """
    check = Check(device)
    try:
        descriptors = read_descriptors(device, session)
        volume = open_volume(device, session=session)
    except CorruptError as error:
        return [Finding("descriptor", str(error), error.position)]
    if not descriptors.has_terminator:
        check.add("terminator", "the volume descriptors lack their terminator", descriptors.end)
    start = descriptors_position(session)
    check.claims.append(Claim(start, descriptors.end, "volume descriptors", start))
    for placed in (descriptors.primary, *descriptors.supplementary):
        _check_descriptor(check, placed, descriptors.primary)
    roots: set[int] = set()
    for namespace in ("rockridge", "plain", "joliet", "enhanced"):
        view = volume.views.get(namespace)
        if view is None or view.placed.root.block in roots:
            continue
        roots.add(view.placed.root.block)
        _check_view(check, namespace, session)
    _check_catalogue(check, volume)
    check.check_overlaps()
    _check_size(check, volume, session)
    return check.findings


def _check_descriptor(check: Check, placed: PlacedDescriptor, primary: PlacedDescriptor) -> None:
    """Both copies of numbers, versions, times, and what all descriptors of a volume share."""
    descriptor, position = placed.descriptor, placed.position
    offsets = iso.VolumeDescriptor.OFFSETS
    for name in placed.differing():
        at = offsets[name.partition(".")[0]]
        check.add("both-endian", f"the two copies of {name} differ", position + at)
    is_enhanced = descriptor.version == iso.ENHANCED_VERSION
    is_enhanced = is_enhanced and descriptor.type == iso.DescriptorType.SUPPLEMENTARY
    version = iso.ENHANCED_VERSION if is_enhanced else 1
    if (descriptor.version, descriptor.structure_version) != (version, version):
        found = f"{descriptor.version} and {descriptor.structure_version}"
        check.add("descriptor", f"versions {found} in a volume descriptor", position)
    for name in _TIMES:
        if not is_digit_time_legal(getattr(descriptor, name)):
            check.add("time", f"illegal time {name} in a volume descriptor", position)
    for name in ("blocks_both", "block_size_both"):
        if getattr(descriptor, name) != getattr(primary.descriptor, name):
            what = f"{name} differs from that of the primary descriptor"
            check.add("volume-size", what, position + offsets[name])


def _check_view(check: Check, namespace: Namespace, session: int) -> None:
    """One tree and its path tables."""
    try:
        volume = open_volume(check.device, prefer=namespace, session=session)
        directories = check_tree(check, volume)
        check_path_tables(check, volume, directories)
    except DAMAGE as error:
        check.add_error("tree", error)


def _check_catalogue(check: Check, volume: IsoVolume) -> None:
    """The boot record is in its place, the catalogue whole, its images inside."""
    boot_position = volume.descriptors.boot_position
    if boot_position is None:
        return
    expected = volume.descriptors.primary.position + iso.SECTOR_SIZE
    if boot_position != expected:
        check.add("boot-record", f"the boot record is not at byte {expected:#x}", boot_position)
    try:
        catalogue = volume.boot_catalogue()
    except FilesystemError as error:
        position = error.position if isinstance(error, CorruptError) else None
        check.add("boot-catalogue", str(error), position)
        return
    assert catalogue is not None, "the volume has a boot record"
    if not catalogue.is_checksum_right:
        what = "the validation entry of the boot catalogue does not add up"
        check.add("boot-checksum", what, catalogue.position)
    if not catalogue.has_last_header:
        check.add("boot-catalogue", "the last section does not say so", catalogue.position)
    for image in catalogue.images:
        if image.position + image.load_size > check.device.size or not image.position:
            check.add("boot-image", "a boot image outside the volume", image.position)


def _check_size(check: Check, volume: IsoVolume, session: int) -> None:
    """The volume ends where its image does, and behind all that it holds."""
    position = volume.descriptors.primary.position + iso.VolumeDescriptor.OFFSETS["blocks_both"]
    if volume.size > check.device.size:
        what = f"the volume has {volume.size} bytes, the image {check.device.size}"
        check.add("volume-size", what, position)
    last = max(claim.end for claim in check.claims)
    end = session * iso.SECTOR_SIZE + volume.size
    if end < last <= check.device.size:
        what = f"the volume ends at byte {end:#x}, what it holds at {last:#x}"
        check.add("volume-size", what, position)
    rest = check.device.size - volume.size
    if rest >= volume.block_size and not _is_rest_explained(check.device, rest, session):
        what = f"the image goes on for {rest} bytes behind the end of the volume"
        check.add("volume-size", what, position)


def _is_rest_explained(device: Device, rest: int, session: int) -> bool:
    """Tell whether a volume may end `rest` bytes before what it is on."""
    if getattr(device, "is_block", False) or session or len(find_sessions(device)) > 1:
        return True
    if rest >= PADDING_SIZE and not any(device.read(device.size - rest, PADDING_SIZE)):
        return True
    area = device.read(0, iso.SYSTEM_AREA_SECTORS * iso.SECTOR_SIZE)
    return any(area.startswith(mark, at) for at, mark in PARTITION_MARKS)
