# SPDX-License-Identifier: Apache-2.0
"""Images of discs as what a restore reads from."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pycdlib
import pytest

from backup.objects.errors import MissingPackError, ObjectsError
from backup.objects.key_file import is_intact
from backup.objects.locator import POSITIONS, pack_locator
from backup.objects.pack import PackInfo
from imagebuilder.build import build_disc
from imagebuilder.disc.boot_image import ISO_SECTOR
from imagebuilder.environment.build import BootEnvironment
from rebuild.boot import boot_medium
from rebuild.disc_image import DIRECTORIES, IsoImage, IsoMedium, holds_disc, verify_disc
from rebuild.errors import MediumError
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

    with pytest.raises(MediumError, match=r"notes\.txt is not the image of a disc"):
        IsoMedium.open(path)


def test_other_disc_is_refused(tmp_path: Path) -> None:
    """The image of another disc is named as such."""
    path = tmp_path / "music.iso"
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident="MUSIC", rock_ridge="1.09")
    iso.write(str(path))
    iso.close()

    with pytest.raises(MediumError, match="another disc"):
        IsoMedium.open(path)


@pytest.mark.parametrize("missing", [1, ISO_SECTOR, 100_000])
def test_cut_disc_is_refused(disc: Path, missing: int) -> None:
    """A disc without its end is told before anything is read."""
    with IsoImage.open(disc) as image:
        end = max(extent.position + extent.size for extent in image.files.values())
    with disc.open("r+b") as file:
        file.truncate(end + -end % ISO_SECTOR - missing)

    with pytest.raises(MediumError, match="cut short"):
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


def read_everything(disc: Path, repository: SmallRepository) -> None:
    """Check that all that a restore needs is read from the disc as it was written."""
    with IsoMedium.open(disc) as medium:
        assert is_intact(medium.read_key_file())
        copy = medium.open_table_copy()
        assert copy is not None
        for stream in (medium.open_table(), copy):
            assert stream.read() == repository.table
        for index, (digest, data) in enumerate(repository.packs.items()):
            assert medium.read_pack(index, digest, 0, len(data)) == data


def first_file(disc: Path) -> int:
    """Return where the first file of a disc begins: before it are directories alone."""
    with IsoImage.open(disc) as image:
        return min(extent.position for extent in image.files.values())


def test_any_byte_of_the_directories_costs_nothing(disc: Path, repository: SmallRepository) -> None:
    """Every byte of descriptors, path tables and directories flipped, one at a time: everything
    is read, and the damage is named."""
    whole = disc.read_bytes()
    used = [position for position in range(32768, first_file(disc)) if whole[position]]
    assert len(used) > 3000

    for number, position in enumerate(used):
        damage(disc, position)
        read_everything(disc, repository)
        if number % 50 == 0:
            assert verify_disc(disc, lambda _name: None)[0] == [DIRECTORIES]
        damage(disc, position)
    assert disc.read_bytes() == whole


def test_a_disc_without_directories_is_read(disc: Path, repository: SmallRepository) -> None:
    """All of the descriptors and directories gone: the locator leads to everything."""
    end = first_file(disc)
    with disc.open("r+b") as file:
        file.seek(32768)
        file.write(b"\xff" * (end - 32768))

    read_everything(disc, repository)
    assert verify_disc(disc, lambda _name: None)[0] == [DIRECTORIES]


def test_one_locator_is_enough(disc: Path, repository: SmallRepository) -> None:
    """Any one of the three locators, which are equal, leads to a disc without directories."""
    whole = bytearray(disc.read_bytes())
    places = [*POSITIONS, len(whole) - ISO_SECTOR]
    sectors = {bytes(whole[place : place + ISO_SECTOR]) for place in places}
    assert len(sectors) == 1
    whole[32768 : first_file(disc)] = bytes(first_file(disc) - 32768)
    for place in places:
        whole[place] ^= 1

    for place in places:
        whole[place] ^= 1
        disc.write_bytes(whole)
        read_everything(disc, repository)
        whole[place] ^= 1
    disc.write_bytes(whole)
    with pytest.raises(MediumError, match="is not the image of a disc, or is damaged"):
        IsoMedium.open(disc)


def test_any_byte_of_a_locator_is_covered(disc: Path, repository: SmallRepository) -> None:
    """A flipped byte of a locator: the next one is used."""
    for position in range(128):
        damage(disc, POSITIONS[0] + position)
        with IsoImage.open(disc) as image:
            assert image.locator is not None
        damage(disc, POSITIONS[0] + position)


def test_without_locators_directories_are_read(disc: Path, repository: SmallRepository) -> None:
    """A disc as they were made before there were locators, or one that lost them."""
    size = disc.stat().st_size
    for place in (*POSITIONS, size - ISO_SECTOR):
        damage(disc, place)

    read_everything(disc, repository)
    assert verify_disc(disc, lambda _name: None)[0] == []


def test_damaged_directories_without_locators_end_in_an_error_of_ours(disc: Path) -> None:
    """Any flipped byte before the first file of such a disc: it reads, or one clear error."""
    whole = disc.read_bytes()
    used = [position for position in range(32768, first_file(disc)) if whole[position]]
    for place in (*POSITIONS, len(whole) - ISO_SECTOR):
        damage(disc, place)
    for position in random.Random(1).sample(used, 150):
        damage(disc, position)
        try:
            verify_disc(disc, lambda _name: None)
            IsoMedium.open(disc).close()
        except (MediumError, ObjectsError):
            pass
        damage(disc, position)


@pytest.mark.parametrize("name", ["manifest.json", "copies/manifest.json"])
def test_either_list_of_files_will_do(disc: Path, repository: SmallRepository, name: str) -> None:
    """A damaged manifest: its copy is used, and it is named."""
    damage(disc, place_of(disc, name) + 100)

    read_everything(disc, repository)
    assert verify_disc(disc, lambda _name: None)[0] == [name]


@pytest.mark.parametrize("part", ["boot sector", "boot catalogue"])
def test_what_starts_the_disc_is_verified(disc: Path, part: str) -> None:
    """A flipped byte of the boot sector or the boot catalogue is noticed without a key."""
    with IsoImage.open(disc) as image:
        assert image.locator is not None
        position = {"boot sector": 440, "boot catalogue": image.locator.boot_catalogue + 32}[part]
    damage(disc, position)

    assert verify_disc(disc, lambda _name: None)[0] == [DIRECTORIES]


def test_pipe_is_no_disc(tmp_path: Path) -> None:
    """A pipe that nobody writes to is refused, not waited for."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(MediumError, match="it is not a file or a drive"):
        IsoMedium.open(tmp_path / "pipe")


def test_hostile_lists_cost_nothing(disc: Path) -> None:
    """Places and sizes that no disc has are refused before anything is read or allocated."""
    with IsoImage.open(disc) as image:
        assert image.locator is not None
        good = image.locator
    for change in (
        {"manifest_size": 1 << 60},
        {"manifest_size": good.manifest_size + 1},
        {"manifest": (1 << 64) - 1},
        {"manifest_copy": (1 << 64) - 1},
        {"first_file": (1 << 64) - 1},
        {"first_file": 0},
        {"boot_catalogue": (1 << 64) - 1},
    ):
        sector = pack_locator(good._replace(**change))
        with disc.open("r+b") as file:
            for place in (*POSITIONS, disc.stat().st_size - ISO_SECTOR):
                file.seek(place)
                file.write(sector)
        with IsoImage.open(disc) as image:  # by its directories
            assert image.files["hash.dat"].size > 0
            assert image.locator is None


@pytest.mark.parametrize("lost", ["nothing", "directories", "locators"])
def test_discs_are_told_by_their_set(disc: Path, repository: SmallRepository, lost: str) -> None:
    """A starting machine takes the disc of the wanted data set, or any if none is wanted, by its
    locator or by its directories."""
    end = first_file(disc)
    with disc.open("r+b") as file:
        if lost == "directories":
            file.seek(32768)
            file.write(bytes(end - 32768))
        elif lost == "locators":
            file.write(bytes(32768))
            file.truncate(disc.stat().st_size - ISO_SECTOR)
    other = ("0" if repository.data_set[0] != "0" else "1") + repository.data_set[1:]

    assert holds_disc(str(disc)) == (lost != "directories")
    for wanted in (repository.data_set, ""):
        image = boot_medium.open_disc(str(disc), wanted)
        assert image is not None
        assert image.set_id == repository.data_set
        assert (image.locator is None) == (lost == "locators")
        image.close()
    assert boot_medium.open_disc(str(disc), other) is None


def test_other_disks_hold_no_disc(tmp_path: Path) -> None:
    """A blank disk, one that is too small, one that is not there: none is taken for a disc."""
    for size in (0, 40_000, 1 << 20):
        path = tmp_path / f"disk{size}"
        path.write_bytes(bytes(size))
        assert not holds_disc(str(path))
        assert boot_medium.open_disc(str(path), "") is None
    assert boot_medium.open_disc(str(tmp_path / "absent"), "") is None
