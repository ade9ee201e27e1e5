# SPDX-License-Identifier: Apache-2.0
"""Extended attributes and ACLs of ext, both directions."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from fsdrivers.errors import CorruptError, FilesystemError, InvalidNameError
from fsdrivers.ext import xattrs
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import XattrIndex
from tests.fsdrivers.ext.volumes import make_image, mounted, open_image, paths_of
from tests.programs import run

LINUX_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 7, 1000),
        (0x04, 4, 0xFFFFFFFF),
        (0x08, 5, 4_000_000_000),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
)
SOME = [
    (b"user.b", b"12345"),
    (b"user.a", b""),
    (b"security.capability", bytes(20)),
    (b"trusted.overlay.opaque", b"y"),
    (b"system.posix_acl_access", LINUX_ACL),
    (b"user.longer name", b"v" * 30),
]


def test_acls_convert_both_ways() -> None:
    """ext's dense form of an ACL and Linux's are the same list."""
    stored = xattrs.acl_to_ext(LINUX_ACL)

    assert len(stored) == 4 + 4 * 4 + 2 * 8
    assert stored[:4] == struct.pack("<I", 1)
    assert xattrs.acl_to_linux(stored) == LINUX_ACL


@pytest.mark.parametrize(
    "value",
    [b"", b"\1\0\0", struct.pack("<I", 2), struct.pack("<IHH", 1, 0x40, 7),
     struct.pack("<IHH", 1, 0x02, 7), struct.pack("<IH", 1, 0x01)],
)  # fmt: skip
def test_broken_stored_acls_are_corrupt(value: bytes) -> None:
    """Wrong version, unknown tag or a cut entry."""
    with pytest.raises(CorruptError):
        xattrs.acl_to_linux(value)


@pytest.mark.parametrize(
    "value", [b"", struct.pack("<I", 1), LINUX_ACL[:-1], struct.pack("<IHHI", 2, 0x03, 7, 0)]
)
def test_broken_linux_acls_are_corrupt(value: bytes) -> None:
    """Wrong version, a cut entry or an unknown tag."""
    with pytest.raises(CorruptError):
        xattrs.acl_to_ext(value)


def test_names_split_and_join() -> None:
    """Every prefix ext knows comes back; the ACL names have no rest."""
    for name in (b"user.x", b"trusted.y.z", b"security.selinux", b"system.posix_acl_default",
                 b"system.richacl", b"user." + b"n" * 255):  # fmt: skip
        index, suffix = xattrs.split_name(name)
        assert xattrs.join_name(index, suffix) == name
    assert xattrs.split_name(b"system.posix_acl_access") == (XattrIndex.POSIX_ACL_ACCESS, b"")


@pytest.mark.parametrize("name", [b"", b"user.", b"foo.bar", b"user." + b"n" * 256, b"btrfs.x"])
def test_names_ext_cannot_hold_are_invalid(name: bytes) -> None:
    """No prefix number, no rest, or too long a rest."""
    with pytest.raises(InvalidNameError):
        xattrs.split_name(name)


def test_unknown_prefix_numbers_are_corrupt() -> None:
    """A number without a prefix is damage."""
    with pytest.raises(CorruptError):
        xattrs.join_name(77, b"x")


def _linux(listed: list[xattrs.RawXattr]) -> list[xattrs.Xattr]:
    return sorted(xattrs.linux_xattr(raw, raw.value) for raw in listed)


def test_block_round_trip() -> None:
    """What is packed into a block is found in it, sorted as Linux searches it."""
    encoded = xattrs.encoded_xattrs(SOME)
    block = bytes(xattrs.pack_block(1024, encoded))
    listed = xattrs.unpack_block_list(block, 0)

    assert _linux(listed) == sorted(SOME)
    keys = [(raw.name_index, len(raw.suffix), raw.suffix) for raw in listed]
    assert keys == sorted(keys)
    for raw in listed:
        assert block[raw.value_start : raw.value_start + raw.value_size] == raw.value


def test_block_capacity_is_exact() -> None:
    """A block takes just as much as its capacity says."""
    value = b"v" * (xattrs.block_capacity(1024) - xattrs.encoded_size(b"n", b""))
    block = xattrs.pack_block(1024, xattrs.encoded_xattrs([(b"user.n", value)]))

    assert _linux(xattrs.unpack_block_list(bytes(block), 0)) == [(b"user.n", value)]


def test_flipped_bytes_are_a_list_or_corrupt() -> None:
    """No flipped byte of an attribute block makes another exception."""
    block = bytes(xattrs.pack_block(1024, xattrs.encoded_xattrs(SOME)))
    for position in range(len(block)):
        for mask in (0xFF, 0x01, 0x80):
            damaged = bytearray(block)
            damaged[position] ^= mask
            try:
                for raw in xattrs.unpack_block_list(bytes(damaged), 0):
                    xattrs.linux_xattr(raw, raw.value)
            except FilesystemError:
                pass


@pytest.mark.tools
@pytest.mark.root
def test_block_of_the_kernel_is_packed_alike(tmp_path: Path) -> None:
    """Entry hashes, block hash, order and values are those Linux writes."""
    image = make_image(tmp_path / "image", 8 << 20, "-t", "ext4", "-b", 1024, "-I", 128)
    with mounted(image) as root:
        (root / "file").write_bytes(b"")
        run("setfacl", "-m", "u:33:rw,g:70000:r", root / "file")
        for name, value in SOME[:4]:
            if not name.startswith(b"security"):
                os.setxattr(root / "file", name, value)
    volume = open_image(image)
    node = paths_of(volume)[b"file"]
    block = volume.metadata.read_block(volume.metadata.inode(node.number).xattr_block)
    header = ext.XattrBlockHeader.unpack(block)
    ours = xattrs.pack_block(1024, xattrs.encoded_xattrs(node.xattrs))
    made = ext.XattrBlockHeader.unpack(bytes(ours))
    theirs = {raw.suffix: raw.hash for raw in xattrs.unpack_block_list(block, 0)}

    assert len(node.xattrs) == 4
    assert made.hash == header.hash
    assert {raw.suffix: raw.hash for raw in xattrs.unpack_block_list(bytes(ours), 0)} == theirs
