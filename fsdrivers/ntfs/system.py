# SPDX-License-Identifier: Apache-2.0
"""What the system files say of a volume: label, version, state, $UpCase, $Secure, quota.

Read once, at opening, but the larger ones when first asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from fsdrivers.errors import CorruptError, DeviceError
from fsdrivers.losses import DAMAGE, Losses, read_units
from fsdrivers.ntfs.format.attributes import AttributeType, ReparseTag, VolumeInformation
from fsdrivers.ntfs.format.index import ObjectIdData, ReparseKey
from fsdrivers.ntfs.format.records import (
    BOOT_SECTOR_SIZE,
    FIRST_USER_RECORD,
    SYSTEM_NAMES,
    SystemRecord,
    VolumeFlag,
    number_of,
    sequence_of,
)
from fsdrivers.ntfs.index import iter_names, iter_view
from fsdrivers.ntfs.logfile import PAGE_SIZE, LogState, log_state
from fsdrivers.ntfs.mft import FileRecord, Mft
from fsdrivers.ntfs.names import name_of
from fsdrivers.ntfs.security import iter_descriptors
from fsdrivers.ntfs.streams import read_content
from fsdrivers.ntfs.upcase import TABLE_SIZE

SECURITY_STREAM: Final = "$SDS".encode("utf-16-le")
UPCASE_INFO_STREAM: Final = "$Info".encode("utf-16-le")
USN_MAXIMUM_STREAM: Final = "$Max".encode("utf-16-le")
_MAXIMUM_DESCRIPTORS: Final = 256 << 20  # bytes of $SDS
_MAXIMUM_DEFINITIONS: Final = 64 << 10
_MAXIMUM_SMALL: Final = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What $Volume says."""

    label: bytes
    major: int
    minor: int
    flags: int  # VolumeFlag
    object_id: bytes

    @property
    def is_dirty(self) -> bool:
        """Tell whether Windows would check the volume before using it."""
        return bool(self.flags & VolumeFlag.DIRTY.value)


# Of a volume whose $Volume is lost.
UNKNOWN_FACTS: Final = VolumeFacts(b"", 3, 1, VolumeFlag.DIRTY.value, b"")


class SystemFiles:
    """Reads the system files of one volume."""

    def __init__(self, mft: Mft) -> None:
        self._mft = mft
        self._extend: dict[str, tuple[int, int]] | None = None
        self.warnings: list[str] = []  # what could not be read, and what was done without it

    def volume(self) -> VolumeFacts:
        """Return what $Volume says.

        Raises:
            CorruptError: it has no version.
        """
        file = self._mft.file(SystemRecord.VOLUME)
        read = self._mft.read_all
        label = read(file, AttributeType.VOLUME_NAME, limit=_MAXIMUM_SMALL) or b""
        data = read(file, AttributeType.VOLUME_INFORMATION, limit=_MAXIMUM_SMALL)
        if data is None:
            raise CorruptError(
                "$Volume has no version", self._mft.record_position(SystemRecord.VOLUME)
            )
        information = VolumeInformation.unpack(data)
        return VolumeFacts(
            label=name_of(label[: len(label) & ~1]),
            major=information.major,
            minor=information.minor,
            flags=information.flags,
            object_id=read(file, AttributeType.OBJECT_ID, limit=_MAXIMUM_SMALL) or b"",
        )

    def upcase(self) -> bytes:
        """Return $UpCase as it is stored."""
        return self._data(SystemRecord.UPCASE, TABLE_SIZE)

    def upcase_info(self) -> bytes:
        """Return the stream by which Windows 8 and later know their own table, or nothing."""
        file = self._mft.file(SystemRecord.UPCASE)
        data = self._mft.read_all(
            file, AttributeType.DATA, UPCASE_INFO_STREAM, limit=_MAXIMUM_SMALL
        )
        return data or b""

    def attribute_definitions(self) -> bytes:
        """Return $AttrDef as it is stored."""
        return self._data(SystemRecord.ATTRIBUTE_DEFINITIONS, _MAXIMUM_DEFINITIONS)

    def boot_file(self) -> bytes:
        """Return $Boot: the boot sector and the code behind it."""
        limit = 4 << 20
        data = self._data(SystemRecord.BOOT, limit)
        return data if len(data) >= BOOT_SECTOR_SIZE else b""

    def log_file(self) -> tuple[int, LogState]:
        """Return the size of $LogFile in bytes and what it says."""
        file = self._mft.file(SystemRecord.LOG_FILE)
        content = self._mft.content_of(file, AttributeType.DATA)
        if content is None:
            return 0, LogState.DAMAGED
        return content.size, log_state(read_content(self._mft.device, content, 0, 2 * PAGE_SIZE))

    def used_clusters(self) -> int:
        """Return how many clusters $Bitmap says are in use; bits behind the end do not count."""
        mft = self._mft
        content = mft.content_of(mft.file(SystemRecord.BITMAP), AttributeType.DATA)
        if content is None:
            raise CorruptError("$Bitmap has no content", mft.record_position(SystemRecord.BITMAP))
        clusters, step, used = mft.geometry.cluster_count, 1 << 20, 0

        def read(start: int, length: int) -> bytes:
            return read_content(mft.device, content, start, length).ljust(length, b"\0")

        for offset in range(0, -(-clusters // 8), step):
            length = min(step, -(-clusters // 8) - offset)
            for at, data in read_units(read, offset, length, mft.geometry.sector_size):
                count = clusters - 8 * at
                if isinstance(data, DeviceError):
                    used += min(count, 8 * mft.geometry.sector_size)  # what is not known is in use
                    continue
                bits = int.from_bytes(data, "little")
                used += (bits & ((1 << min(count, 8 * len(data))) - 1)).bit_count()
        return used

    def descriptors(self) -> dict[int, bytes]:
        """Return the security descriptors of $Secure by id; none before version 3."""
        try:
            file = self._mft.file(SystemRecord.SECURE)
            content = self._mft.content_of(file, AttributeType.DATA, SECURITY_STREAM)
            if content is not None and content.size > _MAXIMUM_DESCRIPTORS:
                raise CorruptError("size of $SDS", None, _MAXIMUM_DESCRIPTORS, content.size)
        except CorruptError as error:
            error.add_note("in $Secure")
            raise
        if content is None:
            return {}
        device, stream = self._mft.device, content

        def read(start: int, length: int) -> bytes:
            return read_content(device, stream, start, length)

        # Of every entry there is a copy elsewhere.
        sector_size = self._mft.geometry.sector_size
        data = b"".join(
            bytes(min(sector_size, stream.size - at)) if isinstance(part, DeviceError) else part
            for at, part in read_units(read, 0, stream.size, sector_size)
        )
        return {item.id: item.descriptor for item in iter_descriptors(data)}

    def extend(self) -> dict[str, tuple[int, int]]:
        """Return the (record number, sequence) of the files in $Extend by name."""
        if self._extend is None:
            file = self._mft.file(SystemRecord.EXTEND)
            self._extend = {}
            if file.is_directory:
                for item in iter_names(self._mft, file, Losses(lambda loss: None)):
                    name = item.units.decode("utf-16-le", "replace")
                    self._extend[name] = number_of(item.reference), sequence_of(item.reference)
        return self._extend

    def extend_file(self, name: str) -> FileRecord | None:
        """Return a file of $Extend, None if there is none of this kind."""
        found = self.extend().get(name)
        return self._mft.file(*found) if found else None

    def birth_ids(self) -> dict[bytes, bytes]:
        """Return the 48 bytes of ids that $ObjId:$O has beside each object id."""
        file = self.extend_file("$ObjId")
        if file is None:
            return {}
        skipped = ObjectIdData.OFFSETS["birth_volume_id"]
        return {
            key: data[skipped:]
            for key, data in iter_view(self._mft, file, "$O")
            if len(data) >= ObjectIdData.SIZE
        }

    def is_deduplicated(self) -> bool:
        """Tell whether $Reparse lists a file whose content Data Deduplication took away."""
        file = self.extend_file("$Reparse")
        if file is None:
            return False
        for key, _ in iter_view(self._mft, file, "$R"):
            if len(key) >= ReparseKey.SIZE and ReparseKey.unpack(key).tag == ReparseTag.DEDUP:
                return True
        return False

    def quota(self) -> dict[str, list[tuple[bytes, bytes]]]:
        """Return the raw (key, data) entries of $Quota's indexes by their names."""
        file = self.extend_file("$Quota")
        if file is None:
            return {}
        return {name: list(iter_view(self._mft, file, name)) for name in ("$O", "$Q")}

    def usn_maximum(self) -> bytes | None:
        """Return $UsnJrnl:$Max, the change journal's limits; None if there is no journal."""
        file = self.extend_file("$UsnJrnl")
        if file is None:
            return None
        read = self._mft.read_all
        return read(file, AttributeType.DATA, USN_MAXIMUM_STREAM, limit=_MAXIMUM_SMALL) or b""

    def frames(self) -> list[tuple[int, FileRecord]]:
        """Return the records of the system files that are in use, by number."""
        made = []
        for number in range(FIRST_USER_RECORD):
            if number not in SYSTEM_NAMES and number >= SystemRecord.FIRST_FREE:
                break
            try:
                made.append((number, self._mft.file(number)))
            except DAMAGE:
                continue  # those that matter were read before
        for name in sorted(self.extend()):
            if name in ("$Quota", "$ObjId", "$Reparse"):
                with suppress(*DAMAGE):
                    found = self.extend_file(name)
                    if found is not None:
                        made.append((found.number, found))
        return made

    def spared(self, read: Callable[[], T], default: T, consequence: str) -> T:
        """Return what `read` gives, or `default` with a warning where that is damaged."""
        try:
            return read()
        except DAMAGE as error:
            warning = f"{error}: {consequence}"
            if warning not in self.warnings:
                self.warnings.append(warning)
            return default

    def _data(self, number: int, limit: int) -> bytes:
        """Return the content of a system file.

        Raises:
            CorruptError: it has none, or more than `limit` bytes.
        """
        data = self._mft.read_all(self._mft.file(number), AttributeType.DATA, limit=limit)
        if data is None:
            raise CorruptError(
                f"{SYSTEM_NAMES[SystemRecord(number)]} has no content",
                self._mft.record_position(number),
            )
        return data
