# SPDX-License-Identifier: Apache-2.0
"""What changes between walk and reading: nothing that stays is lost, nothing is mixed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup.agent.live.scan import LiveScan
from backup.agent.live.settle import Settler
from backup.agent.result import BackupResult, Snapshot
from backup.objects.content import xattrs_of
from backup.objects.model import NodeObject, ObjectKind, SecurityObject
from backup.objects.table import TableReader
from tests.backup.agent.live.changing import Busy
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    MIB,
    DataSet,
    live_volume,
    make_ext4,
    make_repository,
)

pytestmark = [pytest.mark.root, pytest.mark.tools]


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    """A mounted volume with a few files."""
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "tree" / "sub").mkdir(parents=True)
    (tree / "etc" / "shadow").write_bytes(b"root:x")
    (tree / "etc" / "other").write_bytes(b"keep")
    for number in range(1, 4):
        (tree / "tree" / "sub" / f"f{number}").write_bytes(b"%d" % number)
        (tree / f"l{number}-a").write_bytes(b"linked%d" % number)
    image = make_ext4(tmp_path / "sda", tree, 96 * MIB)
    with live_volume(image) as (root, machine):
        for number in range(1, 4):
            os.link(root / f"l{number}-a", root / f"l{number}-b")
            os.link(root / f"l{number}-a", root / f"l{number}-c")
        yield Busy(root, machine, tmp_path / "store")


def check(
    result: BackupResult, data_set: DataSet, root: Path, earlier: Mapping[bytes, bytes] = {}
) -> None:
    """Check that a data set is complete and has what the volume has now.

    `earlier` has contents of files that may also be as they were when they were looked at.
    """
    assert not result.warnings
    assert not result.is_partial
    expected = {
        b"/" + bytes(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    expected |= {
        path: content for path, content in earlier.items() if data_set.files.get(path) == content
    }
    assert data_set.files == expected
    directories = {
        b"/" + bytes(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_dir() and not path.is_symlink()
    }
    found = {p for p, node in data_set.nodes.items() if node.kind is ObjectKind.DIRECTORY}
    assert found == directories | {b"/"}
    for path, node in data_set.nodes.items():
        target = data_set.objects[node.target_number or node.number]
        assert isinstance(target, NodeObject), "names lead to nodes"
        status = os.lstat(os.fsencode(root) + path)
        assert (target.mode, target.uid) == (status.st_mode & 0o7777, status.st_uid)
        assert target.source_number == status.st_ino
        security = data_set.objects.get(target.security)
        assert security is None or isinstance(security, SecurityObject), "attributes only"
        here = os.fsencode(root) + path
        names = os.listxattr(here, follow_symlinks=False)
        assert dict(xattrs_of(target, security)) == {
            os.fsencode(name): os.getxattr(here, name, follow_symlinks=False) for name in names
        }
    assert result.objects == len(data_set.objects)
    assert min(result.new, result.changed, result.unchanged, result.removed) >= 0


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file as editors do: the new one takes the name of the old one."""
    made = path.with_name(path.name + "+")
    made.write_bytes(content)
    made.rename(path)


def test_replaced_moved_and_one_name_less(busy: Busy) -> None:
    """Replaced files are there, moved directories with all below, and the names that are left."""
    root = busy.root

    def change() -> None:
        replace_file(root / "etc" / "shadow", b"root:new")
        (root / "tree").rename(root / "tree-renamed")
        (root / "l1-a").unlink()
        (root / "l2-b").unlink()
        (root / "l3-c").unlink()

    result, data_set = busy.back_up(change)
    check(result, data_set, root)
    nodes = data_set.nodes
    for first, second in ((b"/l1-b", b"/l1-c"), (b"/l2-a", b"/l2-c"), (b"/l3-a", b"/l3-b")):
        numbers = {nodes[path].target_number or nodes[path].number for path in (first, second)}
        assert len(numbers) == 1


@pytest.mark.parametrize("is_first", [True, False])
def test_everything_moves(busy: Busy, is_first: bool) -> None:
    """Trees, files and names change places, kinds and contents; the set is as the volume is."""
    root = busy.root
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "b" / "c" / "file").write_bytes(b"deep")
    (root / "a" / "gone").write_bytes(b"will go")
    (root / "z").mkdir()
    (root / "kind").write_bytes(b"a file")
    (root / "large").write_bytes(os.urandom(9 * MIB))
    if not is_first:
        busy.back_up(lambda: None)

    def change() -> None:
        (root / "a" / "b").rename(root / "z" / "b")  # below a directory that comes later
        (root / "z" / "b" / "c").rename(root / "c")
        (root / "z").rename(root / "c" / "z")  # what was above is below now
        (root / "a" / "gone").unlink()
        (root / "etc" / "other").rename(root / "etc" / "shadow")
        (root / "kind").unlink()
        (root / "kind").symlink_to("etc")
        (root / "new" / "tree").mkdir(parents=True)
        (root / "new" / "tree" / "file").write_bytes(b"new")
        (root / "tree" / "sub" / "f1").rename(root / "new" / "f1")
        os.link(root / "tree" / "sub" / "f2", root / "new" / "f2")
        os.link(root / "l1-a", root / "new" / "l1-d")
        (root / "l1-a").unlink()
        with (root / "large").open("ab") as stream:
            stream.write(b"more")

    large = (root / "large").read_bytes()
    result, data_set = busy.back_up(change)
    check(result, data_set, root, {b"/large": large})
    if not is_first:
        result, data_set = busy.back_up(lambda: None)
        check(result, data_set, root)


def test_attributes_belong_to_the_content(busy: Busy) -> None:
    """An access list or attribute of one state is never kept with the content of another."""
    root = busy.root
    for name in "abc":
        (root / name).write_bytes(b"public")
        os.setxattr(root / name, "user.v", b"old")
    for name in "ab":
        subprocess.run(["setfacl", "-m", "u:1000:rw", str(root / name)], check=True)

    def change() -> None:
        subprocess.run(["setfacl", "-b", str(root / "a")], check=True)
        (root / "a").write_bytes(b"secret")
        (root / "a").chmod(0o600)
        (root / "b").unlink()
        (root / "b").write_bytes(b"secret")  # its inode number is used again
        (root / "b").chmod(0o600)
        os.setxattr(root / "c", "user.v", b"new")

    result, data_set = busy.back_up(change)
    check(result, data_set, root)


def test_sizes_change(busy: Busy) -> None:
    """What was small and is large, was large and is small, or changes in the middle is whole."""
    root = busy.root
    (root / "grows").write_bytes(b"small")
    (root / "shrinks").write_bytes(b"x" * (20 * MIB))
    (root / "changes").write_bytes(b"y" * (20 * MIB))
    (root / "empty").touch()

    def change() -> None:
        (root / "grows").write_bytes(os.urandom(20 * MIB))
        (root / "shrinks").write_bytes(b"small now")
        (root / "empty").write_bytes(b"not any more")
        with (root / "changes").open("r+b") as stream:
            stream.seek(10 * MIB)
            stream.write(b"z" * MIB)

    result, data_set = busy.back_up(change)
    check(result, data_set, root, {b"/empty": b""})


def test_file_replaced_at_every_look(busy: Busy) -> None:
    """A file that is another whenever it is looked for is in the set, in one of its states."""
    path, count = busy.root / "etc" / "shadow", 0

    def change() -> None:
        nonlocal count
        count += 1
        replace_file(path, b"root:%d" % count * 100)

    result, data_set = busy.back_up(change, change)
    assert not result.is_partial
    assert data_set.files[b"/etc/shadow"] in [b"root:%d" % n * 100 for n in range(1, count + 1)]
    assert set(data_set.files) == {
        b"/" + bytes(p.relative_to(busy.root)) for p in busy.root.rglob("*") if p.is_file()
    }


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Have a process change the first and last byte of a file through a mapping, over and over."""
    program = (
        "import mmap,sys\n"
        "f=open(sys.argv[1],'r+b');m=mmap.mmap(f.fileno(),0);n=0;print('ready',flush=True)\n"
        "while True:\n"
        " n=(n+1)%250;b=bytes((n,));m[0:1]=b;m[len(m)-1:len(m)]=b\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        yield
    finally:
        writer.kill()
        writer.communicate()


@pytest.mark.parametrize("size", [64 << 10, 12 * MIB])
def test_mapped_file_is_one_state(busy: Busy, size: int) -> None:
    """A file that a process changes through a mapping, first and last byte together, is kept in
    one state: the filesystem is frozen when nothing else helps."""
    path = busy.root / "mapped"
    path.write_bytes(bytes(size))
    with mapped(path):
        result, data_set = busy.back_up(lambda: None)
    content = data_set.files[b"/mapped"]
    assert len(content) == size
    assert not result.is_partial
    assert (content[0] - content[-1]) % 250 <= 1  # the writer may be between its two bytes
    # A small file may hold still for as long as it takes to read it twice.
    assert size < MIB or [note for note in result.notes if "was frozen" in note]


def test_what_may_not_be_frozen_is_named(busy: Busy) -> None:
    """Without freezing, a file that does not hold still is named once, and the set is partial."""
    path, size, count = busy.root / "large", 12 * MIB, 0

    def change() -> None:
        nonlocal count
        count += 1
        path.write_bytes(bytes((count,)) * size)

    change()
    result, data_set = busy.back_up(change, change, Snapshot.NEVER)
    assert len(data_set.files[b"/large"]) == size
    assert result.is_partial
    assert result.mixed == 1
    assert [warning for warning in result.warnings if warning.startswith(f"{path}: changed")]
    assert not result.notes


def test_freezing_always(busy: Busy) -> None:
    """A volume is frozen for every look if that is asked for, and everything goes on."""
    result, data_set = busy.back_up(
        lambda: replace_file(busy.root / "etc" / "shadow", b"new"), snapshot=Snapshot.ALWAYS
    )
    check(result, data_set, busy.root)
    assert len([note for note in result.notes if "was frozen" in note]) == 1
    with make_repository(busy.store) as repository:
        newest = repository.data_sets(MACHINE)[-1].id
        with repository.open_table(newest) as table:
            assert TableReader(MASTER, table).summary.options["frozen"] == [f"{busy.root}/"]
    (busy.root / "etc" / "shadow").write_bytes(b"can be written")


@pytest.mark.parametrize("way", ["time is over", "killed"])
def test_nothing_stays_frozen(busy: Busy, way: str) -> None:
    """A filesystem is thawed when the time is over, and when who froze it is killed."""
    program = (
        "import os,signal,sys,time;from backup.agent.live.freeze import frozen\n"
        "with frozen(os.fsencode(sys.argv[1]), 0.3) as is_frozen:\n"
        " print(is_frozen, flush=True)\n"
        " if sys.argv[2] == 'killed': os.kill(os.getpid(), signal.SIGKILL)\n"
        " open(sys.argv[1] + '/written', 'w').close()\n"
    )
    command = [sys.executable, "-c", program, str(busy.root), way]
    freezer = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    assert freezer.stdout == b"True\n"
    (busy.root / "afterwards").write_bytes(b"can be written")
    assert (busy.root / "written").exists() == (way == "time is over")


def test_databases_in_use_are_named(busy: Busy) -> None:
    """A database that is spread over many files is named with its directory, if it runs."""
    for kind in ("postgresql", "mariadb", "mongodb", "stopped"):
        (busy.root / kind).mkdir()
    (busy.root / "postgresql" / "postmaster.pid").write_text("123\n")
    (busy.root / "mongodb" / "mongod.lock").write_text("123\n")
    (busy.root / "stopped" / "mongod.lock").write_text("")
    (busy.root / "stopped" / "ibdata1").write_bytes(bytes(4096))
    with (busy.root / "mariadb" / "ibdata1").open("wb") as stream:
        stream.write(bytes(4096))
        stream.flush()
        result, _ = busy.back_up(lambda: None)
    assert result.mixed == len(result.warnings) == 3
    assert {warning.partition(":")[0] for warning in result.warnings} == {
        f"{busy.root}/{kind}" for kind in ("postgresql", "mariadb", "mongodb")
    }


def test_names_of_hardware_are_noted(busy: Busy) -> None:
    """What a system needs of this hardware to start is said at the backup, not found out later."""
    (busy.root / "etc" / "fstab").write_text("/dev/vda2 / ext4 defaults 0 1\n")
    result, _ = busy.back_up(lambda: None)
    assert not result.is_partial
    (note,) = result.notes
    assert note.startswith(f"{busy.root}/etc/fstab mounts / by /dev/vda2: it does not start where")


def test_other_names_outlive_a_removed_tree(busy: Busy) -> None:
    """What is removed with its directory stays under the names that it has elsewhere."""
    root = busy.root
    (root / "removed" / "below").mkdir(parents=True)
    for number in range(3):
        (root / "removed" / "below" / f"{number}").write_bytes(b"%d" % number)
        os.link(root / "removed" / "below" / f"{number}", root / "etc" / f"kept-{number}")
    result, data_set = busy.back_up(lambda: shutil.rmtree(root / "removed"))
    check(result, data_set, root)


def test_a_tree_that_moves_during_the_walk(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that is walked in two places, as it moves from one to the other, is there once."""
    root = busy.root
    (root / "first" / "moves" / "below").mkdir(parents=True)
    (root / "first" / "moves" / "below" / "stays").write_bytes(b"stays")
    (root / "second").mkdir()
    (root / "third").mkdir()
    places = [root / "first", root / "second", root / "third"]
    add_directory = LiveScan._add_directory
    seen: list[bytes] = []

    def add_and_move(
        self: LiveScan, number: int, path: bytes, shown: bytes
    ) -> list[tuple[int, bytes, bytes]]:
        below = add_directory(self, number, path, shown)
        name = os.path.basename(path)
        if name in (b"first", b"second", b"third"):
            seen.append(name)
            here = next(place for place in places if (place / "moves").exists())
            others = [place for place in places if os.fsencode(place.name) not in seen]
            if others:
                (here / "moves").rename(others[0] / "moves")
        return below

    monkeypatch.setattr(LiveScan, "_add_directory", add_and_move)
    result, data_set = busy.back_up(lambda: None)
    check(result, data_set, root)
    assert sorted(seen) == [b"first", b"second", b"third"]


def test_what_may_have_moved_is_named(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without freezing, what is gone while directories keep changing is named: it may be there."""
    find_changed = Settler._find_changed

    def change_and_find(self: Settler) -> list[int]:
        (busy.root / "etc").chmod(0o700)
        return find_changed(self)

    monkeypatch.setattr(Settler, "_find_changed", change_and_find)
    result, data_set = busy.back_up((busy.root / "etc" / "other").unlink, snapshot=Snapshot.NEVER)
    assert result.missing == len(result.warnings) == 1
    assert result.warnings[0].startswith(f"{busy.root}/etc/other: left out: it is not where it was")
    assert b"/etc/shadow" in data_set.files
