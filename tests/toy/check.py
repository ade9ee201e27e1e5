# SPDX-License-Identifier: Apache-2.0
"""Check a toy volume: what the reader demands, and that nothing is there twice."""

from __future__ import annotations

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError
from fsdrivers.findings import Finding
from tests.toy.volume import open_volume


def check_volume(device: Device) -> list[Finding]:
    """Return what is wrong with a volume; see `fsdrivers.volume.CheckVolume`."""
    findings: list[Finding] = []
    try:
        volume = open_volume(device)
        names: set[tuple[int, bytes]] = set()
        places = []
        for entry in volume.walk():
            if (entry.parent, entry.name) in names:
                findings.append(Finding("name-twice", f"object {entry.node.number} has no name"))
            names.add((entry.parent, entry.name))
            places += [(part.position, part.length) for part in volume.extents(entry.node)]
        end = 0
        for position, length in sorted(places):
            if position < end:
                findings.append(Finding("overlap", "files share sectors", position))
            end = position + length
    except CorruptError as error:
        findings.append(Finding("damage", str(error), error.position))
    return findings
