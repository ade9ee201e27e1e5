# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs`: look into disks and images, and change them, without mounting; one row a verb.

Paths on a volume are from its root; links are not followed.  Only the verbs whose row says that
they write ever write to IMAGE.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from fsdrivers.device import Device, FileDevice
from imagebuilder.cli.commands import Command, Group, command
from imagebuilder.cli.common import print_json, report_error
from imagebuilder.cli.fs import dos, edit, look, volume
from imagebuilder.cli.fs.edit import each
from imagebuilder.cli.fs.open import Image, Volume, open_window
from imagebuilder.cli.fs.outcome import EXIT_CODES, failure_of
from imagebuilder.cli.fs.put import Put, put
from rebuild.exit_codes import ExitCode, describe

ImageOptions = TypeVar("ImageOptions", bound=Image)
VolumeOptions = TypeVar("VolumeOptions", bound=Volume)


class VerbParser(argparse.ArgumentParser):
    """Lets options stand between IMAGE and an optional PATH, which argparse alone refuses.

    It gives an optional positional its default as soon as an option follows the one before;
    its own way around, intermixed parsing, is not offered for the parsers of subcommands.
    """

    _is_intermixing = False

    def parse_known_args(  # type: ignore[override]  # the base is overloaded for any namespace
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; called by parse_known_intermixed_args once more."""
        if self._is_intermixing:
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False


def _verb(
    name: str, help: str, options: type[ImageOptions], action: Callable[[ImageOptions], int]
) -> Command:
    """Return the row of a verb; what fails ends as one sentence, and as JSON when asked."""

    def run(chosen: ImageOptions) -> int:
        try:
            return action(chosen)
        except tuple(EXIT_CODES) as error:
            text, code = failure_of(error)
            if chosen.json:
                print_json({"action": name, "error": text, "code": code})
            report_error(text)
            return code

    return command(name, help, options, run)


def _disk(action: Callable[[VolumeOptions, Device], int]) -> Callable[[VolumeOptions], int]:
    """Return what opens IMAGE for reading and calls `action` with it."""

    def run(options: VolumeOptions) -> int:
        with FileDevice.open(options.image, sector_size=options.sector_size) as device:
            return action(options, device)

    return run


def _volume(
    action: Callable[[VolumeOptions, Device], int],
    writes: Callable[[VolumeOptions], bool] = lambda options: False,
) -> Callable[[VolumeOptions], int]:
    """Return what opens the volume that the options name, for writing if they say so."""

    def run(options: VolumeOptions) -> int:
        with FileDevice.open(
            options.image, writable=writes(options), sector_size=options.sector_size
        ) as device:
            return action(options, open_window(options, device))

    return run


def _edit(
    name: str, help: str, options: type[VolumeOptions], change: edit.Change[VolumeOptions]
) -> Command:
    """Return the row of a verb that writes whatever its options."""
    action = partial(edit.editing, name, change)
    return _verb(name, help, options, _volume(action, lambda options: True))


_VERBS = (
    _verb(
        "probe", "show the partition table and what each partition holds", Volume, _disk(look.probe)
    ),
    _verb("ls", "list a directory, or one object, as ls -l does", look.Listing, _volume(look.ls)),
    _verb("stat", "show everything known of one object", look.Object, _volume(look.stat)),
    _verb("cat", "write the content of files to standard output", look.Contents, _volume(look.cat)),
    _verb(
        "manifest",
        "list every object at and below PATH with the hash of its content",
        look.Object,
        _volume(look.manifest),
    ),
    _edit("put", "copy a host file or, with -r, a directory into the volume", Put, put),
    _edit("rm", "remove files, with -r directories and all below", edit.Remove, each(edit.rm)),
    _edit("rmdir", "remove empty directories", edit.Paths, each(edit.rmdir)),
    _edit("mv", "rename an object, also to another directory", edit.Move, edit.mv),
    _edit("mkdir", "make directories", edit.NewDirectories, each(edit.mkdir)),
    _edit("ln", "give an object another name, or make a symbolic link", edit.Link, edit.ln),
    _edit("chmod", "set permissions", edit.Mode, each(edit.chmod)),
    _edit("chown", "set owner and group by number", edit.Owner, each(edit.chown)),
    _edit(
        "touch",
        "set the times of access and modification; make files that are missing",
        edit.Touch,
        each(edit.touch),
    ),
    _verb(
        "attr",
        "show or change the flags and extended attributes of an object",
        edit.Attributes,
        _volume(edit.attr, edit.Attributes.writes),
    ),
    _verb(
        "label",
        "show or set the label of the volume",
        edit.Label,
        _volume(edit.label, edit.Label.writes),
    ),
    _verb(
        "describe",
        "print as JSON all that formatting the same volume again needs",
        Volume,
        _volume(volume.describe),
    ),
    _verb("mkfs", "format a volume; what was there is lost", volume.Mkfs, volume.mkfs),
    _verb(
        "check",
        "list everything that is wrong with the volume; exit code 5 if anything is",
        Volume,
        _volume(volume.check),
    ),
    _verb(
        "extract",
        "restore an object and all below it to a host directory",
        volume.Extract,
        _volume(volume.extract),
    ),
    _verb(
        "fix-dos",
        "bring the files of DOS to where its boot sector looks; writes to IMAGE",
        dos.FixDos,
        dos.fix_dos,
    ),
)
COMMANDS = (
    Group(
        "fs",
        "look into disks and images, and change them, without mounting them",
        _VERBS,
        describe([code for code in ExitCode if code <= ExitCode.DEVICE]),
        VerbParser,
    ),
)
