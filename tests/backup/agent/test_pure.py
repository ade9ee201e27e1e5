# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the agent: regions, pieces, slices, exclusions."""

from __future__ import annotations

import pytest

from backup.agent.exclusions import Watched, compile_exclusions
from backup.agent.local_set import Work
from backup.agent.regions import group_pieces, iter_pieces, regions_of
from backup.agent.slices import cut_slices
from backup.objects.model import Region

MIB = 1 << 20


@pytest.mark.parametrize(
    ("extents", "size", "expected"),
    [
        pytest.param([(0, 4096, False)], 100, None, id="dense-in-one-block"),
        pytest.param([(0, 4096, False), (4096, 8192, False)], 12288, None, id="dense-in-two"),
        pytest.param([], 0, None, id="empty"),
        pytest.param([], 9000, (), id="all-hole"),
        pytest.param([(4096, 4096, False)], 8192, ((4096, 4096, False),), id="hole-first"),
        pytest.param([(0, 4096, False)], 8192, ((0, 4096, False),), id="hole-last"),
        pytest.param([(0, 8192, True)], 5000, ((0, 5000, True),), id="unwritten"),
        pytest.param(
            [(0, 4096, False), (4096, 4096, True)],
            8192,
            ((0, 4096, False), (4096, 4096, True)),
            id="written-then-unwritten",
        ),
        pytest.param(
            [(0, 4096, False), (8192, 1 << 30, True)],
            4096,
            None,
            id="preallocated-behind-the-end",
        ),
    ],
)
def test_regions(
    extents: list[tuple[int, int, bool]],
    size: int,
    expected: tuple[tuple[int, int, bool], ...] | None,
) -> None:
    """Regions join what touches, end with the file, and are None exactly when all is data."""
    regions = regions_of(extents, size)

    assert regions == (None if expected is None else tuple(Region(*r) for r in expected))


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 7])
def test_pieces_of_a_dense_file(size: int) -> None:
    """The pieces of a dense file cover it, each within one mebibyte of the grid."""
    pieces = list(iter_pieces(None, size))

    assert sum(length for _, length in pieces) == size
    assert [offset for offset, _ in pieces] == list(range(0, size, MIB))


def test_pieces_leave_out_holes_and_unwritten_parts() -> None:
    """Only written regions have pieces, cut at their own ends and at the grid."""
    regions = [(4096, MIB, False), (2 * MIB, MIB, True), (4 * MIB - 1, 2, False)]

    assert list(iter_pieces(regions, 5 * MIB)) == [
        (4096, MIB - 4096),
        (MIB, 4096),
        (4 * MIB - 1, 1),
        (4 * MIB, 1),
    ]


def test_groups_of_pieces() -> None:
    """Groups hold consecutive pieces up to the limit, and one piece at least."""
    assert list(group_pieces([(0, 3), (3, 3), (6, 9), (15, 1)], 6)) == [
        ((0, 3), (3, 3)),
        ((6, 9),),
        ((15, 1),),
    ]
    assert list(group_pieces([], 6)) == []


def test_slices_cover_the_work_in_order() -> None:
    """Slices are consecutive, never empty, and within both limits unless one work exceeds them."""
    sizes = [5, 5, 1, 20, 1, 1, 1, 1]
    work = [Work(place, 0, None, None, size) for place, size in enumerate(sizes)]
    slices = cut_slices(work, 10, 3)

    assert slices == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8)]
    assert cut_slices([], 10, 3) == []


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        ([b"/var/cache"], b"/var/cache", True),
        ([b"/var/cache/"], b"/var/cache", True),
        ([b"/var/cache"], b"/var/cache2", False),
        ([b"*.iso"], b"/home/a/disc.iso", True),
        ([b"/home/*/.cache"], b"/home/me/.cache", True),
        ([b"/home/*/.cache"], b"/home/me/cache", False),
        ([b"/tmp/\xff?"], b"/tmp/\xff\xfe", True),
        ([b"/tmp/a\n*"], b"/tmp/a\nb", True),
    ],
)
def test_exclusions(patterns: list[bytes], path: bytes, expected: bool) -> None:
    """A plain pattern names one path, one with wildcards is matched against the whole path."""
    is_excluded = compile_exclusions(patterns)

    assert is_excluded is not None
    assert is_excluded(path) is expected


@pytest.mark.parametrize(
    ("pattern", "paths", "said"),
    [
        (b"/usr/**", [b"/usr", b"/usr/bin", b"/usr/lib", b"/usr/share"], "/usr/bin, /usr/lib:"),
        (b"/boot/*", [b"/boot/vmlinuz-6.1", b"/boot/config-6.1"], "/boot/vmlinuz-6.1:"),
        (b"/W*", [b"/Windows", b"/WORK"], "/Windows:"),
        (b"/*", [b"/bin", b"/etc", b"/lib", b"/usr", b"/home"], "/bin, /etc, /lib and 1 more:"),
        (b"/var/cache/*", [b"/var/cache/apt", b"/usr/bin"], ""),
        (b"/home/*", [b"/home/usr", b"/home/anna"], ""),
    ],
)
def test_exclusions_of_what_a_start_needs(pattern: bytes, paths: list[bytes], said: str) -> None:
    """Only what is there and left out is named, the first three."""
    is_excluded = compile_exclusions([pattern])
    assert is_excluded is not None
    watched = Watched(is_excluded)
    for path in paths:
        assert watched(path) == is_excluded(path)

    assert bool(watched.note()) == bool(said)
    assert said in watched.note()


def test_no_exclusions() -> None:
    """Without patterns there is no test to be made for each path."""
    assert compile_exclusions([]) is None
