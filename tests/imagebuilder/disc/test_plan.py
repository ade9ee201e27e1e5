# SPDX-License-Identifier: Apache-2.0
"""The plan of a disc."""

from __future__ import annotations

import pytest

from imagebuilder.disc.plan import DiscFile, iso_path, plan_disc, volume_id_of
from imagebuilder.errors import DiscPlanError

SET_ID = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hash.dat", "/HASH.DAT;1"),
        ("manifest.json", "/MANIFEST.JSO;1"),
        ("objects/00000001.pak", "/OBJECTS/00000001.PAK;1"),
        (".disk/info", "/A_DISK/INFO.;1"),
        ("boot/grub/grub.cfg", "/BOOT/GRUB/GRUB.CFG;1"),
        ("a.b.c/d-e.f.g", "/A_B_C/D_E_F.G;1"),
        ("copies/hash.dat", "/ZCOPIES/HASH.DAT;1"),
    ],
)
def test_iso_names(path: str, expected: str) -> None:
    """Names become what ECMA-119 allows at interchange level 3."""
    assert iso_path(path) == expected


def test_volume_id_fits() -> None:
    """The volume id holds half of the data set's id and is not longer than 32 characters."""
    assert volume_id_of(SET_ID) == "REBUILDKIT_0011223344556677"


def test_directories_come_parents_first() -> None:
    """Every directory of every file is listed after the one it lies in."""
    plan = plan_disc(SET_ID, [DiscFile("boot/grub/grub.cfg", 1), DiscFile(".disk/info", 1)])

    assert plan.directories == [".disk", "boot", "boot/grub"]


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 2048), (2048, 2048), (2049, 4096)])
def test_files_fill_whole_sectors(size: int, expected: int) -> None:
    """A file takes whole sectors of 2048 bytes."""
    assert plan_disc(SET_ID, [DiscFile("a", size)]).data_size == expected


def test_size_limit_of_files() -> None:
    """A file of 2 GiB is refused by name, one byte less is not."""
    plan_disc(SET_ID, [DiscFile("a", (2 << 30) - 1)])

    with pytest.raises(DiscPlanError, match=r"big\.dat"):
        plan_disc(SET_ID, [DiscFile("big.dat", 2 << 30)])


def test_names_that_collide_are_refused() -> None:
    """Two files with one ISO 9660 name cannot both be found."""
    with pytest.raises(DiscPlanError, match="same ISO 9660 name"):
        plan_disc(SET_ID, [DiscFile("a-b", 1), DiscFile("a_b", 1)])


@pytest.mark.parametrize("set_id", ["", "xyz", SET_ID.upper(), SET_ID + "0"])
def test_wrong_set_id_is_refused(set_id: str) -> None:
    """A data set id has 32 lower-case hexadecimal digits."""
    with pytest.raises(DiscPlanError):
        plan_disc(set_id, [])
