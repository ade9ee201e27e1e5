# SPDX-License-Identifier: Apache-2.0
"""Check an NTFS volume against the rules of its format and list what breaks them.

Source: as `format`; which rules matter: what ntfsck, ntfs-3g and Linux' drivers refuse, and
those that no free tool looks at (order, ids, link counts, $Secure).  Findings are data:
nothing is repaired, nothing is printed.  Takes a byte of memory for each cluster and about
300 bytes for each name.

Not done: content of files, extended attributes, quota, the change journal.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, FilesystemError
from fsdrivers.findings import Finding, Findings
from fsdrivers.losses import DAMAGE
from fsdrivers.marks import Marks
from fsdrivers.ntfs.attributes import Attribute, unpack_attribute_list, unpack_attributes
from fsdrivers.ntfs.check.index import check_indexes
from fsdrivers.ntfs.check.report import Check
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.format.attributes import (
    ATTRIBUTES_END,
    END_SIZE,
    AttributeFlag,
    AttributeType,
    FileName,
    NonResidentHead,
    ObjectId,
    ReparseHead,
    ResidentFlag,
    ResidentHead,
    SparseHead,
    StandardInformation,
    StandardInformation3,
)
from fsdrivers.ntfs.mft import MAXIMUM_LIST_SIZE, FileRecord
from fsdrivers.ntfs.streams import content_of, map_parts, read_content
from fsdrivers.ntfs.upcase import UpCase
from fsdrivers.ntfs.volume import open_volume

_BITS_AT_ONCE: Final = 1 << 16  # clusters of $Bitmap compared at a time
_DIGITS: Final = bytes.maketrans(b"\0\1", b"01")
_MAXIMUM_BITMAP: Final = 64 << 20


def check_volume(device: Device) -> list[Finding]:
    """Return everything that is wrong with the NTFS volume on `device`.

    Raises:
        NotRecognisedError: there is none.
    """
    try:
        volume = open_volume(device)
        upcase = UpCase(volume.system.upcase())
    except DAMAGE as error:
        found = Findings()
        found.add_error("frame", error)
        return found.findings
    check = Check(volume, upcase, claimed=Marks(volume.geometry.cluster_count))
    check.run(lambda: _check_boot(check), lambda: _check_mirror(check))
    for number in sorted(volume.mft.mirrored):
        position = volume.mft.record_position(number)
        check.add("record", f"MFT record {number} is damaged, its copy was read", position)
    check.run(
        lambda: _check_records(check), lambda: _check_bitmap(check), lambda: check_indexes(check)
    )
    if volume.is_dirty:
        check.add("dirty", "the volume is marked dirty")
    return check.findings


def _check_boot(check: Check) -> None:
    """Compare the boot sector with its copy."""
    volume = check.volume
    device, geometry = volume.device, volume.geometry
    first = device.read(0, ntfs.BOOT_SECTOR_SIZE)
    if first[ntfs.BOOT_SIGNATURE_OFFSET :] != ntfs.BOOT_SIGNATURE:
        check.add("boot-sector", "the boot sector has no signature", ntfs.BOOT_SIGNATURE_OFFSET)
    position = geometry.backup_position
    if position + ntfs.BOOT_SECTOR_SIZE > device.size:
        check.add("boot-copy", "there is no room for the copy of the boot sector", position)
    elif device.read(position, ntfs.BOOT_SECTOR_SIZE) != first:
        check.add("boot-copy", "the copy of the boot sector differs", position)


def _check_mirror(check: Check) -> None:
    """Compare $MFTMirr with the first records of $MFT, byte by byte."""
    mft = check.volume.mft
    try:
        mirror = mft.content_of(mft.file(ntfs.SystemRecord.MFT_MIRROR), AttributeType.DATA)
    except CorruptError:
        return  # is found among the records
    size = ntfs.MIRRORED_RECORDS * mft.geometry.record_size
    if mirror is None or mirror.size < size:
        check.add("mirror", "$MFTMirr is too short")
        return
    position = mirror.mapped[0][2] if mirror.mapped else None
    if mft.geometry.position(mft.geometry.mft_mirror_lcn) != position:
        check.add("mirror", "$MFTMirr is not where the boot sector says", position)
    copy, first = (read_content(mft.device, where, 0, size) for where in (mirror, mft.content))
    if copy != first:
        check.add("mirror", "$MFTMirr differs from $MFT", position)


def _check_records(check: Check) -> None:
    """Check every record that is in use, and the MFT's bitmap against them."""
    mft = check.volume.mft
    try:
        file = mft.file(ntfs.SystemRecord.MFT)
        bitmap = mft.read_all(file, AttributeType.BITMAP, limit=_MAXIMUM_BITMAP) or b""
    except CorruptError as error:
        check.add("mft-bitmap", str(error), error.position)
        return
    for number in range(mft.record_count):
        position = mft.record_position(number)
        is_marked = number >> 3 < len(bitmap) and bool(bitmap[number >> 3] >> (number & 7) & 1)
        try:
            record = mft.raw_record(number)
        except DAMAGE as error:
            if is_marked:
                check.add_error("record", error, position)
            continue
        head = ntfs.RecordHead.unpack(record)
        is_used = head.magic == ntfs.FILE_MAGIC and bool(head.flags & ntfs.RecordFlag.IN_USE.value)
        is_reserved = ntfs.SystemRecord.FIRST_FREE <= number < ntfs.FIRST_USER_RECORD
        if is_used != is_marked and not is_reserved:
            check.add(
                "mft-bitmap", f"MFT record {number} is marked wrongly in the MFT's bitmap", position
            )
        if not is_used:
            continue
        try:
            _check_record(check, number, record, head, position)
            if not head.base_reference:
                _check_file(check, mft.file(number), position)
        except FilesystemError as error:
            check.add("record", f"MFT record {number}: {error}", position)


def _check_record(
    check: Check, number: int, record: bytearray, head: ntfs.RecordHead, position: int
) -> None:
    """Check one record on its own."""
    geometry = check.volume.geometry

    def add(rule: str, what: str) -> None:
        check.add(rule, f"MFT record {number}: {what}", position)

    if head.allocated_size != geometry.record_size:
        add("record-size", f"allocated size {head.allocated_size}")
    if head.fixups_offset >= ntfs.NumberedRecordHead.SIZE:
        stored = ntfs.NumberedRecordHead.unpack(record).number
        if stored != number & 0xFFFFFFFF:
            add("record-number", f"says that it is record {stored}")
    wanted = number or 1
    if not head.sequence or (number < ntfs.SystemRecord.FIRST_FREE and head.sequence != wanted):
        add("sequence", f"sequence number {head.sequence}")
    attributes = unpack_attributes(record, position)
    end = attributes[-1].start + attributes[-1].length if attributes else head.attributes_offset
    if head.used_size != end + END_SIZE:
        add("used-size", f"says that {head.used_size} bytes are used, {end + END_SIZE} are")
    if int.from_bytes(record[end : end + 4], "little") != ATTRIBUTES_END:
        add("used-size", "has no end of attributes")
    ids = [part.id for part in attributes]
    if len(set(ids)) != len(ids):
        add("attribute-id", "two attributes have one id")
    if ids and max(ids) >= head.next_attribute_id:
        add("attribute-id", f"id {max(ids)} is not below the next one, {head.next_attribute_id}")
    order = [(part.type, check.upcase.key(part.name)) for part in attributes]
    if order != sorted(order):
        add("attribute-order", "attributes are not in order")
    for part in attributes:
        if part.type == AttributeType.ATTRIBUTE_LIST and not part.is_resident:
            _check_clusters(check, number, [part], position)  # files do not show it
        if part.is_resident:
            flags = ResidentHead.unpack(part.record, part.start).resident_flags
            is_name = part.type == AttributeType.FILE_NAME
            if bool(flags & ResidentFlag.INDEXED.value) != is_name:
                add("indexed-flag", f"attribute {part.type:#x} has resident flags {flags:#x}")


def _check_file(check: Check, file: FileRecord, position: int) -> None:
    """Check a base record together with those that continue it, and note what it claims."""
    groups: dict[tuple[int, bytes], list[Attribute]] = {}
    reference, links = ntfs.reference_of(file.number, file.sequence), 0
    for part in file.attributes:
        groups.setdefault((part.type, part.name), []).append(part)
        if part.type == AttributeType.FILE_NAME:
            links += 1
            _note_name(check, file, reference, part)
    if links != file.links:
        check.add(
            "links", f"MFT record {file.number} counts {file.links} names, has {links}", position
        )
    for (kind, name), parts in groups.items():
        if not parts[0].is_resident:
            _check_clusters(check, file.number, parts, position)
        if kind == AttributeType.DATA and not name:
            content = content_of(parts, check.volume.geometry, position)
            check.sizes[file.number] = content.size - content.padding
    _check_list(check, file, position)
    if file.is_directory:
        check.directories.append(file)
    _note_identity(check, file, reference, groups)


def _check_list(check: Check, file: FileRecord, position: int) -> None:
    """Compare what an attribute list says of the extents with what they say themselves."""
    mft = check.volume.mft
    parts = [p for p in mft.attributes(file.number)[1] if p.type == AttributeType.ATTRIBUTE_LIST]
    if not parts:
        return
    data = mft.read_small(parts, MAXIMUM_LIST_SIZE, position)
    listed = Counter((item.type, item.lowest_vcn) for item in unpack_attribute_list(data, position))
    del listed[AttributeType.ATTRIBUTE_LIST, 0]
    if listed != Counter((p.type, 0 if p.is_resident else p.lowest_vcn) for p in file.attributes):
        what = f"MFT record {file.number}: the attribute list has other VCNs than the attributes"
        check.add("attribute-list", what, position)


def _note_name(check: Check, file: FileRecord, reference: int, part: Attribute) -> None:
    """Note a name, to be found in an index."""
    name = FileName.unpack(part.value)
    units = part.value[FileName.SIZE : FileName.SIZE + 2 * name.name_length]
    if file.number == ntfs.SystemRecord.ROOT and name.parent != reference:
        check.add("parent", "the root is not its own parent")
    check.names.add((name.parent, reference, name.namespace, units))


def _note_identity(
    check: Check,
    file: FileRecord,
    reference: int,
    groups: dict[tuple[int, bytes], list[Attribute]],
) -> None:
    """Note what $Secure, $ObjId and $Reparse have to list of a file."""
    mft = check.volume.mft
    information = groups.get((AttributeType.STANDARD_INFORMATION, b""))
    if not information or information[0].value_length < StandardInformation.SIZE:
        what = f"MFT record {file.number} has no information"
        check.add("information", what, mft.record_position(file.number))
    elif information[0].value_length >= StandardInformation3.SIZE:
        check.security_ids.add(StandardInformation3.unpack(information[0].value).security_id)
    object_id = mft.read_all(file, AttributeType.OBJECT_ID, limit=4096)
    if object_id:
        check.object_ids[object_id[: ObjectId.OFFSETS["birth_volume_id"]]] = reference
    point = mft.read_all(file, AttributeType.REPARSE_POINT, limit=1 << 16)
    if point:
        check.reparse_tags[reference] = ReparseHead.unpack(point).tag


def _check_clusters(check: Check, number: int, parts: list[Attribute], position: int) -> None:
    """Claim the clusters of an attribute and check its sizes."""
    geometry = check.volume.geometry
    mapped, clusters, stored = map_parts(parts, geometry, position)
    what = f"attribute {parts[0].type:#x} of MFT record {number}"
    for _, length, start in mapped:
        first, count = start // geometry.cluster_size, length // geometry.cluster_size
        if check.claimed.take(first, first + count) >= 0:
            check.add("shared", f"{what} has clusters that something else has too", start)
    head = NonResidentHead.unpack(parts[0].record, parts[0].start)
    is_sparse = parts[0].flags & (AttributeFlag.SPARSE | AttributeFlag.COMPRESSED).value
    if head.allocated_size != clusters * geometry.cluster_size:
        check.add("allocated-size", f"{what}: allocated size {head.allocated_size}", position)
    if not head.initialised_size <= head.data_size <= head.allocated_size:
        check.add("data-size", f"{what}: sizes contradict each other", position)
    if is_sparse and head.runs_offset >= SparseHead.SIZE:
        total = SparseHead.unpack(parts[0].record, parts[0].start).compressed_size
        if total != stored * geometry.cluster_size:
            check.add("allocated-size", f"{what}: compressed size {total}", position)


def _check_bitmap(check: Check) -> None:
    """Compare $Bitmap with what the records claim."""
    volume = check.volume
    try:
        content = volume.mft.content_of(
            volume.mft.file(ntfs.SystemRecord.BITMAP), AttributeType.DATA
        )
    except CorruptError:
        return  # is found among the records
    clusters = volume.geometry.cluster_count
    if content is None or content.resident is not None or content.size < -(-clusters // 8):
        check.add("bitmap", "$Bitmap is resident or too short")
        return
    for first in range(0, clusters, _BITS_AT_ONCE):
        part = check.claimed.part(first, first + _BITS_AT_ONCE)
        claimed = int(part[::-1].translate(_DIGITS), 2)
        data = read_content(volume.device, content, first // 8, _BITS_AT_ONCE // 8)
        marked = int.from_bytes(data, "little") & ((1 << len(part)) - 1)
        for rule, what, wrong in (
            ("bitmap-free", "used and marked as free", claimed & ~marked),
            ("bitmap-used", "marked as used by nobody", marked & ~claimed),
        ):
            if wrong:
                cluster = first + (wrong & -wrong).bit_length() - 1
                check.add(
                    rule,
                    f"$Bitmap: {wrong.bit_count()} clusters from {cluster} on are {what}",
                    cluster * volume.block_size,
                )
    rest = content.size * 8 - clusters
    if rest:
        last = read_content(volume.device, content, clusters // 8, content.size)
        if (int.from_bytes(last, "little") >> clusters % 8) != (1 << rest) - 1:
            check.add("bitmap-end", "$Bitmap: bits behind the last cluster are not set")
