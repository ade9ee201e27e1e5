# SPDX-License-Identifier: Apache-2.0
"""A description read back: what a new volume is to keep, checked before anything relies on it.

`description` says what the keys are.  What is missing or out of bounds in a description is
CorruptError: it comes from a backup, which may be damaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.geometry import Geometry, geometry_of
from fsdrivers.ntfs.mkfs.tables import attribute_definitions, upcase_table
from fsdrivers.ntfs.names import units_of
from fsdrivers.ntfs.times import filetime_of
from fsdrivers.ntfs.upcase import UpCase
from fsdrivers.volume import Description, Plain

MAXIMUM_LABEL: Final = 128  # UTF-16 units
_OLDEST_MAJOR: Final = 3
_OBJECT_ID_SIZES: Final = (16, 64)
_MAXIMUM_DEFINITIONS: Final = 64 << 10  # bytes
_MAXIMUM_INFO: Final = 256  # bytes
_MAXIMUM_LOG: Final = 1 << 32  # bytes
_QUOTA_KEYS: Final = range(4, 69, 4)  # bytes of an owner's number, or of a SID
_MAXIMUM_QUOTA: Final = 128  # bytes of data: limits and a SID
_T = TypeVar("_T")
_EXTEND_FILES: Final = {
    "$Quota": ntfs.SystemRecord.QUOTA.value,
    "$ObjId": ntfs.SystemRecord.OBJECT_IDS.value,
    "$Reparse": ntfs.SystemRecord.REPARSE_POINTS.value,
}

Times = tuple[int, int, int, int]  # created, modified, changed, accessed as on disk
Entries = Sequence[tuple[bytes, bytes]]  # (key, data) of a view index


@dataclass(frozen=True, slots=True)
class Frame:
    """What a system file keeps."""

    flags: int  # RecordFlag
    file_attributes: int
    times: Times
    security: bytes
    has_own_security: bool


@dataclass(frozen=True, slots=True)
class Template:
    """What a new volume keeps of the one that was described."""

    boot: ntfs.BootSector
    geometry: Geometry
    boot_file: bytes
    label: bytes  # UTF-16LE
    major: int
    minor: int
    volume_flags: int
    object_id: bytes
    upcase: UpCase
    upcase_info: bytes
    attribute_definitions: bytes
    log_file_size: int
    quota_owners: Entries  # $Quota:$O
    quota_entries: Entries  # $Quota:$Q
    usn_maximum: bytes | None
    frames: Mapping[int, Frame] = field(default_factory=dict)

    def frame(self, number: int) -> Frame:
        """Return what the system file with a record number keeps; of $MFT if it is unknown."""
        found = self.frames.get(number)
        if found is not None:
            return found
        model = self.frames[ntfs.SystemRecord.MFT]
        is_view = number >= ntfs.SystemRecord.QUOTA or number == ntfs.SystemRecord.SECURE
        attributes = model.file_attributes
        return Frame(
            ntfs.RecordFlag.IN_USE.value,
            attributes | ntfs.FileAttribute.VIEW_INDEX.value if is_view else attributes,
            model.times,
            model.security,
            has_own_security=False,
        )


def unpack_description(description: Description) -> Template:
    """Return the template that a description holds.

    Raises:
        CorruptError: a key is missing or holds what no volume has.
        UnsupportedError: a version before 3, or a volume whose files were deduplicated.
    """
    bpb = _get(description, "bpb", dict)
    try:
        boot = ntfs.BootSector(**{name: bpb[name] for name in ntfs.BootSector.OFFSETS})
        boot.pack()
    except Exception as error:  # whatever a value of a wrong type or size makes construct say
        raise CorruptError(f"description: boot sector: {error}") from error
    major, minor = _get(description, "version_major", int), _get(description, "version_minor", int)
    if boot.oem_id != ntfs.OEM_ID or not (0 <= major <= 255 and 0 <= minor <= 255):
        raise CorruptError("description: not of an NTFS volume, or without its version")
    if major < _OLDEST_MAJOR:
        raise UnsupportedError(f"making an NTFS volume of version {major}.{minor}")
    if description.get("is_deduplicated"):
        raise UnsupportedError("making NTFS with deduplicated files, whose content is elsewhere")
    label = units_of(_get(description, "label", bytes))
    if len(label) > 2 * MAXIMUM_LABEL:
        raise CorruptError("description: label", None, f"at most {MAXIMUM_LABEL} units")
    quota = description.get("quota")
    quota = quota if isinstance(quota, dict) else {}
    usn_maximum = description.get("usn_maximum")
    definitions = _get(description, "attribute_definitions", bytes) or attribute_definitions()
    object_id = _get(description, "object_id", bytes)
    upcase_info = _get(description, "upcase_info", bytes)
    if not 0 < len(definitions) <= _MAXIMUM_DEFINITIONS or len(upcase_info) > _MAXIMUM_INFO:
        raise CorruptError("description: attribute definitions or version of $UpCase")
    if len(object_id) not in (0, *_OBJECT_ID_SIZES):
        raise CorruptError("description: object id", None, "16 or 64 bytes", len(object_id))
    return Template(
        boot=boot,
        geometry=geometry_of(boot),
        boot_file=_get(description, "boot", bytes),
        label=label,
        major=major,
        minor=minor,
        volume_flags=_get(description, "volume_flags", int) & 0xFFFF,
        object_id=object_id,
        upcase=UpCase(_get(description, "upcase", bytes) or upcase_table()),
        upcase_info=upcase_info,
        attribute_definitions=definitions,
        log_file_size=min(_get(description, "log_file_size", int), _MAXIMUM_LOG),
        quota_owners=sorted(_entries(quota.get("$O"))),  # SIDs: byte by byte
        quota_entries=sorted(_entries(quota.get("$Q")), key=_number_of),
        usn_maximum=usn_maximum if isinstance(usn_maximum, bytes) else None,
        frames=_frames(_get(description, "system_files", list)),
    )


def _get(description: Mapping[str, Plain], key: str, wanted: type[_T]) -> _T:
    """Return a value that has to be there."""
    value = description.get(key)
    if not isinstance(value, wanted):
        raise CorruptError(f"description: {key}", None, wanted.__name__, type(value).__name__)
    return value


def _number_of(entry: tuple[bytes, bytes]) -> int:
    """Return the number that the key of an entry is."""
    return int.from_bytes(entry[0], "little")


def _entries(value: Plain) -> list[tuple[bytes, bytes]]:
    """Return (key, data) pairs in no order."""
    made: list[tuple[bytes, bytes]] = []
    if not isinstance(value, list):
        return made
    for item in value:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise CorruptError("description: an entry of quota")
        key, data = item
        if not isinstance(key, bytes) or not isinstance(data, bytes):
            raise CorruptError("description: an entry of quota")
        if len(key) not in _QUOTA_KEYS or len(data) > _MAXIMUM_QUOTA:
            raise CorruptError("description: an entry of quota")
        made.append((key, data))
    if len({key for key, _ in made}) < len(made):
        raise CorruptError("description: an entry of quota is there twice")
    return made


def _frames(items: list[Plain]) -> dict[int, Frame]:
    """Return what system files keep, by the record numbers that they get."""
    made: dict[int, Frame] = {}
    for item in items:
        if not isinstance(item, dict):
            raise CorruptError("description: a system file")
        name = _get(item, "name", str)
        number = _EXTEND_FILES.get(name, _get(item, "number", int))
        times = tuple(
            filetime_of(_get(item, key, int))
            for key in ("created_ns", "modified_ns", "changed_ns", "accessed_ns")
        )
        made[number] = Frame(
            _get(item, "flags", int) & 0xFFFF,
            _get(item, "file_attributes", int) & 0xFFFFFFFF,
            (times[0], times[1], times[2], times[3]),
            _get(item, "security", bytes),
            _get(item, "has_own_security", bool),
        )
    if ntfs.SystemRecord.MFT not in made:
        raise CorruptError("description: nothing is known of $MFT")
    return made
