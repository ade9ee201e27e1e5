# SPDX-License-Identifier: Apache-2.0
"""The medium this machine started from: found by its identity, read without being mounted.

The kernel command line says which set the disc belongs to (`rebuildkit.set`).  A CD, a USB stick
and a virtual disk are all found the same way, also one whose directories are damaged.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from rebuild.boot import linux
from rebuild.boot.kernel_modules import KernelModules, is_needed_to_start
from rebuild.dialogue.marks import mark
from rebuild.disc_image import IsoImage, holds_disc
from rebuild.errors import MediumError

DISC_NAME = "this disc"  # what messages call it
SYS_BLOCK = "/sys/block"
PATIENCE_S = 45.0  # then the person is told what is missing; the search goes on
# As long the disc may take to come up.  Then one without a volume descriptor will do, which may
# also be the rest of a disc on a stick that is used for something else now.
CAUTION_S = 10.0

_IGNORED = ("loop", "ram", "zram", "fd", "dm-", "md", "nbd")


@dataclass(frozen=True, slots=True)
class BootMedium:
    """The disc, and the device it is on ("/dev/sr0", "/dev/sda")."""

    image: IsoImage
    device: str


def find_boot_medium(
    set_id: str, modules: KernelModules, tell: Callable[[str], None]
) -> BootMedium:
    """Load drivers and wait until the disc of set `set_id` is there; open it.

    Devices come up on their own time, USB seconds after its driver.  Never gives up: after
    `PATIENCE_S` it says through `tell` what it waits for, and again each time as long.
    """
    start = time.monotonic()
    deadline = start + PATIENCE_S
    with Uevents() as events:
        while True:
            modules.coldplug(is_needed_to_start)
            for device in list_devices():
                if not holds_disc(device) and time.monotonic() < start + CAUTION_S:
                    continue
                image = open_disc(device, set_id)
                if image is not None:
                    return BootMedium(image, device)
            if time.monotonic() > deadline:
                text = f"Waiting for the recovery disc {set_id[:8]}: put it into a drive."
                tell(text + mark("waiting", set_id))
                deadline = time.monotonic() + PATIENCE_S
            events.wait(1.0)


def list_devices(sys_block: str = SYS_BLOCK) -> list[str]:
    """Return the block devices that can hold a disc: optical ones first, then whole disks."""
    names = [name for name in os.listdir(sys_block) if not name.startswith(_IGNORED)]
    return [f"/dev/{name}" for name in sorted(names, key=lambda n: (not n.startswith("sr"), n))]


def open_disc(device: str, set_id: str) -> IsoImage | None:
    """Open a device that holds the disc of a set, or of any set if `set_id` is empty."""
    try:
        image = IsoImage.open(device, DISC_NAME, may_be_cut=True)
    except (OSError, MediumError):
        return None
    if image.set_id and image.set_id == (set_id or image.set_id):
        return image
    image.close()
    return None


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
