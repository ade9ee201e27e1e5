# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs`: look into disks and images, and change them, without mounting; one row a verb.

Paths on a volume are from its root; links are not followed.  Only the verbs whose row says that
they write ever write to IMAGE.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TypeVar

from fsdrivers.device import Device, FileDevice
from fsdrivers.machine_images import refuse_machine_image
from imagebuilder.cli.commands import Command, Group, command
from imagebuilder.cli.common import print_json, report_error
from imagebuilder.cli.fs import dos, edit, look, space, volume
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
    name: str,
    options: type[ImageOptions],
    action: Callable[[ImageOptions], int],
    *,
    is_listing: bool = False,
) -> Command:
    """Return the row of a verb; what fails ends as one sentence, and as JSON when asked."""

    @wraps(action)
    def run(chosen: ImageOptions) -> int:
        try:
            return action(chosen)
        except tuple(EXIT_CODES) as error:
            text, code = failure_of(error)
            if chosen.json:
                print_json({"action": name, "error": text, "code": code})
            report_error(text)
            return code

    return command(name, options, run, is_listing=is_listing)


def _volume(
    name: str,
    options: type[VolumeOptions],
    action: Callable[[VolumeOptions, Device], int],
    writes: Callable[[VolumeOptions], bool] = lambda chosen: False,
    window: Callable[[VolumeOptions, Device], Device] = open_window,
    *,
    is_listing: bool = False,
) -> Command:
    """Return the row of a verb that works on one volume, which it writes to if `writes`."""

    @wraps(action)
    def run(chosen: VolumeOptions) -> int:
        with FileDevice.open(
            chosen.image, writable=writes(chosen), sector_size=chosen.sector_size
        ) as device:
            refuse_machine_image(device)
            return action(chosen, window(chosen, device))

    return _verb(name, options, run, is_listing=is_listing)


def _edit(name: str, options: type[VolumeOptions], change: edit.Change[VolumeOptions]) -> Command:
    """Return the row of a verb that writes whatever its options."""

    @wraps(change)
    def action(chosen: VolumeOptions, device: Device) -> int:
        return edit.editing(name, change, chosen, device)

    return _volume(name, options, action, lambda chosen: True)


def _whole(options: Volume, device: Device) -> Device:
    return device


_VERBS = (
    _volume("probe", Volume, look.probe, window=_whole, is_listing=True),
    _volume("df", space.Space, space.df, window=_whole, is_listing=True),
    _volume("ls", look.Listing, look.ls, is_listing=True),
    _volume("find", space.Search, space.find, is_listing=True),
    _volume("stat", look.Objects, look.stat, is_listing=True),
    _volume("cat", look.Contents, look.cat, is_listing=True),
    _volume("manifest", look.Object, look.manifest, is_listing=True),
    _edit("put", Put, put),
    _edit("rm", edit.Remove, each(edit.rm, expands=True)),
    _edit("rmdir", edit.Paths, each(edit.rmdir, expands=True)),
    _edit("mv", edit.Move, edit.mv),
    _edit("mkdir", edit.NewDirectories, each(edit.mkdir)),
    _edit("ln", edit.Link, edit.ln),
    _edit("chmod", edit.Mode, each(edit.chmod, expands=True)),
    _edit("chown", edit.Owner, each(edit.chown, expands=True)),
    _edit("touch", edit.Touch, each(edit.touch)),
    _volume("attr", edit.Attributes, edit.attr, edit.Attributes.writes),
    _volume("label", edit.Label, edit.label, edit.Label.writes),
    _volume("describe", Volume, volume.describe, is_listing=True),
    _verb("mkfs", volume.Mkfs, volume.mkfs),
    _volume("check", Volume, volume.check),
    _volume("extract", volume.Extract, volume.extract),
    _verb("fix-dos", dos.FixDos, dos.fix_dos),
)
COMMANDS = (
    Group(
        "fs",
        "Look into disks and images, and change them, without mounting them.",
        _VERBS,
        describe([code for code in ExitCode if code <= ExitCode.DEVICE]),
        VerbParser,
    ),
)
