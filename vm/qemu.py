# SPDX-License-Identifier: Apache-2.0
"""QEMU command lines: a description of a machine in, an argument list out; pure.

Facts behind the choices, measured with QEMU 7.2: under TCG one processor boots as fast as two
and costs less; the default processor model is the fastest for hashing and proves that nothing
needs more than x86-64-v1; Secure Boot needs SMM and the matching variable store.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vm.errors import MachineError

PROGRAM = "qemu-system-x86_64"
FIRMWARES = ("bios", "uefi", "secure-boot")
BUSES = ("ide", "ahci", "virtio", "nvme", "usb", "scsi", "sd")
MEDIA = ("cd", "usb")

OVMF_DIRECTORY = Path("/usr/share/OVMF")
FIRMWARE_FILES = {  # code, variable store; names of Debian's package ovmf
    "uefi": ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    "secure-boot": ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
}


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the machine, backed by a raw image."""

    path: Path
    bus: str = "virtio"
    serial: str = ""
    sector_size: int = 512
    error_rules: Path | None = None  # a blkdebug configuration: which sectors fail


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """A machine to start.  Sizes in MiB where the name says so."""

    firmware: str = "bios"
    memory_mib: int = 512
    disks: tuple[Disk, ...] = ()
    disc: Path | None = None  # a recovery disc's image
    disc_medium: str = "cd"  # or "usb": the same file as a USB stick
    disc_error_rules: Path | None = None  # as those of a disk
    variables: Path | None = None  # UEFI variable store of this machine, written to
    boots_disc: bool = True  # the disc before the disks
    network: bool = False  # user-mode network; the host is 10.0.2.2
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    extra: tuple[str, ...] = ()


def size_on_bus(bus: str, size: int) -> int:
    """Return the size in bytes, at least `size`, that a disk on a bus can have: QEMU's SD cards
    are a power of two."""
    return 1 << (size - 1).bit_length() if bus == "sd" else size


def variables_template(firmware: str) -> Path:
    """Return the empty variable store that belongs to a UEFI firmware."""
    return OVMF_DIRECTORY / FIRMWARE_FILES[firmware][1]


def check_programs(firmware: str, path: str | None = None) -> None:
    """Look whether this computer can start a machine; `path` in place of PATH.

    Raises:
        MachineError: it cannot; says which package to install.
    """
    if shutil.which(PROGRAM, path=path) is None:
        raise MachineError(f"install the package qemu-system-x86: {PROGRAM} is not here")
    for name in FIRMWARE_FILES.get(firmware, ()):
        if not (OVMF_DIRECTORY / name).exists():
            raise MachineError(f"install the package ovmf: {OVMF_DIRECTORY / name} is not here")


def arguments_of(config: MachineConfig, *, serial: Path, qmp: Path, log: Path) -> list[str]:
    """Return the complete argument list.

    Args:
        config: the machine.
        serial: path of the Unix socket that becomes the first serial port.
        qmp: path of the Unix socket of the monitor.
        log: file that all serial output is written to.

    Raises:
        ValueError: a firmware, bus or medium that is not known, in one sentence.
    """
    _check(config)
    arguments = [PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot"]
    arguments += ["-machine", _machine_of(config), "-accel", "tcg", "-smp", "1"]
    arguments += ["-m", str(config.memory_mib), "-display", "none", "-vga", "std"]
    chardev = f"socket,id=serial0,path={serial},server=on,wait=off,logfile={log}"
    arguments += ["-chardev", chardev, "-serial", "chardev:serial0"]
    arguments += ["-qmp", f"unix:{qmp},server=on,wait=off"]
    arguments += _firmware_arguments(config)
    arguments += _controller_arguments(config)
    for index, disk in enumerate(config.disks):
        arguments += _disk_arguments(config, index, disk)
    arguments += _disc_arguments(config)
    if config.network:
        arguments += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="]
    if config.kernel is not None:
        arguments += ["-kernel", str(config.kernel), "-append", config.command_line]
    if config.initrd is not None:
        arguments += ["-initrd", str(config.initrd)]
    return [*arguments, *config.extra]


def _check(config: MachineConfig) -> None:
    if config.firmware not in FIRMWARES:
        raise ValueError(f"unknown firmware {config.firmware}; known: {', '.join(FIRMWARES)}")
    if config.disc_medium not in MEDIA:
        raise ValueError(f"unknown medium {config.disc_medium}; known: {', '.join(MEDIA)}")
    for disk in config.disks:
        if disk.bus not in BUSES:
            raise ValueError(f"unknown bus {disk.bus}; known: {', '.join(BUSES)}")
    if config.firmware != "bios" and config.variables is None:
        raise ValueError("a UEFI machine needs a variable store of its own")


def _uses(config: MachineConfig, bus: str) -> bool:
    return any(disk.bus == bus for disk in config.disks)


def _machine_of(config: MachineConfig) -> str:
    if config.firmware == "secure-boot":
        return "q35,smm=on"
    # The PIIX machine has the only IDE controller; q35's six SATA ports are AHCI.
    return "pc" if _uses(config, "ide") and config.firmware == "bios" else "q35"


def _firmware_arguments(config: MachineConfig) -> list[str]:
    if config.firmware == "bios":
        return []
    code = OVMF_DIRECTORY / FIRMWARE_FILES[config.firmware][0]
    arguments = [
        "-drive",
        f"if=pflash,format=raw,unit=0,readonly=on,file={code}",
        "-drive",
        f"if=pflash,format=raw,unit=1,file={config.variables}",
    ]
    if config.firmware == "secure-boot":
        arguments += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        arguments += ["-global", "ICH9-LPC.disable_s3=1"]
    return arguments


def _controller_arguments(config: MachineConfig) -> list[str]:
    arguments = []
    if _uses(config, "usb") or (config.disc is not None and config.disc_medium == "usb"):
        arguments += ["-device", "qemu-xhci,id=xhci"]
    if _uses(config, "scsi"):
        arguments += ["-device", "virtio-scsi-pci,id=scsi0"]
    if _uses(config, "ahci") and _machine_of(config) == "pc":
        arguments += ["-device", "ahci,id=ahci0"]
    return arguments


def _disk_boot_index(config: MachineConfig, index: int) -> int:
    return index + (1 if config.disc is not None and config.boots_disc else 0)


def _port_of(config: MachineConfig, bus: str, index: int) -> str:
    """Return where an IDE or AHCI disk is plugged in; QEMU itself tries the same place twice."""
    if _machine_of(config) != "pc":
        return f"bus=ide.{index}"
    return f"bus=ahci0.{index}" if bus == "ahci" else f"bus=ide.{index // 2},unit={index % 2}"


def _disk_arguments(config: MachineConfig, index: int, disk: Disk) -> list[str]:
    name = f"disk{index}"
    file = _file_options(disk.path, disk.error_rules)
    drive = f"if=none,id={name},format=raw,{file},cache=unsafe,discard=unmap,detect-zeroes=off"
    if disk.bus == "sd":  # a controller each; a card has no serial number that can be set
        card = f"sd-card,drive={name}"  # takes the first free controller: that one
        return ["-drive", drive, "-device", "sdhci-pci", "-device", card]
    device = {
        "virtio": "virtio-blk-pci",
        "nvme": "nvme",
        "ide": "ide-hd",
        "ahci": "ide-hd",
        "usb": "usb-storage,bus=xhci.0",
        "scsi": "scsi-hd,bus=scsi0.0",
    }[disk.bus]
    device += f",drive={name},bootindex={_disk_boot_index(config, index)}"
    if disk.bus in ("ahci", "ide"):
        device += f",{_port_of(config, disk.bus, index)}"
    device += f",serial={disk.serial or f'REBUILD{index:04}'}"
    if disk.sector_size != 512:
        device += f",logical_block_size={disk.sector_size},physical_block_size={disk.sector_size}"
    if disk.error_rules is not None and disk.bus != "nvme":
        device += ",rerror=report,werror=report"
    return ["-drive", drive, "-device", device]


def _file_options(path: Path, error_rules: Path | None, options: str = "") -> str:
    """Return the options of a drive that say where its bytes are.

    A comma in a path ends an option's value for QEMU unless it is doubled.
    """
    name = str(path).replace(",", ",,")
    if error_rules is None:
        return f"file.driver=file,file.filename={name}" + (options and f",file.{options}")
    rules = str(error_rules).replace(",", ",,")
    return (
        f"file.driver=blkdebug,file.config={rules},"
        f"file.image.driver=file,file.image.filename={name}"
        + (options and f",file.image.{options}")
    )


def _disc_arguments(config: MachineConfig) -> list[str]:
    if config.disc is None:
        return []
    boot_index = 0 if config.boots_disc else len(config.disks) + 1
    file = _file_options(config.disc, config.disc_error_rules, "locking=off")
    drive = f"if=none,id=disc,format=raw,readonly=on,{file}"
    if config.disc_medium == "usb":
        device = f"usb-storage,bus=xhci.0,drive=disc,bootindex={boot_index},serial=RECOVERY"
    else:
        drive += ",media=cdrom"
        port = "bus=ide.1,unit=1" if _machine_of(config) == "pc" else "bus=ide.5"  # the last one
        device = f"ide-cd,drive=disc,bootindex={boot_index},{port}"
    return ["-drive", drive, "-device", device]
