# SPDX-License-Identifier: Apache-2.0
"""Discs, from a repository to the image file."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from backup.objects.errors import BindingError, DamagedError
from backup.objects.keys import unlock, verify_binding
from backup.objects.locator import POSITIONS, SECTOR_SIZE
from backup.objects.manifest import parse_manifest
from backup.objects.table import TableReader
from imagebuilder.build import BuiltDisc, build_disc
from imagebuilder.disc import master as iso
from imagebuilder.disc.files import DiscOptions
from imagebuilder.disc.plan import GRUB_CONFIG, LINKS
from imagebuilder.environment.build import BootEnvironment
from imagebuilder.errors import DiscPlanError, NotEnoughRoomError
from rebuild.disc_image import IsoImage, IsoMedium, verify_disc
from tests.imagebuilder.small_repository import PASSWORD, USER, SmallRepository

TIME = 1_700_000_000


def build(
    repository: SmallRepository,
    environment: BootEnvironment,
    output: Path,
    options: DiscOptions | None = None,
) -> BuiltDisc:
    """Build a disc with a fixed time."""
    return build_disc(
        repository,
        repository.master,
        repository.data_set,
        output,
        environment=environment,
        options=options or DiscOptions(),
        created_s=TIME,
    )


def test_disc_holds_the_data_set(hollow_environment: BootEnvironment, tmp_path: Path) -> None:
    """Key file, table and packs are read back from the image; the key file is bound to them."""
    repository = SmallRepository()
    built = build(repository, hollow_environment, tmp_path / "disc.iso")

    with IsoMedium.open(built.path) as medium:
        master = unlock(medium.read_key_file(), USER, PASSWORD)
        reader = TableReader(master, medium.open_table(), medium.open_table_copy)
        assert [item.number for item in reader] == [1]
        verify_binding(medium.read_key_file(), master, reader.data_set_id)
        with pytest.raises(BindingError):
            verify_binding(medium.read_key_file(), master, bytes(16))
        for index, (digest, data) in enumerate(repository.packs.items()):
            assert medium.read_pack(index, digest, 0, len(data)) == data
            assert medium.read_pack(index, digest, len(data) - 1, 100) == data[-1:]
    assert (built.pack_count, built.machine) == (3, "desk")


def test_manifest_lists_every_file(hollow_environment: BootEnvironment, tmp_path: Path) -> None:
    """Sizes and digests of all files but the manifest itself agree with what is on the disc."""
    path = build(SmallRepository(), hollow_environment, tmp_path / "disc.iso").path

    assert verify_disc(path, lambda _name: None) == ([], 18)
    with path.open("r+b") as file:
        for place in (*POSITIONS, path.stat().st_size - SECTOR_SIZE):
            file.seek(place)
            file.write(bytes(SECTOR_SIZE))
    with IsoImage.open(path) as image:  # by its directories
        manifest = parse_manifest(image.read("manifest.json", 0, 1 << 20))
        assert {file.path for file in manifest.files} == image.files.keys() - {
            "manifest.json",
            "copies/manifest.json",
            "isolinux/boot.cat",
            *LINKS,
        }
        for link, shared in LINKS.items():
            assert image.extent_of(link) == image.extent_of(shared)
            assert image.extent_of(link).position < image.extent_of("objects/00000000.pak").position


@pytest.mark.tools
def test_foreign_reader_agrees(hollow_environment: BootEnvironment, tmp_path: Path) -> None:
    """xorriso extracts every file with the digest of the manifest and sees both boot entries."""
    path = build(SmallRepository(), hollow_environment, tmp_path / "disc.iso").path

    target = tmp_path / "out"
    command = ["xorriso", "-osirrox", "on", "-indev", str(path), "-report_el_torito", "plain"]
    command += ["-report_system_area", "plain", "-extract", "/", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "boot-info-table" in done.stdout
    assert "UEFI" in done.stdout
    assert "MBR partition path :   2  /boot/efi.img" in done.stdout
    manifest = parse_manifest((target / "manifest.json").read_bytes())
    for file in manifest.files:
        assert hashlib.sha256((target / file.path).read_bytes()).digest() == file.sha256


def test_equal_input_gives_equal_bytes(
    hollow_environment: BootEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image depends on data set, environment, options and time; not on the time zone.

    The key file is bound anew for every disc, with random numbers, so it is the one exception.
    """
    repository = SmallRepository()
    bound = repository.key_file()
    monkeypatch.setattr("imagebuilder.build.bind", lambda *_arguments: bound)
    one = build(repository, hollow_environment, tmp_path / "one.iso").path.read_bytes()
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    two = build(repository, hollow_environment, tmp_path / "two.iso").path.read_bytes()

    assert one == two


def test_damaged_pack_stops_the_build(hollow_environment: BootEnvironment, tmp_path: Path) -> None:
    """A pack that is not what its digest says is named, and no image is left behind."""
    repository = SmallRepository()
    digest = next(iter(repository.packs))
    repository.packs[digest] = b"!" + repository.packs[digest][1:]
    older = tmp_path / "disc.iso"
    older.write_bytes(b"older")

    with pytest.raises(DamagedError, match=digest.hex()[:16]):
        build(repository, hollow_environment, older)

    assert older.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disc.iso", "environment"]


def test_interrupted_build_leaves_nothing(
    hollow_environment: BootEnvironment, tmp_path: Path
) -> None:
    """Ctrl-C while the image is written removes what was written."""

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    repository = SmallRepository()
    with pytest.raises(KeyboardInterrupt):
        build_disc(
            repository,
            repository.master,
            repository.data_set,
            tmp_path / "disc.iso",
            environment=hollow_environment,
            progress=interrupt,
        )

    assert [path.name for path in tmp_path.iterdir()] == ["environment"]


def test_progress_reaches_the_end(hollow_environment: BootEnvironment, tmp_path: Path) -> None:
    """Progress ascends and ends with everything done."""
    steps: list[tuple[int, int]] = []
    repository = SmallRepository()
    build_disc(
        repository,
        repository.master,
        repository.data_set,
        tmp_path / "disc.iso",
        environment=hollow_environment,
        progress=lambda done, total: steps.append((done, total)),
    )

    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]


def test_room_is_checked_first(
    hollow_environment: BootEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room nothing is written, and the numbers are said."""
    repository = SmallRepository(pack_sizes=(1 << 20,) * 3)

    class Usage:
        free = 2_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage)
    with pytest.raises(NotEnoughRoomError, match=r"2\.0 MB free") as caught:
        build(repository, hollow_environment, tmp_path / "disc.iso")

    assert caught.value.needed > 3 << 20
    assert not (tmp_path / "disc.iso").exists()


def test_planned_size_is_enough(hollow_environment: BootEnvironment, tmp_path: Path) -> None:
    """The room asked for covers a disc of many small packs."""
    repository = SmallRepository(pack_sizes=(1,) * 600)
    needed: list[int] = []
    original = iso.check_room
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iso, "check_room", lambda path, size: needed.append(size))
        built = build(repository, hollow_environment, tmp_path / "disc.iso")

    assert original is iso.check_room
    assert built.size <= needed[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DiscOptions(keymap="fr; rdinit=/bin/sh"), "keyboard layout"),
        (DiscOptions(kernel_arguments=("a b",)), "kernel command line"),
        (DiscOptions(kernel_arguments=("a'b",)), "kernel command line"),
        (DiscOptions(answers=b"{"), "not JSON"),
        (DiscOptions(answers=b"[]"), "not a JSON object"),
        (DiscOptions(answers=b"{}" + b" " * 65536), "65,538 bytes; 65,536 are allowed"),
        (DiscOptions(answers=b"[" * 60000), "not JSON"),
        (DiscOptions(kernel_arguments=("rebuildkit.target=only",)), "belongs in an answer file"),
        (DiscOptions(kernel_arguments=("rebuildkit.grow=1",)), "belongs in an answer file"),
        (DiscOptions(answers=b'{"Password": "x"}'), "must not hold credentials"),
        (DiscOptions(answers=b'{"recovery_key": "x"}'), "must not hold credentials"),
    ],
)
def test_options_that_cannot_be(
    options: DiscOptions, message: str, hollow_environment: BootEnvironment, tmp_path: Path
) -> None:
    """Options are checked before anything is read or written."""
    with pytest.raises(DiscPlanError, match=message):
        build(SmallRepository(), hollow_environment, tmp_path / "disc.iso", options)


def test_options_reach_the_disc(hollow_environment: BootEnvironment, tmp_path: Path) -> None:
    """Keyboard layout and arguments are in both loaders' configuration; the answers are a file."""
    options = DiscOptions(
        keymap="fr",
        answers=b'{"target": "only"}',
        label="Anna's desk",
        kernel_arguments=("rebuildkit.after=reboot",),
    )
    repository = SmallRepository()
    path = build(repository, hollow_environment, tmp_path / "disc.iso", options).path

    with IsoImage.open(path) as image:
        expected = (
            f"rebuildkit.set={repository.data_set} rebuildkit.keymap=fr rebuildkit.after=reboot"
        ).encode()
        assert expected in image.read("isolinux/isolinux.cfg", 0, 4096)
        assert expected in image.read(GRUB_CONFIG, 0, 4096)
        assert image.read("answers.json", 0, 4096) == options.answers
        code = repository.master.answers_code(bytes.fromhex(repository.data_set), options.answers)
        assert image.read("answers.code", 0, 4096) == code
        assert b"Label:    Anna's desk\n" in image.read("README.txt", 0, 9999)
        info = image.read(".disk/info", 0, 999).decode()
    assert info == f"rebuildkit recovery disc\nset {repository.data_set}\ndisc 1 of 1\n"


def test_device_is_no_target(hollow_environment: BootEnvironment) -> None:
    """A device node is never replaced by a file of its name."""
    with pytest.raises(DiscPlanError, match="must be a regular file"):
        build(SmallRepository(), hollow_environment, Path("/dev/null"))

    assert Path("/dev/null").is_char_device()


def test_build_time_is_taken_from_the_environment() -> None:
    """SOURCE_DATE_EPOCH decides the time stamps; without it, now."""
    assert iso.build_time({"SOURCE_DATE_EPOCH": "1234"}) == 1234
    assert iso.build_time({}) > TIME
