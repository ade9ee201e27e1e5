# SPDX-License-Identifier: Apache-2.0
"""Machines that many tests read and none changes."""

from __future__ import annotations

import pytest

from tests.rebuild.machines import (
    SmallMachine,
    make_gpt_machine,
    make_mbr_machine,
    make_two_disk_machine,
)


@pytest.fixture(scope="session")
def mbr_machine(tmp_path_factory: pytest.TempPathFactory) -> SmallMachine:
    """A machine with one MBR disk and its medium."""
    return make_mbr_machine(tmp_path_factory.mktemp("mbr"))


@pytest.fixture(scope="session")
def gpt_machine(tmp_path_factory: pytest.TempPathFactory) -> SmallMachine:
    """A machine with one GPT disk and its medium."""
    return make_gpt_machine(tmp_path_factory.mktemp("gpt"))


@pytest.fixture(scope="session")
def two_disk_machine(tmp_path_factory: pytest.TempPathFactory) -> SmallMachine:
    """A machine with two disks and its medium."""
    return make_two_disk_machine(tmp_path_factory.mktemp("two"))
