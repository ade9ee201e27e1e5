# SPDX-License-Identifier: Apache-2.0
"""The verbs of `rebuildkit fs` that go over a whole disk or volume: df, find."""

from __future__ import annotations

import os
from dataclasses import dataclass

from backup.shared.text import size_text
from fsdrivers.device import Device
from fsdrivers.patterns import is_found
from fsdrivers.printable import printable
from imagebuilder.cli.commands import flag, option
from imagebuilder.cli.common import print_json
from imagebuilder.cli.fs.format import name_fields, node_fields, table_lines
from imagebuilder.cli.fs.look import probe_disk
from imagebuilder.cli.fs.open import Volume, open_tree
from imagebuilder.cli.fs.outcome import report_losses
from imagebuilder.cli.fs.paths import find_in_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Space(Volume):
    human: bool = flag("-h --human-readable", "sizes as people read them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Volume):
    pattern: str = option("PATTERN", "a name such as '*.odt', or a path such as '/home/*/notes'")
    path: str = option("PATH", "where to begin (default: the root)", "/", nargs="?")


def df(options: Space, device: Device) -> int:
    """Show how much of each volume is used."""
    result, rows, worst = probe_disk(options, device)
    volumes = [row for row in rows or [{"number": 0, **result}] if "used_size" in row]
    found = []
    for row in volumes:
        size, used = int(str(row["volume_size"])), int(str(row["used_size"]))
        fields = {"size": size, "used": used, "free": size - used}
        found.append({key: row[key] for key in ("number", "filesystem", "label", "uuid")} | fields)
    if options.json:
        print_json(found)
        return worst
    table = [("#", "size", "used", "free", "use", "filesystem", "label")]
    for row in found:
        sizes = [int(str(row[key])) for key in ("size", "used", "free")]
        shown = [size_text(size) if options.human else str(size) for size in sizes]
        part = f"{-(-sizes[1] * 100 // max(sizes[0], 1))} %"
        label = printable(str(row["label"]).encode())
        table.append((str(row["number"]), *shown, part, str(row["filesystem"]), label))  # type: ignore[arg-type]
    for line in table_lines(table, right=5):
        print(line)
    return worst


def find(options: Search, device: Device) -> int:
    """Find objects by name, or by path if there is a slash; * and ? stand for any."""
    tree = open_tree(options, device)
    start, entry = find_in_tree(tree, options.path)
    pattern = os.fsencode(options.pattern)
    below = tree.iter_below(b"/" + start.strip(b"/"), entry)
    found = [(path, tree.shown(item.node)) for path, item in below if is_found(pattern, path)]
    if options.json:
        print_json([{**name_fields("path", path), **node_fields(node)} for path, node in found])
    else:
        for path, _ in found:
            print(printable(path))
    return report_losses(tree)
