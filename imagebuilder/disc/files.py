# SPDX-License-Identifier: Apache-2.0
"""The small files of a disc: configuration of the boot loaders, README, answers, identity."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from backup.objects import disc_files
from imagebuilder.disc import boot_image
from imagebuilder.disc import plan as disc
from imagebuilder.environment.build import BootEnvironment
from imagebuilder.errors import DiscPlanError
from imagebuilder.version import version
from templates import render

# The screen is the kernel's console proper; the serial port sees and answers the same dialogue.
# A kernel panic stays on the screen: no `panic=`.
BASE_ARGUMENTS = ("console=ttyS0,115200", "console=tty0", "quiet")
# Answers that decide what is erased count only in the answer file, which is proven to be ours.
_FILE_ONLY = ("rebuildkit.target=", "rebuildkit.grow=")
_SECRETS = re.compile("password|passphrase|secret|recovery", re.IGNORECASE)
_WORD = re.compile(r"[!-~]+")  # printable ASCII: boot loaders know nothing else
_GRUB_SPECIAL = re.compile(r"[\"'\\$;&|<>{}#]")


@dataclass(frozen=True, slots=True)
class DiscOptions:
    """What a person may decide about a disc."""

    keymap: str = ""  # keyboard layout offered first
    answers: bytes = b""  # an answer file (JSON object), for unattended restores
    label: str = ""  # written on the README; the machine's name only if wanted
    kernel_arguments: tuple[str, ...] = ()  # more words for the kernel command line


def check_options(options: DiscOptions) -> None:
    """Refuse what cannot be put on a disc.

    Raises:
        DiscPlanError: says what is wrong, in one sentence.
    """
    if options.keymap and not re.fullmatch("[a-z0-9_-]{1,32}", options.keymap):
        raise DiscPlanError(f"{options.keymap!r} is not the name of a keyboard layout")
    for word in options.kernel_arguments:
        if not _WORD.fullmatch(word) or _GRUB_SPECIAL.search(word):
            raise DiscPlanError(f"{word!r} is not allowed on the kernel command line")
        if word.startswith(_FILE_ONLY):
            raise DiscPlanError(f"{word!r} belongs in an answer file: use --answers")
    if options.answers:
        _check_answers(options.answers)


def _check_answers(data: bytes) -> None:
    """Refuse an answer file that is too large, is not a JSON object, or holds a credential."""
    if len(data) > disc_files.SMALL_FILE_LIMIT:
        raise DiscPlanError(
            f"the answer file has {len(data):,} bytes; {disc_files.SMALL_FILE_LIMIT:,} are allowed"
        )
    try:
        answers = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DiscPlanError(f"the answer file is not JSON: {error}") from error
    if not isinstance(answers, dict):
        raise DiscPlanError("the answer file is not a JSON object")
    for name in answers:
        if _SECRETS.search(name):
            raise DiscPlanError(f"the answer file holds {name!r}: a disc must not hold credentials")


def kernel_command_line(set_id: str, options: DiscOptions) -> str:
    """Return the kernel command line of a disc."""
    # Words without a dot reach the environment of process 1, before anything is mounted.
    words = [*BASE_ARGUMENTS, f"REBUILDKIT_SET={set_id}", f"rebuildkit.set={set_id}"]
    if options.keymap:
        words.append(f"rebuildkit.keymap={options.keymap}")
    return " ".join([*words, *options.kernel_arguments])


def info_file(set_id: str) -> bytes:
    """Return `.disk/info`: what the starting system knows its own disc by."""
    return f"{disc_files.INFO_TITLE}\n{disc_files.INFO_SET}{set_id}\ndisc 1 of 1\n".encode()


def mark_path(set_id: str) -> str:
    """Return the path of the file by whose name GRUB finds this disc among all disks."""
    return f".disk/{set_id[:24]}"


def make_small_files(
    set_id: str, options: DiscOptions, environment: BootEnvironment, created_s: int
) -> Mapping[str, bytes]:
    """Return path -> content of every file of the disc that is made here."""
    command_line = kernel_command_line(set_id, options)
    made = datetime.datetime.fromtimestamp(created_s, datetime.UTC)
    files = {
        disc_files.INFO: info_file(set_id),
        mark_path(set_id): f"{set_id}\n".encode(),
        disc.ISOLINUX: environment.loader("isolinux.bin").read_bytes(),
        disc.ISOLINUX_LIBRARY: environment.loader("ldlinux.c32").read_bytes(),
        disc.ISOLINUX_CONFIG: render(
            "isolinux.cfg.j2", disc=set_id[:8], kernel_arguments=command_line
        ).encode(),
        disc.ISOLINUX_MISSING: render("isolinux_missing.cfg.j2", disc=set_id[:8]).encode(),
        disc.GRUB_CONFIG: render(
            "grub.cfg.j2", disc=set_id[:8], kernel_arguments=command_line, search_file=""
        ).encode(),
        disc.EFI_IMAGE: make_efi_image(set_id, command_line, environment, created_s),
        disc_files.README: render(
            "disc_readme.txt.j2",
            label=options.label,
            created=f"{made:%Y-%m-%d %H:%M}",
            set_id=set_id,
            disc_number=1,
            disc_count=1,
            version=version(),
        ).encode(),
    }
    if options.answers:
        files[disc_files.ANSWERS] = options.answers
    return files


def make_efi_image(
    set_id: str, command_line: str, environment: BootEnvironment, created_s: int
) -> bytes:
    """Return the FAT image that UEFI firmware starts from.

    Started from a CD, GRUB takes its configuration from the ISO.  Started as the second
    partition of a stick, it finds the copy in the FAT, which looks for the ISO by its mark.
    """
    config = render(
        "grub.cfg.j2",
        disc=set_id[:8],
        kernel_arguments=command_line,
        search_file=f"/{mark_path(set_id)}",
    )
    return boot_image.make_efi_image(
        {
            "/EFI/BOOT/BOOTX64.EFI": environment.loader("shimx64.efi").read_bytes(),
            "/EFI/BOOT/grubx64.efi": environment.loader("gcdx64.efi").read_bytes(),
            "/boot/grub/grub.cfg": config.encode(),
        },
        created_s=created_s,
        volume_id=int(set_id[:8], 16),
    )
