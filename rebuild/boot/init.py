# SPDX-License-Identifier: Apache-2.0
"""The duties of process 1 on the disc: mounts, signals, keys that reset, the machine's end.

Process 1 must never end: the kernel would panic and take the last message off the screen.  So
whatever goes wrong becomes one sentence on every console, and the machine stops.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import TracebackType
from typing import NoReturn

from rebuild.boot import linux
from rebuild.boot.linux import MountFlag
from rebuild.dialogue.marks import mark

CONSOLES = ("/dev/tty1", "/dev/ttyS0")
_SAFE = MountFlag.NO_SET_USER_ID | MountFlag.NO_DEVICES | MountFlag.NO_EXECUTION

# (source, mount point, type, flags, data).  /dev needs devices, of course.
MOUNTS = (
    ("proc", "/proc", "proc", _SAFE, ""),
    ("sysfs", "/sys", "sysfs", _SAFE, ""),
    ("devtmpfs", "/dev", "devtmpfs", MountFlag.NO_SET_USER_ID | MountFlag.NO_EXECUTION, ""),
    ("tmpfs", "/run", "tmpfs", _SAFE, "mode=0755"),
    ("tmpfs", "/tmp", "tmpfs", _SAFE, "mode=0700"),
)
FIRMWARE_VARIABLES = "/sys/firmware/efi/efivars"  # there when UEFI started the machine
SETTINGS = (
    ("/proc/sys/kernel/sysrq", "0"),  # no reset, no memory dump by key or serial break
    ("/proc/sys/kernel/printk", "1 4 1 7"),  # kernel messages stay off the dialogue
    ("/proc/sys/kernel/modprobe", ""),  # the kernel has no helper program to call
)


def start() -> None:
    """Make a bare kernel into a place where the shell can run.

    Raises:
        OSError: a mount failed.
    """
    sys.excepthook = report_and_stop
    threading.excepthook = lambda args: report_and_stop(
        args.exc_type, args.exc_value, args.exc_traceback
    )
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    # Nothing is ever started here; orphans of the kernel's own helpers vanish by themselves.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.umask(0o077)
    for source, target, filesystem, flags, data in MOUNTS:
        linux.mount(source, target, filesystem, flags, data)
    for path, value in SETTINGS:
        with contextlib.suppress(OSError), open(path, "w") as file:
            file.write(value + "\n")
    with contextlib.suppress(OSError):
        linux.reboot(linux.REBOOT_CAD_OFF)


def mount_firmware_variables() -> None:
    """Mount the UEFI variables, where the firmware has them and their driver is loaded.

    Raises:
        OSError: the mount failed.
    """
    if os.path.isdir(FIRMWARE_VARIABLES):
        linux.mount("efivarfs", FIRMWARE_VARIABLES, "efivarfs", _SAFE)


def kernel_arguments(path: str = "/proc/cmdline") -> list[str]:
    """Return the words of the kernel command line."""
    with open(path) as file:
        return file.read().split()


def argument(words: list[str], name: str, default: str = "") -> str:
    """Return the value of the last `rebuildkit.NAME=VALUE` among `words`."""
    prefix = f"rebuildkit.{name}="
    values = [word.removeprefix(prefix) for word in words if word.startswith(prefix)]
    return values[-1] if values else default


def announce(text: str) -> None:
    """Write a line to every console there is, however broken the rest of the system is."""
    line = f"{text}\r\n".encode("utf-8", "replace")
    for path in CONSOLES:
        with contextlib.suppress(OSError):
            console = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            with contextlib.suppress(OSError):
                os.write(console, line)
            os.close(console)


def end(how: str) -> NoReturn:
    """Stop the machine: "reboot", "poweroff", or "halt", which leaves the screen as it is."""
    os.sync()
    commands = {"reboot": linux.REBOOT_RESTART, "poweroff": linux.REBOOT_POWER_OFF}
    with contextlib.suppress(OSError):
        linux.reboot(commands.get(how, linux.REBOOT_HALT))
    while True:  # only if the kernel refused; process 1 must not return
        signal.pause()


def fail(reason: str) -> NoReturn:
    """Say in one sentence why the recovery cannot go on, and halt."""
    announce("")
    announce(f"The recovery stopped: {reason}")
    announce("The machine is halted. Switch it off, or reset it to try again.")
    announce(mark("stopped", f"The recovery stopped: {reason}"))
    end("halt")


def sentence_of(error: BaseException) -> str:
    """Return an error as the first line of its text, or its kind if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def report_and_stop(
    kind: type[BaseException],
    error: BaseException | None,
    traceback: TracebackType | None,
) -> NoReturn:
    """Take an error that nothing else took: the place for the developer, then a sentence."""
    place = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        place = f" ({os.path.basename(code.co_filename)}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    fail(f"{kind.__name__}: {sentence_of(error) if error else kind.__name__}{place}")
