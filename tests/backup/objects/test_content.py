# SPDX-License-Identifier: Apache-2.0
"""Content ids, signatures, identifications, shared security attributes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup.objects.content import (
    PIECE_SIZE,
    SecuritySets,
    Signer,
    content_id,
    content_size,
    iter_pieces,
)
from backup.objects.encoding import canonical, make_packer, pack_plain, unpack_plain
from backup.objects.errors import DamagedError, UnstorableError
from backup.objects.identification import identification, path
from backup.objects.keys import MasterKey
from backup.objects.model import (
    BackupObject,
    NodeObject,
    ObjectKind,
    Piece,
    Region,
    StreamContent,
)
from tests.backup.objects.samples import lookup_in, machine

MASTER = MasterKey(bytes(range(32)))
PIECE = Piece(0, 100, b"C" * 32, 1, 40, 90)
STREAM = StreamContent(b"s", 100, (PIECE,))


def signatures(objects: dict[str, BackupObject]) -> dict[str, bytes]:
    """Return the signatures of all objects."""
    signer = Signer(MASTER, lookup_in(objects))
    return {name: signer.signature_of(obj) for name, obj in objects.items()}


def test_identifications() -> None:
    """Every object is called as the format says, in bytes."""
    objects = machine()
    lookup = lookup_in(objects)
    expected = {
        "disk": b"%disk%sda",
        "volume": b"%volume%sda:1",
        "label": b"%label%MAIN",
        "security": b"%security%73",
        "root": b"%volume%sda:1/",
        "etc": b"%volume%sda:1/etc",
        "file": b"%volume%sda:1/etc/pass\xff\nwd",
        "link": b"%volume%sda:1/l",
        "marker": b"%marker%blank-file%%volume%sda:1/etc/pass\xff\nwd",
        "boot": b"%marker%boot-sector%%volume%sda:1",
    }

    assert {name: identification(obj, lookup) for name, obj in objects.items()} == expected
    assert path(objects["file"], lookup) == b"etc/pass\xff\nwd"  # type: ignore[arg-type]


def test_a_circle_of_parents_ends() -> None:
    """A parent that is not earlier, or no directory's object, is damage and no endless loop."""
    first = NodeObject(5, ObjectKind.DIRECTORY, 2, 6, b"a")
    second = NodeObject(6, ObjectKind.DIRECTORY, 2, 5, b"b")
    below = NodeObject(7, ObjectKind.DIRECTORY, 2, 3, b"c")
    lookup = {5: first, 6: second, 3: machine()["label"]}.__getitem__
    for node in (first, second, below):
        with pytest.raises(DamagedError):
            path(node, lookup)
    with pytest.raises(DamagedError, match="not a volume"):
        identification(replace(below, volume=3), lookup)


def test_signatures_do_not_depend_on_numbers_or_packs() -> None:
    """The same machine, numbered and packed otherwise, has the same signatures."""
    assert signatures(machine()) == signatures(machine(shift=1000))


def test_signatures_of_different_objects_differ() -> None:
    """No two objects of the small machine sign alike, nor under another master key."""
    objects = machine()
    other = Signer(MasterKey(bytes(32)), lookup_in(objects))
    known = [*signatures(objects).values(), *map(other.signature_of, objects.values())]

    # The two directories are equal in all their attributes.
    assert len(set(known)) == 2 * (len(objects) - 1)
    assert all(len(signature) == 32 for signature in known)


def test_name_and_parent_are_no_attributes() -> None:
    """Moving or renaming changes the identification and not the signature."""
    objects = machine()
    before = signatures(objects)["file"]
    objects["file"] = replace(objects["file"], name=b"new", parent=5)  # type: ignore[call-arg]

    assert signatures(objects)["file"] == before


NODE_CHANGES: list[dict[str, Any]] = [
    {"kind": ObjectKind.SYMLINK}, {"size": 101}, {"mode": 0o600}, {"uid": 9}, {"gid": 9},
    {"modified_ns": 9}, {"accessed_ns": None}, {"accessed_ns": 0}, {"changed_ns": 9},
    {"created_ns": 9}, {"flags": 9}, {"device": (1, 2)}, {"target": b"t"}, {"security": 0},
    {"short_name": b"X"}, {"name_flags": 8}, {"regions": None}, {"regions": ()},
    {"regions": (Region(0, 100, True),)}, {"target_number": 5}, {"pieces": ()},
    {"pieces": (PIECE._replace(content_id=b"D" * 32),)}, {"pieces": (PIECE._replace(offset=1),)},
    {"pieces": (PIECE._replace(length=1),)}, {"pieces": (PIECE, PIECE._replace(offset=100))},
    *(
        {"streams": streams}
        for streams in (
            (), (STREAM._replace(name=b"t"),), (STREAM._replace(size=9),),
            (STREAM._replace(pieces=()),), (STREAM._replace(flags=1),),
            (STREAM._replace(padding=1),), (STREAM._replace(regions=()),), (STREAM, STREAM),
        )
    ),
    {"name_times": (1, 2, 3, 4)}, {"name_times": (1, 2, 3, 5)}, {"xattrs": ((b"user.z", b""),)},
    {"name_times": (1, 2, 3, 4), "xattrs": ((b"user.z", b""),)},
]  # fmt: skip


def test_every_attribute_of_a_node_counts() -> None:
    """Each change of attributes or content gives a signature of its own."""
    objects = machine()
    found = {signatures(objects)["file"]}
    for change in NODE_CHANGES:
        found.add(signatures(objects | {"file": replace(objects["file"], **change)})["file"])

    assert len(found) == 1 + len(NODE_CHANGES)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("disk", {"size": 1}), ("disk", {"sector_size": 4096}), ("disk", {"scheme": "gpt"}),
        ("disk", {"table": {"a": [2], "b": 2}}), ("disk", {"model": "m"}),
        ("disk", {"serial": "s"}), ("disk", {"pieces": ()}), ("volume", {"type": "ext3"}),
        ("volume", {"size": 1}), ("volume", {"used_size": 1}), ("volume", {"uuid": ""}),
        ("volume", {"label": b""}), ("volume", {"description": {}}), ("volume", {"pieces": ()}),
        ("volume", {"minimum_size": 1}), ("volume", {"mount_point": b"/"}),
        ("label", {"label": b"X"}), ("security", {"xattrs": ()}),
        ("security", {"descriptor": b"d"}), ("marker", {"name": "x"}), ("marker", {"target": 0}),
        ("marker", {"data": {}}), ("marker", {"pieces": ()}),
    ],
    ids=str,
)  # fmt: skip
def test_every_attribute_of_the_others_counts(name: str, change: dict[str, Any]) -> None:
    """Each change of a disk, volume, label, security set or marker changes its signature."""
    objects = machine()
    changed: Any = replace(objects[name], **change)  # type: ignore[type-var]

    assert signatures(objects)[name] != signatures(objects | {name: changed})[name]


def test_what_is_referred_to_counts() -> None:
    """Other security attributes, or another place of a link's target, change the signature."""
    objects = machine()
    security = replace(objects["security"], signature=b"other")  # type: ignore[type-var]
    renamed = replace(objects["etc"], name=b"usr")  # type: ignore[call-arg]
    before = signatures(objects)

    assert signatures(objects | {"security": security})["file"] != before["file"]
    assert signatures(objects | {"etc": renamed})["link"] != before["link"]
    assert signatures(objects | {"etc": renamed})["file"] == before["file"]


def test_order_of_maps_and_xattrs_does_not_count() -> None:
    """Equal descriptions sign alike in whatever order they were made."""
    objects = machine()
    disk = replace(objects["disk"], table={"b": 2, "a": [1]})  # type: ignore[call-arg]
    security = replace(  # type: ignore[call-arg]
        objects["security"], xattrs=((b"user.b", b"2"), (b"user.a", b"1"))
    )
    before = signatures(objects)

    assert signatures(objects | {"disk": disk})["disk"] == before["disk"]
    assert signatures(objects | {"security": security})["security"] == before["security"]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def typed(value: Any) -> Any:
    """Return a value that is equal only for equal types: True is not 1."""
    if isinstance(value, dict):
        return "dict", {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return "list", [typed(inner) for inner in value]
    return type(value).__name__, value


@settings(max_examples=100, deadline=None)
@given(plain, plain)
def test_canonical_encoding_is_equal_exactly_for_equal_data(one: Any, other: Any) -> None:
    """Plain data encodes to the same bytes if and only if it is the same."""
    same = make_packer().pack(canonical(one)) == make_packer().pack(canonical(other))

    assert same == (typed(one) == typed(other))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), plain))
def test_plain_data_round_trips(value: Any) -> None:
    """Descriptions come back as they were, types and order included."""
    back = unpack_plain(pack_plain(value), "x")

    assert typed(back) == typed(value)
    assert list(back) == list(value)


@pytest.mark.parametrize(
    "value",
    [{"x": 1.5j}, {"x": object()}, {"x": {1, 2}}],
    ids=["complex", "object", "set"],
)
def test_what_is_not_plain_is_refused(value: Any) -> None:
    """Only plain data goes into a table."""
    with pytest.raises(UnstorableError):
        pack_plain(value)


def test_similar_plain_data_is_told_apart() -> None:
    """Maps, lists of pairs, nested lists and different types do not collide."""
    values: list[Any] = [
        {"a": 1}, [["a", 1]], [[1, ["a", 1]]], {"a": "1"}, {"a": b"1"}, {"a": True}, [], {}, None,
        0, False, "", b"", [0], [1], [[0]], {"": None}, -1, 2**64, -(2**64), 2**64 - 1,
    ]  # fmt: skip
    encoded = {make_packer().pack(canonical(value)) for value in values}

    assert len(encoded) == len(values)


def test_equal_security_is_stored_once() -> None:
    """The same attributes, in any order, share one object; others get their own number."""
    numbers = itertools.count(10)
    sets = SecuritySets(lambda: next(numbers))
    first, is_new = sets.share([(b"user.b", b"2"), (b"user.a", b"1")])
    again, is_new_again = sets.share([(b"user.a", b"1"), (b"user.b", b"2")])
    other, _ = sets.share([(b"user.a", b"1"), (b"user.b", b"2")], b"descriptor")

    assert (is_new, is_new_again) == (True, False)
    assert again is first
    assert first.xattrs == ((b"user.a", b"1"), (b"user.b", b"2"))
    assert (first.number, other.number) == (10, 11)


def test_sizes_count_pieces_and_streams() -> None:
    """Content and sealed sizes are the sums over all pieces."""
    objects = machine()

    assert len(list(iter_pieces(objects["file"]))) == 2
    assert content_size(objects["file"]) == 200
    assert (content_size(objects["disk"]), content_size(objects["label"])) == (100, 0)


def test_content_ids_are_keyed() -> None:
    """The same bytes have one id for one user, and another for another user."""
    assert content_id(MASTER, b"x") == content_id(MASTER, memoryview(bytearray(b"x")))
    assert content_id(MASTER, b"x") != content_id(MASTER, b"y")
    assert content_id(MASTER, b"x") != content_id(MasterKey(bytes(32)), b"x")
    assert len(content_id(MASTER, bytes(PIECE_SIZE))) == 32
