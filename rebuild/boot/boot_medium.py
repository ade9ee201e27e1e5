# SPDX-License-Identifier: Apache-2.0
"""The medium this machine started from: found by its identity, mounted read-only.

The kernel command line says which set the disc belongs to (`rebuildkit.set`).  Every block
device that holds an ISO 9660 volume with that set's volume id is a candidate; the file
/.disk/info on it decides.  A CD, a USB stick and a virtual disk are all found the same way.

Source: ECMA-119 8.4 (primary volume descriptor).
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from backup.objects import disc_files
from rebuild.boot import linux
from rebuild.boot.kernel_modules import KernelModules, is_needed_to_start
from rebuild.boot.linux import MountFlag
from rebuild.dialogue.marks import mark

MOUNT_POINT = "/run/medium"
SYS_BLOCK = "/sys/block"
PATIENCE_S = 45.0  # then the person is told what is missing; the search goes on

_DESCRIPTOR_OFFSET = 32768  # bytes: sector 16 of 2048
_DESCRIPTOR_START = b"\x01CD001\x01"
_IGNORED = ("loop", "ram", "zram", "fd", "dm-", "md", "nbd")
_MOUNT_FLAGS = (
    MountFlag.READ_ONLY | MountFlag.NO_SET_USER_ID | MountFlag.NO_DEVICES | MountFlag.NO_EXECUTION
)


@dataclass(frozen=True, slots=True)
class BootMedium:
    """Where the disc is mounted, and the device it is on ("/dev/sr0", "/dev/sda")."""

    path: str
    device: str


def find_boot_medium(
    set_id: str, modules: KernelModules, tell: Callable[[str], None]
) -> BootMedium:
    """Load drivers and wait until the disc of set `set_id` is there; mount it.

    Devices come up on their own time, USB seconds after its driver.  Never gives up: after
    `PATIENCE_S` it says through `tell` what it waits for, and again each time as long.
    """
    modules.load("isofs")
    deadline = time.monotonic() + PATIENCE_S
    with Uevents() as events:
        while True:
            modules.coldplug(is_needed_to_start)
            for device in list_devices():
                if holds_set(device, set_id) and _mount(device, set_id):
                    return BootMedium(MOUNT_POINT, device)
            if time.monotonic() > deadline:
                text = f"Waiting for the recovery disc {set_id[:8]}: put it into a drive."
                tell(text + mark("waiting", set_id))
                deadline = time.monotonic() + PATIENCE_S
            events.wait(1.0)


def list_devices(sys_block: str = SYS_BLOCK) -> list[str]:
    """Return the block devices that can hold a disc: optical ones first, then whole disks."""
    names = [name for name in os.listdir(sys_block) if not name.startswith(_IGNORED)]
    return [f"/dev/{name}" for name in sorted(names, key=lambda n: (not n.startswith("sr"), n))]


def holds_set(device: str, set_id: str) -> bool:
    """Tell whether a device starts an ISO 9660 volume whose id belongs to the set."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # no medium, or not ready yet
    try:
        descriptor = os.pread(fd, 2048, _DESCRIPTOR_OFFSET)
    except OSError:
        return False
    finally:
        os.close(fd)
    volume_id = descriptor[40:72].rstrip(b" ").decode("ascii", "replace")
    return descriptor.startswith(_DESCRIPTOR_START) and (
        not set_id or volume_id.endswith(set_id[:16].upper())
    )


def read_set(medium: str) -> str:
    """Return the set that the info file of a mounted disc names; empty if it does not."""
    with contextlib.suppress(OSError), open(f"{medium}/{disc_files.INFO}", "rb") as file:
        text = file.read(disc_files.SMALL_FILE_LIMIT).decode("utf-8", "replace")
        for line in text.splitlines():
            if line.startswith(disc_files.INFO_SET):
                return line.removeprefix(disc_files.INFO_SET).strip()
    return ""


def _mount(device: str, set_id: str) -> bool:
    """Mount a candidate; unmount it again when its info file names another set."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(MOUNT_POINT)  # noqa: PTH102 (pathlib is not imported before the first question)
    try:
        linux.mount(device, MOUNT_POINT, "iso9660", _MOUNT_FLAGS)
    except OSError:
        return False
    found = read_set(MOUNT_POINT)
    if found and found == (set_id or found):
        return True
    linux.unmount(MOUNT_POINT)
    return False


class Uevents:
    """The kernel's announcements of new and changed devices.

    Source: linux lib/kobject_uevent.c; multicast group 1 carries them.
    """

    def __init__(self) -> None:
        import socket

        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
            linux.NETLINK_KOBJECT_UEVENT,
        )
        self._socket.bind((0, 1))

    def wait(self, timeout_s: float) -> None:
        """Return when something happened, or after `timeout_s`; what it was does not matter."""
        ready, _, _ = select.select([self._socket], [], [], timeout_s)
        # A full buffer raises ENOBUFS: some announcements were lost, which is news enough.
        with contextlib.suppress(OSError):
            while ready and self._socket.recv(16384):
                pass

    def __enter__(self) -> Uevents:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
