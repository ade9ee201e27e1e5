# SPDX-License-Identifier: Apache-2.0
"""Say what dissect.ntfs reads of MFT records; runs where it is installed, and has nothing of ours.

python read_ntfs_dissect.py IMAGE RECORD...   prints JSON: the volume, and each record by number

dissect is under the AGPL: it is run by itself, as a judge, and is part of nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

_VALUES = {"reparse point": 0xC0, "object id": 0x40, "extended attributes": 0xE0}


def main() -> None:
    """Print what there is to compare."""
    from dissect.ntfs import NTFS  # type: ignore[import-not-found]  # in its own environment

    with open(sys.argv[1], "rb") as file:
        volume = NTFS(file)
        births = births_of(volume)
        made: dict[str, Any] = {
            "volume": {"label": volume.volume_name, "serial": f"{volume.serial:016X}"}
        }
        for number in sys.argv[2:]:
            made[number] = seen(volume, volume.mft.get(int(number)), births)
    print(json.dumps(made))


def births_of(volume: Any) -> dict[str, str]:
    """Return the 48 bytes that $ObjId has beside each object id."""
    try:
        record = volume.mft.get("$Extend/$ObjId")
    except Exception:  # whatever it raises for a volume that has none
        return {}
    entries = [entry for entry in record.index("$O") if not entry.is_end]
    return {entry.key.hex(): entry.data[8:56].hex() for entry in entries}


def seen(volume: Any, record: Any, births: dict[str, str]) -> dict[str, Any]:
    """Return what it reads of one record."""
    attributes = record.attributes
    (standard,) = attributes[0x10]
    names = [part.attribute for part in attributes[0x30]]
    made: dict[str, Any] = {
        "attributes": int(standard.attribute.attr.FileAttributes),
        "times": times_of(standard.attribute),
        "names": sorted([parent_of(name), name.file_name] for name in names),
        "namespaces": sorted([name.file_name, int(name.flags)] for name in names),
        "name times": sorted([name.file_name, times_of(name)] for name in names),
        "short name": "".join(n.file_name for n in names if int(n.flags) == 2),
        "links": int(record.header.ReferenceCount),
        "security descriptor": descriptor_of(volume, standard.attribute.security_id),
    }
    for key, kind in _VALUES.items():
        for part in attributes[kind]:
            made[key] = part.data().hex()
    if made.get("object id") in births:
        made["birth ids"] = births[made["object id"]]
    streams = {part.header.name for part in attributes[0x80]}
    made["streams"] = sorted(
        [name, hashlib.sha256(record.open(name).read()).hexdigest()] for name in streams if name
    )
    if "" in streams:
        made["content"] = hashlib.sha256(record.open().read()).hexdigest()
    return made


def times_of(item: Any) -> list[int]:
    """Return when it was created, modified, changed and accessed, in nanoseconds."""
    return [
        item.creation_time_ns,
        item.last_modification_time_ns,
        item.last_change_time_ns,
        item.last_access_time_ns,
    ]


def parent_of(name: Any) -> int:
    """Return the number of the directory that a name is in."""
    reference = name.attr.ParentDirectory
    return int(reference.SegmentNumberLowPart | reference.SegmentNumberHighPart << 32)


def descriptor_of(volume: Any, number: int) -> str:
    """Return a security descriptor, found by $SII."""
    from dissect.ntfs.c_ntfs import c_ntfs  # type: ignore[import-not-found]  # see above

    found = c_ntfs._SECURITY_DESCRIPTOR_HEADER(volume.secure.sii.search(number).data)
    stream = volume.secure.sds
    stream.seek(found.Offset)
    data: bytes = stream.read(found.Length)
    return data[20:].hex()


if __name__ == "__main__":
    main()
