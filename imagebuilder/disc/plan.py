# SPDX-License-Identifier: Apache-2.0
"""The plan of a disc: which files, how large, under which name.  Pure.

pycdlib lays files out directory by directory, ascending by ISO 9660 name.  So key file and table
come first, then what the disc is told by and what starts the machine, then the packs in the order
a restore reads them, and the second copies last, as far from the first as the disc allows: the
names of directories see to that.

Source: ECMA-119 6.8 (file sections), 7.4.1 (d-characters), 8.4 (volume descriptor).
Not done yet: a data set over several discs; set size and sequence number are in the plan for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from backup.objects import disc_files
from imagebuilder.disc.boot_image import CYLINDER, ISO_SECTOR
from imagebuilder.errors import DiscPlanError

KERNEL = "boot/vmlinuz"
INITRD = "boot/initrd.img"
GRUB_CONFIG = ".disk/grub.cfg"
# Names that share another file's content.  GRUB looks for its configuration two directories deep,
# where it would lie behind the packs; GRUB without it shows a prompt, on a disc cut short too.
LINKS = {"boot/grub/grub.cfg": GRUB_CONFIG}
EFI_IMAGE = "boot/efi.img"
ISOLINUX = "isolinux/isolinux.bin"
ISOLINUX_CONFIG = "isolinux/isolinux.cfg"
ISOLINUX_MISSING = "isolinux/missing.cfg"
ISOLINUX_LIBRARY = "isolinux/ldlinux.c32"
BOOT_CATALOG = "isolinux/boot.cat"
COPY_OF_KEY_FILE = f"{disc_files.COPIES}/{disc_files.KEY_FILE}"
COPY_OF_TABLE = f"{disc_files.COPIES}/{disc_files.TABLE}"
COPY_OF_MANIFEST = f"{disc_files.COPIES}/{disc_files.MANIFEST}"

VOLUME_ID_PREFIX = "REBUILDKIT_"
VOLUME_ID_DIGITS = 16  # of the data set's id
FILE_LIMIT = 2 << 30  # bytes; some firmware and old readers fail at 2 GiB
# Other than the real name: where it sorts.  What tells a disc ours must survive a cut one.
_ISO_NAMES = {disc_files.COPIES: "ZCOPIES", ".disk": "A_DISK"}
_ISO_NAME_LENGTH = 24  # of at most 30 characters with the extension, at interchange level 3

_SYSTEM_AREA = 32768  # bytes before the volume descriptors
_DESCRIPTORS = 64 << 10  # bytes: descriptors, path tables, boot catalog, with room to spare
_ENTRY = 256  # bytes of a directory record with its Rock Ridge fields, at most


@dataclass(frozen=True, slots=True)
class DiscFile:
    """One file of the disc."""

    path: str  # from the root, parts joined by "/"
    size: int


@dataclass(frozen=True, slots=True)
class DiscPlan:
    """Everything about a disc but the content of its files."""

    set_id: str  # the data set's id, 32 hexadecimal digits
    volume_id: str
    files: tuple[DiscFile, ...]
    disc_number: int = 1
    disc_count: int = 1

    @property
    def directories(self) -> list[str]:
        """Return the directories the files need, parents first."""
        found = {
            "/".join(parts[:depth])
            for parts in (path.split("/") for path in (*(f.path for f in self.files), *LINKS))
            for depth in range(1, len(parts))
        }
        return sorted(found)

    @property
    def data_size(self) -> int:
        """Return the bytes of all files, each filled up to whole sectors."""
        return sum(file.size + -file.size % ISO_SECTOR for file in self.files)

    @property
    def size_limit(self) -> int:
        """Return how many bytes the image has at most."""
        entries = (len(self.files) + len(self.directories)) * (_ENTRY + ISO_SECTOR // 8)
        size = _SYSTEM_AREA + _DESCRIPTORS + entries + self.data_size
        size += (len(self.directories) + 1) * ISO_SECTOR  # and one for the locator at the end
        return size + -size % CYLINDER

    @property
    def boot_size(self) -> int:
        """Return the bytes of the part that starts the machine, the same on every disc."""
        return sum(file.size for file in self.files if file.path.startswith(("boot/", "isolinux/")))


def plan_disc(set_id: str, files: Sequence[DiscFile]) -> DiscPlan:
    """Plan a disc of `files`.

    Raises:
        DiscPlanError: a file is too large, or two names cannot be told apart.
    """
    if not re.fullmatch("[0-9a-f]{32}", set_id):
        raise DiscPlanError(f"a data set id must have 32 hexadecimal digits, not {set_id!r}")
    for file in files:
        if file.size >= FILE_LIMIT:
            raise DiscPlanError(
                f"{file.path} has {file.size:,} bytes; the limit on a disc is {FILE_LIMIT:,}"
            )
    plan = DiscPlan(set_id, volume_id_of(set_id), tuple(files))
    names = [iso_path(file.path) for file in files]
    if len(set(names)) != len(names):
        raise DiscPlanError("two files of the disc would have the same ISO 9660 name")
    return plan


def volume_id_of(set_id: str) -> str:
    """Return the volume id of a data set's disc: what the disc is found by when it starts."""
    return VOLUME_ID_PREFIX + set_id[:VOLUME_ID_DIGITS].upper()


def iso_path(path: str, *, is_directory: bool = False) -> str:
    """Return the ISO 9660 name of a file or directory; Rock Ridge keeps the real one.

    Only letters, digits and underscores are allowed, one dot in a file's name, none in a
    directory's.
    """
    *parents, last = path.split("/")
    parts = [_d_characters(part) for part in parents]
    if is_directory:
        return "/" + "/".join([*parts, _d_characters(last)])
    stem, dot, extension = last.rpartition(".")
    if not dot:
        stem, extension = last, ""
    name = f"{_d_characters(stem)}.{_d_characters(extension)[:3]};1"
    return "/" + "/".join([*parts, name])


def _d_characters(text: str) -> str:
    name = _ISO_NAMES.get(text, text)
    return re.sub("[^A-Z0-9_]", "_", name.upper())[:_ISO_NAME_LENGTH]
