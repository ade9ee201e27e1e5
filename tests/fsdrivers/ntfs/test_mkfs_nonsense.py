# SPDX-License-Identifier: Apache-2.0
"""What cannot become an NTFS volume is refused by name, and damage is one of our errors."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    FilesystemError,
    InvalidNameError,
    UnsupportedError,
)
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.mkfs import default_description, plan_volume
from fsdrivers.ntfs.nodes import (
    XATTR_ACL,
    XATTR_EA,
    XATTR_EFS,
    XATTR_INFORMATION,
    XATTR_OBJECT_ID,
    XATTR_REPARSE,
)
from fsdrivers.volume import Description, Entry, Kind, Node, Plain, Stream
from tests.fsdrivers.ntfs.trees import ACLS, ENCRYPTED, MIB, ROOT, T0, Forest, plan_of, rooted


@pytest.fixture(scope="module")
def plain() -> Description:
    """Describe a volume with usual clusters."""
    return default_description(32 * MIB, label=b"plain", serial=0x1234, now_ns=T0)


def test_impossible_nodes_are_an_error(plain: Description) -> None:
    """Sizes below zero, attributes of more than 32 bits and streams that are there twice."""
    for fields in (
        {"size": -1},
        {"flags": 1 << 32},
        {"flags": 1 << 40, "streams": (Stream(b"s", 1),)},
        {"streams": (Stream(b"s", -1),)},
        {"streams": (Stream(b"s", 1, 1 << 20),)},
        {"streams": (Stream(b"s", 1), Stream(b"s", 2))},
        {"streams": (Stream(b"", 1000, ENCRYPTED, 600),)},
        {"xattrs": ((XATTR_ACL, b"short"),)},
        {"xattrs": ((XATTR_OBJECT_ID, b"short"),)},
        {"xattrs": ((XATTR_REPARSE, b"short"),)},
        {"xattrs": ((XATTR_EA, b"short"),)},
        {"xattrs": ((XATTR_INFORMATION, b"short"),)},
    ):
        forest = rooted()
        forest.add(ROOT, b"x", forest.node(100, **fields))
        with pytest.raises(CorruptError):
            plan_of(forest, plain, 32 * MIB)


def test_equal_names_are_refused(plain: Description) -> None:
    """Two equal names in a directory, and names of system files, end the plan."""
    for names, error in (
        ((b"same", b"same"), AlreadyExistsError),
        ((b"$MFT",), InvalidNameError),
        ((b"a/b",), InvalidNameError),
        ((b"a\0b",), InvalidNameError),
        ((b"",), InvalidNameError),
        ((b"n" * 256,), InvalidNameError),
        ((b"\xff",), InvalidNameError),
    ):
        forest = rooted()
        for number, name in enumerate(names):
            forest.add(ROOT, name, forest.node(100 + number))
        with pytest.raises(error):
            plan_of(forest, plain, 32 * MIB)


def test_what_ntfs_has_no_place_for_is_refused_by_name(plain: Description) -> None:
    """Other kinds of node, other attributes, and old or deduplicated volumes are not attempted."""
    for kind in (Kind.SYMLINK, Kind.FIFO, Kind.BLOCK_DEVICE):
        forest = rooted()
        forest.add(ROOT, b"x", forest.node(100, kind))
        with pytest.raises(UnsupportedError, match=r"symlink|fifo|block device"):
            plan_of(forest, plain, 32 * MIB)
    forest = rooted()
    forest.add(ROOT, b"x", forest.node(100, xattrs=((b"user.thing", b"value"),)))
    with pytest.raises(UnsupportedError, match=r"user\.thing"):
        plan_of(forest, plain, 32 * MIB)
    for change in ({"version_major": 1, "version_minor": 2}, {"is_deduplicated": True}):
        with pytest.raises(UnsupportedError):
            plan_of(rooted(), {**plain, **change}, 32 * MIB)
    with pytest.raises(UnsupportedError, match="sectors of 8192"):
        plan_volume(plain, size=MIB, sector_size=8192, entries=rooted().entries, order=())


def test_a_damaged_description_is_an_error(plain: Description) -> None:
    """A key that is missing or of a wrong type is reported, whatever it is."""
    needed = set(plain) - {
        "type", "size", "sector_size", "cluster_size", "record_size", "index_block_size",
        "serial", "version", "quota", "usn_maximum",
    }  # fmt: skip
    for key in needed:
        values: tuple[Plain, ...] = (None, [], {"x": 1}, "text")
        for value in values:
            with pytest.raises(CorruptError):
                plan_of(rooted(), {**plain, key: value}, 32 * MIB)


@given(
    where=st.sampled_from(("top", "bpb", "system_files", "quota")),
    value=st.one_of(
        st.integers(min_value=-(1 << 70), max_value=1 << 70), st.binary(max_size=200), st.booleans()
    ),
    seed=st.integers(min_value=0, max_value=1 << 32),
)
def test_any_damage_to_a_description_is_an_error_or_harmless(
    plain: Description, where: str, value: Plain, seed: int
) -> None:
    """One wrong value gives one of our errors, or a volume that is sound all the same."""
    draw = random.Random(seed)
    damaged: dict[str, Any] = copy.deepcopy(dict(plain))
    if where == "top":
        damaged[draw.choice(sorted(damaged))] = value
    elif where == "system_files":
        item = draw.choice(damaged[where])
        item[draw.choice(sorted(item))] = value
    elif where == "bpb":
        damaged[where][draw.choice(sorted(damaged[where]))] = value
    else:
        damaged[where]["$O"].append([value, draw.randbytes(draw.choice((4, 3000)))])
    try:
        device = rooted().write(damaged, 4 * MIB)
    except FilesystemError:
        return
    assert check_volume(device) == []


def test_entries_out_of_order_are_an_error(plain: Description) -> None:
    """A name before its directory, a directory with two names, or no root, end the plan."""
    forest = rooted()
    forest.add(77, b"x", forest.node(100))
    with pytest.raises(CorruptError, match="does not come before"):
        plan_of(forest, plain, 32 * MIB)
    forest = rooted()
    node = forest.add(ROOT, b"x", forest.node(100, Kind.DIRECTORY))
    forest.add(ROOT, b"y", node)
    with pytest.raises(CorruptError, match="more than one name"):
        plan_of(forest, plain, 32 * MIB)
    with pytest.raises(CorruptError, match="root"):
        plan_of(Forest(), plain, 32 * MIB)


def test_too_many_attributes_are_refused(plain: Description) -> None:
    """A list beyond what Windows reads is not written."""
    forest = rooted()
    linked = forest.node(100)
    for index in range(8300):
        forest.add(ROOT, b"%d" % index, linked)
    with pytest.raises(UnsupportedError, match="list of"):
        plan_of(forest, plain, 32 * MIB)


@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_nonsense_in_entries_is_an_error_or_harmless(plain: Description, seed: int) -> None:
    """Any names, kinds, flags, values and regions give one of our errors or a sound volume."""
    draw = random.Random(seed)
    forest, parents = rooted(), [ROOT]
    for number in range(100, 100 + draw.randrange(1, 6)):
        node = draw_nonsense(draw, forest, number)
        name = draw.choice(
            (
                b"%d" % number,
                b"%d" % number,
                draw.randbytes(3),
                b"a" * 256,
                b"\xed\xa0\x80",
                b"$mft",
            )
        )
        times = draw.choice((None, (0, 0, 0, 0), (1 << 80, -(1 << 80), 5, 5)))
        short_name = draw.choice((b"", b"A~%d" % number, draw.randbytes(3)))
        flags = draw.randrange(5)
        forest.entries.append(
            Entry(draw.choice(parents), name, node, short_name, flags, name_times=times)
        )
        if node.kind is Kind.DIRECTORY:
            parents.append(number)
    try:
        device = forest.write(plain, 4 * MIB)
    except FilesystemError:
        return
    assert check_volume(device) == []


def draw_nonsense(draw: random.Random, forest: Forest, number: int) -> Node:
    """Return a node that may be anything."""
    xattrs = [(XATTR_ACL, ACLS[0])]
    if draw.random() < 0.2:
        names = (XATTR_EA, XATTR_OBJECT_ID, XATTR_REPARSE, XATTR_EFS, XATTR_INFORMATION)
        size = draw.choice((0, 3, 8, 16, 64, 100, 70000))
        xattrs.append((draw.choice(names), draw.randbytes(size)))
    kind = draw.choice((Kind.FILE, Kind.FILE, Kind.FILE, Kind.DIRECTORY))
    flags = draw.choice((0, 0x20, 0x400, 0x800, 0xFFFFFFFF))
    node = forest.node(number, kind, xattrs=tuple(xattrs), flags=flags)
    if draw.random() < 0.2:
        node.streams = tuple(
            Stream(draw.choice((b"", b"s", b"\xff")), size, draw.choice((0, 1, 0x8000, 0x4000)))
            for size in draw.choices((0, 5, 70000), k=draw.randrange(3))
        )
    if draw.random() < 0.2:
        region = (draw.randrange(9) * 4096, draw.randrange(3) * 4096, draw.random() < 0.5)
        forest.regions[number] = [region]
    node.size = draw.choice((0, 10, 100_000)) if kind is Kind.FILE else 0
    return node
