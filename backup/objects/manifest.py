# SPDX-License-Identifier: Apache-2.0
"""`manifest.json`: the SHA-256 of every backup file on a disc, for anyone to check without a key.

It finds accidents, not malice: whoever can change a file on a disc can change the manifest.
What a restore trusts is the seals of table and pieces.
Source: docs/formats.md "manifest.json".  Pure: bytes in, bytes out.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Sequence
from typing import Final, NamedTuple

from backup.objects.errors import DamagedError, UnknownVersionError

VERSION: Final = 1
_FORMAT = "rebuildkit disc"
_MANIFEST = "the list of files (manifest.json)"
_DIGEST_DIGITS = 64
_SIZE_LIMIT = 1 << 48  # bytes; a disc has fewer than 2^32 sectors


class ManifestFile(NamedTuple):
    """A file of the disc set."""

    path: str  # from the disc's root, parts joined by "/"
    size: int
    sha256: bytes  # 32 bytes
    disc: int = 1  # the disc it lies on, from 1
    position: int | None = None  # bytes from the start of that disc; None in older lists


class Manifest(NamedTuple):
    """What a disc set should hold."""

    files: tuple[ManifestFile, ...]
    disc: int = 1  # the disc that this manifest lies on, from 1
    discs: int = 1

    def find(self, path: str) -> ManifestFile | None:
        """Return the entry of `path`, or None."""
        return next((file for file in self.files if file.path == path), None)


def build_manifest(
    files: Sequence[ManifestFile], *, disc: int = 1, discs: int = 1, size: int = 0
) -> bytes:
    """Return the bytes of `manifest.json`: the same for the same files in the same order.

    With `size`, blanks at its end make it so long: positions are known only once it has a place.

    Raises:
        ValueError: a path, size, digest or disc number that `parse_manifest` would refuse.
    """
    fields: dict[str, object] = {
        "format": _FORMAT,
        "version": VERSION,
        "disc": disc,
        "discs": discs,
        "files": [
            {"path": path, "size": length, "sha256": sha256.hex(), "disc": on}
            | ({} if position is None else {"position": position})
            for path, length, sha256, on, position in files
        ],
    }
    fields["checksum"] = _checksum(fields)
    data = json.dumps(fields, indent=1, ensure_ascii=True).encode().ljust(size - 1) + b"\n"
    try:
        parse_manifest(data)
    except DamagedError as error:
        raise ValueError(str(error)) from error
    return data


def parse_manifest(data: bytes) -> Manifest:
    """Decode `manifest.json`.

    Raises:
        UnknownVersionError: a newer version; checked first.
        DamagedError: anything else that is not as `build_manifest` makes it.
    """
    try:
        fields = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(_MANIFEST, "cannot be decoded") from error
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        raise DamagedError(_MANIFEST, "is of another kind")
    version = _integer(fields.get("version"), 0)
    if version != VERSION:
        raise UnknownVersionError("this disc", version, VERSION)
    checksum = fields.pop("checksum", None)
    if checksum != _checksum(fields):
        raise DamagedError(_MANIFEST)
    discs = _integer(fields.get("discs"), 1)
    disc = _integer(fields.get("disc"), 1, discs)
    entries = fields.get("files")
    if not isinstance(entries, list):
        raise DamagedError(_MANIFEST, "has no files")
    files = tuple(_file_of(entry, discs) for entry in entries)
    if len({file.path for file in files}) != len(files):
        raise DamagedError(_MANIFEST, "lists a file twice")
    return Manifest(files, disc, discs)


def _file_of(entry: object, discs: int) -> ManifestFile:
    """Check and decode one entry."""
    if not isinstance(entry, dict):
        raise DamagedError(_MANIFEST, "has a wrong entry")
    path, digest = entry.get("path"), entry.get("sha256")
    if not isinstance(path, str) or not _is_safe(path):
        raise DamagedError(_MANIFEST, f"has a wrong path ({path!r})")
    if (
        not isinstance(digest, str)
        or len(digest) != _DIGEST_DIGITS
        or not set(digest) <= set(string.hexdigits)
    ):
        raise DamagedError(_MANIFEST, f"has a wrong digest for {path}")
    size = _integer(entry.get("size"), 0, _SIZE_LIMIT)
    on, position = _integer(entry.get("disc"), 1, discs), entry.get("position")
    place = None if position is None else _integer(position, 0, _SIZE_LIMIT)
    return ManifestFile(path, size, bytes.fromhex(digest), on, place)


def _is_safe(path: str) -> bool:
    """Return whether a path stays below the root: no empty, "." or ".." part, no backslash."""
    return "\\" not in path and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _integer(value: object, low: int, high: int | None = None) -> int:
    """Return `value` if it is an integer from `low` to `high`."""
    if type(value) is not int or value < low or (high is not None and value > high):
        raise DamagedError(_MANIFEST, f"has a wrong number ({value!r})")
    return value


def _checksum(fields: dict[str, object]) -> str:
    """Return the hex SHA-256 of the manifest without its checksum, in compact sorted JSON."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
