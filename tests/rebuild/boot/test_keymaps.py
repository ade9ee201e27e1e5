# SPDX-License-Identifier: Apache-2.0
"""Keyboard layouts: whole, and able to type what ids and passwords are made of."""

from __future__ import annotations

import string

import pytest

from rebuild.boot.keymaps import KEYMAPS, action_of, entries_of, load_keymap

ROW_LENGTHS = (13, 12, 12, 11)


@pytest.mark.parametrize("name", KEYMAPS)
def test_every_printable_character_has_a_key(name: str) -> None:
    """Each layout types all of ASCII, whatever else; the space bar is the kernel's own."""
    actions = {action for _, _, action in entries_of(KEYMAPS[name])}
    wanted = set(string.printable) - set(string.whitespace)

    assert {character for character in wanted if action_of(character) not in actions} == set()


@pytest.mark.parametrize("name", KEYMAPS)
def test_rows_are_as_long_as_the_keyboard(name: str) -> None:
    """A row of characters has one for every key, so none is one key too far."""
    layout = KEYMAPS[name]
    for rows in (layout.plain, layout.shift):
        lengths = tuple(map(len, rows))
        assert lengths[:3] == ROW_LENGTHS[:3]
        assert lengths[3] in (11, 12)
    for row, length in zip(layout.altgr, ROW_LENGTHS, strict=True):
        assert len(row) in (0, length, length + 1)


@pytest.mark.parametrize("name", KEYMAPS)
def test_no_key_is_listed_twice(name: str) -> None:
    """One action for each key and shift state."""
    keys = [(table, code) for table, code, _ in entries_of(KEYMAPS[name])]

    assert len(keys) == len(set(keys))


def test_actions_are_the_kernels() -> None:
    """Letters follow Caps Lock, other ASCII is plain, the rest is Unicode."""
    assert [action_of(c) for c in "aA1é€"] == [0xB61, 0xB41, 0x31, 0xE9 ^ 0xF000, 0x20AC ^ 0xF000]


def test_french_caps() -> None:
    """The keys that differ between a French and an American keyboard say what they should."""
    entries = {(table, code): action for table, code, action in entries_of(KEYMAPS["fr"])}

    assert entries[0, 16] == action_of("a")  # the key right of Tab
    assert entries[0, 39] == action_of("m")
    assert entries[1, 2] == action_of("1")
    assert entries[2, 11] == action_of("@")


def test_unknown_layout_is_not_loaded() -> None:
    """An unknown layout is told; a machine without a console does not fail."""
    assert not load_keymap("klingon")
    assert load_keymap("fr", console="/nonexistent")
