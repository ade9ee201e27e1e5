# SPDX-License-Identifier: Apache-2.0
"""Kernel modules for the disc: the choice, what they say of themselves, pack and index.

`depmod` runs only when a kernel package is installed, so the index is made here from what each
module declares in its `.modinfo` section: dependencies, device aliases, soft dependencies.

The boot environment gets two files, read by `rebuild.boot.kernel_modules`:

* `/lib/modules/modules.pack`: every module as a zstd frame of its own, back to back.  One
  machine needs about 40 of 480, so the kernel does not unpack 42 MB at each start.
* `/lib/modules/index.json`: an object with
  `modules`: name -> [offset, stored size, size, [dependency], [loaded before], [loaded after]],
  `exact`: alias without wildcards -> [name],
  `globs`: literal start of an alias -> [[rest with wildcards, name]].

Left out on purpose: modules whose firmware Debian ships only as non-free, fibre channel and
iSCSI, wireless, RAID and device mapper.

Source: ELF-64 object file format 1.5 (header, section header); kernel `include/linux/module.h`
(MODULE_INFO), `scripts/mod/file2alias.c` (the form of aliases); depmod.d(5).
"""

from __future__ import annotations

import fnmatch
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from imagebuilder.errors import BuildHostError


def _below(directory: str, patterns: str) -> list[str]:
    """Return patterns of paths below a directory."""
    return [f"{directory}/{pattern}" for pattern in patterns.split()]


# Patterns of paths below lib/modules/<release>/kernel; an entry of one class of devices each.
CHOSEN: Mapping[str, Sequence[str]] = {
    "disks": (
        "drivers/ata/*",
        "drivers/nvme/host/nvme.ko",
        "drivers/scsi/*",
        "drivers/message/fusion/*",
        "drivers/block/virtio_blk.ko",
        "drivers/mmc/host/sdhci*",
        "drivers/mmc/host/rtsx*",
        "drivers/mmc/core/*",
        "drivers/misc/cardreader/*",
        "drivers/pci/controller/vmd.ko",
        "drivers/cdrom/*",
        "drivers/virtio/virtio_pci*",
        "drivers/hv/*",
        "drivers/thunderbolt/*",
    ),
    "usb": ("drivers/usb/storage/*", "drivers/usb/host/*"),
    "filesystems": ("fs/efivarfs/*",),
    "firmware": ("drivers/firmware/edd.ko",),
    "checksums": ("arch/x86/crypto/crc*", "crypto/crc*", "lib/crc*"),
    "keyboards": (
        "drivers/hid/*",
        "drivers/input/serio/hyperv-keyboard.ko",
        "drivers/i2c/busses/i2c-i801*",
        "drivers/i2c/busses/i2c-designware*",
        "drivers/pinctrl/intel/*",
        "drivers/platform/surface/aggregator/*",
    ),
    "randomness": ("drivers/char/hw_random/virtio*",),
    "network": (
        *_below(
            "drivers/net/ethernet",
            "amd/* aquantia/* atheros/* broadcom/* dec/* intel/* marvell/* nvidia/* realtek/* "
            "sis/* via/*",
        ),
        "drivers/net/hyperv/*",
        "drivers/net/phy/*",
        "drivers/net/usb/*",
        "drivers/net/virtio_net.ko",
        "drivers/net/vmxnet3/*",
    ),
}
LEFT_OUT: Sequence[str] = (
    # Fibre channel, iSCSI, converged adapters: large, and no disk of a small machine.
    *_below(
        "drivers/scsi",
        "be2iscsi/* bfa/* bnx2* csiostor/* cxgbi/* device_handler/* elx/* fcoe/* fnic/* iscsi* "
        "libfc/* libiscsi* lpfc/* qed* qla2xxx/* qla4xxx/* *_fc.ko scsi_debug.ko pcmcia/*",
    ),
    "drivers/ata/pata_pcmcia.ko",
    # USB controllers of no PC.
    *_below("drivers/usb/host", "*_cs.ko sl811* u132*"),
    # Sensors and game controllers.
    *_below(
        "drivers/hid",
        "amd-sfh-hid/* hid-picolcd.ko hid-playstation.ko hid-sensor* hid-wiimote.ko hid-*ff.ko "
        "intel-ish-hid/*",
    ),
    # Data centre adapters, megabytes each.
    *_below("drivers/net/ethernet/broadcom", "bnx2x/* bnxt/*"),
    *_below("drivers/net/ethernet/intel", "i40e*/* iavf/* ice/*"),
    *_below("drivers/net/ethernet/marvell", "octeontx2/* prestera/*"),
)

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr


@dataclass(frozen=True, slots=True)
class Module:
    """One kernel module and what its `.modinfo` declares."""

    name: str  # as the kernel spells it: underscores
    data: bytes  # the whole .ko, with its signature
    depends: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    before: tuple[str, ...] = ()  # softdep pre: names or aliases
    after: tuple[str, ...] = ()  # softdep post: names or aliases


def find_modules(tree: Path) -> dict[str, Path]:
    """Return name -> file of every module below `tree` (lib/modules/<release>/kernel)."""
    return {kernel_name(path.stem): path for path in sorted(tree.rglob("*.ko"))}


def choose_modules(tree: Path) -> list[Module]:
    """Return the chosen modules and all they depend on, ascending by name.

    Raises:
        BuildHostError: the tree lacks modules, or one that others depend on.
    """
    files = find_modules(tree)
    wanted = [name for name, path in files.items() if is_chosen(str(path.relative_to(tree)))]
    if not wanted:
        raise BuildHostError(f"{tree} does not contain kernel modules")
    chosen: dict[str, Module] = {}
    while wanted:
        name = wanted.pop()
        if name in chosen:
            continue
        if name not in files:
            raise BuildHostError(f"{tree} lacks the kernel module {name}")
        module = chosen[name] = read_module(name, files[name].read_bytes())
        wanted += module.depends
        wanted += [soft for soft in module.before + module.after if soft in files]
    return [chosen[name] for name in sorted(chosen)]


def is_chosen(path: str) -> bool:
    """Tell whether the module at `path` (below kernel/) belongs on the disc."""
    if any(fnmatch.fnmatchcase(path, pattern) for pattern in LEFT_OUT):
        return False
    return any(fnmatch.fnmatchcase(path, pattern) for group in CHOSEN.values() for pattern in group)


def kernel_name(name: str) -> str:
    """Return a module's name as the kernel spells it."""
    return name.replace("-", "_")


def read_module(name: str, data: bytes) -> Module:
    """Parse the `.modinfo` section of a module file.

    Raises:
        BuildHostError: not an ELF object with that section.
    """
    info: dict[str, list[str]] = {}
    for item in _section(name, data, b".modinfo").split(b"\0"):
        key, separator, value = item.partition(b"=")
        if separator:
            info.setdefault(key.decode(), []).append(value.decode(errors="replace"))
    softdep = " ".join(info.get("softdep", []))
    return Module(
        name=name,
        data=data,
        depends=tuple(
            kernel_name(needed)
            for line in info.get("depends", [])
            for needed in line.split(",")
            if needed
        ),
        aliases=tuple(info.get("alias", [])),
        before=tuple(_soft_names(softdep, "pre")),
        after=tuple(_soft_names(softdep, "post")),
    )


def _soft_names(softdep: str, when: str) -> Iterator[str]:
    """Yield the names that follow `when:` in soft dependency text."""
    group = ""
    for word in softdep.replace(":", ": ").split():
        if word.endswith(":"):
            group = word[:-1]
        elif group == when:
            yield kernel_name(word)


def _section(name: str, data: bytes, wanted: bytes) -> bytes:
    """Return the bytes of an ELF section.

    Raises:
        BuildHostError: no such section, or no ELF file.
    """
    try:
        header = _ELF_HEADER.unpack_from(data)
        if header[0][:5] != b"\x7fELF\x02":
            raise BuildHostError(f"kernel module {name} is not a 64-bit ELF file")
        start, entry_size, count, names_index = header[6], header[11], header[12], header[13]
        sections = [
            _SECTION_HEADER.unpack_from(data, start + index * entry_size) for index in range(count)
        ]
        names_offset = sections[names_index][4]
        for section in sections:
            at = names_offset + section[0]
            if data[at : data.index(b"\0", at)] == wanted:
                return data[section[4] : section[4] + section[5]]
    except (struct.error, IndexError, ValueError) as error:
        raise BuildHostError(f"kernel module {name} is a damaged ELF file") from error
    raise BuildHostError(f"kernel module {name} lacks its section {wanted.decode()}")


def pack_modules(modules: Iterable[Module], level: int) -> tuple[bytes, bytes]:
    """Return (modules.pack, index.json) of `modules`; `level` is zstd's."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    pack = bytearray()
    table: dict[str, list[object]] = {}
    exact: dict[str, list[str]] = {}
    globs: dict[str, list[tuple[str, str]]] = {}
    for module in modules:
        frame = compressor.compress(module.data)
        table[module.name] = [
            len(pack),
            len(frame),
            len(module.data),
            module.depends,
            module.before,
            module.after,
        ]
        pack += frame
        for alias in module.aliases:
            literal = re.split(r"[*?\[]", alias, maxsplit=1)[0]
            if literal == alias:
                exact.setdefault(alias, []).append(module.name)
            else:
                globs.setdefault(literal, []).append((alias[len(literal) :], module.name))
    index = {"modules": table, "exact": exact, "globs": globs}
    return bytes(pack), json.dumps(index, separators=(",", ":"), sort_keys=True).encode()
