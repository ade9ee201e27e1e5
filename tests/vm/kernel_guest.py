# SPDX-License-Identifier: Apache-2.0
"""The Linux kernel's own filesystem drivers as judges of volumes, in a virtual machine.

The host's kernel has neither vfat nor isofs nor ntfs3 here and need not have them: a guest with
one of Debian's kernels mounts the volumes and says what it sees of every name;
`kernel_guest_init` is the program that runs there.  Some seconds for any number of volumes.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from imagebuilder.environment import python_runtime
from imagebuilder.environment.build import cache_directory as boot_cache
from imagebuilder.environment.build import find_boot_packages
from imagebuilder.environment.initramfs import Archive, compress
from imagebuilder.environment.packages import unpacked_packages
from tests.vm.debian_kernel import newer_kernel

INIT = Path(__file__).with_name("kernel_guest_init.py")
TIMEOUT_S = 240.0
MOST_VOLUMES = 24  # as many as the machine has room for
# What the kernel says that is about a volume, and what it says of every sound one.
RELEVANT = re.compile(r"FAT-fs|ntfs3|iso9660|ISO|hpfs|I/O error|WARNING|BUG|Oops")
HARMLESS = re.compile(r"ISO 9660 Extensions")


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume to mount, and how."""

    image: Path
    filesystem: str  # of the kernel: vfat, msdos, iso9660, ntfs3, hpfs
    options: str = ""
    offset: int = 0  # bytes; where in the image the volume begins
    xattrs: tuple[str, ...] = ()  # to be asked for, beside those that are listed
    sector_size: int = 512  # of the disk
    grown_blocks: int = 0  # if given: mounted for writing, and an ext volume made so large then


@dataclass(frozen=True, slots=True)
class Seen:
    """What the kernel says of one name.  Times are modified, accessed, changed."""

    kind: str
    mode: int = 0
    owner: tuple[int, int] = (0, 0)
    size: int = 0
    links: int = 0
    inode: int = 0
    blocks: int = 0  # 512 bytes each
    times: tuple[int, int, int] = (0, 0, 0)
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    target: bytes = b""
    attributes: int | None = None  # of FAT
    sha256: str = ""


@dataclass(slots=True)
class View:
    """What the kernel saw of one volume."""

    names: dict[bytes, Seen] = field(default_factory=dict)  # by path; the root's is empty
    errors: dict[bytes, str] = field(default_factory=dict)  # names it lists and cannot look up
    messages: list[str] = field(default_factory=list)  # of the kernel about it, notices and worse
    refused: str = ""  # why it did not mount


def views_of(mounts: Sequence[Mount]) -> list[View]:
    """Have the kernel read volumes; no image is written to but of one that is to grow."""
    assert len(mounts) <= MOST_VOLUMES
    with tempfile.TemporaryDirectory(prefix="rebuildkit-kernel-") as temporary:
        initrd, said = Path(temporary, "initrd"), Path(temporary, "said")
        initrd.write_bytes(_system() + _jobs(mounts))
        console = Path(temporary, "console")
        command = [
            "qemu-system-x86_64",
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-smp",
            "1",
            "-m",
            "512",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-kernel",
            str(newer_kernel().image),
            "-initrd",
            str(initrd),
            "-append",
            "console=ttyS1 quiet panic=-1 mitigations=off no_timer_check",
            "-serial",
            f"file:{said}",
            "-serial",
            f"file:{console}",
        ]
        for number, mount in enumerate(mounts):
            command += _drive(number, mount)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        lines = said.read_text().splitlines() if said.exists() else []
        records = [json.loads(line) for line in lines if line]
        trouble = done.stderr + (console.read_text() if console.exists() else "")
    assert records, f"the guest said nothing: {trouble[-2000:]}"
    assert records.pop() == {"end": True}, f"the guest did not end: {trouble[-2000:]}"
    return _sorted(records, len(mounts))


def view_of(mount: Mount) -> View:
    """Have the kernel read one volume."""
    return views_of([mount])[0]


def _drive(number: int, mount: Mount) -> list[str]:
    name = str(mount.image).replace(",", ",,")
    drive = f"if=none,id=d{number},format=raw,file.filename={name},file.locking=off"
    if not mount.grown_blocks:
        drive += ",readonly=on"
    if mount.offset:
        drive += f",offset={mount.offset}"
    device = f"virtio-blk-pci,drive=d{number},addr={number // 8 + 3:#x}.{number % 8}"
    device += f",multifunction=on,logical_block_size={mount.sector_size}"
    device += f",physical_block_size={mount.sector_size}"
    return ["-drive", drive, "-device", device]


def _jobs(mounts: Sequence[Mount]) -> bytes:
    """Return an archive with what the guest is to do; the kernel unpacks it behind the system."""
    archive = Archive()
    jobs = [
        {
            "device": f"/dev/vd{chr(ord('a') + number)}",
            "filesystem": mount.filesystem,
            "options": mount.options,
            "xattrs": mount.xattrs,
            "grown_blocks": mount.grown_blocks,
        }
        for number, mount in enumerate(mounts)
    ]
    archive.add_file("jobs.json", json.dumps(jobs).encode())
    return archive.pack()


@cache
def _system() -> bytes:
    """Return the guest's initial root filesystem: Python, the modules, the program."""
    archive = Archive()
    archive.add_base()
    with unpacked_packages(find_boot_packages(), boot_cache() / "packages") as trees:
        python_runtime.add_interpreter(archive, trees)
    for module in newer_kernel().modules:
        archive.add_file(f"modules/{module.name}", module.read_bytes())
    program = INIT.read_text().replace("# SPDX", f"#!/{python_runtime.INTERPRETER} -ISs\n# SPDX", 1)
    archive.add_file("init", program.encode(), is_executable=True)
    data = compress(archive.pack(), "zstd-fast")
    return data + bytes(-len(data) % 4)  # where the next archive may begin


def _sorted(records: Sequence[dict[str, object]], count: int) -> list[View]:
    """Return what was said by volume."""
    views = [View() for _ in range(count)]
    for record in records:
        assert "failed" not in record, record["failed"]
        number = record.pop("job")
        assert isinstance(number, int)
        _take(views[number], record)
    return views


def _take(view: View, record: dict[str, object]) -> None:
    if isinstance(said := record.get("messages"), list):
        view.messages += [
            text for text in said if RELEVANT.search(text) and not HARMLESS.search(text)
        ]
    elif "path" not in record:
        view.refused = str(record["error"])
    else:
        path = base64.b64decode(str(record.pop("path")))
        error = record.pop("error", None)
        if error is not None:
            view.errors[path] = str(error)
        else:
            view.names[path] = _seen(record)


def _seen(record: dict[str, object]) -> Seen:
    """Return a record with its types."""
    xattrs, target = record.pop("xattrs", {}), record.pop("target", "")
    assert isinstance(xattrs, dict)
    values = {name: tuple(value) if isinstance(value, list) else value
              for name, value in record.items()}  # fmt: skip
    return Seen(
        **values,  # type: ignore[arg-type]
        xattrs={name: base64.b64decode(value) for name, value in xattrs.items()},
        target=base64.b64decode(str(target)),
    )
