# SPDX-License-Identifier: Apache-2.0
"""Indexes of NTFS changed in memory: against a sorted dictionary and a walk of its own."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    FilesystemError,
    NoSpaceError,
    NotFoundError,
    UnsupportedError,
)
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.edit.index import IndexEditor
from fsdrivers.ntfs.edit.nodes import Entry, name_order, view_order
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.index import Collation
from fsdrivers.ntfs.index import DIRECTORY_INDEX
from fsdrivers.ntfs.mkfs.tables import upcase_table
from fsdrivers.ntfs.streams import read_content
from fsdrivers.ntfs.upcase import UpCase
from tests.fsdrivers.ntfs.indexes import MemoryStorage, PowerCut, Walk
from tests.fsdrivers.ntfs.volumes import MIB, load, make_image, mounted

UPCASE = UpCase(upcase_table())
ORDER = name_order(UPCASE)


def name_key(name: str, *, size: int = 0) -> bytes:
    """Return a $FILE_NAME value."""
    units = name.encode("utf-16-le", "surrogatepass")
    head = struct.pack("<7QIIBB", 5, 1, 2, 3, 4, size, size, 0x20, 0, len(units) // 2, 0)
    return head + units


def name_entry(name: str, reference: int = 0x1_0000_0000_0040, *, size: int = 0) -> Entry:
    return Entry.of_name(reference, name_key(name, size=size))


def some_names(draw: random.Random, count: int, longest: int = 255) -> list[str]:
    """Return names that differ, some by case only, of all lengths and several scripts."""
    letters = "abcdefgABCDEFG0123 ~.äßÿŸжЖ日本\ud800\udc00"
    names: set[str] = set()
    while len(names) < count:
        length = min(longest, max(1, int(draw.lognormvariate(2.5, 1))))
        names.add("".join(draw.choice(letters) for _ in range(length)))
    made = sorted(names)
    draw.shuffle(made)
    return made


def filled(storage: MemoryStorage, names: list[str]) -> IndexEditor:
    editor = IndexEditor(storage, ORDER)
    for number, name in enumerate(names):
        editor.insert(name_entry(name, number))
    return editor


def check(storage: MemoryStorage, model: dict[str, bytes]) -> Walk:
    """Hold an index against a dictionary of entries by name."""
    walk = Walk(storage)
    walk.check_order(ORDER)
    assert sorted(walk.entries) == sorted(model.values())
    return walk


@pytest.mark.parametrize(
    ("options", "count", "longest"),
    [
        ({}, 5000, 255),
        ({"limit": 64}, 1500, 255),
        ({"limit": 3500, "block_size": 4096, "vcn_step": 8}, 2000, 255),
        ({"limit": 400, "attribute_size": 300}, 1500, 255),
        ({"block_size": 1024, "vcn_step": 2, "limit": 300}, 1500, 255),
        ({"block_size": 512, "limit": 900, "attribute_size": 200}, 1500, 100),
        ({"block_size": 65536, "limit": 700}, 3000, 255),
    ],
    ids=["usual", "tiny root", "large root", "falling limit", "1 KiB", "512 bytes", "64 KiB"],
)
def test_random_changes_leave_what_a_dictionary_has(
    options: dict[str, int], count: int, longest: int
) -> None:
    """Inserting, replacing and removing in any order gives a sound tree of what is left."""
    draw = random.Random(str(options))
    storage = MemoryStorage(**options)
    editor = IndexEditor(storage, ORDER)
    model: dict[str, bytes] = {}
    names = some_names(draw, count, longest)
    for phase in (0.9, 0.3, 0.6, 0.05):
        for _ in range(count):
            name = draw.choice(names)
            if name not in model and draw.random() < phase:
                entry = name_entry(name, draw.getrandbits(64))
                editor.insert(entry)
                model[name] = entry.body
            elif name in model and draw.random() > phase:
                assert editor.remove(name_key(name)).body == model.pop(name)
            elif name in model:
                entry = name_entry(name, draw.getrandbits(64), size=draw.getrandbits(40))
                editor.replace(entry)
                model[name] = entry.body
        check(storage, model)
        assert [entry.body for entry in editor] == Walk(storage).entries
    for name in draw.sample(names, 200):
        found = editor.find(name_key(name))
        assert (found.body if found else None) == model.get(name)


@pytest.mark.parametrize("options", [{}, {"limit": 64}, {"block_size": 1024, "limit": 300}])
def test_an_emptied_index_is_a_small_root_again(options: dict[str, int]) -> None:
    """When the last name is gone so are all blocks, in whatever order names go."""
    draw = random.Random("empty")
    names = some_names(draw, 800)
    for order in (sorted(names), sorted(names, reverse=True), draw.sample(names, len(names))):
        storage = MemoryStorage(**options)
        empty = storage.root
        editor = filled(storage, names)
        assert storage.blocks
        for name in order:
            editor.remove(name_key(name))

        assert storage.root == empty
        assert not storage.blocks
        assert not storage.has_allocation


def test_names_in_order_fill_blocks() -> None:
    """Names that come in order leave full blocks behind; others leave them more than half full."""
    names = [f"a file with number {number:06}" for number in range(3000)]
    storage = MemoryStorage()
    filled(storage, names)
    ordered = Walk(storage)
    random.Random("order").shuffle(names)
    storage = MemoryStorage()
    filled(storage, names)
    shuffled = Walk(storage)

    assert sum(ordered.fills) / len(ordered.fills) > 0.9
    assert sum(shuffled.fills) / len(shuffled.fills) > 0.55


def test_names_are_found_whatever_their_case() -> None:
    """A search by name finds every case of it, and nothing else."""
    draw = random.Random("case")
    names = some_names(draw, 3000, 4)
    storage = MemoryStorage(limit=300)
    editor = filled(storage, names)
    for name in [*draw.sample(names, 60), "absent", "\uffff"]:
        units = name.encode("utf-16-le", "surrogatepass")
        found = [entry.key[66:] for entry in editor.find_names(UPCASE, units)]
        expected = [other.encode("utf-16-le", "surrogatepass") for other in names]
        assert sorted(found) == sorted(
            other for other in expected if UPCASE.upper(other) == UPCASE.upper(units)
        )


def test_the_longest_names_split_every_block_size() -> None:
    """Names of 255 units come and go in blocks of 1 KiB, which hold one, and in larger ones."""
    names = [f"{number:03}" + "x" * 252 for number in range(120)]
    for block_size in (1024, 2048, 4096):
        storage = MemoryStorage(block_size=block_size, limit=64)
        editor = filled(storage, names)
        check(storage, {n: name_entry(n, i).body for i, n in enumerate(names)})
        for name in names[::2] + names[1::2]:
            editor.remove(name_key(name))
            Walk(storage)
        assert not storage.blocks


@pytest.mark.parametrize("collation", [Collation.ULONG, Collation.SECURITY_HASH, Collation.ULONGS])
def test_views_are_ordered_by_words(collation: Collation) -> None:
    """Views sort by 32-bit little-endian words, and keep data and padding."""
    draw = random.Random(collation.name)
    words = {Collation.ULONG: 1, Collation.SECURITY_HASH: 2, Collation.ULONGS: 4}[collation]
    storage = MemoryStorage(collation=collation)
    editor = IndexEditor(storage, view_order(collation))
    model: dict[bytes, bytes] = {}
    while len(model) < 1000:
        key = draw.randbytes(4 * words)
        if key not in model:
            model[key] = draw.randbytes(20)
            editor.insert(Entry.of_view(key, model[key], b"I\0I\0"))

    walk = Walk(storage)
    assert walk.listed() == sorted(model, key=lambda key: struct.unpack(f"<{words}I", key))
    for key, data in model.items():
        found = editor.find(key)
        assert found is not None
        assert found.data == data
        assert (found.body[16 + 4 * words + 20 :] + b"I\0I\0").startswith(b"I\0I\0")


def test_what_cannot_be_done_changes_nothing() -> None:
    """A taken key, an absent key, a full volume: an error, and the index is as it was."""
    names = some_names(random.Random("errors"), 400)
    storage = MemoryStorage()
    editor = filled(storage, names)
    before = storage.root, dict(storage.blocks)
    with pytest.raises(AlreadyExistsError):
        editor.insert(name_entry(names[7]))
    with pytest.raises(NotFoundError):
        editor.remove(name_key("absent"))
    with pytest.raises(NotFoundError):
        editor.replace(name_entry("absent"))
    with pytest.raises(UnsupportedError):
        IndexEditor(MemoryStorage(block_size=512), ORDER).insert(name_entry("x" * 255))
    with pytest.raises(UnsupportedError):
        view_order(Collation.SID)

    assert (storage.root, storage.blocks) == before


def test_a_full_volume_stops_insertions_only() -> None:
    """With no block left an insertion fails whole, others still fit, and removing goes on."""
    draw = random.Random("full")
    storage = MemoryStorage(limit=300, attribute_size=100)
    storage.blocks_left = 12
    editor = IndexEditor(storage, ORDER)
    model: dict[str, bytes] = {}
    refused = 0
    for name in some_names(draw, 600):
        before = storage.root, dict(storage.blocks)
        entry = name_entry(name)
        try:
            editor.insert(entry)
            model[name] = entry.body
        except NoSpaceError:
            refused += 1
            assert (storage.root, storage.blocks, storage.reserved) == (*before, set())
    check(storage, model)
    assert refused > 20
    for name in list(model):
        try:
            editor.remove(name_key(name))
            del model[name]
        except NoSpaceError:
            continue
    check(storage, model)
    assert len(model) < 5


@pytest.mark.parametrize("options", [{"limit": 300}, {"block_size": 1024, "limit": 200}])
def test_a_power_cut_loses_no_other_name(options: dict[str, int]) -> None:
    """After any number of writes of an operation the tree leads to every name but the one."""
    draw = random.Random("cut")
    storage = MemoryStorage(**options)
    names = some_names(draw, 130)
    model: set[str] = set()
    steps = [(name, True) for name in names]
    steps += [(name, False) for name in draw.sample(names, len(names))]
    cuts = 0
    for name, is_insertion in steps:
        for writes in range(100):
            broken = storage.copy()
            broken.writes_left = writes
            editor = IndexEditor(broken, ORDER)
            try:
                if is_insertion:
                    editor.insert(name_entry(name))
                else:
                    editor.remove(name_key(name))
            except PowerCut:
                cuts += 1
                broken.writes_left = None
                listed = set(Walk(broken, is_whole=False).listed())
                fresh = IndexEditor(broken, ORDER)
                for other in model - {name}:
                    assert name_key(other) in listed
                    assert writes % 3 or fresh.find(name_key(other)) is not None
                assert listed <= {name_key(other) for other in model | {name}}
                continue
            storage = broken
            break
        storage.writes_left = None
        model ^= {name}
        Walk(storage)
    assert cuts > 200


def test_empty_leaves_of_others_are_no_obstacle() -> None:
    """A tree in which another writer left empty leaves can be changed and becomes sound."""
    names = [f"{number:04} with a longer name" for number in range(300)]
    storage = MemoryStorage(limit=200)
    filled(storage, names)
    walk = Walk(storage)
    leaves = [v for v, data in storage.blocks.items() if not data[24 + 12] & 1]
    kept = set(walk.listed())
    for vcn in leaves:
        data = bytearray(storage.blocks[vcn])
        start = 24 + int.from_bytes(data[24:28], "little")
        kept -= {Walk.key_of(entry) for entry in entries_of(bytes(data), start)}
        data[start:] = struct.pack("<QHHHH", 0, 16, 0, 2, 0).ljust(4096 - start, b"\0")
        data[28:32] = (start - 24 + 16).to_bytes(4, "little")
        storage.blocks[vcn] = bytes(data)
    editor = IndexEditor(storage, ORDER)
    assert {entry.key for entry in editor} == kept
    assert len(kept) > 3
    for key in sorted(kept):
        editor.remove(key)
        Walk(storage)
    assert not storage.blocks


def entries_of(data: bytes, at: int) -> list[bytes]:
    """Return the entries of a leaf."""
    made = []
    while not data[at + 12] & 2:
        (length,) = struct.unpack_from("<H", data, at + 8)
        made.append(data[at : at + length])
        at += length
    return made


def test_a_circle_ends_in_an_error() -> None:
    """A tree that leads back to itself is refused by every operation."""
    names = [f"{number:04} with a longer name" for number in range(200)]
    storage = MemoryStorage(limit=200)
    filled(storage, names)
    (root_child,) = struct.unpack_from("<Q", storage.root, len(storage.root) - 8)
    data = bytearray(storage.blocks[root_child])
    end = 24 + int.from_bytes(data[28:32], "little")
    if not data[24 + 12] & 1:
        data[24 + 12] |= 1
        start = 24 + int.from_bytes(data[24:28], "little")
        data[start:] = struct.pack("<QHHHHQ", 0, 24, 0, 3, 0, root_child).ljust(4096 - start, b"\0")
        data[28:32] = (start - 24 + 24).to_bytes(4, "little")
    else:
        data[end - 8 : end] = struct.pack("<Q", root_child)
    storage.blocks[root_child] = bytes(data)
    editor = IndexEditor(storage, ORDER)
    with pytest.raises(CorruptError):
        editor.insert(name_entry("zzz"))
    with pytest.raises(CorruptError):
        editor.remove(name_key("zzz"))
    with pytest.raises(CorruptError):
        list(editor)


def test_damaged_nodes_end_in_our_errors() -> None:
    """Flipped bytes anywhere in a tree: every operation works or raises, soon."""
    draw = random.Random("damage")
    names = [f"{number:04} with a longer name" for number in range(250)]
    sound = MemoryStorage(limit=300)
    filled(sound, names)
    failed = 0
    for _ in range(250):
        storage = sound.copy()
        for _ in range(draw.randrange(1, 4)):
            vcn = draw.choice([*storage.blocks, *[-1] * 8])
            data = bytearray(storage.root if vcn < 0 else storage.blocks[vcn])
            data[draw.randrange(len(data) // (1 if vcn < 0 else 8))] = draw.choice((0, 1, 3, 255))
            if vcn < 0:
                storage.root = bytes(data)
            else:
                storage.blocks[vcn] = bytes(data)
        editor = IndexEditor(storage, ORDER)
        name = draw.choice(names)
        key, units = name_key(name), name.encode("utf-16-le")
        operations: list[Callable[[], object]] = [
            partial(editor.insert, name_entry(name + "x")),
            partial(editor.remove, key),
            partial(editor.find_names, UPCASE, units),
            partial(list, editor),
        ]
        for operation in operations:
            try:
                operation()
            except (FilesystemError, KeyError):  # a block that is not there
                failed += 1
    assert failed > 50


def test_a_damaged_neighbour_does_not_keep_a_name() -> None:
    """A name can be removed though the block beside its own is nonsense."""
    names = [f"{number:04} with a longer name" for number in range(100)]
    storage = MemoryStorage(limit=300)
    filled(storage, names)
    editor = IndexEditor(storage, ORDER)
    leaves = [vcn for vcn, data in storage.blocks.items() if "0099".encode("utf-16-le") in data]
    storage.blocks = {
        vcn: data if vcn in leaves or data[36] & 1 else bytes(4096)
        for vcn, data in storage.blocks.items()
    }
    for name in names[-5:]:
        editor.remove(name_key(name))
    assert IndexEditor(storage, ORDER).find(name_key(names[-1])) is None


def test_fields_nobody_knows_survive() -> None:
    """Reserved bytes of heads, the log sequence number and odd flags stay as they were."""
    storage = MemoryStorage(limit=200)
    names = [f"{number:04} with a longer name" for number in range(60)]
    filled(storage, names)
    storage.root = storage.root[:13] + b"abc" + storage.root[16:29] + b"def" + storage.root[32:]
    for vcn, block in storage.blocks.items():
        data = bytearray(block)
        data[8:16] = b"sequence"
        data[37:40] = b"xyz"
        start = 24 + int.from_bytes(data[24:28], "little")
        data[start + 12] |= 0x40
        data[start + 14 : start + 16] = b"rs"
        storage.blocks[vcn] = bytes(data)
    before = Walk(storage).entries
    editor = IndexEditor(storage, ORDER)
    editor.insert(name_entry("0000a"))
    editor.remove(name_key("0000a"))

    assert Walk(storage).entries == before
    assert (storage.root[13:16], storage.root[29:32]) == (b"abc", b"def")
    for block in storage.blocks.values():
        assert (block[8:16], block[37:40]) == (b"sequence", b"xyz")


@pytest.mark.tools
def test_trees_of_ntfs_3g_can_be_changed(tmp_path: Path) -> None:
    """A directory that ntfs-3g filled and thinned out unevenly is changed, then emptied."""
    draw = random.Random("foreign")
    image = make_image(tmp_path / "image", 64 * MIB)
    with mounted(image, tmp_path / "mount") as root:
        directory = root / "directory"
        directory.mkdir()
        names = [f"{name} {number}" for number, name in enumerate("aäБ日" * 500)]
        for name in names:
            (directory / (name * draw.randrange(1, 9))).write_bytes(b"")
        for path in draw.sample(sorted(directory.iterdir()), 1600):
            path.unlink()
    volume = load(image)
    (number,) = (entry.node.number for entry in volume.walk() if entry.name == b"directory")
    file, mft = volume.mft.file(number), volume.mft
    storage = MemoryStorage(limit=400)
    storage.root = bytes(file.find(AttributeType.INDEX_ROOT, DIRECTORY_INDEX)[0].value)
    storage.has_allocation = True
    content = mft.content_of(file, AttributeType.INDEX_ALLOCATION, DIRECTORY_INDEX)
    bitmap = mft.read_all(file, AttributeType.BITMAP, DIRECTORY_INDEX, limit=MIB)
    assert content is not None
    assert bitmap is not None
    for vcn in range(content.size // 4096):
        if bitmap[vcn >> 3] >> (vcn & 7) & 1:
            block = read_content(mft.device, content, vcn * 4096, 4096)
            storage.blocks[vcn] = bytes(fixups.open_record(block))
    editor = IndexEditor(storage, name_order(UpCase(volume.system.upcase())))
    model = {entry.key: entry.body for entry in editor}
    assert len(model) == 400
    for key in draw.sample(sorted(model), 200):
        editor.remove(key)
        del model[key]
    for number in range(400):
        entry = name_entry(f"{draw.random()} new", number)
        editor.insert(entry)
        model[entry.key] = entry.body

    assert sorted(entry.body for entry in editor) == sorted(model.values())
    for key in draw.sample(sorted(model), len(model)):
        editor.remove(key)
    assert not storage.blocks
    assert not storage.has_allocation
