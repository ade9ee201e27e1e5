# SPDX-License-Identifier: Apache-2.0
"""Images of discs as what a restore reads from."""

from __future__ import annotations

import random
from pathlib import Path

import pycdlib
import pytest

from backup.objects.errors import MissingPackError, ObjectsError
from backup.objects.keys import is_intact
from backup.objects.pack import PackInfo
from imagebuilder.build import build_disc
from imagebuilder.disc.boot_image import ISO_SECTOR
from imagebuilder.disc.reader import IsoImage, IsoMedium, verify_disc
from imagebuilder.environment.build import BootEnvironment
from imagebuilder.errors import DiscImageError
from tests.imagebuilder.small_repository import SmallRepository


@pytest.fixture
def repository() -> SmallRepository:
    """Return a repository with three packs."""
    return SmallRepository()


@pytest.fixture
def disc(repository: SmallRepository, hollow_environment: BootEnvironment, tmp_path: Path) -> Path:
    """Return the path of a disc's image."""
    return build_disc(
        repository,
        repository.master,
        repository.data_set,
        tmp_path / "disc.iso",
        environment=hollow_environment,
        created_s=1_700_000_000,
    ).path


def damage(path: Path, position: int) -> None:
    """Flip every bit of one byte."""
    with path.open("r+b") as file:
        file.seek(position)
        (value,) = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ 0xFF]))


def place_of(path: Path, name: str) -> int:
    """Return where a file of the disc lies."""
    with IsoImage.open(path) as image:
        return image.files[name].position


@pytest.mark.parametrize("size", [0, 1, 2047, 40_000])
def test_text_is_no_disc(tmp_path: Path, size: int) -> None:
    """Any other file is refused in one sentence."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"x" * size)

    with pytest.raises(DiscImageError, match=r"notes\.txt is not the image of a disc"):
        IsoMedium.open(path)


def test_other_disc_is_refused(tmp_path: Path) -> None:
    """The image of another disc is named as such."""
    path = tmp_path / "music.iso"
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident="MUSIC", rock_ridge="1.09")
    iso.write(str(path))
    iso.close()

    with pytest.raises(DiscImageError, match="another disc"):
        IsoMedium.open(path)


@pytest.mark.parametrize("missing", [1, ISO_SECTOR, 100_000])
def test_cut_disc_is_refused(disc: Path, missing: int) -> None:
    """A disc without its end is told before anything is read."""
    with IsoImage.open(disc) as image:
        end = max(extent.position + extent.size for extent in image.files.values())
    with disc.open("r+b") as file:
        file.truncate(end + -end % ISO_SECTOR - missing)

    with pytest.raises(DiscImageError, match="cut short"):
        IsoMedium.open(disc)


def test_damaged_key_file_is_read_from_its_copy(disc: Path) -> None:
    """One bad byte in hash.dat costs nothing: the second copy is intact."""
    damage(disc, place_of(disc, "hash.dat") + 20)

    with IsoMedium.open(disc) as medium:
        assert is_intact(medium.read_key_file())


def test_copies_are_far_from_the_originals(disc: Path) -> None:
    """Everything else lies between a file and its copy."""
    with IsoImage.open(disc) as image:
        between = image.files["objects/00000000.pak"].position
        assert image.files["hash.dat"].position < between < image.files["copies/hash.dat"].position
        assert (
            image.files["objtab.dat"].position < between < image.files["copies/objtab.dat"].position
        )


def test_packs_lie_in_order(disc: Path) -> None:
    """A restore reads packs by ascending number; so do they lie on the disc."""
    with IsoImage.open(disc) as image:
        places = [image.files[f"objects/{index:08}.pak"].position for index in range(3)]

    assert places == sorted(places)


def test_missing_pack(disc: Path) -> None:
    """A pack that is not there is an error of its own."""
    with IsoMedium.open(disc) as medium, pytest.raises(MissingPackError):
        medium.read_pack(99, bytes(32), 0, 1)


def test_missing_packs_are_counted_before_they_are_read(disc: Path) -> None:
    """Packs that are absent or shorter than the table says are told by their place."""
    packs = [PackInfo(bytes(32), size, bytes(32)) for size in (100_000, 2049, 1, 1)]

    with IsoMedium.open(disc) as medium:
        assert medium.missing_packs(packs) == [1, 3]


def test_table_seeks(disc: Path, repository: SmallRepository) -> None:
    """The table is a seekable stream, twice."""
    with IsoMedium.open(disc) as medium:
        copy = medium.open_table_copy()
        assert copy is not None
        for stream in (medium.open_table(), copy):
            assert stream.read() == repository.table
            assert stream.seek(-4, 2) == len(repository.table) - 4
            assert stream.read() == repository.table[-4:]
            stream.seek(8)
            assert stream.read(16).hex() == repository.data_set


def test_verify_names_the_damaged_file(disc: Path) -> None:
    """One flipped byte of a pack makes exactly that pack wrong."""
    damage(disc, place_of(disc, "objects/00000001.pak") + 7)

    assert verify_disc(disc, lambda _name: None)[0] == ["objects/00000001.pak"]


def test_damaged_directories_end_in_an_error_of_ours(disc: Path) -> None:
    """Any flipped byte before the first file: a disc that reads, or one clear error."""
    with IsoImage.open(disc) as image:
        first = min(extent.position for extent in image.files.values())
    whole = disc.read_bytes()
    noise = random.Random(1)
    used = [position for position in range(32768, first) if whole[position]]
    for position in noise.sample(used, 150):
        damage(disc, position)
        try:
            verify_disc(disc, lambda _name: None)
            IsoMedium.open(disc).close()
        except (DiscImageError, ObjectsError):
            pass
        damage(disc, position)
    assert disc.read_bytes() == whole
