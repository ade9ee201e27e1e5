# SPDX-License-Identifier: Apache-2.0
"""How `rebuildkit fs` shows what it found, for people and as JSON.

Names are bytes.  For people, what is not printable UTF-8 shows as \\xNN, so no name can break a
line or drive the terminal.  In JSON a name that is not UTF-8 has a second field, its base64.
"""

from __future__ import annotations

import base64
import stat
from collections.abc import Mapping, Sequence
from functools import lru_cache

from backup.shared.text import second_text
from backup.shared.text import size_text as people_text
from fsdrivers.errors import UnsupportedError
from fsdrivers.printable import printable
from fsdrivers.tree import Tree
from fsdrivers.volume import Entry, Extent, Kind, Node, Stream

KIND_BITS = {
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}
DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
_second_text = lru_cache(1 << 12)(second_text)  # files come by the same second


def extents_of(tree: Tree, node: Node) -> list[Extent]:
    """Return the extents of a file; of a compressed one, one for all of it, at no position."""
    try:
        return tree.volume.extents(node)
    except UnsupportedError:
        return [Extent(0, node.size, 0)]


def name_fields(key: str, name: bytes) -> dict[str, object]:
    """Return a name for JSON: as text, and as base64 if it is not UTF-8."""
    try:
        return {key: name.decode()}
    except UnicodeDecodeError:
        shown = name.decode("utf-8", "backslashreplace")
        return {key: shown, f"{key}_b64": base64.b64encode(name).decode()}


def node_fields(node: Node) -> dict[str, object]:
    """Return everything a node says, for JSON."""
    fields: dict[str, object] = {
        "type": kind_text(node.kind).replace(" ", "-"),
        "number": node.number,
        "links": node.links,
        "size": node.size,
        "mode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
        "modified_ns": node.modified_ns,
        "accessed_ns": node.accessed_ns,
        "changed_ns": node.changed_ns,
        "created_ns": node.created_ns,
        "flags": node.flags,
        "xattrs": {
            name.decode("utf-8", "backslashreplace"): base64.b64encode(value).decode()
            for name, value in node.xattrs
        },
    }
    if node.streams:
        fields["streams"] = [stream_fields(stream) for stream in node.streams]
    if node.kind in DEVICES:
        fields["device"] = list(node.device)
    if node.kind == Kind.SYMLINK:
        fields.update(name_fields("target", node.target))
    return fields


def stream_fields(stream: Stream) -> dict[str, object]:
    """Return what there is to say of a stream, for JSON."""
    return {**name_fields("name", stream.name), "size": stream.size, "flags": stream.flags}


def entry_fields(entry: Entry) -> dict[str, object]:
    """Return what a name has beside the object it leads to, for JSON; empty if nothing."""
    fields: dict[str, object] = {}
    if entry.short_name:  # in an OEM code page on FAT
        fields.update(name_fields("short_name", entry.short_name))
    if entry.name_flags:
        fields["name_flags"] = entry.name_flags
    if entry.name_times is not None:
        fields["name_times"] = list(entry.name_times)
    return fields


def list_lines(items: Sequence[tuple[bytes, Node]], *, is_human: bool = False) -> list[str]:
    """Return lines as `ls -l` prints them, with numeric owners; `is_human` as `ls -lh`."""
    size_of = human_text if is_human else size_text
    columns = [(str(node.links), str(node.uid), str(node.gid), size_of(node)) for _, node in items]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    lines = []
    for (name, node), values in zip(items, columns, strict=True):
        padded = " ".join(value.rjust(width) for value, width in zip(values, widths, strict=True))
        when = time_text(node.modified_ns)[:16]
        target = f" -> {printable(node.target)}" if node.kind == Kind.SYMLINK else ""
        lines.append(f"{mode_text(node)} {padded} {when} {printable(name)}{target}")
    return lines


def stat_lines(path: bytes, node: Node, extents: Sequence[Extent]) -> list[str]:
    """Return lines as `stat` prints them, with attributes and extents below."""
    target = f" -> {printable(node.target)}" if node.kind == Kind.SYMLINK else ""
    device = f"   Device type: {size_text(node)}" if node.kind in DEVICES else ""
    allocated = sum(extent.length for extent in extents)
    lines = [
        f"  File: {printable(path)}{target}",
        f"  Size: {node.size:<15} Allocated: {allocated:<12} {kind_text(node.kind)}",
        f" Inode: {node.number:<15} Links: {node.links:<10} Flags: {node.flags:#x}{device}",
        f"Access: ({node.mode:04o}/{mode_text(node)})  Uid: {node.uid}   Gid: {node.gid}",
        f"Access: {time_text(node.accessed_ns)}",
        f"Modify: {time_text(node.modified_ns)}",
        f"Change: {time_text(node.changed_ns)}",
        f" Birth: {time_text(node.created_ns)}",
    ]
    for name, value in node.xattrs:
        lines.append(f" Xattr: {printable(name)} = {value.hex()}")
    for stream in node.streams:
        stored = f", stored as {stream.flags:#x}" if stream.flags else ""
        lines.append(f"Stream: {printable(stream.name) or '(content)'} {stream.size}{stored}")
    for extent in extents:
        unwritten = ", unwritten" if extent.is_unwritten else ""
        lines.append(
            f"Extent: {extent.length} bytes of offset {extent.offset} "
            f"at byte {extent.position:#x}{unwritten}"
        )
    return lines


def probe_lines(result: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return a disk and its partitions as a table."""
    about = " ".join(str(result[key]) for key in ("scheme", "disk_id") if result[key])
    about = "no partition table" if result["scheme"] == "none" else about
    lines = [
        f"{result['image']}: {result['size']} bytes, {result['sector_size']}-byte sectors, {about}"
    ]
    problems = result["problems"]
    if isinstance(problems, list):
        lines += [f"problem: {problem}" for problem in problems]
    if "filesystem" in result:
        rows = [{**result, "number": 0, "start": 0, "type": "-"}]
    if not rows:
        return lines
    table = [("#", "start", "size", "type", "filesystem", "uuid", "label", "")]
    for row in rows:
        content = "extended" if row.get("is_extended") else str(row.get("filesystem", ""))
        note = " ".join(
            ["active"] * bool(row.get("is_active"))
            + [printable(str(row.get(key) or "").encode()) for key in ("name", "error")]
        )
        label = printable(str(row.get("label") or "").encode())
        numbers = (str(row["number"]), str(row["start"]), str(row["size"]))
        kind = str(row.get("type_name") or row["type"])
        table.append((*numbers, kind, content, str(row.get("uuid") or ""), label, note.strip()))
    lines += table_lines(table, right=3)
    for row in rows:
        found = row.get("volume_problems")
        for problem in found if isinstance(found, list) else ():
            lines.append(f"problem in {row['number']}: {problem}")
    return lines


def table_lines(table: Sequence[Sequence[str]], *, right: int) -> list[str]:
    """Return rows of cells as lines, the first `right` columns flush right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = [
            cell.rjust(width) if index < right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def kind_text(kind: Kind) -> str:
    """Return a kind in words."""
    return kind.name.lower().replace("_", " ")


def mode_text(node: Node) -> str:
    """Return type and permissions as ls shows them."""
    return stat.filemode(KIND_BITS[node.kind] | node.mode)


def size_text(node: Node) -> str:
    """Return the size, or the numbers of a device."""
    if node.kind in DEVICES:
        return f"{node.device[0]},{node.device[1]}"
    return str(node.size)


def human_text(node: Node) -> str:
    """Return the size as people read it, or the numbers of a device."""
    return size_text(node) if node.kind in DEVICES else people_text(node.size)


def time_text(time_ns: int | None) -> str:
    """Return a time as UTC with all its digits, a dash if there is none."""
    if time_ns is None:
        return "-"
    seconds, fraction = divmod(time_ns, 10**9)
    text = _second_text(seconds)
    return f"{text}.{fraction:09d}" + ("" if text.startswith("@") else "Z")
