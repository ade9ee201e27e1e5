# SPDX-License-Identifier: Apache-2.0
"""What independent readers say of objects on an NTFS volume, attribute by attribute.

Each reader gives {object: {attribute: value}}, with what it can tell and nothing else; objects
are MFT records by number, and "volume". Values are what JSON has, so that all compare alike.
Where a reader gives raw bytes of a table ($SDS, $ObjId), they are searched here, not by our
driver.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import uuid
from calendar import timegm
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fsdrivers.ntfs.nodes import XATTR_ACL, XATTR_EA, XATTR_OBJECT_ID, XATTR_REPARSE
from fsdrivers.ntfs.volume import NtfsVolume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.ntfs.volumes import get_xattr, mounted, read_whole
from tests.fsdrivers.source_packages import environment
from tests.programs import run

DISSECT = "dissect.ntfs==3.16"
READ_ONLY = "ro,permissions,acl,streams_interface=xattr"
EPOCH = 116444736000000000  # 1970 as a FILETIME
OBJECT_ID, REPARSE, EA, NAMES, DATA = 64, 192, 224, 48, 128  # attributes as istat numbers them
_REPARSE_FLAG = 0x400

Facts = dict[str, Any]
Objects = Mapping[int, bytes]  # path by record


def sha(data: bytes) -> str:
    """Return the digest by which content is compared."""
    return hashlib.sha256(data).hexdigest()


def by_us(volume: NtfsVolume) -> tuple[dict[str, Facts], dict[int, bytes]]:
    """Return what our driver says of every object but the root, and a path of each."""
    made: dict[str, Facts] = {"volume": {"label": volume.label.decode(), "serial": volume.uuid}}
    directories: dict[int, bytes] = {}
    paths: dict[int, bytes] = {}
    for entry in volume.walk():
        node = entry.node
        if not entry.name:
            directories[node.number] = b""
            continue
        path = directories[entry.parent] + entry.name
        if node.kind is Kind.DIRECTORY:
            directories[node.number] = path + b"/"
        if node.number not in paths or entry.short_name:
            paths[node.number] = path  # ntfs-3g tells a DOS name beside its long one only
        if str(node.number) not in made:
            made[str(node.number)] = _facts(volume, node)
        assert entry.name_times is not None
        facts = made[str(node.number)]
        shown = [(entry.name.decode(), entry.name_flags)]
        if entry.short_name:
            facts["short name"] = entry.short_name.decode()
            shown.append((entry.short_name.decode(), 2))
        for name, namespace in shown:
            facts["names"].append([entry.parent, name])
            facts["namespaces"].append([name, namespace])
            facts["name times"].append([name, list(entry.name_times)])
            facts["links"] += 1
    for facts in made.values():
        for key in ("names", "namespaces", "name times"):
            if key in facts:
                facts[key].sort()
    return made, paths


def _facts(volume: NtfsVolume, node: Node) -> Facts:
    """Return what our driver says of an object apart from its names."""
    xattrs = dict(node.xattrs)
    made: Facts = {
        "attributes": node.flags,
        "times": [node.created_ns, node.modified_ns, node.changed_ns, node.accessed_ns],
        "names": [],
        "namespaces": [],
        "name times": [],
        "short name": "",
        "links": 0,
        "security descriptor": xattrs[XATTR_ACL].hex(),
        "streams": sorted(
            [stream.name.decode(), sha(read_whole(volume, node, stream.name, stream.size))]
            for stream in node.streams
            if stream.name
        ),
    }
    if node.kind is Kind.FILE:
        made["content"] = sha(read_whole(volume, node, b"", node.size))
    if XATTR_REPARSE in xattrs:
        made["reparse point"] = xattrs[XATTR_REPARSE].hex()
    if XATTR_EA in xattrs:
        made["extended attributes"] = xattrs[XATTR_EA].hex()
    if XATTR_OBJECT_ID in xattrs:
        made["object id"] = xattrs[XATTR_OBJECT_ID][:16].hex()
        if xattrs[XATTR_OBJECT_ID][16:]:
            made["birth ids"] = xattrs[XATTR_OBJECT_ID][16:].hex()
    return made


def by_ntfs3g(image: Path, objects: Objects, scratch: Path) -> dict[str, Facts]:
    """Return what ntfs-3g says: the mount, ntfsinfo, and ntfscat behind reparse points."""
    label = run("ntfslabel", image).rstrip("\n")
    made: dict[str, Facts] = {"volume": {"label": label}}
    with mounted(image, scratch / "mount", READ_ONLY) as root:
        for number, path in objects.items():
            made[str(number)] = _of_mount(os.fsencode(root) + b"/" + path)
    for number in objects:
        facts = made[str(number)]
        shown = run("ntfsinfo", "-v", "-i", number, image)
        own = shown.partition("Dumping attribute $INDEX_ROOT")[0]  # an index has names too
        names = re.findall(r"Namespace:\s+(\S+)\n\s+Filename:\s+'(.*)'\n", own)
        parents = re.findall(r"Parent directory:\s+(\d+)", own)
        spaces = {"POSIX": 0, "Win32": 1, "DOS": 2}
        facts["namespaces"] = sorted([name, spaces.get(space, 3)] for space, name in names)
        facts["names"] = sorted(
            [int(parent), name] for parent, (_, name) in zip(parents, names, strict=True)
        )
        if len(names) > 2:  # the mount tells no DOS name of a file with several names
            facts["short name"] = "".join(name for space, name in names if space == "DOS")
        (links,) = re.findall(r"Number of Hard Links:\s+(\d+)", shown)
        facts["links"] = int(links)
        if facts["attributes"] & _REPARSE_FLAG and "Dumping attribute $DATA" in shown:
            command = ["ntfscat", "-i", str(number), str(image)]
            facts["content"] = sha(subprocess.run(command, check=True, capture_output=True).stdout)
    return made


def _of_mount(path: bytes) -> Facts:
    """Return what the mount shows of a path."""
    values = {name: get_xattr(path, name) for name in os.listxattr(path, follow_symlinks=False)}
    for name in ("attrib", "times", "acl", "object_id", "ea", "reparse_data", "dos_name"):
        values[name] = get_xattr(path, f"system.ntfs_{name}")
    assert values["attrib"] is not None
    assert values["times"] is not None
    assert values["acl"] is not None
    created, modified, accessed, changed = (
        (time - EPOCH) * 100 for time in struct.unpack("<4Q", values["times"])
    )
    attributes = int.from_bytes(values["attrib"], "little")
    made: Facts = {
        "attributes": attributes & ~0x10,
        "times": [created, modified, changed, accessed],
        "short name": (values["dos_name"] or b"").decode(),
        "security descriptor": values["acl"].hex(),
    }
    if not attributes & _REPARSE_FLAG:
        made["streams"] = sorted(
            [name[5:], sha(value or b"")]
            for name, value in values.items()
            if name.startswith("user.")
        )
        if os.path.isfile(path):
            made["content"] = sha(Path(os.fsdecode(path)).read_bytes())
    for key, name in (("reparse point", "reparse_data"), ("extended attributes", "ea")):
        value = values[name]
        if value is not None:
            made[key] = value.hex()
    whole = values["object_id"]
    if whole is not None:
        made["object id"] = whole[:16].hex()
        if whole[16:]:
            made["birth ids"] = whole[16:].hex()
    return made


def by_sleuthkit(image: Path, objects: Objects, scratch: Path) -> dict[str, Facts]:
    """Return what istat and icat say."""
    shown = run("fsstat", image)
    made = {
        "volume": {
            "label": _only(r"Volume Name: (.*)\n", shown),
            "serial": _only(r"Volume Serial Number: (\w+)\n", shown),
        }
    }
    descriptors = descriptors_in(_icat(image, 9, "$SDS"))
    births = _births(image)
    for number in objects:
        shown = run("istat", image, number)
        head, _, rest = shown.partition("$FILE_NAME Attribute Values:")
        names = [_times(part) for part in rest.split("$FILE_NAME Attribute Values:")]
        named = re.findall(r"^Name: (.*)\nParent MFT Entry: (\d+)", shown, re.MULTILINE)
        facts: Facts = {
            "links": int(_only(r"Links: (\d+)", shown)),
            "times": _times(head),
            "names": sorted([int(parent), name] for name, parent in named),
            "name times": sorted([name, at] for (name, _), at in zip(named, names, strict=True)),
            "security descriptor": descriptors[int(_only(r"Security ID: (\d+)", shown))],
            "streams": [],
        }
        attributes = re.findall(
            r"^Type: \S+ \((\d+)-(\d+)\)   Name: (.*?)   (?:Non-)?Resident", shown, re.MULTILINE
        )
        for kind, identifier, name in attributes:
            value = f"{number}-{kind}-{identifier}"
            if int(kind) == DATA and name == "N/A":
                facts["content"] = sha(icat(image, value))
            elif int(kind) == DATA:
                facts["streams"].append([name, sha(icat(image, value))])
            elif int(kind) == REPARSE:
                facts["reparse point"] = icat(image, value).hex()
            elif int(kind) == EA:
                facts["extended attributes"] = icat(image, value).hex()
            elif int(kind) == OBJECT_ID:
                facts["object id"] = icat(image, value)[:16].hex()
                at = births.find(bytes.fromhex(facts["object id"]))
                if at >= 0:  # behind the key the reference to the file, then the ids of birth
                    facts["birth ids"] = births[at + 24 : at + 72].hex()
        facts["streams"].sort()
        made[str(number)] = facts
    return made


def icat(image: Path, address: str) -> bytes:
    """Return an attribute as sleuthkit reads it."""
    command = ["icat", str(image), address]
    return subprocess.run(command, check=True, capture_output=True).stdout


def _icat(image: Path, number: int, name: str) -> bytes:
    """Return the attributes of a record that have a name, one after the other."""
    shown = run("istat", image, number)
    found = re.findall(rf"\((\d+-\d+)\)   Name: {re.escape(name)} ", shown)
    return b"".join(icat(image, f"{number}-{address}") for address in found)


def _births(image: Path) -> bytes:
    """Return the index of object ids; without one, nothing."""
    listed = run("fls", "-r", "-p", image)
    found = re.search(r"r/r (\d+)-\d+-\d+:\t\$Extend/\$ObjId:\$O\n", listed)
    return _icat(image, int(found[1]), "$O") if found else b""


def descriptors_in(stream: bytes) -> dict[int, str]:
    """Return the descriptors in $SDS by id."""
    made: dict[int, str] = {}
    at = 0
    while at + 20 <= len(stream):
        _, number, _, length = struct.unpack_from("<IIQI", stream, at)
        if not length:
            at = (at // 0x40000 + 1) * 0x40000
            continue
        made.setdefault(number, stream[at + 20 : at + length].hex())
        at += (length + 15) & ~15
    return made


def _times(shown: str) -> list[int]:
    """Return the first four times in what istat printed."""
    made = []
    for word in ("Created", "File Modified", "MFT Modified", "Accessed"):
        text = _only(rf"^{word}:\s+(\S+ \S+) \(UTC\)", shown, first=True)
        day, _, rest = text.partition(".")
        made.append(timegm(datetime.fromisoformat(day).timetuple()) * 10**9 + int(rest or 0))
    return made


def by_libfsntfs(image: Path, objects: Objects, scratch: Path) -> dict[str, Facts]:
    """Return what fsntfsinfo says of every record."""
    shown = run("fsntfsinfo", image)
    made: dict[str, Facts] = {
        "volume": {
            "label": _only(r"\tName\s+: (.*)\n", shown, first=True),
            "serial": _only(r"\tSerial number\s+: (\w+)\n", shown).upper(),
        }
    }
    for number in objects:
        parts = re.split(r"\nAttribute: \d+\n", run("fsntfsinfo", "-E", number, image))
        facts: Facts = {"names": [], "namespaces": [], "name times": [], "short name": ""}
        for part in parts[1:]:
            kind = int(_only(r"\(0x([0-9a-f]{8})\)", part, first=True), 16)
            if kind == 0x10:
                facts["times"] = _long_times(part)
                facts["attributes"] = int(_only(r"attribute flags\s+: 0x(\w+)", part), 16)
            elif kind == NAMES:
                name = _only(r"\tName\s+: (.*)", part)
                space = int(_only(r"Name space\s+: .*\((\d)\)", part))
                parent = int(_only(r"Parent file reference\s+: (\d+)-", part))
                facts["names"].append([parent, name])
                facts["namespaces"].append([name, space])
                facts["name times"].append([name, _long_times(part)])
                if space == 2:
                    facts["short name"] = name
            elif kind == OBJECT_ID:
                text = _only(r"Droid file identifier\s+: (\S+)", part)
                facts["object id"] = uuid.UUID(text).bytes_le.hex()
        for key in ("names", "namespaces", "name times"):
            facts[key].sort()
        made[str(number)] = facts
    return made


def _long_times(shown: str) -> list[int]:
    """Return the times in what fsntfsinfo printed of an attribute."""
    made = []
    for word in ("Creation", "Modification", "Entry modification", "Access"):
        text = _only(rf"^\t{word} time\s+: (.*) UTC", shown)
        day, rest = text.split(".")
        at = datetime.strptime(day, "%b %d, %Y %H:%M:%S")  # UTC, as it says
        made.append(timegm(at.timetuple()) * 10**9 + int(rest))
    return made


def by_dissect(image: Path, objects: Objects, scratch: Path) -> dict[str, Facts]:
    """Return what dissect.ntfs says."""
    script = Path(__file__).with_name("read_dissect.py")
    found = json.loads(run(environment(DISSECT), script, image, *objects))
    assert isinstance(found, dict)
    return found


def _only(pattern: str, shown: str, *, first: bool = False) -> str:
    """Return what a pattern finds, once or first, in what a program printed."""
    found = re.findall(pattern, shown, re.MULTILINE)
    assert found, (pattern, shown)
    assert first or len(found) == 1, (pattern, found)
    return str(found[0])


Reader = Callable[[Path, Objects, Path], dict[str, Facts]]
READERS: dict[str, Reader] = {
    "ntfs-3g": by_ntfs3g,
    "sleuthkit": by_sleuthkit,
    "libfsntfs": by_libfsntfs,
    "dissect": by_dissect,
}
