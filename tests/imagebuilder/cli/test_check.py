# SPDX-License-Identifier: Apache-2.0
"""`check`: of a store, a server and a disc, with the key and without."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backup.checking.opened import ObjectNames
from backup.objects.keys import MasterKey, unlock
from backup.objects.table import TableReader
from backup.store.records import read_record
from imagebuilder.build import build_disc
from imagebuilder.cli.main import main
from imagebuilder.environment.build import BootEnvironment
from rebuild.disc_image import IsoImage, IsoMedium
from tests.backup.repositories import open_repository
from tests.imagebuilder.small_disk import make_disk
from tests.programs import run
from tests.scenario import Server

pytestmark = pytest.mark.tools
PASSWORD = "hunter22 horses"
DAMAGED = 21
Output = pytest.CaptureFixture[str]


def flip(path: Path, position: int = -1) -> None:
    """Change one bit, in the middle if nothing else is said."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position < 0 else position] ^= 0x10
    path.write_bytes(data)


def kept_in(path: Path) -> tuple[object, list[bytes]]:
    """Return what a record holds; the order of packs means nothing."""
    with path.open("rb") as stream:
        record = read_record(stream)
    return record.body, sorted(record.digests)


@dataclass
class Machine:
    """A store with two data sets of one machine; the second adds a file."""

    store: Path
    password: Path
    disk: Path

    @property
    def who(self) -> tuple[str, ...]:
        return ("--user", "anna", "--password-file", str(self.password))

    def back_up(self) -> int:
        words = ("--store", str(self.store), "--machine", "pc", "--disk", str(self.disk))
        return main(["backup", *words, *self.who])

    def packs(self) -> list[Path]:
        """Packs, the largest first."""
        found = (self.store / "users/1/packs").glob("*/*")
        return sorted(found, key=lambda path: path.stat().st_size, reverse=True)

    def tables(self) -> list[Path]:
        """Tables, by generation."""
        with open_repository(self.store, "anna") as repository:
            return [self.store / "users/1/tables" / info.id for info in repository.data_sets()]


@pytest.fixture
def machine(tmp_path: Path, capsys: Output) -> Machine:
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    machine = Machine(tmp_path / "store", password, make_disk(tmp_path))
    assert main(["register", "--store", str(machine.store), *machine.who]) == 0
    assert machine.back_up() == 0
    assert machine.back_up() == 0
    capsys.readouterr()
    return machine


def checked(capsys: Output, *words: str | Path) -> tuple[int, Any]:
    """Run the command; return its exit code and what it says of the first place."""
    capsys.readouterr()
    code = main(["check", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    return code, next(iter(json.loads(out).values()))


def test_whole_store(machine: Machine, capsys: Output) -> None:
    """Nothing is damaged: with the key, without, and of parts that are everything together."""
    for words in ((), machine.who):
        code, found = checked(capsys, machine.store, *words)
        assert (code, found["is_sound"], found["findings"]) == (0, True, [])
        assert found["data_sets"] == 2
        assert found["packs"] == found["listed_packs"] == len(machine.packs())
        parts = [
            checked(capsys, machine.store, *words, "--read-data-subset", f"{part}/3")[1]
            for part in (1, 2, 3)
        ]
        assert sum(part["packs"] for part in parts) == found["packs"]
        assert sum(part["size"] for part in parts) == found["size"]
    assert main(["check", str(machine.store)]) == 0
    assert "nothing is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("is_cut", [False, True], ids=["flipped", "cut short"])
def test_damaged_pack_is_named_and_healed(
    machine: Machine, capsys: Output, *, is_cut: bool
) -> None:
    """With the key by files, without it by data sets; after the next backup the newest is whole."""
    pack = machine.packs()[0]
    if is_cut:
        os.truncate(pack, pack.stat().st_size // 2)
    else:
        flip(pack)
    code, found = checked(capsys, machine.store)
    assert code == DAMAGED
    assert [(f["kind"], f["name"]) for f in found["findings"]] == [("pack", pack.name)]
    assert [loss["name"]["generation"] for loss in found["losses"]] == [1, 2]
    assert all(loss["paths"] == [] and loss["packs"] == 1 for loss in found["losses"])
    code, found = checked(capsys, machine.store, *machine.who)
    assert code == DAMAGED
    for loss in found["losses"]:
        assert loss["name"]["machine"] == "pc"
        assert loss["paths"]
        assert not is_cut or len(loss["paths"]) > 10
        assert all(path.startswith(("1:/", "2:/", "disk", "partition")) for path in loss["paths"])
    main(["check", str(machine.store), *machine.who])
    said = capsys.readouterr().out
    assert f"of data set {found['losses'][0]['name']['data_set'][:10]} (number 1 of pc)" in said
    assert machine.back_up() == 0
    assert "healed 1 damaged pack:" in capsys.readouterr().err
    code, found = checked(capsys, machine.store, *machine.who)

    assert code == DAMAGED
    assert [loss["name"]["generation"] for loss in found["losses"]] == [1, 2]


def test_lost_files_are_those_that_do_not_restore(machine: Machine, capsys: Output) -> None:
    """What a check calls lost is what a restore of the same data set misses."""
    flip(machine.packs()[0])
    _, found = checked(capsys, machine.store, *machine.who)
    target = machine.store.with_name("restored.img")
    words = ("--from", str(machine.store), "--disk", str(target), "--yes", "--json")
    assert main(["restore", *words, *machine.who]) == 3
    report = json.loads(capsys.readouterr().out)

    lost = {path.partition(":")[2] for path in found["losses"][-1]["paths"]}
    assert lost
    for path in lost - {"/same"}:  # another name of a file that is named
        assert path in json.dumps(report)


def test_damage_that_a_restore_finds_is_healed(machine: Machine, capsys: Output) -> None:
    """Whoever reads a damaged pack has it looked at, so the next backup sends it again."""
    flip(machine.packs()[0])
    target = ("--disk", str(machine.store.with_name("restored.img")), "--yes")
    assert main(["restore", "--from", str(machine.store), *target, *machine.who]) == 3
    capsys.readouterr()
    assert machine.back_up() == 0

    assert "healed 1 damaged pack:" in capsys.readouterr().err


@pytest.mark.root
def test_store_that_cannot_be_written(tmp_path: Path, machine: Machine, capsys: Output) -> None:
    """A store on a read-only mount is checked as any other; nothing in it changes."""
    flip(machine.packs()[0])
    flip(machine.store / "users/1/records" / machine.tables()[0].name)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    run("mount", "--bind", machine.store, mounted)
    try:
        run("mount", "-o", "remount,bind,ro", mounted)
        for words in ((), machine.who):
            code, found = checked(capsys, mounted, *words)
            assert code == DAMAGED
            assert [f["kind"] for f in found["findings"]] == ["record", "pack"]
            assert len(found["losses"]) == 2
    finally:
        run("umount", mounted)


def test_damaged_table_hides_nothing_else(machine: Machine, capsys: Output) -> None:
    """It costs its data set; the others are listed, restored, and made into discs."""
    first, second = machine.tables()
    second.unlink()
    for words in ((), machine.who):
        code, found = checked(capsys, machine.store, *words)
        assert code == DAMAGED
        assert [(f["kind"], f["name"]) for f in found["findings"]] == [("table", second.name)]
        assert [loss["is_everything"] for loss in found["losses"]] == [True]
    place = ("--store", str(machine.store), *machine.who)
    assert main(["snapshots", *place]) == 3
    out, err = capsys.readouterr()
    assert first.name[:10] in out
    assert f"data set {second.name[:10]} (number 2 of pc) cannot be read" in err
    assert main(["snapshots", *place, "--json"]) == 3
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == [first.name, second.name]
    assert "damage" in rows[1]
    assert main(["ls", *place]) == DAMAGED
    assert "missing or cut short" in capsys.readouterr().err
    assert main(["ls", "-R", *place, "--data-set", first.name]) == 0
    assert "/etc/hostname" in capsys.readouterr().out
    target = ("--disk", str(machine.store.with_name("target")), "--yes", "--data-set", first.name)
    assert main(["restore", "--from", str(machine.store), *target, *machine.who]) == 0


def test_catalogue_and_records(machine: Machine, capsys: Output) -> None:
    """A record with a flipped bit is named and written anew; a damaged catalogue is named."""
    record = machine.store / "users/1/records" / machine.tables()[0].name
    before = kept_in(record)
    flip(record)
    code, found = checked(capsys, machine.store, *machine.who)
    assert code == DAMAGED
    assert [f["name"] for f in found["findings"]] == [f"users/1/records/{record.name}"]
    assert kept_in(record) == before
    assert checked(capsys, machine.store)[0] == 0
    catalogue = machine.store / "catalogue.db"
    data = bytearray(catalogue.read_bytes())
    at = data.index(machine.tables()[0].name.encode())
    data[at] ^= 1
    catalogue.write_bytes(data)
    code, found = checked(capsys, machine.store)
    assert code == DAMAGED
    assert any(f["kind"] == "catalogue" for f in found["findings"])
    assert main(["server", "repair", "--data", str(machine.store)]) == 0

    assert checked(capsys, machine.store, *machine.who)[0] == 0


def test_a_store_that_was_set_back(tmp_path: Path, machine: Machine, capsys: Output) -> None:
    """Each file of an older copy is whole, and yet the newest data set is gone."""
    older = tmp_path / "older"
    shutil.copytree(machine.store, older)
    assert machine.back_up() == 0
    shutil.rmtree(machine.store)
    older.rename(machine.store)
    code, found = checked(capsys, machine.store, *machine.who)

    assert code == DAMAGED
    assert [(f["kind"], f["name"]) for f in found["findings"]] == [("machine", "pc")]
    assert found["losses"] == []


def test_server(tmp_path: Path, machine: Machine, capsys: Output) -> None:
    """A server reads its own files; who asks it names the files that are lost."""
    with Server(machine.store) as server:
        where = (server.url, "--fingerprint", server.fingerprint, *machine.who)
        assert checked(capsys, *where)[0] == 0
        assert checked(capsys, *where, "--read-data")[0] == 0
        pack = machine.packs()[0]
        flip(pack)
        for words in ((), ("--read-data",)):
            code, found = checked(capsys, *where, *words)
            assert code == DAMAGED
            assert [f["name"] for f in found["findings"]] == [pack.name]
            assert found["losses"][0]["paths"]
        assert main(["check", server.url]) == 2
        assert "--user" in capsys.readouterr().err


def make_disc(machine: Machine, environment: BootEnvironment, output: Path) -> Path:
    """Build the disc of the newest data set."""
    with open_repository(machine.store, "anna") as repository:
        master: MasterKey = unlock(repository.key_file(), "anna", PASSWORD)
        newest = repository.data_sets()[-1].id
        build_disc(repository, master, newest, output, environment=environment)
    return output


def test_disc(
    tmp_path: Path, machine: Machine, capsys: Output, hollow_environment: BootEnvironment
) -> None:
    """Every file is read; a damaged pack is named by its number, or by what is lost with it."""
    disc = make_disc(machine, hollow_environment, tmp_path / "disc.iso")
    for words in ((), machine.who):
        code, found = checked(capsys, disc, *words)
        assert (code, found["is_sound"]) == (0, True)
        assert found["packs"] == found["listed_packs"]
        assert found["files"] > 5
        part = checked(capsys, disc, *words, "--read-data-subset", "50%")[1]
        assert part["packs"] == max(1, round(found["packs"] / 2))
        assert main(["check", str(disc), *words, "--data-set", "ffff"]) == 2
        assert "has one data set" in capsys.readouterr().err
    with IsoImage.open(disc) as image:
        largest = max((p for p in image.files if p.startswith("objects/")), key=image.size_of)
        pack, table = image.extent_of(largest), image.extent_of("objtab.dat")
    flip(disc, pack.position + pack.size // 2)
    code, found = checked(capsys, disc)
    assert code == DAMAGED
    assert [f["name"] for f in found["findings"]] == [largest]
    code, found = checked(capsys, disc, *machine.who)
    assert code == DAMAGED
    assert [f["kind"] for f in found["findings"]] == ["pack"]
    assert found["losses"][0]["name"]["machine"] == "pc"
    assert found["losses"][0]["paths"]
    flip(disc, pack.position + pack.size // 2)
    flip(disc, table.position + table.size // 2)
    code, found = checked(capsys, disc, *machine.who)

    assert code == DAMAGED
    assert [f["name"] for f in found["findings"]] == ["objtab.dat"]
    assert found["losses"] == []  # the second copy is whole


def test_several_discs(
    tmp_path: Path, machine: Machine, capsys: Output, hollow_environment: BootEnvironment
) -> None:
    """Each gets its own report, and one that is damaged decides the exit code."""
    disc = make_disc(machine, hollow_environment, tmp_path / "disc.iso")
    copy = tmp_path / "copy.iso"
    copy.write_bytes(disc.read_bytes())
    with IsoImage.open(copy) as image:
        place = image.extent_of("hash.dat")
    flip(copy, place.position + 20)
    assert main(["check", str(disc), str(copy)]) == DAMAGED
    out = capsys.readouterr().out

    assert out.index(f"{disc}: checked") < out.index("nothing is damaged")
    assert out.index("nothing is damaged") < out.index(f"{copy}: checked")
    assert "damaged: file hash.dat" in out


@pytest.mark.parametrize("spoil", ["flip", "cut", "remove"])
def test_disc_without_what_is_lost(
    tmp_path: Path,
    machine: Machine,
    capsys: Output,
    hollow_environment: BootEnvironment,
    monkeypatch: pytest.MonkeyPatch,
    spoil: str,
) -> None:
    """By default the build stops and says how to go on; then the disc is sound, and partial."""
    monkeypatch.setattr(
        "imagebuilder.environment.build.prepare_boot_environment",
        lambda **_: hollow_environment,
    )
    pack = machine.packs()[0]
    {
        "flip": lambda: flip(pack),
        "cut": lambda: os.truncate(pack, pack.stat().st_size * 3 // 4),
        "remove": pack.unlink,
    }[spoil]()
    disc = tmp_path / "disc.iso"
    words = ("--store", str(machine.store), "--machine", "pc", *machine.who, "-o", str(disc))
    assert main(["image", "build", *words]) == DAMAGED
    said = capsys.readouterr().err
    # Nothing heals a data set that is there: the next one is whole, and another one.
    assert "what is left of this data set with --without-lost, or of another one" in said
    assert not disc.exists()
    _, found = checked(capsys, machine.store, *machine.who)
    expected = found["losses"][-1]["paths"]
    assert main(["image", "build", *words, "--without-lost", "--json"]) == 3
    built = json.loads(capsys.readouterr().out)
    assert built["lost"] == expected
    assert checked(capsys, disc, *machine.who)[0] == 0
    assert checked(capsys, disc)[0] == 0
    target = ("--disk", str(tmp_path / "target"), "--yes", "--json")
    main(["restore", "--from", str(disc), *target, *machine.who])
    report = json.loads(capsys.readouterr().out)
    assert not report["failures"]
    # Equal, but for what the disc says that it lacks.
    assert main(["compare", str(disc), "--disk", str(tmp_path / "target"), *machine.who]) == 3
    assert "equal, and not compared" in capsys.readouterr().out
    listed = unlocked_names(disc)

    lost = {path.partition(":")[2] for path in expected if ":/" in path}
    assert lost
    assert not lost & listed
    assert len(listed) > 250 or spoil != "flip"


def unlocked_names(disc: Path) -> set[str]:
    """Return the paths on a disc."""
    names = ObjectNames()
    with IsoMedium.open(disc) as medium, medium.open_table() as table:
        master = unlock(medium.read_key_file(), "anna", PASSWORD)
        reader = TableReader(master, table)
        found = {names.name_of(obj) for obj in reader}
        assert reader.summary.missing > 0
        assert reader.summary.losses
    return {name.partition(":")[2] for name in found}


def test_nothing_lost_changes_nothing(
    tmp_path: Path,
    machine: Machine,
    capsys: Output,
    hollow_environment: BootEnvironment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing is damaged the disc is of the data set itself."""
    monkeypatch.setattr(
        "imagebuilder.environment.build.prepare_boot_environment",
        lambda **_: hollow_environment,
    )
    words = ("--store", str(machine.store), *machine.who, "-o", str(tmp_path / "disc.iso"))
    assert main(["image", "build", *words, "--without-lost", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)

    assert built["data_set"] == machine.tables()[-1].name
    assert built["lost"] == []


def test_what_is_no_store(tmp_path: Path, capsys: Output) -> None:
    """A directory without anything of ours is a usage error, and stays as it is."""
    for words in ((), ("--user", "anna", "--password-file", str(tmp_path))):
        assert main(["check", str(tmp_path), *words]) == 2
        assert "is not a store" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_checked_hides_no_other(
    tmp_path: Path, machine: Machine, capsys: Output
) -> None:
    """It is named, the others are checked, and the exit code is that of the worst."""
    nothing, damaged = str(tmp_path / "none.iso"), shutil.copytree(machine.store, tmp_path / "two")
    flip(next(damaged.glob("users/1/packs/*/*")))
    words = [nothing, str(machine.store), str(damaged)]
    code = main(["check", *words])
    out, err = capsys.readouterr()
    assert code == DAMAGED
    assert err.startswith(f"rebuildkit: {nothing}: ")
    assert f"{machine.store}: checked 2 data sets" in out
    assert f"{damaged}: checked 2 data sets" in out
    alone = main(["check", nothing])
    assert main(["check", *words[:2], "--json"]) == alone
    found = json.loads(capsys.readouterr().out)

    assert alone not in (0, DAMAGED)
    assert [row["is_sound"] for row in found.values()] == [False, True]
    assert found[nothing]["error"]


@pytest.mark.parametrize("part", ["8/7", "0%", "some"])
def test_part_that_is_none(machine: Machine, capsys: Output, part: str) -> None:
    """A mistyped part is a usage error."""
    with pytest.raises(SystemExit) as error:
        main(["check", str(machine.store), "--read-data-subset", part])

    assert error.value.code == 2
    assert "argument --read-data-subset" in capsys.readouterr().err
