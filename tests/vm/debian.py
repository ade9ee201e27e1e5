# SPDX-License-Identifier: Apache-2.0
"""Real Debian machines to lose and to recover: a root filesystem, and bootable disks of it.

Made with Debian's own tools on the host, as root: mmdebstrap for the root filesystem (once,
kept as a tar), then sfdisk, mke2fs, mkfs.fat, mkswap and grub-install for each disk.  The
system is Debian of the host's own release with systemd, and has what installers and users
leave behind: ACLs, capabilities, extended attributes, hard links, sparse files, odd names.

The started machine says on the serial line what it finds of itself, then shows a login prompt:

    MACHINE-FILES-OK         the checksums recorded before the first boot still hold
    MACHINE-SWAP uuid        the swap area that is in use
    MACHINE-SECURE-BOOT n    1 when Secure Boot is enforced
    MACHINE-UP               everything said
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vm.errors import MachineError

LOGIN_PROMPT = r"login: "
UP = "MACHINE-UP"
CLOUD_KERNEL = "linux-image-cloud-amd64"  # virtio, NVMe and IDE disks
FULL_KERNEL = "linux-image-amd64"  # every disk there is
PACKAGES = (
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "mount",
    "util-linux",
    "e2fsprogs",
    "initramfs-tools",
    "zstd",
    "iproute2",
    "passwd",
    "grub2-common",
    "grub-common",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "grub-efi-amd64-signed",
    "shim-signed",
)
# What a recovery test gains nothing from: documentation and translations.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/bash-completion/*",
    "/usr/lib/python3/dist-packages/*/tests/*",
)
# What a small machine under emulation has no use for, half of its size.
EXCLUDED_WHEN_SMALL = (
    *(f"/lib/modules/*/kernel/{name}/*" for name in (
        "drivers/comedi", "drivers/gpu", "drivers/hid", "drivers/infiniband", "drivers/md",
        "drivers/net/ethernet", "drivers/scsi", "drivers/target", "fs/btrfs", "fs/ceph",
        "fs/nfs", "fs/nfsd", "fs/ocfs2", "fs/smb", "fs/xfs", "net/bridge", "net/ceph",
        "net/netfilter", "net/sched", "net/sctp", "net/sunrpc", "net/tipc", "sound",
    )),
    "/lib/udev/hwdb.d/*", "/usr/lib/grub/x86_64-efi/*", "/usr/lib/grub/i386-pc/*",
    "/usr/lib/grub/x86_64-efi-signed/gcd*", "/usr/lib/grub/x86_64-efi-signed/grubnet*",
    "/usr/share/perl/5*/unicore/*", "/usr/share/perl/5*/Unicode/*", "/usr/share/zoneinfo/*",
    "/usr/lib/x86_64-linux-gnu/perl/5*/CORE/*",
)  # fmt: skip
MIB = 1 << 20
ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
SWAP_TYPE = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
# Those that the kernel does not have, or has built in, are passed over.
INITRD_MODULES = (
    "ext4",
    "ata_piix",
    "ahci",
    "sd_mod",
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "nvme",
    "xhci_pci",
    "uas",
    "usb_storage",
)


@dataclass(frozen=True, slots=True)
class RootRecipe:
    """Which Debian is in a root filesystem."""

    kernel: str = CLOUD_KERNEL
    extra_packages: tuple[str, ...] = ()
    is_small: bool = False  # leaves out what a machine under emulation has no use for

    @property
    def packages(self) -> tuple[str, ...]:
        """All packages to install; those they depend on come by themselves."""
        return (*PACKAGES, self.kernel, *self.extra_packages)

    @property
    def excluded(self) -> tuple[str, ...]:
        """Patterns of paths that no package may bring."""
        return (*EXCLUDED, *(EXCLUDED_WHEN_SMALL if self.is_small else ()))

    def digest(self) -> str:
        """Return eight digits that change with everything that is in the root filesystem."""
        recipe = repr((_release(), self.packages, self.excluded))
        return hashlib.sha256(recipe.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class DiskLayout:
    """How a machine's disk is partitioned.  `swap_mib` 0 leaves swap out."""

    scheme: str = "mbr"  # "mbr": root, and swap as a logical partition; "gpt": ESP, root, swap
    size_mib: int = 1024
    swap_mib: int = 64
    filesystem: str = "ext4"


def disk_digest(recipe: RootRecipe, layout: DiskLayout) -> str:
    """Return eight digits that change with everything that `make_disk` does."""
    made_by = Path(__file__).read_bytes() + repr(layout).encode() + recipe.digest().encode()
    return hashlib.sha256(made_by).hexdigest()[:8]


def make_root(output: Path, recipe: RootRecipe) -> None:
    """Make a Debian root filesystem as a tar at `output`.  Minutes; needs root and a mirror.

    Raises:
        MachineError: mmdebstrap is missing or fails, with the end of what it said.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial.tar")
    arguments = ["mmdebstrap", "--variant=apt", "--format=tar", "--quiet"]
    arguments += ['--aptopt=Apt::Install-Recommends "false"']
    arguments += [f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.excluded]
    arguments += ["--include=" + ",".join(recipe.packages)]
    arguments += ['--customize-hook=echo rescued >"$1/etc/hostname"']
    arguments += ['--customize-hook=echo root:root | chroot "$1" chpasswd']
    arguments += ['--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin']
    arguments += [_release(), str(partial), *_sources()]
    with _kept_when_complete(partial, output):
        _run(arguments)


def make_disk(root: Path, output: Path, layout: DiskLayout) -> None:
    """Make a bootable disk image of the root filesystem in the tar `root`.  Needs root.

    Raises:
        MachineError: one of Debian's tools fails, with the end of what it said.
    """
    partial = output.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    with _kept_when_complete(partial, output):
        _fill_disk(partial, root, layout)


def _fill_disk(image: Path, root: Path, layout: DiskLayout) -> None:
    """Make the disk at `image`."""
    with image.open("wb") as file:
        file.truncate(layout.size_mib * MIB)
    _partition(image, layout)
    with _loop(image) as device, tempfile.TemporaryDirectory() as temporary:
        root_part, swap_part = ("1", "5") if layout.scheme == "mbr" else ("2", "3")
        volume = f"{device}p{root_part}"
        _run([f"mkfs.{layout.filesystem}", "-q", "-F", "-L", "rescued-root", volume])
        uuid = _run(["blkid", "-p", "-o", "value", "-s", "UUID", volume]).strip()
        swap_uuid = ""
        if layout.swap_mib:
            _run(["mkswap", "-L", "rescued-swap", f"{device}p{swap_part}"])
            swap_uuid = _run(
                ["blkid", "-p", "-o", "value", "-s", "UUID", f"{device}p{swap_part}"]
            ).strip()
        mount = Path(temporary)
        with _mounted(volume, mount, layout.filesystem):
            _run(["tar", "-C", str(mount), "--xattrs", "--xattrs-include=*", "--acls",
                  "--numeric-owner", "-xpf", str(root)])  # fmt: skip
            _configure(mount, uuid, swap_uuid, layout)
            _enrich(mount)
            _install_loader(mount, device, uuid, layout)
        if layout.scheme == "gpt":
            _fill_esp(image, mount, volume, uuid, layout)


@contextlib.contextmanager
def _kept_when_complete(partial: Path, output: Path) -> Iterator[None]:
    """Give `partial` its final name in the end, or remove it when something fails."""
    try:
        yield
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _partition(image: Path, layout: DiskLayout) -> None:
    end_mib = layout.size_mib - 1
    swap_start = end_mib - layout.swap_mib
    if layout.scheme == "mbr":
        lines = ["label: dos", "label-id: 0x5ec0feed"]
        if layout.swap_mib:
            lines += [f"1 : start=1MiB, size={swap_start - 1}MiB, type=83, bootable"]
            lines += [f"2 : start={swap_start}MiB, size={layout.swap_mib}MiB, type=5"]
            lines += [f"5 : start={swap_start + 1}MiB, type=82"]
        else:
            lines += ["1 : start=1MiB, type=83, bootable"]
    else:
        esp_mib = 40
        lines = ["label: gpt", f"1 : start=1MiB, size={esp_mib}MiB, type={ESP_TYPE}, name=esp"]
        root_mib = swap_start - 1 - esp_mib
        lines += [f"2 : start={1 + esp_mib}MiB, size={root_mib}MiB, type={LINUX_TYPE}, name=root"]
        if layout.swap_mib:
            lines += [f"3 : start={swap_start}MiB, size={layout.swap_mib - 1}MiB, "
                      f"type={SWAP_TYPE}, name=swap"]  # fmt: skip
    _run(["sfdisk", "-q", str(image)], text="\n".join(lines) + "\n")


def _configure(mount: Path, uuid: str, swap_uuid: str, layout: DiskLayout) -> None:
    """Write fstab, the boot loader's settings, the initrd's and the machine's own report."""
    lines = [f"UUID={uuid} / {layout.filesystem} errors=remount-ro 0 1"]
    if swap_uuid:
        lines.append(f"UUID={swap_uuid} none swap sw 0 0")
    if layout.scheme == "gpt":
        lines.append("UUID=E5B0-0701 /boot/efi vfat umask=0077 0 1")
        (mount / "boot/efi").mkdir(parents=True, exist_ok=True)
    (mount / "etc/fstab").write_text("\n".join(lines) + "\n")
    report = mount / "usr/local/sbin/machine-report"
    report.write_text(
        "#!/bin/sh\n"
        "{ (cd / && sha256sum -c --quiet root/checksums && echo MACHINE-FILES-OK)\n"
        "  for line in $(swapon --show=UUID --noheadings); do echo MACHINE-SWAP $line; done\n"
        "  variable=$(echo /sys/firmware/efi/efivars/SecureBoot-*)\n"
        '  [ -f "$variable" ] && echo MACHINE-SECURE-BOOT $(od -An -t u1 -j4 "$variable")\n'
        "  [ -x /usr/local/sbin/machine-job ] && /usr/local/sbin/machine-job\n"
        f"  echo {UP}; }} >/dev/ttyS0 2>&1\n"
    )
    report.chmod(0o755)
    unit = mount / "etc/systemd/system/machine-report.service"
    unit.write_text(
        "[Unit]\nDescription=Report on the serial line\nAfter=basic.target swap.target\n"
        "[Service]\nType=oneshot\nExecStart=/usr/local/sbin/machine-report\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    wants = mount / "etc/systemd/system"
    for target, name, source in (
        ("multi-user.target.wants", "machine-report.service", "../machine-report.service"),
        ("getty.target.wants", "serial-getty@ttyS0.service",
         "/lib/systemd/system/serial-getty@.service"),
    ):  # fmt: skip
        (wants / target).mkdir(parents=True, exist_ok=True)
        (wants / target / name).unlink(missing_ok=True)
        (wants / target / name).symlink_to(source)
    initrd = mount / "etc/initramfs-tools"
    (initrd / "conf.d/modules").write_text("MODULES=list\nBUSYBOX=n\nCOMPRESS=zstd\nFSTYPE=ext4\n")
    (initrd / "modules").write_text("\n".join(INITRD_MODULES) + "\n")
    (mount / "etc/default/grub").write_text(
        'GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=""\n'
        'GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200 quiet"\n'
        "GRUB_TERMINAL=console\nGRUB_DISABLE_OS_PROBER=true\n"
    )


def _enrich(mount: Path) -> None:
    """Add what a plain installation lacks, and record checksums for the machine's report."""
    place = mount / "srv/rich"
    (place / "deep").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket"))
    script = r"""
set -e; umask 022; cd "$1/srv/rich"
echo acl >acl; setfacl -m u:33:rw,g:4:r,m::rw acl
mkdir acldir; setfacl -d -m u:1000:rwx acldir
cp "$1/usr/bin/true" capable; setcap cap_net_raw,cap_net_bind_service+ep capable
echo x >attr; setfattr -n user.comment -v text attr; setfattr -n trusted.t -v 0x00ff00 attr
setfattr -n user.big -v "$(head -c 600 /dev/zero | tr '\0' z)" attr
echo link >h1; ln h1 deep/h2; ln h1 h3
ln -s "$(printf 'a%.0s' $(seq 200))" longlink; ln -s /nonexistent dangling
truncate -s 200M sparse; printf data | dd of=sparse bs=1 seek=150000000 conv=notrunc status=none
fallocate -l 2M prealloc && fallocate -p -o 4096 -l 65536 prealloc || : no extents, no such thing
mkfifo fifo; mknod block b 7 99; mknod char c 1 3
echo i >immutable; echo n >nodump; chattr +d nodump
printf x >"$(printf 'bad\377\376name')"; printf x >"$(printf 'new\nline')"
printf x >"$(printf 'n%.0s' $(seq 255))"; mkdir -p "$(printf 'd%.0s/' $(seq 60))"
touch -d '1969-12-31 23:59:59.123456789 UTC' old; touch -d '2040-01-01 00:00:00.5 UTC' future
chown 4000000000:123456 old; chmod 7777 future
i=0; while [ $i -lt 1500 ]; do i=$((i+1)); : >deep/file$i; done
head -c 3000000 /dev/urandom >random
cd "$1"; find srv/rich etc usr/bin -xdev -type f -size -20M -print0 | sort -z | head -zn 400 |
  grep -zv -e 'new$' -e 'line$' -e machine-id -e '^etc/resolv' | xargs -0 sha256sum >root/checksums
chattr +i srv/rich/immutable
"""
    _run(["sh", "-c", script, "sh", str(mount)])


def _install_loader(mount: Path, device: str, uuid: str, layout: DiskLayout) -> None:
    with contextlib.ExitStack() as stack:
        for name in ("dev", "proc", "sys"):
            _run(["mount", "--bind", f"/{name}", str(mount / name)])
            stack.callback(_run, ["umount", str(mount / name)])
        _run(["chroot", str(mount), "update-initramfs", "-u", "-k", "all"])
        if layout.scheme == "mbr":
            _run(["chroot", str(mount), "grub-install", "--target=i386-pc", device])
        (mount / "boot/grub").mkdir(exist_ok=True)
        _run(["chroot", str(mount), "update-grub"])
    # Without udev grub-mkconfig names the loop device; an installed system has the UUID.
    config = mount / "boot/grub/grub.cfg"
    text = re.sub(r"root=/dev/loop\S+", f"root=UUID={uuid}", config.read_text())
    config.write_text(text)


def _fill_esp(image: Path, mount: Path, volume: str, uuid: str, layout: DiskLayout) -> None:
    """Format the EFI system partition and put the signed loaders where Debian puts them."""
    _run(["mkfs.fat", "-F", "32", "-s", "1", "-n", "ESP", "-i", "E5B00701", "--offset", "2048",
          str(image), str(40 * 1024)])  # fmt: skip
    partition = f"{image}@@1M"
    with tempfile.TemporaryDirectory() as temporary:
        config = Path(temporary) / "grub.cfg"
        config.write_text(
            f"search.fs_uuid {uuid} root\nset prefix=($root)/boot/grub\n"
            "configfile $prefix/grub.cfg\n"
        )
        _run(["mmd", "-i", partition, "::/EFI", "::/EFI/debian", "::/EFI/BOOT"])
        _run(["mcopy", "-i", partition, str(config), "::/EFI/debian/grub.cfg"])
        with _mounted(volume, mount, layout.filesystem):
            grub = mount / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
            shim = mount / "usr/lib/shim/shimx64.efi.signed"
            for directory, first in (("debian", "shimx64.efi"), ("BOOT", "BOOTX64.EFI")):
                for source, name in ((shim, first), (grub, "grubx64.efi")):
                    _run(["mcopy", "-i", partition, str(source), f"::/EFI/{directory}/{name}"])


@contextlib.contextmanager
def _loop(image: Path) -> Iterator[str]:
    """Attach `image` with its partitions; works on kernels that parse no partition table."""
    device = _run(["losetup", "-f", "--show", str(image)]).strip()
    try:
        subprocess.run(["partx", "-d", device], capture_output=True, check=False)
        _run(["partx", "-a", device])
        yield device
    finally:
        subprocess.run(["partx", "-d", device], capture_output=True, check=False)
        _run(["losetup", "-d", device])


@contextlib.contextmanager
def _mounted(volume: str, mount: Path, filesystem: str) -> Iterator[None]:
    _run(["mount", "-t", filesystem, volume, str(mount)])
    try:
        yield
    finally:
        _run(["umount", str(mount)])


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise MachineError("/etc/os-release names no Debian release")


def _sources() -> list[str]:
    """Return the host's own lists of package sources, so that its mirror is used."""
    listed = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]
    return [str(path) for path in listed if path.exists() and path.stat().st_size][:1]


def _run(arguments: Sequence[str], *, text: str | None = None) -> str:
    """Run a program of the host and return what it printed."""
    if shutil.which(arguments[0]) is None:
        raise MachineError(f"{arguments[0]} is not installed")
    done = subprocess.run(
        list(arguments), input=text, capture_output=True, encoding="utf-8", errors="replace",
        check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    if done.returncode:
        end = (done.stderr or done.stdout).strip()[-1500:]
        raise MachineError(f"{arguments[0]} failed with {done.returncode}: {end}")
    return done.stdout
