# SPDX-License-Identifier: Apache-2.0
"""Answers that lie on the disc: what they may decide, and what they may not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backup.objects.keys import MasterKey
from rebuild.dialogue.answers import AnswerFile, Answers
from rebuild.medium import DirectoryMedium
from tests.rebuild.dialogue.dialogues import (
    CONFIRM,
    ID,
    KEYMAP,
    MENU,
    SECRET,
    Dialogue,
    assert_blank,
    assert_restored,
    make_target,
)
from tests.rebuild.machines import USER, SmallMachine
from vm import marks

pytestmark = pytest.mark.tools


def sealed_answers(machine: SmallMachine, text: str) -> AnswerFile:
    """Return the answers that the owner of a machine put on its disc."""
    data_set_id = machine.unlocked().header.data_set_id
    return AnswerFile(text.encode(), machine.master.answers_code(data_set_id, text.encode()))


@pytest.mark.parametrize("target", ["only", "SN1", "vda"])
def test_answers_given_beforehand(
    mbr_machine: SmallMachine, dialogue: Dialogue, target: str
) -> None:
    """With answers for all else, only id and password are asked."""
    answers = Answers.collect(
        sealed_answers(
            mbr_machine,
            f'{{"keymap": "de", "target": "{target}", "verify": 1, "after": "halt", "grow": "0"}}',
        ),
        ["quiet", "rebuildkit.set=00", "rebuildkit.after=reboot"],
    )
    dialogue.start(mbr_machine.medium(), answers)
    dialogue.say(ID, USER)
    dialogue.say(SECRET, mbr_machine.recovery_key)

    assert dialogue.end() == 0
    assert answers.problems == []
    assert "Answers on this disc are in force: keymap de, verify 1, after reboot.\r\n" in (
        dialogue.terminal.text
    )
    assert f"owner are in force: target {target}, grow 0.\r\n" in dialogue.terminal.text
    assert dialogue.layouts == ["de"]
    assert dialogue.ends == ["reboot"]
    assert "all equal" in dialogue.terminal.text
    assert_restored(mbr_machine, dialogue.targets[0])


@pytest.mark.parametrize("target", ["SN2", "sdz", "vda,vdb", "only"])
def test_answers_that_fit_no_disk_write_nothing(
    mbr_machine: SmallMachine, dialogue: Dialogue, tmp_path: Path, target: str
) -> None:
    """A target named beforehand that is not exactly one free disk: refused, nothing written."""
    if target == "only":
        dialogue.targets.append(make_target("vdb", dialogue.targets[0].size, "SN3"))
    file = sealed_answers(mbr_machine, f'{{"target": "{target}"}}')
    dialogue.start(mbr_machine.medium(), Answers.collect(file, []))
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.terminal.wait_for("The recovery stopped: the answers name")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 24
    assert_blank(dialogue)


@pytest.mark.parametrize("how", ["no code", "other data set", "changed", "other key", "argument"])
def test_planted_answers_erase_nothing_unasked(
    mbr_machine: SmallMachine, dialogue: Dialogue, how: str
) -> None:
    """Answers that the owner of the data set did not write: said so, and the disk is asked for."""
    file = sealed_answers(mbr_machine, '{"keymap": "us", "target": "only", "grow": 0}')
    other_key = MasterKey(bytes(32)).answers_code(bytes(16), file.data)
    words: list[str] = []
    if how == "no code":
        file = AnswerFile(file.data)
    elif how == "other data set":
        file = AnswerFile(file.data, mbr_machine.master.answers_code(bytes(16), file.data))
    elif how == "changed":
        file = AnswerFile(file.data + b" ", file.code)
    elif how == "other key":
        file = AnswerFile(file.data, other_key)
    else:
        file, words = AnswerFile(b'{"keymap": "us"}'), ["rebuildkit.target=only"]
        words.append("rebuildkit.grow=0")
    answers = Answers.collect(file, words)
    dialogue.start(mbr_machine.medium(), answers)
    if how == "argument":
        dialogue.terminal.answer(KEYMAP, "")
    dialogue.say(ID, USER)
    dialogue.say(SECRET, mbr_machine.recovery_key)
    dialogue.terminal.wait_for(CONFIRM)

    assert_blank(dialogue)
    assert "The answer for 'target' is not used" in dialogue.terminal.text
    assert "The answer for 'grow' is not used" in dialogue.terminal.text
    assert "owner are in force" not in dialogue.terminal.text
    dialogue.terminal.type("\r")
    dialogue.say(MENU, "p")
    assert dialogue.end() == 24
    assert_blank(dialogue)


def test_recovery_key_at_the_id_needs_no_password(
    mbr_machine: SmallMachine, dialogue: Dialogue
) -> None:
    """The key typed where the id belongs opens the disc; neither screen nor log has it."""
    key = mbr_machine.recovery_key
    dialogue.start(mbr_machine.medium())
    dialogue.say(KEYMAP, key)
    dialogue.say(KEYMAP, "")
    dialogue.say(ID, key)
    dialogue.say(CONFIRM, key)
    dialogue.say(CONFIRM, "")
    dialogue.say(MENU, key)
    dialogue.say(MENU, "l")
    while dialogue.terminal.wait_for(marks.pattern("ask-page", "ask-end"))["name"] == "ask-page":
        dialogue.terminal.type("\r")
    dialogue.terminal.type("p\r")
    dialogue.terminal.display.wrapped = 0  # asterisks for a key take more than the rest of a line

    assert dialogue.end() == 24
    said = "".join(filter(str.isalnum, dialogue.terminal.text)).upper()
    assert not any(group in said for group in key.split("-"))


def test_answers_for_an_incomplete_disc_are_no_consent(
    mbr_machine: SmallMachine, dialogue: Dialogue, tmp_path: Path
) -> None:
    """Nobody is there to agree to a loss: the unattended restore stops."""
    medium = Path(shutil.copytree(mbr_machine.medium_path, tmp_path / "medium"))
    next((medium / "objects").iterdir()).unlink()
    dialogue.start(DirectoryMedium(str(medium), "this disc"), Answers(targets=("only",)))
    dialogue.log_in(USER, mbr_machine.recovery_key)
    dialogue.terminal.wait_for("The recovery stopped: this disc is incomplete")
    dialogue.say(MENU, "p")

    assert dialogue.end() == 20
    assert_blank(dialogue)


@pytest.mark.parametrize(
    ("file", "words", "problem"),
    [
        (b"[]", [], "not a JSON object"),
        (b"\xff", [], "not a JSON object"),
        (b"[" * 60000, [], "not a JSON object"),
        (b'{"password": "x"}', [], "'password' is not used"),
        (None, ["rebuildkit.grow=last"], "'grow' is not used"),
        (None, ["rebuildkit.after=shell"], "'after' is not used"),
        (None, ["rebuildkit.verify=perhaps"], "'verify' is not used"),
    ],
)
def test_answers_not_understood_are_asked(
    file: bytes | None, words: Sequence[str], problem: str
) -> None:
    """An answer that cannot be used is named and the question asked; nothing fails."""
    answers = Answers.collect(None if file is None else AnswerFile(file), words)

    assert [problem in text for text in answers.problems] == [True]
    assert replace(answers, problems=[], file=None) == Answers()
