# SPDX-License-Identifier: Apache-2.0
"""Every attribute of NTFS volumes that we wrote, as at least three independent readers see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.volume import open_volume
from tests.fsdrivers.ntfs.editing import dump
from tests.fsdrivers.ntfs.readers import READERS, by_us
from tests.fsdrivers.ntfs.rich import edited, planned

pytestmark = [pytest.mark.tools, pytest.mark.root]

# Which readers tell an attribute, as docs/filesystems/ntfs.md has it.
TOLD = {
    "label": {"ntfs-3g", "sleuthkit", "libfsntfs", "dissect"},
    "serial": {"sleuthkit", "libfsntfs", "dissect"},
    "content": {"ntfs-3g", "sleuthkit", "dissect"},
    "streams": {"ntfs-3g", "sleuthkit", "dissect"},
    "names": {"ntfs-3g", "sleuthkit", "libfsntfs", "dissect"},
    "namespaces": {"ntfs-3g", "libfsntfs", "dissect"},
    "short name": {"ntfs-3g", "libfsntfs", "dissect"},
    "links": {"ntfs-3g", "sleuthkit", "dissect"},
    "times": {"ntfs-3g", "sleuthkit", "libfsntfs", "dissect"},
    "name times": {"sleuthkit", "libfsntfs", "dissect"},
    "attributes": {"ntfs-3g", "libfsntfs", "dissect"},
    "security descriptor": {"ntfs-3g", "sleuthkit", "dissect"},
    "reparse point": {"ntfs-3g", "sleuthkit", "dissect"},
    "object id": {"ntfs-3g", "sleuthkit", "libfsntfs", "dissect"},
    "birth ids": {"ntfs-3g", "sleuthkit", "dissect"},
    "extended attributes": {"ntfs-3g", "sleuthkit", "dissect"},
}


@pytest.mark.parametrize("is_edited", [False, True], ids=["planned", "edited"])
def test_three_readers_agree_on_every_attribute(tmp_path: Path, is_edited: bool) -> None:
    """Whatever is on a volume that we made, at least three others read to the same value."""
    device = planned(tmp_path)
    if is_edited:
        edited(device)
    assert check_volume(device) == []
    image = dump(device, tmp_path / "image")
    expected, paths = by_us(open_volume(device))
    for number, path in list(paths.items()):
        # fsntfsinfo shows names beyond 16 bits as other ones.
        if path.startswith(b"many/") or max(path.decode()) > "\uffff":
            del paths[number]
    told: dict[str, dict[str, set[str]]] = {}  # attribute, object, readers
    wrong: list[Any] = []
    for reader, read in READERS.items():
        found = read(image, paths, tmp_path)
        for key in ("volume", *map(str, paths)):
            for attribute, value in found[key].items():
                told.setdefault(attribute, {}).setdefault(key, set()).add(reader)
                mine = expected[key].get(attribute)
                if value != mine:
                    path = paths.get(int(key)) if key != "volume" else ""
                    wrong.append((reader, path, attribute, value, mine))

    assert wrong == []
    for key in ("volume", *map(str, paths)):
        for attribute, value in expected[key].items():
            if value in ([], ""):
                continue  # nothing to tell
            readers = told[attribute].get(key, set())
            assert readers >= TOLD[attribute], (attribute, paths.get(int(key)), readers)
    assert all(len(readers) >= 3 for readers in TOLD.values())
    assert told.keys() == TOLD.keys()
