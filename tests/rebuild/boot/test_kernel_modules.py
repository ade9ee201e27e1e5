# SPDX-License-Identifier: Apache-2.0
"""Kernel modules: what a device needs, in the order the kernel wants it."""

from __future__ import annotations

import errno
from pathlib import Path

from imagebuilder.environment.modules import Module, pack_modules
from rebuild.boot.kernel_modules import KernelModules, is_needed_to_start

MODULES = (
    Module("libata", b"libata", depends=("scsi_mod",)),
    Module(
        "ahci",
        b"ahci",
        depends=("libata",),
        aliases=("pci:v00008086d00002922sv*sd*bc*sc*i*", "pci:v*d*sv*sd*bc01sc06i01*"),
    ),
    Module("scsi_mod", b"scsi"),
    Module("sr_mod", b"sr", depends=("scsi_mod",), aliases=("scsi:t-0x05*",)),
    Module("ohci_pci", b"ohci", before=("ehci_pci", "absent"), aliases=("pci:v0001*",)),
    Module("ehci_pci", b"ehci", after=("late_one",)),
    Module("late_one", b"late"),
    Module("hid", b"hid", aliases=("usb:v*p*d*dc*dsc*dp*ic03isc*ip*in*", "hid:b[0-9]*g?x")),
    Module("crc32c_intel", b"crc", aliases=("crc32c",)),
    Module("twin_a", b"a", depends=("twin_b",)),
    Module("twin_b", b"b", depends=("twin_a",)),
)


class Kernel:
    """Takes modules; refuses some."""

    def __init__(self, refused: dict[str, int] | None = None) -> None:
        self.order: list[str] = []
        self._refused = refused or {}

    def __call__(self, name: str, image: bytes) -> None:
        assert image == next(module.data for module in MODULES if module.name == name)
        if name in self._refused:
            raise OSError(self._refused[name], "refused")
        self.order.append(name)


def make_modules(kernel: Kernel) -> KernelModules:
    """Return the modules above, loaded into `kernel`."""
    pack, index = pack_modules(MODULES, level=1)
    return KernelModules(index, lambda offset, length: pack[offset : offset + length], kernel)


def test_dependencies_are_loaded_first() -> None:
    """A module comes after all it depends on, each once."""
    kernel = Kernel()
    modules = make_modules(kernel)
    modules.load("ahci")
    modules.load("sr-mod")

    assert kernel.order == ["scsi_mod", "libata", "ahci", "sr_mod"]


def test_soft_dependencies() -> None:
    """Soft dependencies come before or after; one that is not there is no error."""
    kernel = Kernel()
    make_modules(kernel).load("ohci_pci")

    assert kernel.order == ["ehci_pci", "late_one", "ohci_pci"]


def test_aliases_can_be_loaded_by_name() -> None:
    """A name that is an alias loads the module behind it; an unknown one is ignored."""
    kernel = Kernel()
    modules = make_modules(kernel)
    modules.load("crc32c")
    modules.load("built_in")

    assert kernel.order == ["crc32c_intel"]


def test_circles_end() -> None:
    """Modules that name each other are loaded once, not for ever."""
    kernel = Kernel()
    make_modules(kernel).load("twin_a")

    assert sorted(kernel.order) == ["twin_a", "twin_b"]


def test_refused_modules_are_noted() -> None:
    """A module without its device is noted; one that is loaded already is not a failure."""
    kernel = Kernel({"ahci": errno.ENODEV, "scsi_mod": errno.EEXIST})
    modules = make_modules(kernel)
    modules.load("ahci")

    assert list(modules.failures) == ["ahci"]
    assert kernel.order == ["libata"]


def test_patterns() -> None:
    """Devices match by number, by class, with ranges and single wildcards."""
    modules = make_modules(Kernel())

    by_number = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"
    assert modules.matching(by_number) == ["ahci", "ahci"]
    assert modules.matching("pci:v0000FFFFd00000001sv0sd0bc01sc06i01") == ["ahci"]
    assert modules.matching("pci:v0000FFFFd00000001sv0sd0bc02sc00i00") == []
    assert modules.matching("scsi:t-0x05") == ["sr_mod"]
    assert modules.matching("hid:b3gAx") == ["hid"]
    assert modules.matching("hid:bXgAx") == []


def test_coldplug_follows_devices_that_appear(tmp_path: Path) -> None:
    """Devices on all buses get their modules; a second call finds only what is new."""

    def plug(bus: str, name: str, modalias: str) -> None:
        device = tmp_path / bus / "devices" / name
        device.mkdir(parents=True)
        (device / "modalias").write_text(modalias + "\n")

    kernel = Kernel()
    modules = make_modules(kernel)
    plug("pci", "0", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01")
    (tmp_path / "pci" / "devices" / "1").mkdir()
    (tmp_path / "empty").mkdir()

    assert modules.coldplug(sys_bus=str(tmp_path)) == 1
    plug("scsi", "1:0", "scsi:t-0x05")
    assert modules.coldplug(sys_bus=str(tmp_path)) == 1
    assert modules.coldplug(sys_bus=str(tmp_path)) == 0
    assert kernel.order == ["scsi_mod", "libata", "ahci", "sr_mod"]


def test_coldplug_takes_what_only_uevent_says(tmp_path: Path) -> None:
    """A device without a file `modalias` (SD and eMMC cards) gets its module through `uevent`."""
    kernel = Kernel()
    modules = make_modules(kernel)
    card = tmp_path / "mmc" / "devices" / "mmc0:4567"
    card.mkdir(parents=True)
    (card / "uevent").write_text("MMC_TYPE=SD\nMODALIAS=scsi:t-0x05\n")

    assert modules.coldplug(sys_bus=str(tmp_path)) == 1
    assert kernel.order == ["scsi_mod", "sr_mod"]


def test_network_adapters_wait() -> None:
    """What cannot lead to the disc is left for later, and taken then."""
    disk = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"
    adapter = "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00"
    screen = "pci:v00001234d00001111sv00001AF4sd00001100bc03sc00i00"

    assert is_needed_to_start(disk)
    assert is_needed_to_start("usb:v0627p0001d0000dc00dsc00dp00ic03isc01ip01in00")
    assert not is_needed_to_start(adapter)
    assert not is_needed_to_start(screen)
    assert not is_needed_to_start("pci:v00008086d00002930sv00001AF4sd00001100bc0Csc05i00")
