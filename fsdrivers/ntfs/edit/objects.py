# SPDX-License-Identifier: Apache-2.0
"""Objects and their names while a volume is edited.

What an index says of an object beside its name (times, sizes, attributes) is a copy.  It is made
anew whenever the object changes; of a directory in which names come and go, once before each
commit.  The copy in the object's own record is made when the name is, and stays then: Windows
leaves it alone too.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple

from fsdrivers.errors import CorruptError, FilesystemError, not_a_directory, not_found
from fsdrivers.ntfs.edit.attributes import EditAttribute, OpenFile
from fsdrivers.ntfs.edit.names import name_value
from fsdrivers.ntfs.edit.nodes import Entry
from fsdrivers.ntfs.edit.session import Session
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.format.attributes import (
    INDEX_NAME,
    AttributeFlag,
    AttributeType,
    EaInformation,
    FileName,
    ReparseHead,
    ResidentFlag,
    StandardInformation,
    StandardInformation3,
)
from fsdrivers.ntfs.format.index import (
    Collation,
    EntryFlag,
    IndexEntry,
    IndexHead,
    IndexRoot,
)
from fsdrivers.ntfs.geometry import Geometry, vcn_size_of
from fsdrivers.ntfs.index import DIRECTORY_INDEX, units_of_key
from fsdrivers.ntfs.names import units_of
from fsdrivers.ntfs.times import filetime_of
from fsdrivers.printable import printable

_FILE_NAME: Final = AttributeType.FILE_NAME.value
_INFORMATION: Final = AttributeType.STANDARD_INFORMATION.value
_DATA: Final = AttributeType.DATA.value
_PAIRED: Final[dict[int, int]] = {
    ntfs.Namespace.WIN32: ntfs.Namespace.DOS,
    ntfs.Namespace.DOS: ntfs.Namespace.WIN32,
}
_CASE_SENSITIVE: Final = 1  # in StandardInformation.class_id of a directory
_LAST_HIDDEN: Final = ntfs.SystemRecord.FIRST_FREE.value - 1

assert INDEX_NAME.encode("utf-16-le") == DIRECTORY_INDEX


class Name(NamedTuple):
    """A name of an object, in its record."""

    attribute: EditAttribute
    head: FileName
    units: bytes

    @property
    def parent(self) -> int:
        """Number of the directory."""
        return ntfs.number_of(self.head.parent)


class Objects:
    """Finds objects, and changes what all of them have."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.stale: set[int] = set()  # directories whose copies in indexes are to be made anew

    def open(self, number: int) -> OpenFile:
        """Return an object that is not the system's, or the root.

        Raises:
            NotFoundError: there is none.
        """
        if number < ntfs.FIRST_USER_RECORD and number != ntfs.SystemRecord.ROOT:
            raise not_found(number)
        return self.session.files.open(number)

    def directory(self, number: int) -> OpenFile:
        """Return a directory.

        Raises:
            NotADirectoryError_: the object is not a directory.
        """
        file = self.open(number)
        if not file.is_directory:
            raise not_a_directory(number)
        return file

    def find(self, parent: int, name: bytes) -> Entry | None:
        """Return the entry of a name, one with the same case if there is one."""
        file = self.directory(parent)
        units = units_of(name)
        found = [
            entry
            for entry in self.session.index(parent).find_names(self.session.upcase, units)
            if ntfs.number_of(entry.reference) > _LAST_HIDDEN
        ]
        exact = [entry for entry in found if units_of_key(entry.key) == units]
        if exact or self.is_case_sensitive(file):
            return exact[0] if exact else None
        return found[0] if found else None

    def get(self, parent: int, name: bytes) -> tuple[OpenFile, Name]:
        """Return the object that a name leads to, and the name in its record.

        Of a name and its DOS name, that is always the long one.

        Raises:
            NotFoundError: no such name.
        """
        entry = self.find(parent, name)
        if entry is None:
            raise not_found(name)
        file = self.open(ntfs.number_of(entry.reference))
        if file.reference != entry.reference:
            raise CorruptError(f"the name {printable(name)} leads to a record that was used again")
        found = self.name_in(file, parent, units_of_key(entry.key))
        if found is None:
            raise CorruptError(f"object {file.number} does not know its name {printable(name)}")
        if found.head.namespace == ntfs.Namespace.DOS:
            found = self.partner(file, found) or found
        return file, found

    def is_taken(self, parent: int, name: bytes) -> bool:
        """Tell whether a directory has a name already, the system's files among them."""
        file = self.directory(parent)
        units = units_of(name)
        found = self.session.index(parent).find_names(self.session.upcase, units)
        if self.is_case_sensitive(file):
            return any(units_of_key(entry.key) == units for entry in found)
        return bool(found)

    def is_case_sensitive(self, file: OpenFile) -> bool:
        """Tell whether names that differ by case only are different in a directory."""
        return bool(self.information(file).class_id & _CASE_SENSITIVE)

    def names(self, file: OpenFile) -> list[Name]:
        """Return all names of an object."""
        made = []
        for item in file.all(_FILE_NAME):
            value = item.value or b""
            head = FileName.unpack(value)
            units = value[FileName.SIZE : FileName.SIZE + 2 * head.name_length]
            made.append(Name(item, head, units))
        return made

    def name_in(self, file: OpenFile, parent: int, units: bytes) -> Name | None:
        """Return the name that an object has in a directory, exactly so."""
        for name in self.names(file):
            if name.parent == parent and name.units == units:
                return name
        return None

    def partner(self, file: OpenFile, name: Name) -> Name | None:
        """Return the DOS name that goes with a long one, or the other way round."""
        wanted = _PAIRED.get(name.head.namespace)
        for other in self.names(file):
            if other.parent == name.parent and other.head.namespace == wanted:
                return other
        return None

    def parent_of(self, file: OpenFile) -> int:
        """Return the number of the directory that a directory is in."""
        names = self.names(file)
        if not names:
            raise CorruptError(f"directory {file.number} has no name")
        return names[0].parent

    def information(self, file: OpenFile) -> StandardInformation:
        """Return times and attributes."""
        value = file.get(_INFORMATION).value or b""
        if len(value) >= StandardInformation3.SIZE:
            return StandardInformation3.unpack(value)
        return StandardInformation.unpack(value)

    def set_information(self, file: OpenFile, information: StandardInformation) -> None:
        """Set times and attributes."""
        item = file.get(_INFORMATION)
        packed = information.pack()
        item.value = packed + (item.value or b"")[len(packed) :]
        file.touch()

    def touch(self, file: OpenFile, *, is_modified: bool = True) -> None:
        """Set the time changed, and that of the last modification, to now."""
        now = filetime_of(self.session.clock())
        information = self.information(file)
        information.changed = now
        if is_modified:
            information.modified = now
        self.set_information(file, information)
        if file.is_directory:
            self.stale.add(file.number)

    def extended_information(self, file: OpenFile) -> StandardInformation3:
        """Return times and attributes in the form that has a security id."""
        found = self.information(file)
        if isinstance(found, StandardInformation3):
            return found
        return StandardInformation3.unpack(found.pack().ljust(StandardInformation3.SIZE, b"\0"))

    def settle_flags(self, file: OpenFile) -> None:
        """After a change of content: the attributes say so, and whether a stream is sparse."""
        information = self.information(file)
        is_sparse = any(item.flags & AttributeFlag.SPARSE for item in file.all(_DATA))
        flags = information.file_attributes & ~ntfs.FileAttribute.SPARSE
        flags |= ntfs.FileAttribute.SPARSE if is_sparse else 0
        flags |= 0 if file.is_directory else ntfs.FileAttribute.ARCHIVE
        if flags != information.file_attributes:
            information.file_attributes = int(flags)
            self.set_information(file, information)

    def value_of(self, file: OpenFile, parent: int, units: bytes, namespace: int) -> bytes:
        """Return the value of $FILE_NAME with an object's data as they are now.

        Args:
            file: the object.
            parent: file reference of the directory.
            units: the name.
            namespace: Namespace.
        """
        content = file.find(_DATA)
        sizes = (0, 0)
        if content is not None and not file.is_directory:
            cluster_size = self.session.geometry.cluster_size
            sizes = content.allocated_size(cluster_size), content.size
        return name_value(
            parent,
            units,
            namespace,
            self.information(file),
            is_directory=file.is_directory,
            is_view=bool(file.flags & ntfs.RecordFlag.VIEW_INDEX),
            sizes=sizes,
            extra=self._extra(file),
        )

    def _extra(self, file: OpenFile) -> int:
        point = file.find(AttributeType.REPARSE_POINT)
        if point is not None:
            value = self.session.values.read(point)
            if len(value) >= ReparseHead.SIZE:
                return ReparseHead.unpack(value).tag
        listed = file.find(AttributeType.EA_INFORMATION)
        if listed is not None and listed.value:
            return EaInformation.unpack(listed.value).packed_size
        return 0

    def add_name(self, file: OpenFile, directory: OpenFile, units: bytes, namespace: int) -> None:
        """Give an object a name that is free."""
        value = self.value_of(file, directory.reference, units, namespace)
        flags = ResidentFlag.INDEXED.value
        file.attributes.append(EditAttribute(_FILE_NAME, value=value, resident_flags=flags))
        file.touch()
        self.session.index(directory.number).insert(Entry.of_name(file.reference, value))

    def remove_name(self, file: OpenFile, name: Name) -> None:
        """Take a name away, and the DOS name that goes with it."""
        partner = self.partner(file, name)
        for item in (name, partner):
            if item is not None:
                self.session.index(item.parent).remove(item.attribute.value or b"")
                file.attributes.remove(item.attribute)
        file.touch()

    def sync(self, file: OpenFile) -> None:
        """Make the copies in the indexes anew."""
        if file.number < ntfs.FIRST_USER_RECORD:
            return
        self.session.files.settle(file)
        for name in self.names(file):
            value = self.value_of(file, name.head.parent, name.units, name.head.namespace)
            index = self.session.index(name.parent)
            found = index.find(value)
            if found is None or found.reference != file.reference:
                raise CorruptError(f"the index of directory {name.parent} has lost a name")
            entry = Entry.of_name(file.reference, value)
            if entry != found:
                index.replace(entry)
        self.stale.discard(file.number)

    def sync_stale(self) -> None:
        """Make the copies of directories anew; an operation of its own."""
        stale, self.stale = self.stale, set()
        for number in sorted(stale):
            with suppress(FilesystemError):  # a copy that stays old harms nothing
                self.sync(self.open(number))


def index_root(geometry: Geometry) -> EditAttribute:
    """Return the attribute of an empty directory."""
    size = geometry.index_block_size
    code = size // vcn_size_of(geometry.cluster_size, size)
    root = IndexRoot(_FILE_NAME, Collation.FILE_NAME, size, code, bytes(3)).pack()
    used = IndexHead.SIZE + IndexEntry.SIZE
    head = IndexHead(IndexHead.SIZE, used, used, 0, bytes(3)).pack()
    end = IndexEntry(0, IndexEntry.SIZE, 0, EntryFlag.END, 0).pack()
    return EditAttribute(AttributeType.INDEX_ROOT.value, DIRECTORY_INDEX, root + head + end)
