# SPDX-License-Identifier: Apache-2.0
"""System calls and ioctls that Python's standard library lacks, one function each.

Every function raises OSError with the path it was about.  Only for x86_64 Linux.  Constants
name the header they come from.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag

_libc = ctypes.CDLL(None, use_errno=True)

# asm/unistd_64.h
SYS_INIT_MODULE = 175

# linux/reboot.h; glibc's reboot() supplies the two magic numbers
REBOOT_RESTART = 0x01234567
REBOOT_HALT = 0xCDEF0123
REBOOT_POWER_OFF = 0x4321FEDC
REBOOT_CAD_OFF = 0x00000000  # Ctrl-Alt-Del sends SIGINT to PID 1 instead of a reset

# linux/netlink.h
NETLINK_KOBJECT_UEVENT = 15


class MountFlag(IntFlag):
    """Source: linux/mount.h."""

    NONE = 0
    READ_ONLY = 1  # MS_RDONLY
    NO_SET_USER_ID = 2  # MS_NOSUID
    NO_DEVICES = 4  # MS_NODEV
    NO_EXECUTION = 8  # MS_NOEXEC


def mount(
    source: str, target: str, filesystem: str, flags: MountFlag = MountFlag.NONE, data: str = ""
) -> None:
    """Mount `source` on `target`; see mount(2)."""
    result = _libc.mount(
        source.encode(),
        os.fsencode(target),
        filesystem.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, target)


def init_module(name: str, image: bytes, parameters: str = "") -> None:
    """Load a kernel module from memory; see init_module(2).

    Args:
        name: only for the error.
        image: the module's file, with its signature.
        parameters: "name=value" words.
    """
    result = _libc.syscall(
        ctypes.c_long(SYS_INIT_MODULE),
        ctypes.c_char_p(image),
        ctypes.c_ulong(len(image)),
        ctypes.c_char_p(parameters.encode()),
    )
    _check(result, name)


def reboot(command: int) -> None:
    """Restart, halt, power off, or set what Ctrl-Alt-Del does; see reboot(2)."""
    _check(_libc.reboot(ctypes.c_int(command if command < 1 << 31 else command - (1 << 32))))


def _check(result: int, about: str | None = None) -> None:
    """Raise the error of the call that returned `result`."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)
