# SPDX-License-Identifier: Apache-2.0
"""Names that only the same hardware has are found wherever a Linux system looks for its disks."""

from __future__ import annotations

import pytest

from backup.shared.hardware_names import find_hardware_names, is_on_the_way, is_wanted

BY_ID = "/dev/disk/by-id/virtio-disk0-part2"


@pytest.mark.parametrize(
    ("path", "line", "use", "name", "is_needed"),
    [
        ("etc/fstab", f"{BY_ID} / ext4 defaults 0 1", "mounts / by", BY_ID, True),
        ("etc/fstab", "/dev/vda1\t/boot/efi vfat umask=0077 0 1", "mounts /boot/efi by",
         "/dev/vda1", True),
        ("etc/fstab", "/dev/nvme0n1p3 /data ext4 rw,nofail 0 2", "mounts /data by",
         "/dev/nvme0n1p3", False),
        ("etc/fstab", "/dev/mmcblk0p5 none swap sw 0 0", "swaps to", "/dev/mmcblk0p5", False),
        ("etc/crypttab", "home /dev/sda3 none luks", "opens home by", "/dev/sda3", True),
        ("etc/default/grub", 'GRUB_CMDLINE_LINUX="quiet root=/dev/xvda2"', "asks for root=",
         "/dev/xvda2", True),
        ("etc/kernel/cmdline", "ro root=/dev/hda1 quiet", "asks for root=", "/dev/hda1", True),
        ("etc/initramfs-tools/conf.d/resume", "RESUME=/dev/sdb5", "asks for RESUME=", "/dev/sdb5",
         False),
        ("grub2/device.map", f"(hd1)\t{BY_ID}", "finds hd1 by", BY_ID, False),
        ("etc/initramfs-tools/initramfs.conf", "MODULES=dep", "leaves drivers out of the initramfs "
         "by", "MODULES=dep", True),
        ("loader/entries/a.conf", f"options root={BY_ID} ro", "asks for root=", BY_ID, True),
        ("boot/grub/grub.cfg", "\tlinux /vmlinuz root=/dev/sda1 ro", "asks for root=", "/dev/sda1",
         True),
    ],
)  # fmt: skip
def test_found(path: str, line: str, use: str, name: str, is_needed: bool) -> None:
    """Each kind of place and of name, and whether the system starts without."""
    assert is_wanted(path)
    (found,) = find_hardware_names(path, f"# a comment\n{line}\n".encode())
    assert (found.use, found.name, found.is_needed) == (use, name, is_needed)
    assert f"/{path} {use} {name}: " in found.sentence()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("etc/fstab", "UUID=0a0b0c0d-0000-4000-8000-000000000001 / ext4 defaults 0 1"),
        ("etc/fstab", "LABEL=root / ext4 defaults 0 1"),
        ("etc/fstab", "/dev/mapper/vg-root / ext4 defaults 0 1"),
        ("etc/fstab", "/dev/disk/by-uuid/0a0b / ext4 defaults 0 1"),
        ("etc/fstab", "tmpfs /tmp tmpfs defaults 0 0"),
        ("etc/fstab", "# /dev/vda2 / ext4 defaults 0 1"),
        ("etc/fstab", "\xff\x00 broken"),
        ("etc/kernel/cmdline", "root=UUID=0a0b ro nfsroot=/dev/sda1"),
        ("etc/kernel/cmdline", "root=PARTUUID=0a0b-01 ro"),
        ("etc/crypttab", "home UUID=0a0b none luks"),
        ("etc/initramfs-tools/initramfs.conf", "MODULES=most"),
        ("boot/grub/device.map", "(fd0) /dev/fd0"),
    ],
)
def test_not_found(path: str, line: str) -> None:
    """Names that come back with the volumes, and what is no name, are left alone."""
    assert find_hardware_names(path, line.encode("latin-1")) == []


def test_wanted() -> None:
    """Only the files that are known are looked at."""
    assert is_wanted("boot/loader/entries/debian-6.1.conf")
    assert not is_wanted("loader/entries/below/debian.conf")
    assert not is_wanted("home/fstab")
    assert all(map(is_on_the_way, ("boot", "boot/grub", "boot/loader/entries", "etc/default")))
    assert not any(map(is_on_the_way, ("home", "etc/X11", "boot/grub/i386-pc")))
