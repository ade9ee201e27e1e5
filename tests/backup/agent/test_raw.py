# SPDX-License-Identifier: Apache-2.0
"""Partitions of unknown content: carried as images up to a limit, bad sectors and all."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from backup.agent.errors import NotRecoverableError
from backup.agent.inspection import SMALL_SIZE
from backup.objects.model import RAW
from backup.store.repository import StoredRepository
from fsdrivers.device import FileDevice
from fsdrivers.errors import DeviceError
from tests.backup.agent.machines import MIB, back_up, make_disk, read_data_set

pytestmark = pytest.mark.tools


def unknown(path: Path, size: int) -> Path:
    """Make a volume that nobody knows."""
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(64 << 10))
        file.truncate(size)
    return path


def test_a_small_partition_of_unknown_content_is_an_image(
    repository: StoredRepository, tmp_path: Path
) -> None:
    """The report says so; beyond the limit the machine is refused."""
    disk = make_disk(tmp_path / "disk", ("da", unknown(tmp_path / "small", 3 * MIB)))
    result = back_up(repository, disk)

    assert [volume.type for volume in read_data_set(repository).volumes] == [RAW]
    assert "disk1: 3.0 MiB of content that no driver reads are kept as an image" in result.notes
    assert not result.is_partial
    large = make_disk(tmp_path / "other", ("da", unknown(tmp_path / "large", SMALL_SIZE + MIB)))
    with pytest.raises(NotRecoverableError, match="its content is of no known type"):
        back_up(repository, large)


def test_bad_sectors_of_an_image_become_zeros(
    repository: StoredRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other sectors are kept; the loss is named, counted and sealed in the data set."""
    volume = unknown(tmp_path / "small", 3 * MIB)
    disk = make_disk(tmp_path / "disk", ("da", volume))
    bad, real = MIB + 8192, FileDevice.read

    def read(device: FileDevice, position: int, length: int) -> bytes:
        if position < bad + 512 and bad < position + length:
            raise DeviceError("read", position, length, errno.EIO, device.name)
        return real(device, position, length)

    monkeypatch.setattr(FileDevice, "read", read)
    result = back_up(repository, disk)
    data_set = read_data_set(repository)
    (raw,) = data_set.volumes
    kept = bytearray(volume.read_bytes()[: 1 << 20])
    kept[8192 : 8192 + 512] = bytes(512)

    assert data_set.contents[raw.number] == kept
    assert (result.missing, len(result.warnings)) == (1, 1)
    assert "1 sector cannot be read and became zeros" in result.warnings[0]
    assert [info.missing for info in repository.data_sets()] == [1]
