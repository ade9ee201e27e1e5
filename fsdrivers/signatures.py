# SPDX-License-Identifier: Apache-2.0
"""Every signature that tells what is on a device, and where it stands: the one table of them.

`fsdrivers.probing` asks it in an order.  `areas` are what has to read as zeros on a device before
something new is written there; `find` is what is there in spite of it.

Source: each row names the header or document that defines it; `man 8 wipefs` lists what is asked
for on Linux, and at which offsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from fsdrivers.device import Device

HEAD_SIZE: Final = 0x11000  # bytes of the start that hold the signatures that probing asks for
# What is zeroed whole, for signatures that nobody listed yet: longer than any known structure of
# either end (four labels of ZFS; a firmware RAID of Promise, 3087 sectors before the end).
WIPED_HEAD, WIPED_TAIL = 1 << 20, 2 << 20  # bytes
_UNIT: Final = 4096  # bytes of the largest sectors
_SURE_LENGTH: Final = 4  # bytes of a signature that stands nowhere by chance


class Signature(NamedTuple):
    """`magic` stands at byte `position`.

    A negative one counts from the end of the device, rounded down to a multiple of `align`.
    """

    type: str
    position: int
    magic: bytes
    align: int = 512

    def place(self, size: int) -> int:
        """Return where it stands on a device of `size` bytes; negative if it has no room there."""
        place = self.position
        if place < 0:
            place += size // self.align * self.align
        return place if place + len(self.magic) <= size else -1


_MD_MAGIC = bytes.fromhex("fc4e2ba9")  # [linux] include/uapi/linux/raid/md_p.h, MD_SB_MAGIC
_BCACHE = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")  # [linux] bcache.h, bcache_magic
_BCACHEFS = bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")  # [linux] bcachefs_format.h
_BITLOCKER_TO_GO = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")  # libbde documentation, 5.2
_DDF = bytes.fromhex("de11de11")  # SNIA DDF 2.0, 5.3

# An array's superblock at the end: what is at the start of its members shows through.
RAID_AT_END = (
    # 0.90 is the last whole 64 KiB, in the byte order of its machine; 1.0 is at least 8 KiB before
    # the end.  [linux] md_p.h, drivers/md/md.c
    Signature("mdraid", -65536, _MD_MAGIC, 65536),
    Signature("mdraid", -65536, _MD_MAGIC[::-1], 65536),
    Signature("mdraid", -8192, _MD_MAGIC, 4096),
    Signature("mdraid", -8192, _MD_MAGIC[::-1], 4096),
)

CONTAINERS = (
    Signature("luks", 0, b"LUKS\xba\xbe"),  # LUKS1 on-disk format 1.2.3; LUKS2 1.1.0
    *(Signature("lvm2", sector * 512 + 24, b"LVM2 001") for sector in range(4)),  # lvm2 label.h
    Signature("mdraid", 0, _MD_MAGIC),  # 1.1
    Signature("mdraid", 4096, _MD_MAGIC),  # 1.2
    Signature("bcache", 4096 + 24, _BCACHE),
    Signature("bcachefs", 4096 + 24, _BCACHEFS),
    Signature("dmraid", -1024, b"Intel Raid ISM Cfg Sig. "),  # dmraid isw.h
    Signature("dmraid", -1024, b"NVIDIA"),  # dmraid nv.h
    Signature("dmraid", -512, _DDF),
    Signature("dmraid", -63 * 512, b"Promise Technology, Inc."),  # dmraid pdc.h
    Signature("bitlocker", 3, b"-FVE-FS-"),
    Signature("bitlocker", 424, _BITLOCKER_TO_GO),
)

LIKE_FAT = (  # their boot sectors are; no driver yet
    Signature("exfat", 3, b"EXFAT   "),  # [exFAT] 3.1.2
    Signature("refs", 3, b"ReFS\0\0\0\0"),
    Signature("hpfs", 16 * 512, bytes.fromhex("49e895f9c5e953fa")),  # [linux] fs/hpfs/hpfs.h
)

_UFS_MAGICS = ("00011954", "19540119", "00195612", "00095014", "00612195", "05231994")  # BSD fs.h
_UFS_SUPERBLOCKS = (0, 8 << 10, 64 << 10, 256 << 10)  # bytes; BSD fs.h, SBLOCKSEARCH
_UFS = tuple(
    Signature("ufs", place + 1372, data)
    for place in _UFS_SUPERBLOCKS
    for text in _UFS_MAGICS
    for data in (bytes.fromhex(text), bytes.fromhex(text)[::-1])
)
_UFS_FAR = 2 * len(_UFS_MAGICS)  # those of the last place, which is behind the head

OTHERS = (  # no driver yet
    Signature("btrfs", 0x10040, b"_BHRfS_M"),  # [linux] btrfs_tree.h
    Signature("xfs", 0, b"XFSB"),  # [linux] fs/xfs/libxfs/xfs_format.h
    Signature("f2fs", 1024, bytes.fromhex("1020f5f2")),  # [linux] f2fs_fs.h
    Signature("erofs", 1024, bytes.fromhex("e2e1f5e0")),  # [linux] fs/erofs/erofs_fs.h
    Signature("reiserfs", 0x10034, b"ReIsEr"),  # [linux] fs/reiserfs/reiserfs.h, 3.5 and 3.6
    Signature("reiserfs", 0x2034, b"ReIsEr"),
    Signature("reiser4", 0x10000, b"ReIsEr4"),
    Signature("jfs", 0x8000, b"JFS1"),  # [linux] fs/jfs/jfs_superblock.h
    Signature("nilfs2", 1024 + 6, b"\x34\x34"),  # [linux] nilfs2_ondisk.h
    Signature("squashfs", 0, b"hsqs"),  # [linux] fs/squashfs/squashfs_fs.h
    Signature("apfs", 32, b"NXSB"),  # Apple File System Reference
    Signature("hfsplus", 1024, b"H+"),  # Apple TN1150
    Signature("hfsplus", 1024, b"HX"),
    Signature("hfs", 1024, b"BD"),
    Signature("udf", 0x8001, b"BEA01"),  # ECMA-167, part 2
    *_UFS[:-_UFS_FAR],
)

# What no driver is chosen by, because it is a copy, or was never met in a backup.
RARE = (
    *(Signature("luks", 0x4000 << step, b"SKUL\xba\xbe") for step in range(9)),  # second header
    *(
        Signature("dmraid", -sector * 512, b"Promise Technology, Inc.")  # dmraid pdc.h
        for sector in (16, 255, 256, 399, 591, 675, 735, 911, 951, 974, 991, 3087)
    ),
    Signature("dmraid", -8192, b"Intel Raid ISM Cfg Sig. ", 4096),  # with 4 KiB sectors
    *(Signature("dmraid", -sector * 512, _DDF) for sector in (257,)),
    *(Signature("dmraid", -sector * 512, _DDF[::-1]) for sector in (1, 257)),
    Signature("dmraid", -512, b"$XIDE$"),  # dmraid lsi.h
    *(
        Signature("dmraid", place, bytes.fromhex(magic))  # dmraid hpt37x.h, hpt45x.h
        for place in (9 * 512 + 32, -11 * 512)
        for magic in ("f016785a", "fd16785a")
    ),
    Signature("dm-verity", 0, b"verity\0\0"),  # cryptsetup, verity on-disk format
    Signature("dm-integrity", 0, b"integrt\0"),  # [linux] drivers/md/dm-integrity.c
    Signature("dm-snapshot", 0, b"SnAp"),  # [linux] drivers/md/dm-snap-persistent.c
    Signature("vdo", 0, b"dmvdo001"),  # [linux] drivers/md/dm-vdo
    *(
        Signature("stratis", sector * 512 + 4, b"!Stra0tis\x86\xff\x02^\x41rh")
        for sector in (1, 9)  # Stratis design, "static header"
    ),
    Signature("vmfs", 1 << 20, bytes.fromhex("0dd001c0")),  # VMware, of a member
    Signature("vmfs", 2 << 20, bytes.fromhex("5ef1ab2f")),  # and of the volume
    *_UFS[-_UFS_FAR:],
    *(
        Signature("zfs", place + slot * 1024, data, 256 << 10)  # ZFS on-disk format, 1.3
        for place in (128 << 10, 384 << 10, -384 << 10, -128 << 10)
        for slot in range(128)
        for data in (bytes.fromhex("0cb1ba0000000000"), bytes.fromhex("0000000000bab10c"))
    ),
    Signature("udf", 0x8001, b"NSR02"),  # ECMA-167, part 3
    Signature("udf", 0x8001, b"NSR03"),
    Signature("iso9660", 0x8009, b"CDROM"),  # High Sierra
    Signature("squashfs", 0, b"sqsh"),
    Signature("romfs", 0, b"-rom1fs-"),  # [linux] romfs_fs.h
    Signature("cramfs", 0, bytes.fromhex("453dcd28")),  # [linux] magic.h
    Signature("cramfs", 0, bytes.fromhex("28cd3d45")),
    Signature("ubi", 0, b"UBI#"),  # [linux] drivers/mtd/ubi/ubi-media.h
    Signature("ubifs", 0, bytes.fromhex("31181006")),  # [linux] magic.h
    Signature("bfs", 0, bytes.fromhex("cefaad1b")),  # [linux] bfs_fs.h
    *(Signature("befs", place, magic) for place in (32, 544) for magic in (b"BFS1", b"1SFB")),
    Signature("gfs2", 0x10000, bytes.fromhex("01161970")),  # [linux] gfs2_ondisk.h
    *(Signature("ocfs2", kib << 10, b"OCFSV2") for kib in (1, 2, 4, 8)),  # [linux] ocfs2_fs.h
    Signature("ocfs", 8, b"OracleCFS"),
    Signature("oracleasm", 32, b"ORCLDISK"),
    Signature("vxfs", 1024, bytes.fromhex("f5fc01a5")),  # [linux] fs/freevxfs/vxfs.h
    Signature("vxfs", 8192, bytes.fromhex("a501fcf5")),
    Signature("nss", 4096, b"SPB5"),  # Novell Storage Services
    Signature("zonefs", 0, b"SFOZ"),  # [linux] fs/zonefs
    Signature("nilfs2", -4096 + 6, b"\x34\x34"),  # its second superblock
)

ALL: Final = (*CONTAINERS, *RAID_AT_END, *LIKE_FAT, *OTHERS, *RARE)


def areas(size: int) -> Iterator[tuple[int, int]]:
    """Yield (position, length) in bytes, ascending, of all that may hold a signature.

    They are whole sectors of 4 KiB, as far as the device goes; what is around most of them too.
    """
    head = min(WIPED_HEAD, size)
    tail = max(head, (size - WIPED_TAIL) // _UNIT * _UNIT)
    yield 0, head
    for position in sorted({signature.place(size) // _UNIT * _UNIT for signature in ALL}):
        if head <= position < tail:
            yield position, min(_UNIT, tail - position)
    if tail < size:
        yield tail, size - tail


def wipe(device: Device) -> None:
    """Make a device look blank to whoever asks what is on it.

    Raises:
        DeviceError: it cannot be written.
    """
    for position, length in areas(device.size):
        device.zero(position, length)


def find(device: Device) -> Iterator[tuple[Signature, int]]:
    """Yield each signature that is on the device, and its position.

    One too short to be told from what stands there by chance is left out, as are those of drivers,
    which know more of theirs.

    Raises:
        DeviceError: what may hold one cannot be read.
    """
    by_area: dict[int, bytes] = {}
    for signature in ALL:
        place = signature.place(device.size)
        if len(signature.magic) < _SURE_LENGTH or place < 0:
            continue
        start = place // _UNIT * _UNIT
        if start not in by_area:
            by_area[start] = device.read(start, min(_UNIT + 512, device.size - start))
        if by_area[start].startswith(signature.magic, place - start):
            yield signature, place
