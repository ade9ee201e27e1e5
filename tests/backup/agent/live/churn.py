# SPDX-License-Identifier: Apache-2.0
"""Programs that change a volume while it is backed up, and what must be true of any copy of it.

Each writer keeps something that can be judged from the copy alone: a file's content says which of
its states it is of, so that a mixture of two is seen, and what stays under some name all the time
is known.  `python -m tests.backup.agent.live.churn DIRECTORY SEED` runs them until it is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

WORD = 8  # bytes
FILES, TREES, ACCOUNTS = 6, 4, 50
PUNCH_HOLE = 3  # linux/falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
LARGE = 9 << 20  # bytes: more than is read at once


def words(number: int, size: int) -> bytes:
    """Return a content of about `size` bytes that says of every word which state it is of."""
    return number.to_bytes(WORD, "little") * max(1, size // WORD)


def prepare(root: Path) -> None:
    """Make what the writers change."""
    for number in range(FILES):
        for name in ("replaced", "rewritten", "cut", "punched", "linked"):
            (root / name).mkdir(exist_ok=True)
            (root / name / f"{number}").write_bytes(words(1, 4096))
        os.link(root / "linked" / f"{number}", root / "linked" / f"{number}-stays")
    (root / "large").write_bytes(words(1, LARGE))
    (root / "mapped").write_bytes(words(0, 256 << 10))
    (root / "appended").write_bytes(b"")
    for number in range(TREES):
        tree = root / "trees" / f"place-{number}" / f"tree-{number}" / "below"
        tree.mkdir(parents=True)
        (tree / f"stays-{number}").write_bytes(b"tree %d" % number)
    for number in range(TREES):
        (root / "other trees" / f"{number}").mkdir(parents=True)
    (root / "database").mkdir()
    for name, mode in (("log", "wal"), ("rollback", "delete")):
        with contextlib.closing(sqlite3.connect(root / "database" / f"{name}.db")) as database:
            database.execute(f"pragma journal_mode={mode}")
            database.execute("create table account (id integer primary key, value, filling)")
            rows = [(number, 100, "x" * 2000) for number in range(ACCOUNTS)]
            database.executemany("insert into account values (?, ?, ?)", rows)
            database.commit()
    (root / "still").mkdir()
    for number in range(200):
        (root / "still" / f"{number}").write_bytes(b"%d" % number)


def replace_files(root: Path, draw: random.Random, count: int) -> None:
    """Save a file as editors do."""
    path = root / "replaced" / str(draw.randrange(FILES))
    made = path.with_name(path.name + ".new")
    made.write_bytes(words(count, draw.choice((8, 4096, 100_000))))
    made.rename(path)


def rewrite_files(root: Path, draw: random.Random, count: int) -> None:
    """Write over a file without cutting it: one write is one state."""
    path = root / "rewritten" / str(draw.randrange(FILES))
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, words(count, 4096), 0)
    os.close(descriptor)


def punch_files(root: Path, draw: random.Random, count: int) -> None:
    """Make a hole of a whole file in one call, or fill it in one."""
    path = root / "punched" / str(draw.randrange(FILES))
    descriptor = os.open(path, os.O_WRONLY)
    try:
        if draw.random() < 0.5:
            os.pwrite(descriptor, words(count, 4096), 0)
        elif LIBC.fallocate64(descriptor, PUNCH_HOLE, 0, 4096):
            raise OSError(ctypes.get_errno(), "a hole cannot be made")
    finally:
        os.close(descriptor)


def cut_files(root: Path, draw: random.Random, count: int) -> None:
    """Cut a file to nothing, and write it anew, longer or shorter."""
    path = root / "cut" / str(draw.randrange(FILES))
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.pwrite(descriptor, words(count, draw.choice((4096, 40_000))), 0)
    os.close(descriptor)


def link_files(root: Path, draw: random.Random, count: int) -> None:
    """Add and remove further names; one stays."""
    number = draw.randrange(FILES)
    path = root / "linked" / f"{number}-{draw.randrange(3)}"
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        if draw.random() < 0.5:
            os.link(root / "linked" / f"{number}-stays", path)
        else:
            path.unlink()
    with contextlib.suppress(FileNotFoundError):
        (root / "linked" / f"{number}").unlink()


def append_to_file(root: Path, draw: random.Random, count: int) -> None:
    """Append a line with its number."""
    with (root / "appended").open("ab") as stream:
        stream.write(b"%d\n" % count)


def write_large(root: Path, draw: random.Random, count: int) -> None:
    """Replace a file that is read in parts."""
    made = root / "large.new"
    made.write_bytes(words(count, LARGE + draw.randrange(100) * WORD))
    made.rename(root / "large")
    time.sleep(0.2)


def move_trees(root: Path, draw: random.Random, count: int) -> None:
    """Move a tree to another place."""
    trees = [*(root / "trees").glob("*/tree-*"), *(root / "other trees").glob("*/tree-*")]
    tree = draw.choice(trees)
    places = [*(root / "trees").iterdir(), *(root / "other trees").iterdir()]
    tree.rename(draw.choice(places) / tree.name)
    time.sleep(0.002)


class Mapped:
    """Writes a file word by word through a mapping, from front to back."""

    def __call__(self, root: Path, draw: random.Random, count: int) -> None:
        with (root / "mapped").open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as view:
            word = count.to_bytes(WORD, "little")
            for at in range(0, len(view), 4096):
                view[at : at + 4096] = word * (4096 // WORD)


def change_database(name: str) -> Callable[[Path, random.Random, int], None]:
    """Return what moves values between accounts: their sum stays."""

    def change(root: Path, draw: random.Random, count: int) -> None:
        with contextlib.closing(sqlite3.connect(root / "database" / name, timeout=30)) as database:
            for _ in range(20):
                with database:
                    chosen = draw.sample(range(ACCOUNTS), 20)
                    for step, number in enumerate(chosen):
                        value = 1 if step % 2 else -1
                        database.execute(
                            "update account set value = value + ?, filling = ? where id = ?",
                            (value, chr(97 + count % 26) * draw.randrange(1, 3000), number),
                        )

    return change


WRITERS: Mapping[str, Callable[[Path, random.Random, int], None]] = {
    "replace": replace_files,
    "rewrite": rewrite_files,
    "punch": punch_files,
    "cut": cut_files,
    "link": link_files,
    "append": append_to_file,
    "large": write_large,
    "move": move_trees,
    "map": Mapped(),
    "log": change_database("log.db"),
    "rollback": change_database("rollback.db"),
}


def run(root: Path, seed: int, names: tuple[str, ...]) -> None:
    """Run writers until standard input ends."""
    is_over = threading.Event()

    def repeat(name: str) -> None:
        draw, count = random.Random(f"{seed} {name}"), 1
        while not is_over.is_set():
            count += 1
            WRITERS[name](root, draw, count)
            time.sleep(0.001)

    threads = [threading.Thread(target=repeat, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    is_over.set()
    for thread in threads:
        thread.join()


# What must be true of a copy


def judge(files: Mapping[bytes, bytes], directory: Path) -> dict[str, str]:
    """Return what is wrong with a copy of the files, by path.

    Args:
        files: content by path.
        directory: where databases can be opened.
    """
    wrong: dict[str, str] = {}

    def expect(path: str, is_right: bool, reason: str) -> None:
        if not is_right:
            wrong.setdefault(path, reason)

    for number in range(FILES):
        for name in ("replaced", "rewritten", "cut", "punched"):
            path = f"/{name}/{number}"
            content = files.get(path.encode())
            expect(path, content is not None, "is missing")
            expect(path, len(set(_split(content or b""))) <= 1, "is of two states")
        path = f"/linked/{number}-stays"
        expect(path, files.get(path.encode()) == words(1, 4096), "is missing or wrong")
    large = files.get(b"/large")
    expect("/large", large is not None and len(large) >= LARGE, "is missing or short")
    expect("/large", len(set(_split(large or b""))) == 1, "is of two states")
    found = [int.from_bytes(word, "little") for word in _split(files.get(b"/mapped", b""))]
    steps = [(a, b) for a, b in itertools.pairwise(found) if a != b]
    expect("/mapped", len(found) == (256 << 10) // WORD, "is missing or short")
    expect("/mapped", len(steps) <= 1, "is of two states")
    lines = files.get(b"/appended", b"").split(b"\n")
    expected = [b"%d" % number for number in range(2, len(lines) + 1)]
    expect("/appended", lines[:-1] == expected and not lines[-1], "is no state it had")
    for number in range(TREES):
        name = b"/below/stays-%d" % number
        places = [path for path in files if path.endswith(name)]
        expect(os.fsdecode(name), len(places) == 1, f"is there {len(places)} times")
        expect(
            os.fsdecode(name), files.get(places[0] if places else b"") == b"tree %d" % number, ""
        )
    for number in range(200):
        path = f"/still/{number}"
        expect(path, files.get(path.encode()) == b"%d" % number, "is missing or wrong")
    for name in ("log.db", "rollback.db"):
        reason = _judge_database(files, name, directory)
        expect(f"/database/{name}", not reason, reason)
    return wrong


def _split(content: bytes) -> list[bytes]:
    """Return the words of a content."""
    return [content[at : at + WORD] for at in range(0, len(content), WORD)]


def _judge_database(files: Mapping[bytes, bytes], name: str, directory: Path) -> str:
    """Return what is wrong with a database, opened as it is after a crash."""
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    prefix = f"/database/{name}".encode()
    for path, content in files.items():
        if path.startswith(prefix) and not path.endswith(b"-shm"):
            (directory / os.fsdecode(path.rpartition(b"/")[2])).write_bytes(content)
    try:
        with contextlib.closing(sqlite3.connect(directory / name)) as database:
            (result,) = database.execute("pragma integrity_check").fetchone()
            (total,) = database.execute("select sum(value) from account").fetchone()
    except sqlite3.Error as error:
        return str(error)
    if result != "ok":
        return str(result)
    return "" if total == 100 * ACCOUNTS else f"its sum is {total}"


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]) or tuple(WRITERS))
