# SPDX-License-Identifier: Apache-2.0
"""A reader of cpio archives for tests, written from the format's description alone."""

from __future__ import annotations

from collections.abc import Iterator

from imagebuilder.environment.initramfs import Member


def read_archive(data: bytes) -> Iterator[Member]:
    """Yield the members of a newc archive up to its trailer."""
    position = 0
    while True:
        header = data[position : position + 110]
        assert header[:6] == b"070701", f"no header at {position:#x}"
        values = [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
        name_end = position + 110 + values[11]
        name = data[position + 110 : name_end - 1].decode()
        start = name_end + -name_end % 4
        if name == "TRAILER!!!":
            return
        content = data[start : start + values[6]]
        yield Member(name, values[1], content, (values[9], values[10]))
        position = start + values[6] + -(start + values[6]) % 4
