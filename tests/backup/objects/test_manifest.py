# SPDX-License-Identifier: Apache-2.0
"""The list of a disc's files."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from backup.objects.errors import DamagedError, UnknownVersionError
from backup.objects.manifest import ManifestFile, build_manifest, parse_manifest

FILES = [
    ManifestFile("hash.dat", 334, hashlib.sha256(b"1").digest()),
    ManifestFile("objects/000000.pak", 8 << 20, hashlib.sha256(b"2").digest()),
    ManifestFile("objects/000001.pak", 8 << 20, hashlib.sha256(b"3").digest(), 2),
]


def test_a_manifest_round_trips() -> None:
    """Files, sizes, digests and disc numbers come back; the same files give the same bytes."""
    data = build_manifest(FILES, disc=1, discs=2)
    manifest = parse_manifest(data)

    assert manifest.files == tuple(FILES)
    assert (manifest.disc, manifest.discs) == (1, 2)
    assert manifest.find("hash.dat") == FILES[0]
    assert manifest.find("other") is None
    assert build_manifest(FILES, disc=1, discs=2) == data


def test_every_flipped_byte_is_noticed_or_harmless() -> None:
    """A changed byte is an error of ours, or white space that changes nothing."""
    data = build_manifest(FILES, disc=2, discs=2)
    manifest = parse_manifest(data)
    for position in range(len(data)):
        for mask in (1, 0x20, 0x80):
            bad = bytearray(data)
            bad[position] ^= mask
            try:
                assert parse_manifest(bytes(bad)) == manifest
            except (DamagedError, UnknownVersionError):
                continue


def test_every_truncation_is_noticed() -> None:
    """A manifest cut before its closing brace is damaged."""
    data = build_manifest(FILES, discs=2)
    for length in range(len(data) - 1):
        with pytest.raises(DamagedError):
            parse_manifest(data[:length])


def test_a_newer_version_is_refused_first() -> None:
    """A disc of a later format says so in a sentence, checksum or not."""
    data = json.dumps({"format": "rebuildkit disc", "version": 2, "new": []}).encode()

    with pytest.raises(UnknownVersionError, match="this disc was made by a newer rebuildkit"):
        parse_manifest(data)


@pytest.mark.parametrize(
    "file",
    [
        ManifestFile("/etc/passwd", 1, bytes(32)),
        ManifestFile("../x", 1, bytes(32)),
        ManifestFile("a//b", 1, bytes(32)),
        ManifestFile("a\\b", 1, bytes(32)),
        ManifestFile("", 1, bytes(32)),
        ManifestFile("x", -1, bytes(32)),
        ManifestFile("x", 1, bytes(31)),
        ManifestFile("x", 1, bytes(32), 2),
        ManifestFile("x", 1, bytes(32), 0),
        ManifestFile("hash.dat", 1, bytes(32)),
    ],
    ids=str,
)
def test_wrong_entries_are_refused_both_ways(file: ManifestFile) -> None:
    """Neither writing nor reading accepts a path that leaves the disc, or a wrong value."""
    with pytest.raises(ValueError, match="manifest"):
        build_manifest([FILES[0], file])


@pytest.mark.parametrize(
    "value",
    [
        [],
        None,
        {"format": "x"},
        {"format": "rebuildkit disc"},
        {"format": "rebuildkit disc", "version": 1},
        {"format": "rebuildkit disc", "version": True},
    ],
    ids=str,
)
def test_nonsense_is_damage(value: Any) -> None:
    """JSON of another shape is damaged, no other error."""
    with pytest.raises(DamagedError):
        parse_manifest(json.dumps(value).encode())
    with pytest.raises(DamagedError):
        parse_manifest(b"[" * 100_000)
