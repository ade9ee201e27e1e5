# SPDX-License-Identifier: Apache-2.0
"""Changing an existing volume in place: what every driver that can do it offers.

An `Editor` is a `Volume` too: what it read, it shows as its own changes left it.  Objects are
named by the number of their node, names by the number of their directory and one component;
`find` leads from a path to a node.  One editor per device at a time, used by one thread.

What every operation promises:

* **All or nothing.**  An operation that raises one of `fsdrivers.errors` has changed nothing,
  neither on the medium nor in what the editor shows.  Only `write` and `truncate` of large
  files, and removing those, may be carried out in steps that are each complete.
* **Clean.**  After `flush` the volume passes the checker of its filesystem.
* **Durable.**  What an operation did is on the medium when `flush` or `close` returned, not
  before; a driver may keep changes in memory until then, but makes them in order.
* **Crash.**  Whenever writing stops, the volume can be read and repaired by the usual checker,
  with no object damaged that was not being edited.  Each driver states its order of writes in
  one place.
* **Unknown bits stay.**  Fields and flags the driver does not know survive.

After a DeviceError the state of the medium is unknown: the editor raises it again for every
further change, and `close` writes nothing more.

Units: sizes and offsets are bytes; times are nanoseconds since 1970-01-01 UTC.

Not here: what a filesystem cannot hold.  That is UnsupportedError, before anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict, Unpack

from fsdrivers.device import Device
from fsdrivers.errors import NotFoundError, not_a_directory
from fsdrivers.volume import Kind, Node, Volume, VolumeOptions

Clock = Callable[[], int]  # nanoseconds since 1970-01-01 UTC, as time.time_ns


class Attributes(TypedDict, total=False):
    """What `Editor.set_attributes` changes; None, or what is missing, stays as it is."""

    mode: int | None
    uid: int | None
    gid: int | None
    modified_ns: int | None
    accessed_ns: int | None
    changed_ns: int | None
    created_ns: int | None
    flags: int | None  # those of `Node.flags`; others of the object stay


def times_of(changes: Attributes) -> dict[str, int]:
    """Return the times that are to be changed, by the names of `Attributes` without the unit."""
    return {
        key.removesuffix("_ns"): value
        for key, value in changes.items()
        if key.endswith("_ns") and isinstance(value, int)
    }


class Editor(Volume, Protocol):
    """An opened filesystem, for reading and changing."""

    root: int  # number of the root directory's node

    def node(self, number: int) -> Node:
        """Return the object with this number as it is now.

        Raises:
            NotFoundError: there is none.
        """
        ...

    def lookup(self, parent: int, name: bytes) -> Node:
        """Return the object that a directory has under a name; names match as on the volume.

        Raises:
            NotFoundError: there is none.
            NotADirectoryError_: `parent` is not a directory.
        """
        ...

    def names(self, directory: int) -> list[tuple[bytes, int]]:
        """Return (name, number) of what is in a directory, in the order on the medium.

        Raises:
            NotADirectoryError_: it is not a directory.
        """
        ...

    def create(self, parent: int, name: bytes, node: Node) -> Node:
        """Make a new object of `node.kind`: an empty file, a directory, a link, a device, ...

        Args:
            parent: number of the directory it comes into.
            name: in that directory.
            node: kind, mode, owner, times, flags, target, device and xattrs of the new object;
                its number, size and links are not looked at.  A time that is None becomes now.

        Returns:
            The object as it was made, with its number.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidNameError: the filesystem cannot hold the name, of the object or of an xattr.
            UnsupportedError: it cannot hold such an object.
            NoSpaceError: no room for its inode, entry, target or attributes.
            NotFoundError, NotADirectoryError_: `parent` is not a directory.
        """
        ...

    def write(self, number: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write content into a file, which grows as needed; a gap reads as zeros.

        Sets the times modified and changed to now.

        Raises:
            IsADirectoryError_: it is not a file.
            NoSpaceError: nothing of `data` was written, or, of more than 1 MiB, a part from
                its start.
            UnsupportedError: the file would become larger than the filesystem can hold.
        """
        ...

    def truncate(self, number: int, size: int) -> None:
        """Make a file `size` bytes long: cut, or longer by zeros.

        Sets the times modified and changed to now.

        Raises: as `write`.
        """
        ...

    def link(self, number: int, parent: int, name: bytes) -> None:
        """Give an object another name.

        Raises:
            IsADirectoryError_: it is a directory.
            UnsupportedError: the filesystem has no hard links, or not so many.
            AlreadyExistsError, InvalidNameError, NoSpaceError, NotADirectoryError_: as `create`.
        """
        ...

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away; with its last name an object is freed.

        Raises:
            NotFoundError: no such name.
            IsADirectoryError_: it is a directory.
        """
        ...

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory.

        Raises:
            NotFoundError: no such name.
            NotADirectoryError_: it is not a directory.
            DirectoryNotEmptyError: something is in it.
        """
        ...

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool = False
    ) -> Node:
        """Move a name, also to another directory.  Renaming to the same name does nothing.

        Args:
            parent: number of the directory it is in.
            name: what is moved.
            new_parent: number of the directory it comes into.
            new_name: its name there.
            replace: take the place of a file, or of an empty directory by a directory, as
                rename(2) does; another name of the same object stays as it is.

        Returns:
            The object; its number may have changed where numbers come from places (FAT).

        Raises:
            NotFoundError: no such name.
            AlreadyExistsError: the new name is taken and `replace` is not set.
            IsADirectoryError_, NotADirectoryError_: a directory on one side only.
            DirectoryNotEmptyError: the directory to be replaced is not empty.
            InvalidNameError: the name, or a directory would come into itself.
            NoSpaceError: no room for the entry.
        """
        ...

    def set_attributes(self, number: int, **changes: Unpack[Attributes]) -> None:
        """Change what is given and leave the rest; `changed_ns` becomes now unless it is given.

        Raises:
            UnsupportedError: the filesystem has no place for a value.
        """
        ...

    def set_xattr(self, number: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute; ACLs are `system.posix_acl_*` in Linux's format.

        Raises:
            InvalidNameError: the filesystem cannot hold the name.
            NoSpaceError: the attributes of this object have no room for the value.
            UnsupportedError: the filesystem has no such attributes.
            CorruptError: a malformed ACL.
        """
        ...

    def remove_xattr(self, number: int, name: bytes) -> None:
        """Remove an extended attribute.

        Raises:
            NotFoundError: the object has no such attribute.
        """
        ...

    def set_label(self, label: bytes) -> None:
        """Set the volume's label, as `Volume.label` gives it.

        Raises:
            InvalidNameError: it is too long or holds what a label cannot.
        """
        ...

    def set_uuid(self, uuid: str) -> None:
        """Set the volume's UUID or serial number, in the form in which `Volume.uuid` gives it.

        Raises:
            InvalidNameError: it has another form.
        """
        ...

    def flush(self) -> None:
        """Return when everything done so far is on the medium and the volume is clean."""
        ...

    def close(self) -> None:
        """Flush, and end the editing; the device stays open.  Idempotent."""
        ...


class StreamEditor(Editor, Protocol):
    """An editor of a filesystem whose nodes may have streams; the empty name is the content."""

    def write_stream(
        self, number: int, name: bytes, offset: int, data: bytes | bytearray | memoryview
    ) -> None:
        """Write into a stream, as `write` does; one that is not there is made.

        Raises:
            InvalidNameError: the filesystem cannot hold the name.
            Else as `write`.
        """
        ...

    def truncate_stream(self, number: int, name: bytes, size: int) -> None:
        """Make a stream `size` bytes long, as `truncate` does; one that is not there is made."""
        ...

    def remove_stream(self, number: int, name: bytes) -> None:
        """Remove a named stream.

        Raises:
            NotFoundError: the object has no such stream or attribute.
        """
        ...

    def set_short_name(self, parent: int, name: bytes, short_name: bytes) -> None:
        """Set the DOS name that goes with a name; empty takes it away.

        Raises:
            NotFoundError: no such name.
            AlreadyExistsError: another object of the directory has the DOS name.
            InvalidNameError: it is not an 8.3 name.
        """
        ...


class OpenEditor(Protocol):
    def __call__(
        self, device: Device, *, clock: Clock = ..., **options: Unpack[VolumeOptions]
    ) -> Editor:
        """Open the volume on `device`, which is writable, for changes.

        Args:
            device: that holds it.
            clock: gives the times of what is changed; by default that of the system.
            options: as of `fsdrivers.volume.OpenVolume`.

        Raises:
            UnsupportedError: the volume must not be changed as it is.
            Else as `OpenVolume`.
        """
        ...


def find(editor: Editor, path: Sequence[bytes]) -> Node:
    """Return the object at the end of `path`, components from the root; links are not followed.

    Raises:
        NotFoundError: a component does not exist.
        NotADirectoryError_: one on the way is not a directory.
    """
    node = editor.node(editor.root)
    for name in path:
        node = editor.lookup(node.number, name)
    return node


def find_parent(editor: Editor, path: Sequence[bytes]) -> tuple[int, bytes]:
    """Return the number of the directory that holds the last component of `path`, and that name.

    Raises:
        NotFoundError, NotADirectoryError_: as `find`; NotFoundError also for an empty path.
    """
    if not path:
        raise NotFoundError("the root directory has no name")
    node = find(editor, path[:-1])
    if node.kind is not Kind.DIRECTORY:
        raise not_a_directory(b"/".join(path[:-1]))
    return node.number, path[-1]
