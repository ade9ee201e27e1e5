# SPDX-License-Identifier: Apache-2.0
"""The dialogue on the disc, held on a pseudo-terminal with a real medium and real images."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from backup.shared.text import second_text
from fsdrivers.device import FileDevice
from fsdrivers.partitions import read_table
from rebuild import memory
from rebuild.dialogue import shell
from rebuild.dialogue.answers import Answers
from rebuild.dialogue.shell import Surroundings
from rebuild.disks import content_of
from rebuild.errors import MediumError
from rebuild.medium import DirectoryMedium
from rebuild.plan import TargetDisk
from tests.rebuild.dialogue.dialogues import (
    BACK,
    CONFIRM,
    DISK,
    ID,
    INCOMPLETE,
    KEYMAP,
    MENU,
    SECRET,
    Dialogue,
    assert_blank,
    assert_restored,
    make_target,
)
from tests.rebuild.dialogue.terminal import Background, Terminal, screen_of
from tests.rebuild.machines import PASSWORD, SHARED_CONTENT, USER, SmallMachine, names_in
from vm import marks

pytestmark = pytest.mark.tools


def test_whole_dialogue(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """Layout, id, password, plan, serial number: the machine is restored and verified."""
    dialogue.start(mbr_machine.medium(), fix_firmware=lambda *_: ["A note on firmware."])
    dialogue.log_in()
    dialogue.say(CONFIRM, "SN1")
    dialogue.say(MENU, "v")
    dialogue.terminal.wait_for(r"Verified by reading back: \d+ objects, all equal\.")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 0
    assert dialogue.ends == ["poweroff"]
    assert dialogue.layouts == ["us"]
    assert "A note on firmware." in dialogue.terminal.text
    assert "Result: complete." in dialogue.terminal.text
    assert_restored(mbr_machine, dialogue.targets[0])


def test_nothing_grows_if_a_person_says_so(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """On a larger disk every partition may be left as large as it was."""
    dialogue.targets[:] = [make_target("vdb", mbr_machine.disks[0].stat().st_size * 2)]
    dialogue.start(mbr_machine.medium())
    dialogue.log_in()
    dialogue.terminal.wait_for("grows")
    dialogue.say(CONFIRM, "keep")
    dialogue.terminal.wait_for("stay free")
    dialogue.say(CONFIRM, "vdb")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 0
    tables = []
    for path in (mbr_machine.disks[0], "vdb"):
        with FileDevice.open(path) as device:
            tables.append([(entry.start, entry.size) for entry in read_table(device).entries])
    assert tables[0] == tables[1]


def test_disk_that_cannot_be_read_back_is_no_success(
    mbr_machine: SmallMachine, dialogue: Dialogue
) -> None:
    """A disk that is gone when it is verified makes the result partial, and ends nothing."""
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.say(CONFIRM, "vda")
    dialogue.terminal.wait_for(MENU)
    os.unlink("vda")
    dialogue.terminal.type("v\r")
    dialogue.terminal.wait_for(r"DIFFERS vda: cannot open: No such file or directory")
    dialogue.terminal.wait_for(r"Result: partial, 1 difference found\.")
    dialogue.say(MENU, "p")

    dialogue.end()


def test_a_changed_byte_is_found_by_verifying(
    mbr_machine: SmallMachine, dialogue: Dialogue
) -> None:
    """What a disk gives back other than it was given is named, by file."""
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.say(CONFIRM, "vda")
    dialogue.terminal.wait_for(MENU)
    with open("vda", "r+b") as file:
        at = file.read().index(SHARED_CONTENT)
        file.seek(at + 3)
        file.write(b"?")
    dialogue.terminal.type("v\r")
    dialogue.terminal.wait_for(r"DIFFERS 2:/(one|two|link to one): content differs at byte 0")
    dialogue.say(MENU, "p")

    dialogue.end()


def test_plan_fits_the_screen(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """When the target is to be typed, everything from the password on is in view."""
    target = dialogue.targets[0]
    shutil.copyfile(mbr_machine.disks[0], target.path)
    dialogue.targets = [replace(target, content=content_of(target.path))]
    dialogue.start(mbr_machine.medium())
    dialogue.log_in()
    dialogue.terminal.wait_for(CONFIRM)

    shown = "\n".join(dialogue.lines)
    head = shown.index("Machine desk")
    made = shown[head:].splitlines()[0].partition("backup 1 of ")[2]
    assert shown[head:].replace(made, "TIME") == (
        "Machine desk, backup 1 of TIME\n"
        "84 objects, 9.2 MiB of files, 1 disk\n"
        "Disks of this machine:\n"
        "  vda, 62.0 MiB, QEMU HARDDISK, serial number SN1\n"
        '    mbr: 1 fat12 "ESP" 4.0 MiB, 2 ext4 "root" 48.0 MiB, 3 swap "swap" 8.0 MiB\n'
        "\n"
        "Disk sda.img, 62.0 MiB, mbr, goes to\n"
        "  vda, 62.0 MiB, QEMU HARDDISK, serial number SN1\n"
        '  ALL DATA ON IT WILL BE LOST: mbr: 1 fat12 "ESP" 4.0 MiB, 2 ext4 "root" 48.0\n'
        '    MiB, 3 swap "swap" 8.0 MiB\n'
        "   # type     label               old size    new size        used  change\n"
        "   1 fat12    ESP                  4.0 MiB     4.0 MiB    50.5 KiB  same\n"
        "   2 ext4     root                48.0 MiB    48.0 MiB    16.4 MiB  same\n"
        "   3 swap     swap                 8.0 MiB     8.0 MiB     4.0 KiB  same\n"
        "84 objects, 10.2 MiB of content will be restored.\n"
        "\n"
        "Everything on vda, QEMU HARDDISK, serial number SN1, will be erased.\n"
        "To go on, type its serial number or name [stop]:"
    )
    dialogue.terminal.type("stop\r")
    dialogue.say(MENU, "p")
    assert dialogue.end() == 24


def test_three_wrong_tries_halt(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """Wrong id or password three times: a growing delay, then halted, nothing written."""
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, "wrong")
    dialogue.say(ID, "someone")
    dialogue.say(SECRET, PASSWORD)
    dialogue.say(ID, b"\xff\x00\x03\x04\x1b[A")
    dialogue.say(SECRET, b"\xff\x00\x1c\x1a\x80" * 100)
    dialogue.terminal.wait_for(r"Three wrong tries\. Nothing was written\.")

    assert dialogue.end() == 12
    assert dialogue.ends == ["halt"]
    assert dialogue.delays == sorted(dialogue.delays)
    assert len(set(dialogue.delays)) == 2
    assert_blank(dialogue)


def test_recovery_key_opens_the_disc(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """The printed key does instead of the password, whatever id is typed, in any spelling."""
    dialogue.start(mbr_machine.medium())
    dialogue.log_in("", mbr_machine.recovery_key.lower().replace("-", " "))
    dialogue.terminal.wait_for("Machine desk")
    dialogue.say(CONFIRM, "")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 24
    assert_blank(dialogue)


def test_mistyped_recovery_key_is_told(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """A wrong character of the key: the group it is in, which helps nobody who has no key."""
    key = mbr_machine.recovery_key
    wrong = key[:7] + ("A" if key[7] != "A" else "B") + key[8:]
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, wrong)
    dialogue.terminal.wait_for(r"Perhaps group 2 of the recovery key is mistyped\.")
    dialogue.say(ID, "")
    dialogue.say(SECRET, key)
    dialogue.say(CONFIRM, "")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 24


def test_unknown_layout_is_asked_again(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """A layout that is not on the disc is said so; what the disc was made with is offered."""
    dialogue.start(mbr_machine.medium(), Answers(keymap="fr"))
    dialogue.say(KEYMAP, "klingon")
    dialogue.terminal.wait_for("does not have the layout 'klingon'")
    dialogue.say(KEYMAP, "")
    dialogue.say(ID, USER)
    dialogue.say(SECRET, mbr_machine.recovery_key)
    dialogue.say(CONFIRM, "no")
    dialogue.say(MENU, "r")

    assert dialogue.end() == 24
    assert dialogue.layouts == ["fr", "klingon", "fr"]
    assert dialogue.ends == ["reboot"]


def test_wrong_disk_is_not_erased(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """Something else than the disk's name or number is asked again, never taken for a yes."""
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    for answer in ("yes", "y", "SN2", "vdb"):
        dialogue.say(CONFIRM, answer)
        dialogue.terminal.wait_for("That is not this disk")
    dialogue.say(CONFIRM, "")
    dialogue.terminal.wait_for(r"Nothing was written\.")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 24
    assert_blank(dialogue)


def test_the_saved_machine_is_not_taken_back_by_its_name(
    mbr_machine: SmallMachine, dialogue: Dialogue, tmp_path: Path
) -> None:
    """The disk that was backed up is recognised; it takes the day of the backup as well."""
    alive = Path(shutil.copyfile(mbr_machine.disks[0], tmp_path / "alive.img"))
    dialogue.targets[:] = [replace(dialogue.targets[0], path=str(alive), size=alive.stat().st_size)]
    before = alive.read_bytes()
    dialogue.start(mbr_machine.medium())
    dialogue.log_in()
    day = second_text(mbr_machine.unlocked().header.created_ns // 10**9)[:10]
    dialogue.say(CONFIRM, "SN1")
    for answer in ("SN1", "yes", day[:-1]):
        dialogue.say(BACK, answer)
        dialogue.terminal.wait_for("That is not the day")
    assert alive.read_bytes() == before
    dialogue.say(BACK, day)
    dialogue.say(MENU, "p")

    assert dialogue.end() == 0
    assert "IS the saved machine" in dialogue.terminal.text
    assert f"takes it back to {day}" in dialogue.terminal.text
    assert_restored(mbr_machine, dialogue.targets[0])


def test_one_of_several_disks_is_chosen(
    mbr_machine: SmallMachine, dialogue: Dialogue, tmp_path: Path
) -> None:
    """Of several disks one is named; those that must not be written are shown, not taken."""
    size = dialogue.targets[0].size
    other = make_target("vdb", size, "SN2")
    stick = replace(make_target("sda", size, "STICK"), refusal="this recovery disc is on it")
    dialogue.targets += [other, stick]
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.terminal.wait_for("not offered: this recovery disc is on it")
    dialogue.say(DISK, "STICK")
    dialogue.terminal.wait_for("not the name or serial number of a free disk")
    dialogue.say(DISK, "SN2")
    dialogue.say(CONFIRM, "vdb")
    dialogue.terminal.wait_for(r"Result: complete\.")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 0
    assert_restored(mbr_machine, other)
    dialogue.targets = [dialogue.targets[0], stick]
    assert_blank(dialogue)


def test_two_disks_go_to_two_of_three(two_disk_machine: SmallMachine, dialogue: Dialogue) -> None:
    """Each recorded disk gets the one that is named for it, and each is typed once more."""
    sizes = [disk.stat().st_size for disk in two_disk_machine.disks]
    dialogue.targets = [
        make_target("vda", 2 * sizes[0], "SN1"),
        make_target("vdb", 2 * sizes[0], "SN2"),
        make_target("vdc", 2 * sizes[0], "SN3"),
    ]
    dialogue.start(two_disk_machine.medium())
    dialogue.log_in(USER, two_disk_machine.recovery_key)
    dialogue.terminal.wait_for(r"Recorded disk sda\.img, 34\.0 MiB")
    dialogue.say(DISK, "SN3")
    dialogue.terminal.wait_for(r"Recorded disk sdb\.img, 24\.0 MiB")
    dialogue.say(DISK, "vdc")
    dialogue.terminal.wait_for("not the name or serial number of a free disk")
    dialogue.say(DISK, "vda")
    dialogue.say(r"Everything on vdc,[\s\S]*" + CONFIRM, "vdc")
    dialogue.say(r"Everything on vda,[\s\S]*" + CONFIRM, "SN1")
    dialogue.terminal.wait_for(r"sda\.img 1 ext4 root: [\s\S]*sdb\.img 0 ext4 root: ")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 0
    assert_restored(two_disk_machine, dialogue.targets[2], dialogue.targets[0])
    dialogue.targets = [dialogue.targets[1]]
    assert_blank(dialogue)


def test_a_disk_may_be_left_out(two_disk_machine: SmallMachine, dialogue: Dialogue) -> None:
    """With fewer disks than were recorded the rest is told, and one may be skipped."""
    dialogue.start(two_disk_machine.medium())
    dialogue.log_in(USER, two_disk_machine.recovery_key)
    dialogue.terminal.wait_for("2 disks, this machine only 1 that can be restored to")
    dialogue.say(DISK, "skip")
    dialogue.say(DISK, "SN1")
    dialogue.terminal.wait_for(r"Disk sda\.img is left out\.")
    dialogue.say(CONFIRM, "vda")
    dialogue.terminal.wait_for(r"Result: complete\.")
    dialogue.say(MENU, "v")
    dialogue.terminal.wait_for("all equal")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 0


def test_equal_serial_numbers_name_no_disk(
    mbr_machine: SmallMachine, dialogue: Dialogue, tmp_path: Path
) -> None:
    """Where two disks have one serial number, or none, only the name will do."""
    dialogue.targets.append(make_target("vdb", dialogue.targets[0].size, "SN1"))
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.say(DISK, "SN1")
    dialogue.terminal.wait_for("not the name or serial number")
    dialogue.say(DISK, "vda")
    dialogue.terminal.wait_for("type its name ")
    dialogue.say(CONFIRM, "SN1")
    dialogue.terminal.wait_for("That is not this disk")
    dialogue.say(CONFIRM, "")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 24
    assert_blank(dialogue)


def test_too_small_a_disk_is_refused_with_numbers(
    mbr_machine: SmallMachine, dialogue: Dialogue, tmp_path: Path
) -> None:
    """The only disk is too small: the numbers, the next step, and nothing written."""
    dialogue.targets = [make_target("small", 16 << 20)]
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.terminal.wait_for(r"The recovery stopped: .*small is too small: .* needs [\d,]+")
    dialogue.terminal.wait_for(r"Nothing was written\.[\s\S]*Put in a larger disk")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 22
    assert_blank(dialogue)


def test_after_a_refusal_another_disk_may_do(
    mbr_machine: SmallMachine, dialogue: Dialogue, tmp_path: Path
) -> None:
    """With another disk at hand, a refused one leads back to the choice."""
    dialogue.targets.append(make_target("small", 16 << 20, "SN2"))
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.say(DISK, "small")
    dialogue.terminal.wait_for("This does not work: .* is too small")
    dialogue.say(DISK, "vda")
    dialogue.say(CONFIRM, "vda")
    dialogue.terminal.wait_for(r"Result: complete\.")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 0


def test_machine_without_a_disk(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """No disk that may be written: said so."""
    dialogue.targets = [replace(dialogue.targets[0], refusal="it is read-only")]
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.terminal.wait_for("no disk that can be restored to")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 24


def test_damaged_disc_names_what_is_lost(
    mbr_machine: SmallMachine, dialogue: Dialogue, tmp_path: Path
) -> None:
    """A disc without its last pack: asked before, partial after, the log names every object."""
    medium = Path(shutil.copytree(mbr_machine.medium_path, tmp_path / "medium"))
    packs = sorted((medium / "objects").iterdir())
    packs[-1].unlink()
    dialogue.start(DirectoryMedium(str(medium), "this disc"))
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.terminal.wait_for(r"This disc is incomplete: 1 of \d packs missing")
    dialogue.say(INCOMPLETE, "yes")
    dialogue.say(CONFIRM, "SN1")
    dialogue.terminal.wait_for(r"FAILED [\s\S]*Result: partial, (\d+) objects? failed")
    dialogue.say(MENU, "l")
    while dialogue.terminal.wait_for(marks.pattern("ask-page", "ask-end"))["name"] == "ask-page":
        dialogue.terminal.type("\r")
    dialogue.terminal.type("p\r")

    assert dialogue.end() == 3
    unlocked = mbr_machine.unlocked()
    last = len(unlocked.header.packs) - 1
    for name in names_in(unlocked, last, 0, unlocked.header.packs[last].size):
        if name.isprintable() and len(name) < 60:  # neither replaced nor wrapped
            assert name in dialogue.terminal.text


def test_every_step_is_marked(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """A program that reads marks alone can hold the whole dialogue, and learns how it ended."""
    answers = {
        "ask-keymap": "",
        "ask-id": USER,
        "ask-secret": "wrong",
        "ask-page": "q",
        "ask-end": "p",
    }
    dialogue.start(mbr_machine.medium())
    seen: list[str] = []
    while seen[-1:] != ["ask-end"]:
        said = dialogue.terminal.wait_for(marks.pattern())
        assert said["version"] == marks.VERSION
        if said["name"] == "refused":
            answers["ask-secret"] = PASSWORD
        if said["name"].startswith("ask-"):
            dialogue.terminal.type(answers.get(said["name"], said["value"]) + "\r")
        if said["name"] != "progress":
            seen.append(said["name"])

    assert dialogue.end() == 0
    assert seen[:6] == ["start", "ask-keymap", "ask-id", "ask-secret", "refused", "ask-id"]
    assert seen[6:] == ["ask-secret", "ask-confirm", "complete", "ask-end"]


def test_unreadable_disc_is_said(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """A disc whose files are not there: one sentence and the next step."""
    dialogue.start(DirectoryMedium("/nonexistent", "this disc"))
    dialogue.log_in(USER, PASSWORD)
    dialogue.terminal.wait_for(r"The recovery stopped: this disc holds no hash\.dat")
    dialogue.terminal.wait_for("another copy")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 20


def test_too_little_memory_is_said_before_any_disk_is_shown(
    mbr_machine: SmallMachine, dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both numbers, the state and the next step, as soon as the password has opened the table."""
    monkeypatch.setattr(memory, "memory_available", lambda: 20 << 20)
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.terminal.wait_for(MENU)

    assert dialogue.lines[-5:] == [
        "The recovery stopped: this data set needs 33 MiB of memory, and 20 MiB are",
        "  free.",
        "Nothing was written.",
        "Start from this disc on a machine with more memory.",
        "Log (l), restart (r) or power off (p)?",
    ]
    dialogue.terminal.type("p\r")
    assert dialogue.end() == 1
    assert_blank(dialogue)


def test_failing_target_keeps_the_reason_on_the_screen(
    mbr_machine: SmallMachine, dialogue: Dialogue
) -> None:
    """A disk that goes away while it is to be written: the reason, the state, the next step."""
    dialogue.start(mbr_machine.medium())
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.terminal.wait_for(CONFIRM)
    os.unlink(dialogue.targets[0].path)
    dialogue.terminal.type("vda\r")
    dialogue.terminal.wait_for(MENU)

    assert dialogue.lines[-4:] == [
        "The recovery stopped: vda cannot be opened: No such file or directory; nothing",
        "  was written to it.",
        "Replace the target disk and start from this disc again.",
        "Log (l), restart (r) or power off (p)?",
    ]
    dialogue.terminal.type("p\r")
    assert dialogue.end() == 1


def test_unforeseen_errors_end_as_a_sentence(mbr_machine: SmallMachine, dialogue: Dialogue) -> None:
    """Whatever is raised, what is left on the screen is a sentence and the menu."""
    for error in (
        RuntimeError("first\nsecond"),
        MemoryError(),
        OSError(5, "I/O error"),
        KeyError(),
    ):

        def fail(error: BaseException = error) -> list[TargetDisk]:
            raise error

        other = Dialogue(Terminal(), [])
        surroundings = Surroundings(
            screen=screen_of(other.terminal),
            medium=mbr_machine.medium(),
            answers=Answers(),
            list_targets=fail,
            set_keymap=lambda name: True,
            keymaps=("us",),
            end=other.ends.append,
        )
        other.running = Background(lambda surroundings=surroundings: shell.run(surroundings))
        other.log_in(USER, mbr_machine.recovery_key)
        other.terminal.wait_for(r"The recovery stopped: \S[^\n]*\.\r\nNothing was written\.")
        other.say(MENU, "p")
        assert other.end() == 1
        other.terminal.close()


def test_medium_errors_have_a_next_step() -> None:
    """Every error with an exit code of its own tells a person at the machine what to do."""
    from rebuild.restore import EXIT_CODES, NEXT_STEPS

    told = tuple(NEXT_STEPS)
    untold = [kind for kind in EXIT_CODES if not issubclass(kind, told)]

    assert {kind.__name__ for kind in untold} <= {
        "WrongPasswordError",
        "InvalidCredentialsError",
        "InvalidRecoveryKeyError",
        "NoSpaceError",
        "UnsupportedError",
    }
    assert EXIT_CODES[MediumError] == 20
