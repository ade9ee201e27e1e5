# SPDX-License-Identifier: Apache-2.0
"""Rock Ridge: what a POSIX system knows of a file, from its System Use entries.

Source: [RRIP] 4.1 in the versions 1.10 and 1.12; [linux] fs/isofs/rock.c for how PN is used.
Entries that are unknown here (Apple's, Amiga's, the AL of libisofs) are passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

from fsdrivers.errors import CorruptError
from fsdrivers.iso9660.format import little
from fsdrivers.iso9660.susp import SuspEntry
from fsdrivers.iso9660.susp_format import (
    DIGIT_TIME_SIZE,
    SHORT_TIME_SIZE,
    BlockPayload,
    ComponentFlag,
    NameFlag,
    PnPayload,
    PxPayload,
    PxPayload112,
    TimeFlag,
    ZfPayload,
)
from fsdrivers.iso9660.times import digit_time_ns, short_time_ns
from fsdrivers.volume import Kind

KINDS = {
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
# In the order of their bits; plain integers are ten times faster to test than flags.
_TIMES = tuple((1 << bit, TimeFlag(1 << bit)) for bit in range(7))
_LONG_FORM = TimeFlag.LONG_FORM.value
_MINOR_LIMIT = 0xFF
_DOT_NAMES = {ComponentFlag.CURRENT: b".", ComponentFlag.PARENT: b".."}


@dataclass(slots=True)
class RockRidge:
    """What the entries of one directory record say; None or the default where they do not."""

    name: bytes | None = None
    mode: int | None = None  # st_mode, type and all
    links: int = 1
    uid: int = 0
    gid: int = 0
    serial: int | None = None  # of 1.12
    device: tuple[int, int] = (0, 0)
    target: bytes | None = None
    times_ns: dict[TimeFlag, int] = field(default_factory=dict)
    child_block: int | None = None  # CL: the directory itself is there
    parent_block: int | None = None  # PL: its true parent
    is_relocated: bool = False  # RE: it is listed elsewhere
    is_sparse: bool = False  # SF
    compression: ZfPayload | None = None

    @property
    def kind(self) -> Kind | None:
        """What PX says it is."""
        return None if self.mode is None else KINDS.get(stat.S_IFMT(self.mode))


def parse_entries(entries: Iterable[SuspEntry]) -> RockRidge:
    """Put together what the entries of a record say.

    Raises:
        CorruptError: an entry is too short for what it must hold.
    """
    found = RockRidge()
    names: list[bytes] = []
    target: list[SuspEntry] = []
    for entry in entries:
        signature, payload = entry.signature, entry.payload
        if signature == b"NM":
            _add_name(names, entry)
        elif signature == b"PX":
            _set_attributes(found, payload)
        elif signature == b"TF":
            _add_times(found, entry)
        elif signature == b"SL":
            target.append(entry)
        elif signature == b"PN":
            found.device = _device_of(PnPayload.unpack(payload))
        elif signature == b"CL":
            found.child_block = little(BlockPayload.unpack(payload).block_both)
        elif signature == b"PL":
            found.parent_block = little(BlockPayload.unpack(payload).block_both)
        elif signature == b"RE":
            found.is_relocated = True
        elif signature == b"SF":
            found.is_sparse = True
        elif signature == b"ZF" and len(payload) >= ZfPayload.SIZE:
            found.compression = ZfPayload.unpack(payload)
    if names:
        found.name = b"".join(names)
    if target:
        found.target = _target_of(target)
    return found


def _add_name(names: list[bytes], entry: SuspEntry) -> None:
    """NM: a part of the name, or a dot name."""
    _require(entry, 1)
    flags = entry.payload[0]
    if flags & NameFlag.CURRENT:
        names.append(b".")
    elif flags & NameFlag.PARENT:
        names.append(b"..")
    else:
        names.append(entry.payload[1:])


def _set_attributes(found: RockRidge, payload: bytes) -> None:
    """PX: mode, links, owner; and serial number since 1.12."""
    px = PxPayload.unpack(payload)
    found.mode = little(px.mode_both)
    found.links = little(px.links_both)
    found.uid = little(px.uid_both)
    found.gid = little(px.gid_both)
    if len(payload) >= PxPayload112.SIZE:
        found.serial = little(PxPayload112.unpack(payload).serial_both)


def _add_times(found: RockRidge, entry: SuspEntry) -> None:
    """TF: those times whose bits are set, in the order of the bits."""
    _require(entry, 1)
    flags, offset = entry.payload[0], 1
    size = DIGIT_TIME_SIZE if flags & _LONG_FORM else SHORT_TIME_SIZE
    convert = digit_time_ns if flags & _LONG_FORM else short_time_ns
    for bit, flag in _TIMES:
        if not flags & bit:
            continue
        _require(entry, offset + size)
        value = convert(entry.payload[offset : offset + size])
        if value is not None:
            found.times_ns[flag] = value
        offset += size


def _device_of(numbers: PnPayload) -> tuple[int, int]:
    """PN: major and minor, or all of a dev_t in the low half.  Source: [linux] rock.c."""
    high, low = little(numbers.high_both), little(numbers.low_both)
    if high == 0 and low > _MINOR_LIMIT:
        return os.major(low), os.minor(low)
    return high, low


def _target_of(entries: list[SuspEntry]) -> bytes:
    """SL: components joined by slashes; one may go on in the next component or entry."""
    target = bytearray()
    is_whole = True  # the next component starts a new name
    for entry in entries:
        _require(entry, 1)
        data, offset = entry.payload, 1
        while offset < len(data):
            _require(entry, offset + 2)
            flags, size = data[offset], data[offset + 1]
            _require(entry, offset + 2 + size)
            content = data[offset + 2 : offset + 2 + size]
            offset += 2 + size
            if flags & (ComponentFlag.ROOT | ComponentFlag.VOLUME_ROOT):
                target += b"/"
                continue
            if is_whole and target and not target.endswith(b"/"):
                target += b"/"
            for flag, name in _DOT_NAMES.items():
                if flags & flag:
                    content = name
            target += content
            is_whole = not flags & ComponentFlag.CONTINUE
    return bytes(target)


def _require(entry: SuspEntry, size: int) -> None:
    """Refuse an entry with fewer than `size` bytes behind its head."""
    if len(entry.payload) < size:
        name = entry.signature.decode("latin-1")
        raise CorruptError(
            f"{name} entry cut short", entry.position, f"at least {size}", len(entry.payload)
        )
