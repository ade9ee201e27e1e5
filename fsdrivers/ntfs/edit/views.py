# SPDX-License-Identifier: Apache-2.0
"""What the views of $Extend list: object ids in $ObjId:$O, reparse points in $Reparse:$R.

Every object id and every reparse point of a volume has an entry there.  Source: as
`format.index`; [ntfs-3g] libntfs-3g/object_id.c, reparse.c.  Not here: $Quota.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import AlreadyExistsError, NotFoundError
from fsdrivers.ntfs.edit.index import IndexEditor
from fsdrivers.ntfs.edit.nodes import Entry
from fsdrivers.ntfs.format.index import ObjectIdData, ReparseKey
from fsdrivers.record import U32

OBJECT_ID_SIZE: Final = 16  # bytes, the first of the attribute's value
_BIRTH_SIZE: Final = ObjectIdData.SIZE - 8


class ObjectIdView:
    """$ObjId:$O, sorted by object id (`Collation.ULONGS`)."""

    def __init__(self, editor: IndexEditor) -> None:
        self.editor = editor

    def owner(self, object_id: bytes) -> int | None:
        """Return the file reference of the object that has an id, None if there is none."""
        found = self.editor.find(object_id)
        return None if found is None else ObjectIdData.unpack(found.data).reference

    def add(self, value: bytes, reference: int) -> None:
        """List an object id.

        Args:
            value: of $OBJECT_ID, 16 to 64 bytes: the id, then where it was born.
            reference: file reference of the object that has it.

        Raises:
            AlreadyExistsError: another object has the id.
            NoSpaceError: no room for the entry.
        """
        birth = value[OBJECT_ID_SIZE : OBJECT_ID_SIZE + _BIRTH_SIZE].ljust(_BIRTH_SIZE, b"\0")
        data = reference.to_bytes(8, "little") + birth
        try:
            self.editor.insert(Entry.of_view(value[:OBJECT_ID_SIZE], data))
        except AlreadyExistsError as error:
            shown = value[:OBJECT_ID_SIZE].hex()
            raise AlreadyExistsError(f"another object has the object id {shown}") from error

    def remove(self, value: bytes, reference: int) -> None:
        """Take an object id off the list; one of another object stays, one that is absent, too.

        Args:
            value: of $OBJECT_ID, 16 to 64 bytes.
            reference: file reference of the object that had it.
        """
        key = value[:OBJECT_ID_SIZE]
        if self.owner(key) == reference:
            self.editor.remove(key)


class ReparseView:
    """$Reparse:$R, sorted by tag and file reference (`Collation.ULONGS`)."""

    def __init__(self, editor: IndexEditor) -> None:
        self.editor = editor

    def add(self, value: bytes, reference: int) -> None:
        """List a reparse point; one that is listed already stays.

        Args:
            value: of $REPARSE_POINT; its first 4 bytes are the tag.
            reference: file reference of the object that has it.

        Raises:
            NoSpaceError: no room for the entry.
        """
        key = _reparse_key(value, reference)
        if self.editor.find(key) is None:
            self.editor.insert(Entry.of_view(key, b""))

    def remove(self, value: bytes, reference: int) -> None:
        """Take a reparse point off the list, if it is there.

        Args:
            value: of $REPARSE_POINT.
            reference: file reference of the object that had it.
        """
        try:
            self.editor.remove(_reparse_key(value, reference))
        except NotFoundError:
            return  # others forgot to list it


def _reparse_key(value: bytes, reference: int) -> bytes:
    """Return the key of a reparse point."""
    (tag,) = U32.unpack_from(value)
    return ReparseKey(tag, reference).pack()
