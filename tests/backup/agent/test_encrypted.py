# SPDX-License-Identifier: Apache-2.0
"""Directories that Linux encrypts: left out by name, and the rest of the machine is kept."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.agent.machine import Machine
from backup.agent.result import BackupOptions
from backup.objects.model import RAW
from backup.store.repository import StoredRepository
from tests.backup.agent.machines import (
    MIB,
    back_up,
    back_up_live,
    live_volume,
    make_ext4,
    make_repository,
    read_data_set,
)

pytestmark = [pytest.mark.root, pytest.mark.tools]

# Source: linux v6.1 include/uapi/linux/fscrypt.h.
ADD_KEY, SET_POLICY = 0xC0506617, 0x800C6613
_KEY = struct.Struct("=II16s16xII32x")  # kind of name, 0, the name, size of the key, 0; the key
_POLICY = struct.Struct("=BBBBB3x16s")  # version 2, AES-256-XTS, AES-256-CTS, padding, 0, name
VAULT = ("vault", "vault/file", "vault/below", "vault/below/link", "vault/below/other")


def encrypt(directory: Path) -> None:
    """Have Linux encrypt what is made in an empty directory."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        key = bytearray(_KEY.pack(2, 0, bytes(16), 64, 0) + bytes(range(64)))
        fcntl.ioctl(descriptor, ADD_KEY, key)
        name = _KEY.unpack_from(key)[2]
        fcntl.ioctl(descriptor, SET_POLICY, _POLICY.pack(2, 1, 4, 3, 0, name))
    finally:
        os.close(descriptor)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[StoredRepository]:
    with make_repository(tmp_path / "store") as repository:
        yield repository


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[tuple[Path, Path, Machine]]:
    """An image, where it is mounted, and the machine: with encrypted files among others."""
    (tmp_path / "tree" / "home").mkdir(parents=True)
    (tmp_path / "tree" / "home" / "plain").write_text("plain")
    image = make_ext4(tmp_path / "sda", tmp_path / "tree", 32 * MIB, "-O", "encrypt")
    with live_volume(image) as (root, machine):
        place = root / "vault"
        place.mkdir()
        encrypt(place)
        (place / "file").write_text("secret")
        (place / "below").mkdir()
        (place / "below" / "other").write_text("secret")
        (place / "below" / "link").symlink_to("other")
        os.link(place / "file", root / "home" / "also the file")
        subprocess.run(["sync", "-f", str(root)], check=True)
        yield image, root, machine


def test_mounted(repository: StoredRepository, vault: tuple[Path, Path, Machine]) -> None:
    """Its key is there, and nothing of it is kept in the clear; nor when it is looked at again."""
    _, root, machine = vault
    (result,) = back_up_live(repository, machine)
    assert sorted(result.warnings) == [
        f"{root}/home/also the file: left out: it is encrypted",
        f"{root}/vault: left out: it is encrypted",
    ]
    assert result.is_partial
    files = read_data_set(repository).files
    assert files[b"/home/plain"] == b"plain"
    assert not [path for path in files if path.startswith(b"/vault") or b"also" in path]


def test_image(repository: StoredRepository, vault: tuple[Path, Path, Machine]) -> None:
    """The same without a key, of a disk; each object is counted once."""
    image, root, _ = vault
    copy = image.with_name("disk")
    copy.write_bytes(image.read_bytes())
    result = back_up(repository, copy)
    assert {text.partition(": ")[2] for text in result.warnings} == {
        f"left out: not supported: inode {os.stat(root / place).st_ino}, encrypted"
        for place in ("vault", "vault/file")
    }
    assert result.missing == len(VAULT)
    assert read_data_set(repository).files == {b"/home/plain": b"plain"}


def test_whoever_allows_images_gets_one(
    repository: StoredRepository, vault: tuple[Path, Path, Machine]
) -> None:
    """An image of the volume has what its key opens."""
    image = vault[0]
    copy = image.with_name("disk")
    copy.write_bytes(image.read_bytes())
    options = BackupOptions(workers=2, allow_raw=True)
    assert not back_up(repository, copy, options=options).is_partial
    assert [volume.type for volume in read_data_set(repository).volumes] == [RAW]
