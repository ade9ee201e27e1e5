# SPDX-License-Identifier: Apache-2.0
"""Files of volumes as a tar archive, for `restore --to -`.

The format is pax with the keywords that GNU tar and libarchive know: owners, times to the
nanosecond, extended attributes and ACLs as SCHILY.xattr.*, hard links.  Holes are zeros.  Names
that are not UTF-8 are there byte by byte, as GNU tar writes them.  An archive holds no sockets, no
time of creation and no inode flags.

Source: POSIX.1-2017, pax, "pax Interchange Format"; GNU tar's manual, "Extended attributes".
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.printable import printable
from fsdrivers.tree import PIECE_SIZE, Tree
from fsdrivers.volume import Entry, Kind, Node
from imagebuilder.cli.common import report_error
from imagebuilder.cli.fs.extract import check_name, node_for_host, stream_attributes
from imagebuilder.cli.fs.outcome import reason_of

_TYPES: Final = {
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.FILE: tarfile.REGTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.CHARACTER_DEVICE: tarfile.CHRTYPE,
    Kind.BLOCK_DEVICE: tarfile.BLKTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}
# What the fields of a header hold; a pax record says what is more.
_NAME_SIZE: Final = 100  # bytes
_LARGEST_ID: Final = 0o7777777
_LARGEST: Final = 0o77777777777  # size in bytes, time in seconds
_ZEROS: Final = bytes(tarfile.RECORDSIZE)
_HEADER_NAME: Final = "PaxHeader"


class Archive:
    """Writes one archive to `stream`, object by object; reports what it cannot hold."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0
        self._first_names: dict[tuple[int, int], bytes] = {}  # by tree and node
        self._written: set[bytes] = set()
        self.count = 0
        self.problems: list[str] = []

    def add(self, tree: Tree, path: bytes, entry: Entry, *, is_root: bool = False) -> None:
        """Write an object of a volume.

        Args:
            tree: of its volume.
            path: that it gets, without a slash in front; empty for the root of all.
            entry: its name, and the node.
            is_root: it is the root of its volume, whose name is not its own.
        """
        node, note = node_for_host(tree, entry)
        name = path or b"."
        if note:
            self._report(name, note)
        if name in self._written:
            if node.kind is not Kind.DIRECTORY:
                self._report(name, "left out: another volume has it, too")
            return
        try:
            if not is_root:
                check_name(entry)
            self._write(tree, name, node)
        except (CorruptError, UnsupportedError) as error:
            self._report(name, f"left out: {reason_of(error)}")

    def finish(self) -> None:
        """Write the end of the archive, and fill the last record up."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(_ZEROS[: -self._position % tarfile.RECORDSIZE])
        self._stream.flush()

    def _write(self, tree: Tree, name: bytes, node: Node) -> None:
        key = (id(tree), node.number)
        first = self._first_names.get(key)
        content: Iterator[bytes] = iter(())
        if first is None:
            if node.kind not in _TYPES:
                raise UnsupportedError(f"an archive holds no {node.kind.name.lower()}")
            if node.kind is Kind.FILE and node.size:
                with contextlib.suppress(CorruptError, OSError):  # told when its turn comes
                    tree.volume.read(node, 0, 1)  # what is not supported gets no header
                content = self._iter_content(tree, node, name)
        self._written.add(name)
        self.count += 1
        self._put(self._header(tree, name, node, first))
        for piece in content:
            self._put(piece)
        self._put(_ZEROS[: -self._position % tarfile.BLOCKSIZE])
        if node.links > 1:
            self._first_names.setdefault(key, name)

    def _iter_content(self, tree: Tree, node: Node, name: bytes) -> Iterator[bytes]:
        """Yield content; zeros for what is lost, as the header has said how much comes."""
        lost, reason = 0, ""
        for offset in range(0, node.size, PIECE_SIZE):
            length = min(PIECE_SIZE, node.size - offset)
            try:
                piece = tree.volume.read(node, offset, length)
            except (CorruptError, OSError) as error:
                lost, reason = lost + length, reason or reason_of(error)
                piece = bytes(length)
            yield piece
        if lost:
            self._report(name, f"zeros are in the place of {lost:,} bytes of it: {reason}")

    def _header(self, tree: Tree, name: bytes, node: Node, first: bytes | None) -> bytes:
        """Return the header of an object, with a pax header before it."""
        shown = name + b"/" if node.kind is Kind.DIRECTORY else name
        target = node.target if first is None else first
        size = node.size if first is None and node.kind is Kind.FILE else 0
        seconds = node.modified_ns // 10**9
        info = tarfile.TarInfo(_short(shown))
        info.type = _TYPES[node.kind] if first is None else tarfile.LNKTYPE
        info.linkname = _short(target)
        info.mode, info.size = node.mode, size if size <= _LARGEST else 0
        info.uid, info.gid = (
            number if number <= _LARGEST_ID else 0 for number in (node.uid, node.gid)
        )
        info.mtime = min(max(seconds, 0), _LARGEST)
        info.devmajor, info.devminor = node.device
        records = [(b"mtime", _time(node.modified_ns))]
        records += [
            (key, _time(time_ns))
            for key, time_ns in ((b"atime", node.accessed_ns), (b"ctime", node.changed_ns))
            if time_ns is not None
        ]
        records += [
            (key, value)
            for key, value, held in (
                (b"path", shown, info.name),
                (b"linkpath", target, info.linkname),
            )
            if value != held.encode()
        ]
        records += [
            (key, b"%d" % value)
            for key, value, most in (
                (b"size", size, _LARGEST),
                (b"uid", node.uid, _LARGEST_ID),
                (b"gid", node.gid, _LARGEST_ID),
            )
            if value > most
        ]
        if first is None:
            records += self._attributes(tree, name, node)
        return _pax_header(records) + info.tobuf(tarfile.USTAR_FORMAT)

    def _attributes(self, tree: Tree, name: bytes, node: Node) -> Iterator[tuple[bytes, bytes]]:
        """Yield the records of extended attributes, and of streams as such."""

        def refuse(what: str, error: Exception) -> None:
            self._report(name, f"{what}: {reason_of(error)}")

        for key, value in (*node.xattrs, *stream_attributes(tree, node, refuse)):
            yield b"SCHILY.xattr." + key.replace(b"%", b"%25").replace(b"=", b"%3D"), value

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._position += len(data)

    def _report(self, name: bytes, text: str) -> None:
        self.problems.append(f"{printable(name)}: {text}")
        report_error(self.problems[-1])


def _short(text: bytes) -> str:
    """Return what of a path goes into its field of the header: all, if it is short and ASCII."""
    return text.decode("ascii", "replace").replace("\ufffd", "_")[-_NAME_SIZE:]


def _time(time_ns: int) -> bytes:
    """Return a time as pax has it: seconds since 1970 with their fraction."""
    sign = b"-" if time_ns < 0 else b""
    seconds, fraction = divmod(abs(time_ns), 10**9)
    return sign + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")


def _pax_header(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the block of an extended header with its records, padded."""
    data = b"".join(_record(key, value) for key, value in records)
    info = tarfile.TarInfo(_HEADER_NAME)
    info.type, info.size = tarfile.XHDTYPE, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _record(key: bytes, value: bytes) -> bytes:
    """Return "LENGTH KEY=VALUE\\n", whose length counts its own digits."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest
