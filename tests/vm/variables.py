# SPDX-License-Identifier: Apache-2.0
"""What is in a UEFI machine's variable store, read from its flash image.

Source: UEFI PI 1.7 volume 3, 3.2.1 (firmware volume header); edk2
MdeModulePkg/Include/Guid/VariableFormat.h (authenticated variables).
"""

from __future__ import annotations

import struct
from pathlib import Path

_STORE_HEADER_SIZE = 28
_HEADER = struct.Struct("<HBBIQ16sIII16s")  # id, state, ..., name size, data size, vendor
_START_ID = 0x55AA
_VALID = 0x3F  # state of a variable that was added and not deleted since


def read_variables(path: Path) -> dict[str, bytes]:
    """Return name -> value of the variables that are valid."""
    data = path.read_bytes()
    (volume_header_size,) = struct.unpack_from("<H", data, 48)
    at = volume_header_size + _STORE_HEADER_SIZE
    found = {}
    while True:
        start, state, _, _, _, _, _, name_size, size, _ = _HEADER.unpack_from(data, at)
        if start != _START_ID:
            return found
        name_at = at + _HEADER.size
        if state == _VALID:
            name = data[name_at : name_at + name_size].decode("utf-16-le").rstrip("\0")
            found[name] = data[name_at + name_size : name_at + name_size + size]
        at = (name_at + name_size + size + 3) // 4 * 4
