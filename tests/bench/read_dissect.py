# SPDX-License-Identifier: Apache-2.0
"""Hash every file of a volume with dissect; runs in an environment that has it, nothing of ours.

python read_dissect.py ext4|ntfs IMAGE
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

PIECE_SIZE = 1 << 20


def main() -> None:
    """Print a hash and a path for each file."""
    kind, image = sys.argv[1:]
    with open(image, "rb") as file:
        for path, content in files_of_ext(file) if kind == "ext4" else files_of_ntfs(file):
            state = hashlib.sha256()
            while piece := content.read(PIECE_SIZE):
                state.update(piece)
            print(state.hexdigest(), path)


def files_of_ext(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yield (path, opened content) of the regular files."""
    from dissect.extfs import ExtFS  # type: ignore[import-not-found]  # in its own environment

    pending = [("", ExtFS(file).root)]
    while pending:
        base, directory = pending.pop()
        for child in directory.iterdir():
            name = child.filename
            if name in (".", ".."):
                continue
            path = f"{base}/{name}"
            if child.filetype == 0o040000:
                pending.append((path, child))
            elif child.filetype == 0o100000:
                yield path, child.open()


def files_of_ntfs(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yield (path, opened content) of the files."""
    from dissect.ntfs import NTFS  # type: ignore[import-not-found]  # in its own environment

    for record in NTFS(file).mft.segments(12):
        if record.header and record.filename and not record.is_dir() and record.has_stream(""):
            yield record.full_path(), record.open()


if __name__ == "__main__":
    main()
