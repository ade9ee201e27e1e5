# SPDX-License-Identifier: Apache-2.0
"""An opened NTFS volume, for reading everything there is on it.

Names come from the indexes of directories, everything else from the MFT record a name leads
to.  A volume that Windows did not unmount is shown as its structures are on the medium: the log
is not replayed.  `warnings` says so, and says where a hibernated Windows still holds changes in
memory.

System files are not walked: $MFT to $Extend and what is in $Extend.  What is worth keeping of
them is in `describe`.

Content that `read` gives, and what `extents` says of it:

* resident: one extent, at the position of the MFT record; not to be read from the device;
* compressed (LZNT1): decompressed; whole units, `position` is where the compressed bytes are;
* compressed by the Windows Overlay Filter: decompressed; no extents, since the stream itself is
  one hole and its data is in the stream WofCompressedData, which is listed and read as it is;
* encrypted: as stored, the last 512 bytes whole (`Stream.padding` bytes of them are not data).

Refused by name: content of deduplicated files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from fsdrivers.device import Device
from fsdrivers.errors import (
    CorruptError,
    DeviceError,
    FilesystemError,
    NotRecognisedError,
    UnsupportedError,
)
from fsdrivers.losses import DAMAGE, Damage, Losses, OnDamage
from fsdrivers.ntfs.compression.wof import WofFile, open_wof
from fsdrivers.ntfs.description import pack_description, serial_of
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.format.attributes import AttributeType, ReparseTag
from fsdrivers.ntfs.geometry import Geometry, geometry_of
from fsdrivers.ntfs.index import IndexedName, iter_names
from fsdrivers.ntfs.logfile import LogState
from fsdrivers.ntfs.mft import FileRecord, Mft
from fsdrivers.ntfs.names import name_of, units_of
from fsdrivers.ntfs.nodes import XATTR_ACL, NodeReader, refuse_unreadable, reparse_tag_of
from fsdrivers.ntfs.streams import (
    Content,
    extents_of,
    read_content,
    read_stored,
    stored_extents_of,
)
from fsdrivers.ntfs.system import UNKNOWN_FACTS, SystemFiles
from fsdrivers.ntfs.unreached import count_unreached
from fsdrivers.printable import printable
from fsdrivers.volume import Entry, Extent, Kind, Node, Plain, StreamVolume

_KEPT_CONTENTS: Final = 256
_DOS: Final = ntfs.Namespace.DOS.value
_DATA: Final = AttributeType.DATA.value
_ROOT: Final = ntfs.SystemRecord.ROOT.value
_LAST_SYSTEM_RECORD: Final = ntfs.SystemRecord.FIRST_FREE.value - 1
_HIBERNATION_FILE: Final = "hiberfil.sys"
_HIBERNATED: Final = (b"hibr", b"HIBR")


class NtfsVolume(StreamVolume):
    """See `fsdrivers.volume.StreamVolume` for what its methods promise."""

    type = "ntfs"

    def __init__(self, device: Device, boot: ntfs.BootSector, mft: Mft) -> None:
        """Show a volume whose MFT is found; made by `open_volume`."""
        self.device = device
        self.boot = boot
        self.mft = mft
        self.geometry: Geometry = mft.geometry
        self.system = SystemFiles(mft)
        self.damage = mft.damage
        if mft.damage is not None:
            self.system.warnings.append(f"all later records are lost: {mft.damage}")
        self.facts = self.system.spared(
            self.system.volume, UNKNOWN_FACTS, "label and version are not known"
        )
        self.size = min(self.geometry.size, device.size)
        self.uuid = serial_of(boot)
        self.label = self.facts.label
        self.block_size = self.geometry.cluster_size
        self.is_dirty = self.facts.is_dirty
        self.nodes = self._node_reader()
        # By number and name; without a name also of what the Overlay Filter compressed.
        self._contents: dict[tuple[int, bytes | None], Content | WofFile] = {}

    def _node_reader(self) -> NodeReader:
        """Return what makes nodes; where $Secure is damaged, without what only it knows."""
        descriptors: dict[int, bytes] | None = None
        try:
            descriptors = self.system.descriptors()
            if not descriptors and self.facts.major >= 3:
                raise CorruptError("$Secure has no sound descriptor")
        except DAMAGE as error:
            self.damage, descriptors = error, None
            self.system.warnings.append(
                f"$Secure is damaged, the security descriptors in it are lost: {error}"
            )

        def birth_ids() -> Mapping[bytes, bytes]:
            return self.system.spared(self.system.birth_ids, {}, "birth ids are not kept")

        return NodeReader(self.mft, descriptors, birth_ids)

    def describe(self) -> dict[str, Plain]:
        """Return all that formatting the same filesystem again needs; see `description`."""
        return pack_description(
            self.boot,
            self.mft,
            self.facts,
            self.system,
            self.nodes,
            is_hibernated=self.is_hibernated(),
        )

    def used_size(self) -> int:
        """Return the bytes in use by $Bitmap's account; all of them where that is lost."""
        clusters = self.geometry.cluster_count
        used = self.system.spared(
            self.system.used_clusters, clusters, "how much is in use is not known"
        )
        return used * self.block_size

    def log_state(self) -> LogState:
        """Return whether the log holds changes that are not yet in their places."""
        return self.system.log_file()[1]

    def is_hibernated(self) -> bool:
        """Tell whether a Windows that is asleep (or started fast) has this volume mounted."""
        return self.system.spared(
            self._has_hibernated, False, "whether Windows is hibernated is not known"
        )

    def _has_hibernated(self) -> bool:
        """Tell what `is_hibernated` does.

        Raises:
            CorruptError, DeviceError: the root or the file cannot be read.
        """
        for item in iter_names(self.mft, self.mft.file(_ROOT), Losses(lambda loss: None)):
            if item.units.decode("utf-16-le", "replace").lower() == _HIBERNATION_FILE:
                file = self._file(item)
                content = self.mft.content_of(file, _DATA)
                return (
                    content is not None and read_content(self.device, content, 0, 4) in _HIBERNATED
                )
        return False

    def warnings(self) -> list[str]:
        """Return in sentences what makes the volume's state doubtful; none if nothing does."""
        made = []
        for number in sorted(self.mft.mirrored):
            which = f"MFT record {number}" if number else "the first MFT record"
            made.append(f"{which} is damaged: its copy in $MFTMirr was read")
        is_hibernated = self.is_hibernated()
        log = self.system.spared(self.log_state, LogState.CLEAN, "its log is not known")
        made += self.system.warnings
        if self.is_dirty:
            made.append("the volume is marked dirty: Windows would check it")
        if is_hibernated:
            made.append("Windows is hibernated: it holds changes that are not on the volume")
        if log is LogState.DIRTY:
            made.append("the volume was not unmounted: its log holds changes that are not shown")
        return made

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield every name, the root first, parents before children.

        Within a directory names come in the order of their MFT records, so that the MFT is
        read front to back.

        Args:
            on_damage: is told of each name that leads nowhere, of each that has lost its security
                descriptor alone, and of what cannot be read of directories.

        Raises:
            CorruptError, DeviceError: without `on_damage`, at the directory that cannot be read,
                or the name that leads nowhere.
            UnsupportedError: at a deduplicated file.
        """
        losses = Losses(on_damage)
        root, damage = self._root(losses)
        self.nodes.substitute = tuple(item for item in root.xattrs if item[0] == XATTR_ACL)
        yield Entry(_ROOT, b"", root)
        if damage is not None:
            losses.add(_ROOT, damage, is_kept=True)
        shared: dict[int, Node] = {}
        reached = bytearray(max(self.mft.record_count, ntfs.FIRST_USER_RECORD))
        lost: set[int] = set()  # records that names lead to
        seen = {_ROOT}
        unnamed: set[int] = set()  # directories found under a name that their record has not
        pending = [_ROOT]
        while pending:
            parent = pending.pop()
            below: list[int] = []
            for entry in self._iter_entries(parent, shared, losses, lost):
                reached[entry.node.number] = 1
                if entry.node.kind is Kind.DIRECTORY:
                    number = entry.node.number
                    if number in seen:
                        if entry.name_times is None or number in unnamed:
                            continue  # a renaming that was cut short left both names
                        error = CorruptError(f"directory {number} has more than one name")
                        losses.add(parent, error, entry.name, count=0)
                        continue
                    seen.add(number)
                    if entry.name_times is None:
                        unnamed.add(number)
                    below.append(number)
                yield entry
            pending.extend(reversed(below))
        if losses.count:
            losses.add_unreached(_ROOT, count_unreached(self.mft, reached))

    def _root(self, losses: Losses) -> tuple[Node, Damage | None]:
        """Return the node of the root directory, one with nothing of its own if that is lost.

        Raises:
            CorruptError, DeviceError: it is, and nobody is told.
        """
        try:
            root = self.nodes.node(self.mft.file(_ROOT))
            if root.kind is not Kind.DIRECTORY:
                raise CorruptError("the root is not a directory", self.mft.record_position(_ROOT))
        except DAMAGE as error:
            if not losses.are_told:
                raise
            return Node(_ROOT, Kind.DIRECTORY), error
        return root, None

    def _iter_entries(
        self, parent: int, shared: dict[int, Node], losses: Losses, lost: set[int]
    ) -> Iterator[Entry]:
        """Yield what is in a directory.

        Args:
            parent: number of its record.
            shared: gets the nodes with several names.
            losses: told of what cannot be read.
            lost: gets the records of what is lost.
        """
        try:
            names, dos_names = self._names_in(parent, losses)
        except DAMAGE as error:
            losses.add(parent, error)
            return
        unknown = self.nodes.unknown_descriptors
        for item in names:
            try:
                entry = self._entry(item, parent, shared, dos_names)
            except DAMAGE as error:
                number = item.reference & ntfs.REFERENCE_MASK
                losses.add(parent, error, name_of(item.units), 0 if number in lost else 1)
                lost.add(number)
                continue
            if losses.are_told and entry.node.number in unknown:
                losses.add(parent, self._lost_descriptor(entry), entry.name, is_kept=True)
            yield entry

    def _lost_descriptor(self, entry: Entry) -> CorruptError:
        """Return what to say of a name whose security descriptor $Secure does not have."""
        number = entry.node.number
        return CorruptError(
            "its security descriptor is one that $Secure does not know; it gets the one of the "
            "root directory",
            self.mft.record_position(number),
            None,
            self.nodes.unknown_descriptors[number],
        )

    def _names_in(
        self, parent: int, losses: Losses
    ) -> tuple[list[IndexedName], dict[int, IndexedName]]:
        """Return the names in a directory in the order of their records, and DOS names apart."""
        names: list[IndexedName] = []
        dos_names: dict[int, IndexedName] = {}
        for item in iter_names(self.mft, self.mft.file(parent), losses):
            number = item.reference & ntfs.REFERENCE_MASK
            if number <= _LAST_SYSTEM_RECORD:
                continue
            if item.namespace == _DOS:
                dos_names[number] = item
            else:
                names.append(item)
        long_names = {
            item.reference & ntfs.REFERENCE_MASK
            for item in names
            if item.namespace == ntfs.Namespace.WIN32
        }
        names += [item for number, item in dos_names.items() if number not in long_names]
        names.sort(key=_record_number)
        if len({item.reference for item in names}) < len(names):
            names = list(dict.fromkeys(names))  # nodes that were being split hold some twice
        return names, dos_names

    def _entry(
        self,
        item: IndexedName,
        parent: int,
        shared: dict[int, Node],
        dos_names: dict[int, IndexedName],
    ) -> Entry:
        """Return what a name leads to."""
        reference, namespace, units = item
        number = reference & ntfs.REFERENCE_MASK
        file = self._file(item)
        node = shared.get(number)
        if node is None:
            node = self.nodes.node(file)
            refuse_unreadable(node)
            if node.links > 1:
                shared[number] = node
        entry = Entry(
            parent,
            name_of(units),
            node,
            name_flags=namespace,
            name_times=self.nodes.name_times(file, parent, units),
        )
        if namespace == ntfs.Namespace.WIN32 and number in dos_names:
            entry.short_name = name_of(dos_names[number].units)
        return entry

    def _file(self, item: IndexedName) -> FileRecord:
        """Return the record that a name leads to."""
        reference = item.reference
        try:
            return self.mft.file(reference & ntfs.REFERENCE_MASK, reference >> ntfs.SEQUENCE_SHIFT)
        except CorruptError as error:
            error.add_note(f"the name {printable(name_of(item.units))} leads there")
            raise

    def extents(self, node: Node) -> list[Extent]:
        """Return the mapped parts of a file; see the module for streams that are not plain."""
        return self.stream_extents(node, b"") if node.kind is Kind.FILE else []

    def stream_extents(self, node: Node, name: bytes) -> list[Extent]:
        """Return the mapped parts of a stream.

        Raises:
            CorruptError: the record or the runs are damaged.
        """
        content = self._content(node, name)
        if isinstance(content, WofFile):
            return []
        if content.resident is not None:
            return self._resident_extents(node, content)
        return extents_of(content, self.block_size)

    def _resident_extents(self, node: Node, content: Content) -> list[Extent]:
        """Return what stands for the place of a resident stream."""
        position = self.mft.record_position(node.number)
        return [Extent(0, content.size, position)] if content.size else []

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of content from `offset`."""
        if node.kind is not Kind.FILE:
            raise UnsupportedError(f"reading the content of a {node.kind.name.lower()}")
        refuse_unreadable(node)
        return self.read_stream(node, b"", offset, length)

    def read_stream(self, node: Node, name: bytes, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of a stream from `offset`.

        Raises:
            CorruptError: the record, the runs or what is compressed are damaged.
            UnsupportedError: it is compressed by a method that is not known.
        """
        content = self._content(node, name)
        if isinstance(content, WofFile):
            return content.read(self.device, offset, length)
        return read_content(self.device, content, offset, length)

    def is_resident(self, node: Node, name: bytes) -> bool:
        """Tell whether a stream is kept inside the MFT record; one that is not there is."""
        return self._stored(node, name).resident is not None

    def stored_extents(self, node: Node, name: bytes) -> list[Extent]:
        """Return the allocated parts of a stream as they are stored.

        Of content that the Windows Overlay Filter compressed: what the content itself has,
        which is nothing.

        Raises:
            CorruptError: the record or the runs are damaged.
        """
        content = self._stored(node, name)
        if content.resident is not None:
            return self._resident_extents(node, content)
        return stored_extents_of(content, self.block_size)

    def read_stored(self, node: Node, name: bytes, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of a stream as stored, zeros where nothing is."""
        return read_stored(self.device, self._stored(node, name), offset, length)

    def _content(self, node: Node, name: bytes) -> Content | WofFile:
        """Return where the bytes that reading a stream gives are."""
        if name or reparse_tag_of(node) != ReparseTag.WOF:
            return self._stored(node, name)
        key = node.number, None
        found = self._contents.get(key)
        if found is None:
            content = self._stored(node, name)
            found = open_wof(self.mft, self.mft.file(node.number), node, content) or content
            self._keep(key, found)
        return found

    def _stored(self, node: Node, name: bytes) -> Content:
        """Return where a stream is, from the last few or from its record."""
        key = node.number, name
        found = self._contents.get(key)
        if isinstance(found, Content):
            return found
        file = self.mft.file(node.number)
        content = self.mft.content_of(file, _DATA, units_of(name) if name else b"")
        if content is None:
            if name:
                raise CorruptError(
                    f"MFT record {node.number} has no stream {printable(name)}",
                    self.mft.record_position(node.number),
                )
            content = Content(0, 0, resident=b"")
        self._keep(key, content)
        return content

    def _keep(self, key: tuple[int, bytes | None], content: Content | WofFile) -> None:
        """Keep what was found for the next read."""
        if len(self._contents) >= _KEPT_CONTENTS:
            self._contents = {}  # replaced as a whole, so that other threads' use of it holds
        self._contents[key] = content


def _record_number(item: IndexedName) -> int:
    """Return the record that a name leads to."""
    return item.reference & ntfs.REFERENCE_MASK


def open_volume(device: Device) -> NtfsVolume:
    """Open the NTFS volume that starts at the start of `device`.

    Where the boot sector is damaged its copy in the last sector is read.

    Raises:
        NotRecognisedError: this is not an NTFS volume.
        CorruptError: what is needed to read the rest is damaged.
        DeviceError: the medium failed.
    """
    boot, geometry = read_boot_sector(device)
    if geometry.total_sectors * geometry.sector_size > device.size:
        raise CorruptError(
            "volume larger than its device",
            ntfs.BootSector.OFFSETS["total_sectors"],
            f"at most {device.size} bytes",
            geometry.size,
        )
    return NtfsVolume(device, boot, Mft.open(device, geometry))


def read_boot_sector(device: Device) -> tuple[ntfs.BootSector, Geometry]:
    """Read and validate the boot sector, or the copy at the end if the first is damaged."""
    if device.size < ntfs.BOOT_SECTOR_SIZE:
        raise NotRecognisedError(f"{device.name} is too small for an NTFS volume")
    failure: FilesystemError | DeviceError | None = None
    for position in (0, device.size - device.size % 512 - 512, device.size // 4096 * 4096 - 4096):
        if not 0 <= position <= device.size - ntfs.BOOT_SECTOR_SIZE:
            continue
        try:
            boot = ntfs.BootSector.unpack(device.read(position, ntfs.BOOT_SECTOR_SIZE))
            if boot.oem_id != ntfs.OEM_ID:
                raise NotRecognisedError(f"{device.name} does not start with an NTFS boot sector")
            geometry = geometry_of(boot)
            if position and geometry.backup_position != position:
                raise NotRecognisedError(f"{device.name} does not end with an NTFS boot sector")
            return boot, geometry
        except (FilesystemError, DeviceError) as error:
            failure = failure or error
    assert failure is not None, "the first position is always tried"
    raise failure
