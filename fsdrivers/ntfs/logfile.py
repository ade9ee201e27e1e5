# SPDX-License-Identifier: Apache-2.0
"""$LogFile, recognised: is there anything in it that a mount would replay.

Source: [ntfs-3g] include/ntfs-3g/logfile.h, RESTART_PAGE_HEADER and RESTART_AREA.
Measured: clean volumes of Windows 10 have flag 2; mkntfs leaves all bytes FF.

Not here: replaying it.  What a volume holds is shown as its structures are on the medium.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Final

import construct

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs import fixups
from fsdrivers.record import Record, record, u16, u32, u64

PAGE_SIZE: Final = 4096
_MAGICS: Final = (b"RSTR", b"CHKD")
_NO_CLIENT: Final = 0xFFFF
_CLEAN: Final = 0x0002


class LogState(Enum):
    """What the log says."""

    EMPTY = "empty"  # nothing was ever written, or it was reset
    CLEAN = "clean"
    DIRTY = "dirty"  # Windows would replay it, or drop it after a check
    DAMAGED = "damaged"


@record(size=30)
class RestartPage(Record):
    """RESTART_PAGE_HEADER."""

    magic: Annotated[bytes, construct.Bytes(4)]
    fixups_offset: u16
    fixups_count: u16
    check_disk_sequence: u64
    system_page_size: u32
    log_page_size: u32
    restart_offset: u16
    minor: u16
    major: u16


@record(size=32)
class RestartArea(Record):
    """RESTART_AREA, as far as it matters here."""

    current_sequence: u64
    log_clients: u16
    first_free_client: u16
    first_client_in_use: u16  # FFFF for none
    flags: u16
    sequence_bits: u32
    restart_length: u16
    client_offset: u16
    file_size: u64


def log_state(start: bytes) -> LogState:
    """Return what the first two restart pages say.

    Args:
        start: at least 8192 bytes from the start of $LogFile, if it has as many.
    """
    if not start.strip(b"\xff"):
        return LogState.EMPTY
    areas = []
    for at in (0, PAGE_SIZE):
        page = start[at : at + PAGE_SIZE]
        if len(page) < PAGE_SIZE or page[:4] not in _MAGICS:
            continue
        try:
            opened = fixups.open_record(page)
            head = RestartPage.unpack(opened)
            areas.append(RestartArea.unpack(opened, head.restart_offset))
        except CorruptError:
            continue
    if not areas:
        return LogState.DAMAGED
    newest = max(areas, key=lambda area: area.current_sequence)
    is_clean = newest.flags & _CLEAN or newest.first_client_in_use == _NO_CLIENT
    return LogState.CLEAN if is_clean else LogState.DIRTY
