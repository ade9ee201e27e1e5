# SPDX-License-Identifier: Apache-2.0
"""FAT names."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdrivers.errors import InvalidNameError, UnsupportedError
from fsdrivers.fat.codepage import CODE_PAGES, DOUBLE_BYTE_PAGES, code_page
from fsdrivers.fat.directory import iter_slots, pack_slots
from fsdrivers.fat.names import (
    checksum_of,
    is_legal_short_name,
    name_of_units,
    shown_name,
    store_name,
    store_names,
    units_of,
)
from fsdrivers.volume import Entry, Kind, Node

UNITS = st.lists(
    st.one_of(st.integers(1, 0xFFFF), st.sampled_from([0xD83D, 0xDE00, 0xFFFF, 0x20, 0x2E])),
    min_size=1,
    max_size=255,
).map(lambda units: b"".join(unit.to_bytes(2, "little") for unit in units))


def entry(name: bytes, short_name: bytes = b"", flags: int = 0) -> Entry:
    return Entry(1, name, Node(2, Kind.FILE), short_name, flags)


def stored(*entries: Entry) -> list[tuple[bytes, int, bool]]:
    """Return (short name, case flags, has a long name) of each."""
    return [(n.short_name, n.case_flags, bool(n.units)) for n in store_names(entries)]


def read_back(*entries: Entry) -> list[tuple[bytes, bytes]]:
    """Write the names of a directory and return (name, short name) as they are read."""
    data = b"".join(
        pack_slots(entry.node, name, 0, 16)
        for entry, name in zip(entries, store_names(entries), strict=True)
    )
    return [(slot.name, slot.entry.name) for slot in iter_slots([(0, data)])]


@given(UNITS)
def test_any_units_survive(units: bytes) -> None:
    """Any sequence of code units, lone surrogates too, is the same after bytes and back."""
    name = name_of_units(units)

    if name is not None:
        assert units_of(name) == units
    else:
        assert b"/\0" in units or units in (b".\0", b".\0.\0")


@settings(max_examples=50)
@given(st.lists(UNITS, max_size=20, unique=True))
def test_names_survive_a_directory(all_units: list[bytes]) -> None:
    """Names without 8.3 forms get some that are unique and legal, and are read as they were."""
    names = [name for units in all_units if (name := name_of_units(units)) is not None]

    found = read_back(*map(entry, names))

    shorts = [short for _, short in found]
    assert [name for name, _ in found] == names
    assert len(set(shorts)) == len(shorts)
    assert all(map(is_legal_short_name, shorts))


@given(st.binary(min_size=11, max_size=11), st.sampled_from([0, 8, 16, 24]))
def test_any_short_name_shows_a_path_component(short_name: bytes, flags: int) -> None:
    """Whatever eleven bytes there are, the name is UTF-8, no dots alone, no slash, not empty."""
    if short_name in (b".          ", b"..         "):
        return
    name = shown_name(short_name, flags)

    assert name.decode()
    assert b"/" not in name
    assert b"\0" not in name
    assert name not in (b".", b"..")
    if is_legal_short_name(short_name):
        assert stored(entry(name, short_name, flags)) == [(short_name, flags, False)]


@pytest.mark.parametrize(
    ("short_name", "flags", "name"),
    [
        (b"README  TXT", 0, "README.TXT"),
        (b"README  TXT", 8, "readme.TXT"),
        (b"README  TXT", 16, "README.txt"),
        (b"README  TXT", 24, "readme.txt"),
        (b"NOEXT      ", 0, "NOEXT"),
        (b"EA DATA  SF", 0, "EA DATA. SF"),
        (b"\x05BC     TXT", 0, "σBC.TXT"),  # noqa: RUF001
        (b"\x90T\x90     TXT", 8, "été.TXT"),
        (b"           ", 0, "␠"),
        (b"A/B     C\x01D", 0, "A⁄B.C☺D"),  # noqa: RUF001
    ],
)
def test_shown_name(short_name: bytes, flags: int, name: str) -> None:
    """8.3 names are shown with case bits, in code page 437, as something a path can hold."""
    assert shown_name(short_name, flags) == name.encode()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("README.TXT", (b"README  TXT", 0, False)),
        ("readme.txt", (b"README  TXT", 24, False)),
        ("README.txt", (b"README  TXT", 16, False)),
        ("readme", (b"README     ", 8, False)),
        ("ReadMe.txt", (b"README  TXT", 0, True)),
        ("a long name.text", (b"ALONGN~1TEX", 0, True)),
        (".profile", (b"PROFIL~1   ", 0, True)),
        ("archive.tar.gz", (b"ARCHIV~1GZ ", 0, True)),
        ("trailing.", (b"TRAILI~1   ", 0, True)),
        ("a+b", (b"A_B~1      ", 0, True)),
        ("äöü", (b"\x8e\x99\x9a        ", 0, True)),
        ("æ日本", (b"\x92__~1      ", 0, True)),
        ("ßß.ß", (b"\xe1\xe1      \xe1  ", 0, True)),
        ("   ", (b"_~1        ", 0, True)),
        ("...", (b"_~1        ", 0, True)),
    ],
)
def test_made_short_name(name: str, expected: tuple[bytes, int, bool]) -> None:
    """Short names are made as Windows makes them; case bits stand in for long names."""
    assert stored(entry(name.encode())) == [expected]


def test_recorded_short_name_is_kept() -> None:
    """A recorded short name wins over one that would be made up, whatever comes first."""
    found = stored(entry(b"Some Text.txt"), entry(b"Some Text 2.txt", b"SOMETE~1TXT"))

    assert found == [(b"SOMETE~2TXT", 0, True), (b"SOMETE~1TXT", 0, True)]


def test_clashing_short_names() -> None:
    """Of two entries with one recorded short name the second gets another."""
    found = stored(entry(b"One.text", b"SAME    TXT"), entry(b"SAME.TXT", b"SAME    TXT"))

    assert found == [(b"SAME    TXT", 0, True), (b"SAME~1  TXT", 0, True)]


def test_many_similar_names() -> None:
    """Ten thousand similar names get ten thousand short names, in time that stays linear."""
    shorts = [s for s, _, _ in stored(*(entry(b"similar name %d.txt" % i) for i in range(10_000)))]

    assert len(set(shorts)) == 10_000
    assert shorts[:4] == [b"SIMILA~%dTXT" % number for number in range(1, 5)]
    assert all(short[:2] == b"SI" and short[6:7] == b"~" for short in shorts[4:])


@pytest.mark.parametrize("page", [*CODE_PAGES, *DOUBLE_BYTE_PAGES])
def test_code_pages(page: str) -> None:
    """Whatever the code page, 8.3 names show what a path can hold, new names are found again."""
    chosen = code_page(page)
    shown = {shown_name(bytes([byte]) * 11, 0, chosen) for byte in range(256)}

    assert not any(b"/" in name or b"\0" in name for name in shown)
    for character in random.Random(1).sample(
        sorted(chosen.bytes_of), min(500, len(chosen.bytes_of))
    ):
        stored_name = store_name(character.encode(), set(), chosen)
        assert shown_name(stored_name.short_name, 0, chosen) == character.encode()


@pytest.mark.parametrize(
    ("page", "short_name"),
    [("437", b"\x80_~1       "), ("850", b"\x80\xe5         "), ("cp1252", b"\xc7\xd5         ")],
)
def test_chosen_code_page(page: str, short_name: bytes) -> None:
    """8.3 names are made in the code page asked for."""
    found = store_name("Çõ".encode(), set(), code_page(page))

    assert found.short_name == short_name


def test_unknown_code_page() -> None:
    """A code page that no DOS had is refused by name."""
    with pytest.raises(UnsupportedError, match="utf-8"):
        code_page("utf-8")


@pytest.mark.parametrize(
    ("page", "name", "short_name"),
    [
        ("932", "表示.txt", b"\x95\x5c\x8e\xa6    TXT"),  # the second byte is a backslash
        ("932", "ｱｲｳ.Txt", b"\xb1\xb2\xb3     TXT"),  # half as wide, one byte each
        ("932", "日本語の名前.txt", b"\x93\xfa\x96\x7b\x8c\xea~1TXT"),
        ("932", "a日本語の名前.txt", b"A\x93\xfa\x96\x7b~1 TXT"),  # no character is torn
        ("932", "蝦.txt", b"\x89\xda      TXT"),
        ("936", "文件.txt", b"\xce\xc4\xbc\xfe    TXT"),
        ("949", "한글.txt", b"\xc7\xd1\xb1\xdb    TXT"),
        ("950", "功能.txt", b"\xa5\x5c\xaf\xe0    TXT"),
        ("932", "蕁.txt", b"\x05\x40      TXT"),  # its first byte would mean "deleted"
    ],
)
def test_double_byte_code_pages(page: str, name: str, short_name: bytes) -> None:
    """8.3 names of East Asia are made, shown and kept, whatever their second bytes are."""
    chosen = code_page(page)
    made = store_name(name.encode(), set(), chosen)
    without_long = shown_name(made.short_name, 0, chosen).decode()

    assert made.short_name == short_name
    if "~" not in name and b"~" not in short_name:
        assert without_long == name.upper()
    assert is_legal_short_name(short_name, has_pairs=True)
    kept = list(store_names([entry(without_long.encode(), short_name)], chosen))
    assert [(item.short_name, item.units) for item in kept] == [(short_name, b"")]
    blind = shown_name(short_name, 0)  # by who does not know the code page
    assert next(store_names([entry(blind, short_name)])).short_name == short_name


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0b", b".", b"..", b"\xff", b"x" * 256])
def test_impossible_name(name: bytes) -> None:
    """Names that FAT cannot hold are refused."""
    with pytest.raises(InvalidNameError):
        stored(entry(name))


def test_longest_name() -> None:
    """255 units fit, in twenty slots and the 8.3 one."""
    name = ("☃" * 255).encode()

    assert read_back(entry(name))[0][0] == name
    assert next(store_names([entry(name)])).slot_count == 21


def test_checksum() -> None:
    """The checksum rotates right and adds."""
    assert checksum_of(b"\x01" + b"\0" * 10) == 0x40
    assert checksum_of(b"FILENAMETXT") == _slow_checksum(b"FILENAMETXT")


def _slow_checksum(name: bytes) -> int:
    total = 0
    for value in name:
        total = ((0x80 if total & 1 else 0) + (total >> 1) + value) % 256
    return total
