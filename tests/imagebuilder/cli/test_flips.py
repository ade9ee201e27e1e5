# SPDX-License-Identifier: Apache-2.0
"""A bit is flipped in every kind of file of a store and a disc, and in every field of it: `check`
notices, and the next backup heals what the machine still has.

A sample runs always; `slow` goes through many positions of every field.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from backup.objects.keys import unlock
from imagebuilder.build import build_disc
from imagebuilder.cli.main import main
from imagebuilder.environment.build import BootEnvironment
from rebuild.disc_image import IsoImage
from tests.backup.repositories import open_repository
from tests.imagebuilder.small_disk import make_disk

pytestmark = pytest.mark.tools
PASSWORD = "hunter22 horses"
DAMAGED, WRONG_MEDIUM = 21, 20
POSITIONS = 2  # of every field, where all fields are gone through
FOOTER = struct.Struct("<Q8s")  # of a table: position of the summary, magic
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a disk, and a store with two backups of it."""
    directory = tmp_path_factory.mktemp("flips")
    (directory / "password").write_text(PASSWORD + "\n")
    make_disk(directory)
    assert main(["register", "--store", str(directory / "store"), *who(directory)]) == 0
    for _ in range(2):
        assert back_up(directory, directory / "store") == 0
    return directory


def who(directory: Path) -> tuple[str, ...]:
    return ("--user", "anna", "--password-file", str(directory / "password"))


def back_up(directory: Path, store: Path) -> int:
    words = ("--store", str(store), "--machine", "pc", "--disk", str(directory / "disk.img"))
    return main(["backup", *words, *who(directory)])


def fields_of_pack(data: bytes) -> dict[str, range]:
    """Source: docs/formats.md "Packs"."""
    (index,) = struct.unpack("<I", data[-4:])
    end = len(data) - 4 - index
    return {
        "magic": range(6),
        "version": range(6, 8),
        "salt": range(8, 40),
        "first piece": range(40, 72),
        "pieces": range(72, end),
        "index": range(end, len(data) - 4),
        "length of the index": range(len(data) - 4, len(data)),
    }


def fields_of_table(data: bytes) -> dict[str, range]:
    """Source: docs/formats.md "objtab.dat"."""
    summary, _ = FOOTER.unpack(data[-FOOTER.size :])
    return {
        "magic": range(6),
        "version": range(6, 8),
        "data set id": range(8, 24),
        "prefix": range(24, 29),
        "objects": range(29, summary),
        "summary": range(summary, len(data) - FOOTER.size),
        "footer": range(len(data) - FOOTER.size, len(data)),
    }


def fields_of_record(data: bytes) -> dict[str, range]:
    """Source: docs/formats.md "Records"."""
    return {
        "magic": range(6),
        "version": range(6, 8),
        "length": range(8, 12),
        "body": range(12, len(data) - 32),
        "checksum": range(len(data) - 32, len(data)),
    }


def files_of(store: Path) -> Iterator[tuple[str, Path, dict[str, range]]]:
    """Yield a file of every kind with its fields; of tables and records the newest and others."""
    user = store / "users/1"
    packs = sorted(user.glob("packs/*/*"), key=lambda path: path.stat().st_size)
    yield "pack", packs[-1], fields_of_pack(packs[-1].read_bytes())
    for path in sorted(user.glob("tables/*")):
        yield "table", path, fields_of_table(path.read_bytes())
    for path in (*sorted(user.glob("records/*")), store / "users/store.record"):
        yield "record", path, fields_of_record(path.read_bytes())


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def check(capsys: Output, place: Path, *words: str) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    code = main(["check", str(place), *words, "--json"])
    out, err = capsys.readouterr()
    assert "unforeseen" not in err
    return code, next(iter(json.loads(out).values())) if out else {}


def hold_newest_is_whole(capsys: Output, original: Path, store: Path) -> None:
    """Back up, and hold that nothing is lost of the new data set."""
    assert back_up(original, store) == 0
    with open_repository(store, "anna") as repository:
        newest = repository.data_sets()[-1]
    code, found = check(capsys, store, *who(original), "--data-set", newest.id)

    assert (code, found["findings"], found["losses"]) == (0, [], [])


def flip_and_heal(
    tmp_path: Path, original: Path, capsys: Output, flips: Iterable[tuple[str, Path, int, int]]
) -> None:
    """Flip bits, one at a time: each is noticed, and after a backup the newest is whole.

    `flips`: what is flipped, in words; the file, the position in it and the bit.
    """
    for number, (what, path, position, bit) in enumerate(flips):
        # A new place each time: this computer remembers how far each store was.
        store = tmp_path / f"store{number}"
        shutil.copytree(original / "store", store)
        flip(store / path.relative_to(original / "store"), position, bit)
        code, found = check(capsys, store, *who(original))
        assert code == DAMAGED, (what, position, bit)
        assert found["findings"], (what, position, bit)
        hold_newest_is_whole(capsys, original, store)
        shutil.rmtree(store)


def test_sample_of_store_files(tmp_path: Path, original: Path, capsys: Output) -> None:
    """One bit in two fields of every kind of file: noticed, named, healed."""
    noise = random.Random("flips")
    kinds = {kind: (path, fields) for kind, path, fields in files_of(original / "store")}
    flips = [
        (f"{kind}, {field}", path, noise.choice(fields[field]), noise.randrange(8))
        for kind, (path, fields) in kinds.items()
        for field in noise.sample(list(fields), 2)
    ]
    flip_and_heal(tmp_path, original, capsys, flips)


@pytest.mark.slow
def test_every_field_of_store_files(tmp_path: Path, original: Path, capsys: Output) -> None:
    """The same in every field of every file."""
    noise = random.Random("all fields")
    flips = [
        (f"{kind}, {field}", path, position, noise.randrange(8))
        for kind, path, fields in files_of(original / "store")
        for field, positions in fields.items()
        for position in noise.sample(positions, min(POSITIONS, len(positions)))
    ]
    flip_and_heal(tmp_path, original, capsys, flips)


def flip_catalogue(
    tmp_path: Path, original: Path, capsys: Output, noise: random.Random, count: int
) -> None:
    """Flip bits in the catalogue: noticed, or nothing that counts has changed; then repaired."""
    data = (original / "store/catalogue.db").read_bytes()
    key_file = data.index(b"RKHASH")
    positions = [key_file + 20, key_file + 100, *noise.sample(range(len(data)), count)]
    with open_repository(original / "store", "anna") as repository:
        expected = repository.data_sets(), repository.key_file()
    for number, position in enumerate(positions):
        store = tmp_path / f"store{number}"
        shutil.copytree(original / "store", store)
        (store / "catalogue-copy.db").unlink(missing_ok=True)
        flip(store / "catalogue.db", position, noise.randrange(8))
        code, found = check(capsys, store)
        if code != 0:
            assert code == DAMAGED, position
            assert found["findings"], position
            assert main(["server", "repair", "--data", str(store)]) == 0, position
        with open_repository(store, "anna") as repository:
            assert (repository.data_sets(), repository.key_file()) == expected, position
        code, found = check(capsys, store, *who(original))
        assert (code, found["findings"], found["losses"]) == (0, [], []), position
        shutil.rmtree(store)


def test_sample_of_the_catalogue(tmp_path: Path, original: Path, capsys: Output) -> None:
    """Some bits of the catalogue."""
    flip_catalogue(tmp_path, original, capsys, random.Random("catalogue"), 12)


@pytest.mark.slow
def test_many_bits_of_the_catalogue(tmp_path: Path, original: Path, capsys: Output) -> None:
    """Many bits of the catalogue, in every page."""
    flip_catalogue(tmp_path, original, capsys, random.Random("many"), 200)


def test_disc_files(
    tmp_path: Path, original: Path, capsys: Output, hollow_environment: BootEnvironment
) -> None:
    """The first, the last and some byte of every file of a disc, and of what describes it."""
    noise = random.Random("disc")
    disc = tmp_path / "disc.iso"
    with open_repository(original / "store", "anna") as repository:
        master = unlock(repository.key_file(), "anna", PASSWORD)
        newest = repository.data_sets()[-1].id
        build_disc(repository, master, newest, disc, environment=hollow_environment)
    with IsoImage.open(disc) as image:
        places = {path: (extent.position, extent.size) for path, extent in image.files.items()}
        assert image.locator is not None
        places |= {f"described {n}": part for n, part in enumerate(image.locator.parts)}
    assert check(capsys, disc)[0] == 0
    for path, (start, size) in places.items():
        for position in {start, start + size - 1, start + noise.randrange(size)}:
            bit = noise.randrange(8)
            flip(disc, position, bit)
            code, found = check(capsys, disc)
            assert code in (DAMAGED, WRONG_MEDIUM), (path, position - start)
            assert found["findings"] or code == WRONG_MEDIUM, (path, position - start)
            flip(disc, position, bit)
    assert check(capsys, disc)[0] == 0
