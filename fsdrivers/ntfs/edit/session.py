# SPDX-License-Identifier: Apache-2.0
"""An NTFS volume opened for changing: its parts, its operations, its commits.

Refused: volumes that Windows has to check or wake up first (marked dirty, hibernated, a log that
is not empty or clean, a boot sector or $MFTMirr that differs from its copy), and versions of
NTFS before 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from fsdrivers.device import Device
from fsdrivers.editing import Clock
from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.attributes import unpack_attributes
from fsdrivers.ntfs.edit.bits import Allocator, Bits
from fsdrivers.ntfs.edit.commit import Committer
from fsdrivers.ntfs.edit.content import Contents
from fsdrivers.ntfs.edit.files import Files
from fsdrivers.ntfs.edit.index import IndexEditor
from fsdrivers.ntfs.edit.nodes import name_order, view_order
from fsdrivers.ntfs.edit.records import LiveMft, Records, next_update
from fsdrivers.ntfs.edit.storage import BlockUse, Storage
from fsdrivers.ntfs.edit.store import Store, clipped
from fsdrivers.ntfs.edit.values import Values
from fsdrivers.ntfs.format.attributes import AttributeType, VolumeInformation
from fsdrivers.ntfs.format.records import BOOT_SECTOR_SIZE, SystemRecord, VolumeFlag
from fsdrivers.ntfs.index import DIRECTORY_INDEX
from fsdrivers.ntfs.logfile import LogState
from fsdrivers.ntfs.mft import Mft
from fsdrivers.ntfs.streams import Content, read_mapped
from fsdrivers.ntfs.upcase import UpCase
from fsdrivers.ntfs.volume import NtfsVolume, open_volume, read_boot_sector
from fsdrivers.operations import EditSession

_MOST_PENDING: Final = 16384  # units of 512 bytes that are kept before they are committed
_MOST_INDEXES: Final = 64  # that are kept open
_DATA: Final = AttributeType.DATA.value
_BITMAP: Final = AttributeType.BITMAP.value
_UPGRADE: Final = (VolumeFlag.UPGRADE_ON_MOUNT | VolumeFlag.CHKDSK_UNDERWAY).value

T = TypeVar("T")


class Session(EditSession):
    """See the module."""

    store: Store

    def __init__(self, device: Device, clock: Clock) -> None:
        """Open a volume and make sure that it may be changed.

        Raises:
            NotRecognisedError, CorruptError: see `open_volume`.
            UnsupportedError: see the module.
            DeviceError: the medium is read-only, or failed.
        """
        super().__init__(device, clock)
        volume = open_volume(device)
        _check_editable(volume)
        self.boot = volume.boot
        self.geometry = geometry = volume.geometry
        self.upcase = UpCase(volume.system.upcase())
        self.store = Store(device)
        self.mft = LiveMft(self.store, geometry, volume.mft.content)
        self._log = _content(volume.mft, SystemRecord.LOG_FILE, _DATA)
        self._is_log_empty = volume.log_state() is LogState.EMPTY
        self.clusters = Bits(geometry.cluster_count, *self._access(SystemRecord.BITMAP, _DATA))
        mft_bits = Bits(self.mft.record_count, *self._access(SystemRecord.MFT, _BITMAP))
        # As other drivers do, an eighth of the volume behind the MFT is left for it.
        lcn = geometry.mft_lcn + geometry.clusters_of(volume.mft.content.size)
        start = lcn + geometry.cluster_count // 8
        self.allocator = Allocator(self.clusters, geometry.cluster_size, start)
        mirror = _content(volume.mft, SystemRecord.MFT_MIRROR, _DATA)
        self.records = Records(self.store, self.mft, mft_bits, mirror)
        self.values = Values(self.store, geometry, self.allocator)
        self.files = Files(self.records, self.values, self.upcase)
        self.contents = Contents(self.files, self.values)
        self.blocks = BlockUse()
        self.committer = Committer(self.store, self.records, self.files, self.clusters, self.blocks)
        self._indexes: dict[tuple[int, bytes], IndexEditor] = {}
        self.before_commit: Callable[[], None] = lambda: None  # an operation of the editor's
        self.on_drop: Callable[[], None] = lambda: None
        self._is_marked = False

    def _access(
        self, number: int, kind: int
    ) -> tuple[Callable[[int, int], bytes], Callable[[int, bytes], None]]:
        """Return what reads and what writes a bitmap of the system's."""

        def read(offset: int, length: int) -> bytes:
            content = _content(self.mft, number, kind)
            size = min(length, content.size - offset)
            data = read_mapped(self.store, content.mapped, offset, size) if size > 0 else b""
            # Behind the end of $Bitmap bits are set, behind that of the MFT's they are clear.
            return data.ljust(length, b"\xff" if number == SystemRecord.BITMAP else b"\0")

        def write(offset: int, data: bytes) -> None:
            mapped = _content(self.mft, number, kind).mapped
            for low, length, position in clipped(mapped, offset, offset + len(data)):
                self.store.write(position, data[low - offset : low - offset + length])

        return read, write

    def index(self, number: int, name: bytes = DIRECTORY_INDEX) -> IndexEditor:
        """Return an index of a file.

        Args:
            number: of its base record.
            name: of the index, UTF-16LE.
        """
        found = self._indexes.get((number, name))
        if found is None:
            storage = Storage(self.files, self.values, self.blocks, number, name)
            is_directory = name == DIRECTORY_INDEX
            order = name_order(self.upcase) if is_directory else view_order(storage.collation)
            if len(self._indexes) >= _MOST_INDEXES:
                self._indexes = {}
            found = self._indexes[number, name] = IndexEditor(storage, order)
        return found

    def forget_index(self, number: int) -> None:
        """Take notice that a directory is gone."""
        self._indexes.pop((number, DIRECTORY_INDEX), None)

    @property
    def has_withheld(self) -> bool:
        """Whether clusters or records were freed that are available only after a commit."""
        return bool(self.clusters.withheld_count or self.records.bits.withheld_count)

    def attempt(self, action: Callable[[], T]) -> T:
        """Carry out an operation as `run` does, with the room there is now."""
        try:
            result = action()
            self.files.save()
            self.records.seal()
            if self.store.is_touched or self.contents.is_waiting:
                self.mark()
            self.contents.finish()
            self.values.finish()
        except BaseException:
            self._drop()
            raise
        for part in (self.store, self.clusters, self.records.bits, self.records, self.files,
                     self.blocks):  # fmt: skip
            part.keep()
        if len(self.store.pending) >= _MOST_PENDING:
            self.commit()
        return result

    def _drop(self) -> None:
        for part in (self.store, self.clusters, self.records.bits, self.records, self.files,
                     self.blocks, self.contents, self.values):  # fmt: skip
            part.drop()
        self._indexes = {}
        self.on_drop()

    def forget(self) -> None:
        """Drop what was opened and not changed."""
        self.files.drop()

    def mark(self) -> None:
        """Before the first change: empty the log, and mark the volume dirty."""
        if self._is_marked:
            return
        if not self._is_log_empty:
            self.committer.empty_log(self._log.mapped, self._log.size)
            self._is_log_empty = True
        self._set_dirty(True)
        self._is_marked = True

    def _set_dirty(self, is_dirty: bool) -> None:
        """Set or clear the volume's flag, in both copies of its record."""
        number = SystemRecord.VOLUME.value
        record = self.mft.raw_record(number)
        for part in unpack_attributes(record, None):
            if part.type == AttributeType.VOLUME_INFORMATION:
                at = part.value_start + VolumeInformation.OFFSETS["flags"]
                flags = int.from_bytes(record[at : at + 2], "little") & ~VolumeFlag.DIRTY.value
                flags |= VolumeFlag.DIRTY.value if is_dirty else 0
                record[at : at + 2] = flags.to_bytes(2, "little")
        places = self.mft.places(number)
        fixups.seal(record, next_update(self.store, places[0][0], record))
        for copy in (places, self.records.mirror_places(number)):
            self.store.write_parts(copy, record)
        self.store.flush()
        self.mft.forget(number)

    def commit(self) -> None:
        """Write the finished operations to the medium."""
        self.check_open()
        self.before_commit()
        self.committer.commit()

    def flush(self) -> None:
        """Write the finished operations and mark the volume clean."""
        self.commit()
        if self._is_marked:
            self._set_dirty(False)
            self._is_marked = False
        self.store.flush()


def _content(mft: Mft, number: int, kind: int) -> Content:
    """Return where a system file is.

    Raises:
        CorruptError: nowhere in clusters.
    """
    found = mft.content_of(mft.file(number), kind)
    if found is None or found.resident is not None:
        raise CorruptError(f"MFT record {number} has no attribute {kind:#x} in clusters")
    return found


def _check_editable(volume: NtfsVolume) -> None:
    """Raise UnsupportedError or CorruptError if a volume must not be changed as it is."""
    device, geometry = volume.device, volume.geometry
    first = device.read(0, BOOT_SECTOR_SIZE)
    if read_boot_sector(device)[0].pack() != first[: volume.boot.SIZE]:
        raise CorruptError("editing: the boot sector is damaged, its copy was read", 0)
    facts = volume.facts
    if facts.major != 3:
        raise UnsupportedError(f"editing NTFS version {facts.major}.{facts.minor}")
    if geometry.sector_size < 512 or geometry.record_size < 1024:
        raise UnsupportedError(f"editing a volume with records of {geometry.record_size} bytes")
    if facts.is_dirty or facts.flags & _UPGRADE:
        raise UnsupportedError("editing a volume that Windows has to check first (marked dirty)")
    if volume.is_hibernated():
        raise UnsupportedError("editing a volume that a hibernated Windows has mounted")
    if volume.log_state() is LogState.DIRTY:
        raise UnsupportedError("editing a volume whose log holds changes; Windows has to start")
    if volume.log_state() is LogState.DAMAGED:
        raise CorruptError("editing: the log is damaged; Windows has to check the volume")
    if volume.mft.mirrored:
        raise CorruptError(f"editing: MFT record {min(volume.mft.mirrored)} is damaged")
    for warning in volume.system.warnings:
        raise CorruptError(f"editing: {warning}")
    mirror = _content(volume.mft, SystemRecord.MFT_MIRROR, _DATA)
    size = 4 * geometry.record_size
    copy, own = (read_mapped(device, where, 0, size)
                 for where in (mirror.mapped, volume.mft.content.mapped))  # fmt: skip
    if copy != own:
        raise CorruptError("editing: $MFTMirr differs from $MFT; Windows has to check the volume")
