# SPDX-License-Identifier: Apache-2.0
"""What `nodes` shows as extended attributes, set and removed; and who may do what with new objects.

    system.ntfs_acl           stored once in $Secure; an object made before version 3 had a place
                              for its id loses the descriptor of its own
    system.ntfs_reparse_data  also listed in $Reparse:$R
    system.ntfs_object_id     also listed in $ObjId:$O, which holds the ids of its birth
    system.ntfs_ea            with $EA_INFORMATION, worked out from it
    system.ntfs_information   fields of $STANDARD_INFORMATION

Refused: system.ntfs_efsinfo, without which the content could not be decrypted; any other name.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import CorruptError, UnsupportedError, no_attribute
from fsdrivers.ntfs.edit.attributes import EditAttribute, OpenFile
from fsdrivers.ntfs.edit.objects import Objects
from fsdrivers.ntfs.edit.secure import SecureEditor, SecurityContent
from fsdrivers.ntfs.edit.session import Session
from fsdrivers.ntfs.edit.views import OBJECT_ID_SIZE, ObjectIdView, ReparseView
from fsdrivers.ntfs.format.attributes import (
    MAXIMUM_EA_SIZE,
    MAXIMUM_REPARSE_SIZE,
    AttributeType,
    EaHead,
    EaInformation,
    ObjectId,
    ReparseHead,
    StandardInformation3,
)
from fsdrivers.ntfs.format.records import FileAttribute, SystemRecord
from fsdrivers.ntfs.nodes import (
    INFORMATION,
    XATTR_ACL,
    XATTR_EA,
    XATTR_EFS,
    XATTR_INFORMATION,
    XATTR_OBJECT_ID,
    XATTR_REPARSE,
)
from fsdrivers.ntfs.system import SystemFiles
from fsdrivers.printable import printable

_REPARSE: Final = AttributeType.REPARSE_POINT.value
_OBJECT_ID: Final = AttributeType.OBJECT_ID.value
_EA: Final = AttributeType.EA.value
_EA_INFORMATION: Final = AttributeType.EA_INFORMATION.value
_DESCRIPTOR: Final = AttributeType.SECURITY_DESCRIPTOR.value
_NEEDED: Final = 0x80  # in EaHead.flags
_MICROSOFT: Final = 0x80000000  # in a reparse tag: no GUID follows the head
_GUID_SIZE: Final = 16


class Xattrs:
    """Sets and removes extended attributes; callers sync the object's names afterwards."""

    def __init__(self, session: Session, objects: Objects, system: SystemFiles) -> None:
        self._session = session
        self._objects = objects
        self._system = system
        self._secure: SecureEditor | None = None
        self.are_ids_changed = False  # object ids, since that was last looked at
        self.are_descriptors_changed = False

    def drop(self) -> None:
        """Take back what the operation under way did."""
        self._secure = None

    @property
    def secure(self) -> SecureEditor:
        """$Secure."""
        if self._secure is None:
            number = SystemRecord.SECURE.value
            hashes, ids = (
                self._session.index(number, name.encode("utf-16-le")) for name in ("$SDH", "$SII")
            )
            self._secure = SecureEditor(SecurityContent(self._session), hashes, ids)
        return self._secure

    def descriptor(self, file: OpenFile) -> bytes | None:
        """Return the security descriptor of an object, None if it has none."""
        information = self._objects.information(file)
        if isinstance(information, StandardInformation3) and information.security_id:
            return self.secure.descriptor(information.security_id)
        own = file.find(_DESCRIPTOR)
        return None if own is None else self._session.values.read(own)

    def set(self, file: OpenFile, name: bytes, value: bytes) -> None:
        """Set an extended attribute.

        Raises:
            CorruptError: the value is malformed.
            UnsupportedError: there is no place for such an attribute.
            NoSpaceError: no room for it.
            AlreadyExistsError: another object has the object id.
        """
        if name == XATTR_ACL:
            self._set_acl(file, value)
        elif name == XATTR_REPARSE:
            self._set_reparse(file, value)
        elif name == XATTR_OBJECT_ID:
            self._set_object_id(file, value)
        elif name == XATTR_EA:
            self._set_ea(file, value)
        elif name == XATTR_INFORMATION:
            self._set_fields(file, value)
        else:
            raise UnsupportedError(f"setting the extended attribute {printable(name)} on NTFS")

    def remove(self, file: OpenFile, name: bytes) -> None:
        """Remove an extended attribute.

        Raises:
            NotFoundError: the object has no such stream or attribute.
            UnsupportedError: it cannot be without.
        """
        if name in (XATTR_ACL, XATTR_EFS):
            raise UnsupportedError(f"an object without {printable(name)}")
        if name == XATTR_REPARSE and file.find(_REPARSE) is not None:
            self.unlist_reparse(file)
            self._remove(file, _REPARSE)
            self._set_flag(file, FileAttribute.REPARSE_POINT, False)
        elif name == XATTR_OBJECT_ID and file.find(_OBJECT_ID) is not None:
            self.unlist_object_id(file)
            self._remove(file, _OBJECT_ID)
        elif name == XATTR_EA and file.find(_EA) is not None:
            self._remove(file, _EA)
            self._remove(file, _EA_INFORMATION)
        elif name == XATTR_INFORMATION and self._fields(file) != (0, 0, 0, 0):
            self._set_fields(file, bytes(INFORMATION.size))
        else:
            raise no_attribute(name)

    def forget(self, file: OpenFile) -> None:
        """Take an object that is to be deleted off the lists."""
        if file.find(_REPARSE) is not None:
            self.unlist_reparse(file)
        if file.find(_OBJECT_ID) is not None:
            self.unlist_object_id(file)

    def _put(self, file: OpenFile, kind: int, value: bytes) -> None:
        found = file.find(kind)
        if found is None:
            file.attributes.append(EditAttribute(kind, value=value))
        else:
            self._session.values.replace(found, value)
        file.touch()

    def _remove(self, file: OpenFile, kind: int) -> None:
        found = file.find(kind)
        if found is not None:
            if found.value is None:
                self._session.allocator.free(found.runs)
            file.attributes.remove(found)
            file.touch()

    def _set_flag(self, file: OpenFile, flag: FileAttribute, is_set: bool) -> None:
        information = self._objects.information(file)
        flags = information.file_attributes & ~flag.value
        information.file_attributes = flags | (flag.value if is_set else 0)
        self._objects.set_information(file, information)

    def _set_acl(self, file: OpenFile, value: bytes) -> None:
        if len(value) < 20 or value[0] != 1 or not value[3] & 0x80:
            raise CorruptError("a security descriptor that is not self-relative")
        self.are_descriptors_changed |= self.secure.find(value) is None
        identifier = self.secure.add(value)
        information = self._objects.extended_information(file)
        information.security_id = identifier
        self._objects.set_information(file, information)
        self._remove(file, _DESCRIPTOR)

    def _view(self, file_name: str, index: str) -> tuple[int, bytes]:
        found = self._system.extend_file(file_name)
        if found is None:
            raise UnsupportedError(f"a volume without {file_name}")
        return found.number, index.encode("utf-16-le")

    def _reparse_view(self) -> ReparseView:
        return ReparseView(self._session.index(*self._view("$Reparse", "$R")))

    def _set_reparse(self, file: OpenFile, value: bytes) -> None:
        if not ReparseHead.SIZE <= len(value) <= MAXIMUM_REPARSE_SIZE:
            raise CorruptError("size of a reparse point", None, None, len(value))
        head = ReparseHead.unpack(value)
        size = ReparseHead.SIZE + head.length + (0 if head.tag & _MICROSOFT else _GUID_SIZE)
        if size != len(value):
            raise CorruptError("length in a reparse point", None, len(value), size)
        if file.find(_REPARSE) is not None:
            self.unlist_reparse(file)
        self._put(file, _REPARSE, value)
        self._reparse_view().add(value, file.reference)
        self._set_flag(file, FileAttribute.REPARSE_POINT, True)

    def unlist_reparse(self, file: OpenFile) -> None:
        """Take an object off the list of reparse points."""
        value = self._session.values.read(file.get(_REPARSE))
        if len(value) >= ReparseHead.SIZE and self._system.extend_file("$Reparse") is not None:
            self._reparse_view().remove(value, file.reference)

    def _id_view(self) -> ObjectIdView:
        return ObjectIdView(self._session.index(*self._view("$ObjId", "$O")))

    def _set_object_id(self, file: OpenFile, value: bytes) -> None:
        if len(value) not in (OBJECT_ID_SIZE, ObjectId.SIZE):
            raise CorruptError("size of an object id", None, "16 or 64", len(value))
        if file.find(_OBJECT_ID) is not None:
            self.unlist_object_id(file)
        self._put(file, _OBJECT_ID, value[:OBJECT_ID_SIZE])
        self._id_view().add(value, file.reference)
        self.are_ids_changed = True

    def unlist_object_id(self, file: OpenFile) -> None:
        """Take an object off the list of object ids."""
        value = self._session.values.read(file.get(_OBJECT_ID))
        if self._system.extend_file("$ObjId") is not None:
            self._id_view().remove(value, file.reference)
        self.are_ids_changed = True

    def _set_ea(self, file: OpenFile, value: bytes) -> None:
        """Set the extended attributes of OS/2's kind, all at once."""
        at = packed = needed = 0
        while at < len(value):
            head = EaHead.unpack(value, at)
            size = EaHead.SIZE + head.name_length + 1 + head.value_length
            if head.next_offset < size or head.next_offset % 4 or not head.name_length:
                raise CorruptError("entry of extended attributes", None, size, at)
            packed += 5 + head.name_length + head.value_length
            needed += bool(head.flags & _NEEDED)
            at += head.next_offset
        if at != len(value) or not value or packed >= MAXIMUM_EA_SIZE:
            raise CorruptError("size of the extended attributes", None, at, len(value))
        self._put(file, _EA, value)
        self._put(file, _EA_INFORMATION, EaInformation(packed, needed, len(value)).pack())

    def _fields(self, file: OpenFile) -> tuple[int, int, int, int]:
        found = self._objects.extended_information(file)
        return found.maximum_versions, found.version, found.class_id, found.owner_id

    def _set_fields(self, file: OpenFile, value: bytes) -> None:
        if len(value) != INFORMATION.size:
            raise CorruptError("size of the fields", None, INFORMATION.size, len(value))
        fields = INFORMATION.unpack(value)
        information = self._objects.information(file)
        information.maximum_versions, information.version, information.class_id = fields[:3]
        if isinstance(information, StandardInformation3):
            information.owner_id = fields[3]
        elif fields[3]:
            raise UnsupportedError("an owner's id of an object that has no place for it")
        self._objects.set_information(file, information)
