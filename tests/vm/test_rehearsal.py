# SPDX-License-Identifier: Apache-2.0
"""A rehearsal reads marks alone: what it does with those it cannot read, or that say no."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rebuild.dialogue.marks import mark
from tests.vm.old_pc import SECTOR, assembled
from vm import marks
from vm.rehearsal import RehearsalConfig, rehearse

GREETING = "\r\nrebuildkit recovery disc\r\nThis disc restores a whole machine. Nothing is writ"


def test_the_shell_writes_what_the_rehearsal_reads() -> None:
    """A mark comes back with its name and its value, of which nothing can end it early."""
    said = re.fullmatch(marks.pattern(), mark("stopped", "a; b\x1b\\\a\r\n"))

    assert said is not None
    assert said.group("version", "name", "value") == (marks.VERSION, "stopped", "a; b?\\???")
    assert re.search(marks.pattern("ask-id", "ask-end"), mark("ask-end"))
    assert not re.search(marks.pattern("ask-id"), mark("ask-idea"))


@pytest.mark.vm
@pytest.mark.tools
@pytest.mark.parametrize(
    ("said", "failure"),
    [
        pytest.param(GREETING, "cannot read the dialogue of this disc", id="without-marks"),
        pytest.param(
            mark("start").replace(";1;", ";2;"), "cannot read the dialogue", id="newer-marks"
        ),
        pytest.param(
            mark("start") + mark("stopped", "No disk."), "the disc said: No disk.", id="stopped"
        ),
    ],
)
def test_what_cannot_be_rehearsed_is_told(tmp_path: Path, said: str, failure: str) -> None:
    """A disc of another release, or one that gives up, ends the rehearsal with the reason."""
    disc = tmp_path / "disc.iso"
    code = assembled(Path(__file__).with_name("says.s")) + said.encode()
    disc.write_bytes((code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    config = RehearsalConfig(disc, [1 << 20], "anna", "secret", medium="usb", prompt_timeout_s=60.0)

    report = rehearse(config, lambda paths: ("", {}))

    assert failure in report.failure
    assert not report.is_proven
