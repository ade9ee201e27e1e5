# SPDX-License-Identifier: Apache-2.0
"""Kernel modules for the devices this machine has, without udev, kmod or modprobe.

The boot environment holds all modules in one file, each compressed for itself, and an index of
what they depend on and which devices they drive.  imagebuilder.environment.modules makes both and
says how they are laid out.  A device names itself by a modalias in /sys; the aliases of modules are
patterns over such names.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

DIRECTORY = "/lib/modules"
SYS_BUS = "/sys/bus"

# Source: linux include/linux/pci_ids.h: network, display, SMBus.
UNHURRIED_PCI_CLASSES = ("bc02", "bc03", "bc0Csc05")

Loader = Callable[[str, bytes], None]  # name, image


class ModuleEntry(NamedTuple):
    """One module in the index, in the order of its JSON array."""

    offset: int
    stored_size: int
    size: int
    depends: list[str]
    before: list[str]  # soft dependencies: names or aliases, absent ones are not an error
    after: list[str]


class KernelModules:
    """The modules of the boot environment: matches devices, loads what they need."""

    def __init__(self, index: bytes, read_pack: Callable[[int, int], bytes], load: Loader) -> None:
        """Use `index` (the text of index.json).

        Args:
            index: the JSON text.
            read_pack: returns (offset, length) bytes of modules.pack.
            load: gives one module to the kernel; raises OSError.
        """
        tables = json.loads(index)
        self._modules = {name: ModuleEntry(*row) for name, row in tables["modules"].items()}
        self._exact: dict[str, list[str]] = tables["exact"]
        self._globs: dict[str, list[list[str]]] = tables["globs"]
        self._literal_sizes = sorted({len(literal) for literal in self._globs})
        self._read_pack = read_pack
        self._load = load
        self._seen: set[str] = set()
        self.loaded: set[str] = set()
        self.failures: dict[str, OSError] = {}

    @classmethod
    def open(cls, directory: str = DIRECTORY) -> KernelModules:
        """Open the boot environment's own modules.

        Raises:
            OSError: they are not there.
        """
        from rebuild.boot.linux import init_module

        with open(f"{directory}/index.json", "rb") as file:
            index = file.read()
        pack = os.open(f"{directory}/modules.pack", os.O_RDONLY | os.O_CLOEXEC)
        return cls(index, lambda offset, length: os.pread(pack, length, offset), init_module)

    def matching(self, modalias: str) -> list[str]:
        """Return the modules whose aliases match a device's modalias."""
        found = list(self._exact.get(modalias, ()))
        for size in self._literal_sizes:
            if size > len(modalias):
                break
            for rest, name in self._globs.get(modalias[:size], ()):
                if fnmatchcase(modalias[size:], rest):
                    found.append(name)
        return found

    def load(self, name: str) -> None:
        """Load a module by name or alias, after all it depends on.

        A module that the kernel refuses is noted in `failures`; one not in the boot
        environment is ignored: it may be built into the kernel.
        """
        name = name.replace("-", "_")
        entry = self._modules.get(name)
        if entry is None:
            for module in self._exact.get(name, ()):
                self.load(module)
            return
        if name in self.loaded:
            return
        self.loaded.add(name)
        for needed in (*entry.before, *entry.depends):
            self.load(needed)
        try:
            self._load(name, self._image(entry))
        except OSError as error:
            if error.errno != errno.EEXIST:
                self.failures[name] = error
        for wanted in entry.after:
            self.load(wanted)

    def coldplug(
        self, is_wanted: Callable[[str], bool] = lambda _modalias: True, sys_bus: str = SYS_BUS
    ) -> int:
        """Load what the devices present need, until no new device appears by itself.

        Args:
            is_wanted: leaves devices out by their modalias; a later call may take them.
            sys_bus: the kernel's list of buses.

        Returns:
            How many devices were new.
        """
        count = 0
        while True:
            new = [
                modalias
                for modalias in set(_modaliases(sys_bus))
                if modalias not in self._seen and is_wanted(modalias)
            ]
            if not new:
                return count
            self._seen.update(new)
            count += len(new)
            for modalias in sorted(new):
                for name in self.matching(modalias):
                    self.load(name)

    def _image(self, entry: ModuleEntry) -> bytes:
        from zstandard import ZstdDecompressor

        frame = self._read_pack(entry.offset, entry.stored_size)
        return ZstdDecompressor().decompress(frame, max_output_size=entry.size)


def _modaliases(sys_bus: str) -> Iterator[str]:
    """Yield the modalias of every device on every bus.

    Most devices have it in a file of its own and in `uevent`; MMC cards have it in `uevent` alone.
    Source: linux drivers/mmc/core/bus.c, mmc_bus_uevent.
    """
    for bus in os.listdir(sys_bus):
        devices = f"{sys_bus}/{bus}/devices"
        with contextlib.suppress(OSError):
            for device in os.listdir(devices):
                # Devices vanish while we look, and not every device has a modalias.
                with contextlib.suppress(OSError), open(f"{devices}/{device}/modalias") as file:
                    if modalias := file.read().strip():
                        yield modalias
                        continue
                with contextlib.suppress(OSError), open(f"{devices}/{device}/uevent") as file:
                    for line in file:
                        if line.startswith("MODALIAS="):
                            yield line.removeprefix("MODALIAS=").strip()


def is_needed_to_start(modalias: str) -> bool:
    """Tell whether a device can be the way to the disc or to a keyboard.

    Everything can, but network adapters, displays and SMBus controllers, which cost a good part
    of a second each under emulation.
    """
    if not modalias.startswith("pci:"):
        return True
    return not any(kind in modalias for kind in UNHURRIED_PCI_CLASSES)
