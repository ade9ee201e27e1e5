# SPDX-License-Identifier: Apache-2.0
"""What tests of the dialogue start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rebuild.dialogue.dialogues import Dialogue, make_target
from tests.rebuild.dialogue.terminal import Terminal
from tests.rebuild.machines import SmallMachine


@pytest.fixture
def dialogue(
    mbr_machine: SmallMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dialogue]:
    """A dialogue with one blank disk of the recorded size, whose path is as short as a disk's."""
    monkeypatch.chdir(tmp_path)
    size = mbr_machine.disks[0].stat().st_size
    made = Dialogue(Terminal(), [make_target("vda", size)])
    yield made
    made.terminal.close()
