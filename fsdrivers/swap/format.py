# SPDX-License-Identifier: Apache-2.0
"""Records of Linux swap areas.

Source: [linux] include/linux/swap.h (union swap_header), kernel/power/swap.c (hibernation).
"""

from __future__ import annotations

from typing import Annotated

import construct

from fsdrivers.record import Record, record, u32

PAGE_SIZE = 4096  # of every architecture this runs on
MAGIC = b"SWAPSPACE2"
# While a system is hibernated another signature stands in place of the magic.
HIBERNATED_MAGICS = (b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001")
VERSION = 1
LAST_PAGE_LIMIT = 0xFFFFFFFF  # a 32-bit number; what lies behind is not used
MINIMUM_PAGES = 10  # mkswap refuses fewer
BAD_PAGES_LIMIT = 637  # (page size - header - magic) / 4
LABEL_SIZE = 16


@record(size=1536)
class SwapHeader(Record):
    """The first page up to the list of bad pages; the magic ends the page."""

    boot: Annotated[bytes, construct.Bytes(1024)]  # bootbits: boot loaders and disk labels
    version: u32
    last_page: u32  # number of the last usable page, so pages - 1
    bad_pages: u32  # nr_badpages: how many numbers follow this record
    uuid: Annotated[bytes, construct.Bytes(16)]  # sws_uuid
    label: Annotated[bytes, construct.Bytes(LABEL_SIZE)]  # sws_volume, NUL-padded
    reserved_42c: Annotated[bytes, construct.Bytes(468)]  # padding[117]
