# SPDX-License-Identifier: Apache-2.0
"""Registry files for tests: made small here and filled by hivex, which also reads them back.

A real one comes from a source package, kept.  Device elements are as Windows 8.1 wrote one on a
disk with an MBR and one on a GPT disk.
"""

from __future__ import annotations

import re
import struct
import subprocess
import uuid
from pathlib import Path

from tests.fsdrivers.source_packages import unpacked_member

SOURCE = "dissect.regf==3.14"  # its source holds the hive SYSTEM of a Windows 10
MEMBER = "tests/_data/SYSTEM.gz"
OS_LOADER = "{5b970157-8568-11eb-b45c-806e6f6e6963}"
BOOT_MANAGER = "{9dea862c-5cdd-4e70-acc1-f32b344d4795}"
RAMDISK = "{7619dcc8-fafe-11d9-b411-000476eba25f}"
SIGNATURE = 0x1B2C3D4E  # of the disk
C, D = 1 << 20, 61 << 20  # where its partitions start
DISK_GUID, PARTITION_GUID = uuid.UUID(int=77), uuid.UUID(int=78)
_NONE = 0xFFFFFFFF
_HEAD = 4096


def empty_hive(path: Path) -> Path:
    """Write a registry file that has a root key and nothing below it."""
    descriptor = struct.pack("<BBHIIII", 1, 0, 0x8000, 0, 0, 0, 0)
    security_at = 0x20 + 0x60
    root = struct.pack(
        "<2sHQIIIIIIIIIIIIIIIHH4s",
        b"nk",
        0x2C,
        132_000_000_000_000_000,
        0,
        0,
        0,
        0,
        _NONE,
        _NONE,
        0,
        _NONE,
        security_at,
        _NONE,
        0,
        0,
        0,
        0,
        0,
        4,
        0,
        b"ROOT",
    )
    security = struct.pack("<2sHIIII", b"sk", 0, security_at, security_at, 1, len(descriptor))
    page = bytearray(struct.pack("<4sII8xQI", b"hbin", 0, 4096, 0, 0))
    page += _cell(root, 0x60) + _cell(security + descriptor, 0x40)
    page += struct.pack("<i", 4096 - len(page))
    base = bytearray(
        struct.pack("<4sIIQIIIIIII", b"regf", 1, 1, 0, 1, 5, 0, 1, 0x20, 4096, 1).ljust(508, b"\0")
    )
    path.write_bytes(bytes(sealed(base)).ljust(_HEAD, b"\0") + bytes(page).ljust(4096, b"\0"))
    return path


def sealed(base: bytearray) -> bytearray:
    """Return the first 512 bytes of a registry file with their checksum."""
    checksum = 0
    for (word,) in struct.iter_unpack("<I", base[:508]):
        checksum ^= word
    return base[:508] + struct.pack("<I", {0: 1, _NONE: _NONE - 1}.get(checksum, checksum))


def _cell(data: bytes, size: int) -> bytes:
    return struct.pack("<i", -size) + data.ljust(size - 4, b"\0")


def edit(path: Path, *lines: str) -> None:
    """Let hivex change a registry file."""
    script = "\n".join([*lines, "commit", "quit", ""])
    subprocess.run(
        ["hivexsh", "-w", str(path)], input=script, text=True, check=True, capture_output=True
    )


def values(path: Path, *keys: str) -> dict[str, bytes]:
    """Return the binary values of a key as hivex reads them."""
    script = "\n".join([f"cd {key}" for key in keys] + ["lsval", "quit", ""])
    done = subprocess.run(
        ["hivexsh", str(path)], input=script, text=True, check=True, capture_output=True
    )
    found = re.findall(r'^"((?:[^"\\]|\\.)*)"=hex\(3\):([0-9a-f,]*)$', done.stdout, re.MULTILINE)
    return {
        name.replace("\\\\", "\\"): bytes.fromhex(data.replace(",", "")) for name, data in found
    }


def _setval(items: dict[str, bytes]) -> list[str]:
    lines = [f"setval {len(items)}"]
    for name, data in items.items():
        lines += [name, "hex:3:" + ",".join(f"{byte:02x}" for byte in data)]
    return lines


def mounted(signature: int, start: int) -> bytes:
    """Return the value of MountedDevices for a partition of a disk with an MBR."""
    return struct.pack("<IQ", signature, start)


def set_mounted_devices(path: Path, items: dict[str, bytes], *, is_new: bool = True) -> None:
    """Write MountedDevices of a hive SYSTEM."""
    lines = ["add MountedDevices"] if is_new else []
    edit(path, *lines, "cd MountedDevices", *_setval(items))


def partition_element(signature: int, start: int) -> bytes:
    """Return a device element for a partition of a disk with an MBR."""
    return bytes(16) + _partition(signature, start)


def _partition(signature: int, start: int) -> bytes:
    head = struct.pack("<IIII", 6, 0, 0x48, 0)
    return head + struct.pack("<QQIII", start, 0, 0, 1, signature).ljust(0x38, b"\0")


def gpt_element() -> bytes:
    """Return a device element for a partition of a GPT disk."""
    head = bytes(16) + struct.pack("<IIII", 6, 0, 0x48, 0) + PARTITION_GUID.bytes_le
    return (head + struct.pack("<II", 0, 0) + DISK_GUID.bytes_le).ljust(88, b"\0")


def ramdisk_element(signature: int, start: int) -> bytes:
    """Return a device element for a file on a partition, as that of the recovery system."""
    name = "\\Recovery\\WindowsRE\\Winre.wim\0".encode("utf-16-le")
    inner = struct.pack("<III", 1, 0x48 + 12 + len(name), 5) + _partition(signature, start)
    body = struct.pack("<IIIIIII", 3, 0, 0, 0, 0, 0, 0) + inner + name
    return bytes(16) + struct.pack("<IIII", 0, 0, len(body) + 16, 0) + body


def set_elements(path: Path, elements: dict[tuple[str, str], bytes]) -> None:
    """Write device elements of a new boot configuration, by object and number of the element."""
    edit(path, "add Objects")
    for (item, number), data in elements.items():
        edit(
            path,
            "cd Objects",
            f"add {item}",
            f"cd {item}",
            "add Elements",
            "cd Elements",
            f"add {number}",
            f"cd {number}",
            *_setval({"Element": data}),
        )


def element(path: Path, item: str, number: str) -> bytes:
    """Return a device element as hivex reads it."""
    return values(path, "Objects", item, "Elements", number)["Element"]


def make_system(path: Path) -> Path:
    """Make a hive SYSTEM that knows two partitions of our disk, one of another, one by GUID."""
    set_mounted_devices(
        empty_hive(path),
        {
            "\\DosDevices\\C:": mounted(SIGNATURE, C),
            "\\DosDevices\\D:": mounted(SIGNATURE, D),
            "\\DosDevices\\E:": mounted(SIGNATURE + 1, D),
            "\\DosDevices\\F:": b"DMIO:ID:" + PARTITION_GUID.bytes_le,
            "\\??\\Volume{0}": mounted(SIGNATURE, D),
            "#{inline}": struct.pack("<I", SIGNATURE),
        },
    )
    return path


def make_bcd(path: Path) -> Path:
    """Make a boot configuration: the manager on C, the system and a ramdisk on D, others."""
    elements = {
        (BOOT_MANAGER, "11000001"): partition_element(SIGNATURE, C),
        (OS_LOADER, "11000001"): partition_element(SIGNATURE, D),
        (RAMDISK, "31000003"): ramdisk_element(SIGNATURE, D),
        ("{other}", "11000001"): partition_element(SIGNATURE + 1, D),
        ("{gpt}", "11000001"): gpt_element(),
    }
    set_elements(empty_hive(path), elements)
    return path


def real_system_hive() -> bytes:
    """Return the hive SYSTEM of a Windows 10 on a GPT disk, from a source package, kept."""
    return unpacked_member(SOURCE, MEMBER, "windows-system-hive").read_bytes()
