# SPDX-License-Identifier: Apache-2.0
"""Process 1 on the disc: prepare the machine, find the disc, hand over to the shell.

Whatever happens, this process does not end: an error becomes a sentence and a halted machine.
Imports before the first question are few; the heavy ones are made while the person reads.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

from rebuild.boot import init
from rebuild.boot.kernel_modules import KernelModules

# Time for the shell to ask its first question undisturbed; nobody types an id faster.
PAUSE_S = 2.0
# What the restore needs: importing it takes a second on a slow machine.
HEAVY_IMPORTS = (
    "construct",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.kdf.argon2",
    "msgpack",
    "blake3",
    "crc32c",
    "rebuild.restore",
)


def main() -> NoReturn:
    """Run as process 1; never return."""
    if os.getpid() != 1:
        sys.exit("This is the first process of the recovery disc; nothing to do here.")
    try:
        init.start()
        _run()
    except BaseException as error:
        init.report_and_stop(type(error), error, error.__traceback__)


def _run() -> NoReturn:
    """Find the disc, start the shell on it."""
    from rebuild.boot import boot_medium
    from rebuild.dialogue import shell

    words = init.kernel_arguments()
    modules = KernelModules.open()
    medium = boot_medium.find_boot_medium(init.argument(words, "set"), modules, init.announce)
    threading.Thread(target=_finish_start, args=(modules,), daemon=True).start()
    shell.main(medium.image, medium.device, words)
    init.end("halt")


def _finish_start(modules: KernelModules) -> None:
    """Load what only a restore needs, beside the dialogue."""
    import importlib

    time.sleep(PAUSE_S)
    for name in HEAVY_IMPORTS:
        # The shell imports it again when it needs it, and reports what is wrong then.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(OSError):
        modules.load("efivarfs")
        modules.load("edd")
        init.mount_firmware_variables()
    with contextlib.suppress(OSError):
        modules.coldplug()


if __name__ == "__main__":
    main()
