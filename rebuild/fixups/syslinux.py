# SPDX-License-Identifier: Apache-2.0
"""Syslinux on FAT, ext and NTFS, where its file lies in other sectors after a restore.

The boot sector names the first sector of ldlinux.sys; that file lists its other sectors, and the
last two, which hold variables.  All count 512 bytes from the start of the volume, so the partition
may move, but not the file in it.  The backup records where the file was.  If the file has the list
that the installer would have made for that place, it gets a list and a checksum for the new place,
and the boot sector names the new first sector.  Anything else stays as it was, and the report says
that the installer must be run again.

On FAT the file is put back where it was (`rebuild.fixups.dos`) unless the volume gets another size.

Source: syslinux 6.04, what `libinstaller/syslxint.h` and `syslxmod.c` say of the patch area, of
its extension and of the list of extents.  Measured: files of Debian's extlinux 6.04 on ext4 and
NTFS come out byte for byte as extlinux itself writes them in the new place.

Not done: syslinux before 4.0, whose list has another form; sectors of other sizes, from which
syslinux does not start.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fsdrivers import Starts
from fsdrivers.volume import Extent
from rebuild.fixups.dos import placed_files
from rebuild.fixups.protocol import Edits, Fixup, RestoredFile, VolumeChange
from rebuild.machine import Machine, VolumeTree, printable_path
from rebuild.sites import Site

SECTOR_SIZE = 512  # bytes; syslinux knows no other
BOOT_CODE_SIZE = SECTOR_SIZE
_LARGEST = 1 << 20  # bytes of a file worth reading; it is loaded below 1 MiB
_LARGEST_PLACE = 4 << 20  # bytes; clusters may be as large as 2 MiB
_MAGIC = 0x3EB202FE
_MAGIC_POSITION = 0x1F8  # in boot code
_OEM_NAMES, _OEM_POSITION = (b"EXTLINUX", b"SYSLINUX"), 3
_HIDDEN_POSITION = 0x1C  # the sectors in front of the volume, as in any boot sector
_MOST_SECTORS = 127  # of an extent: it is shorter than 64 KiB
_WORD = struct.Struct("<I")
# magic, instance, sectors of the file, sectors of variables, words of the checksum, checksum,
# most sectors at once, position of the extension.
_AREA = struct.Struct("<IIHHIIHH")
_CHECKSUM_AT = 16  # in the area
# positions: of the variables' pointers, directory and its length, subvolume and its length, the
# list and its length; in boot code: both halves of the first sector, and a patch for RAID.
_EXTENSION = struct.Struct("<10H")
_EXTENT = struct.Struct("<QH")  # first sector, sectors
_VARIABLES = struct.Struct("<QQ")
_VARIABLE_SECTORS = 2

Extents = Iterable[tuple[int, int]]  # (position in the volume, length) in the file's order, bytes


class PatchArea(NamedTuple):
    """What an ldlinux.sys says of itself; positions in bytes from its start."""

    position: int  # of the area
    data_sectors: int  # of the file without its variables
    words: int  # that the checksum covers
    list_position: int
    list_length: int  # extents that have a place
    variables_position: int
    pointer_low: int  # in the boot code: the first sector's lower and upper half
    pointer_high: int

    @property
    def total_sectors(self) -> int:
        """Sectors of the file that are named somewhere."""
        return self.data_sectors + _VARIABLE_SECTORS


def is_boot_code(code: bytes) -> bool:
    """Tell whether a volume's first sector holds syslinux's boot code."""
    has_name = code[_OEM_POSITION : _OEM_POSITION + 8] in _OEM_NAMES
    has_magic = code[_MAGIC_POSITION : _MAGIC_POSITION + 4] == _WORD.pack(_MAGIC)
    return len(code) >= BOOT_CODE_SIZE and (has_name or has_magic)


def patch_area_of(data: bytes) -> PatchArea:
    """Return the patch area of an ldlinux.sys.

    Raises:
        ValueError: it is missing or damaged; says so as the end of a sentence.
    """
    # The boot sector loads the first sector alone, and looks for the magic there.
    head = data[:SECTOR_SIZE]
    positions = range(0, len(head) - _AREA.size + 1, _WORD.size)
    at = next((p for p in positions if _WORD.unpack_from(head, p)[0] == _MAGIC), -1)
    if at < 0:
        raise ValueError("is not an ldlinux.sys of syslinux 4 or later")
    _, _, sectors, variables, words, _, _, extension = _AREA.unpack_from(data, at)
    if extension + _EXTENSION.size > len(data):
        raise ValueError("has a damaged patch area")
    pointers, _, _, _, _, extents, count, low, high, _ = _EXTENSION.unpack_from(data, extension)
    area = PatchArea(at, sectors, words, extents, count, pointers, low, high)
    if not (
        sectors > 1
        and variables == _VARIABLE_SECTORS
        and area.total_sectors * SECTOR_SIZE <= len(data)
        and at + _AREA.size <= words * _WORD.size <= sectors * SECTOR_SIZE
        and extents + count * _EXTENT.size <= words * _WORD.size
        and pointers + _VARIABLES.size <= words * _WORD.size
        and max(low, high) + _WORD.size <= BOOT_CODE_SIZE
    ):
        raise ValueError("has a damaged patch area")
    return area


def sectors_of(extents: Extents) -> list[int]:
    """Return the sectors of a file in its order.

    Raises:
        ValueError: an extent begins or ends within a sector, or the file is far too large.
    """
    sectors: list[int] = []
    for position, length in extents:
        if position < 0 or position % SECTOR_SIZE or length % SECTOR_SIZE:
            raise ValueError("lies across sectors")
        if not 0 < length <= _LARGEST_PLACE or len(sectors) > _LARGEST_PLACE // SECTOR_SIZE:
            raise ValueError("has a strange size")
        first = position // SECTOR_SIZE
        sectors += range(first, first + length // SECTOR_SIZE)
    return sectors


def patched_file(data: bytes, sectors: Sequence[int]) -> bytes:
    """Return an ldlinux.sys as it has to be in these sectors of its volume.

    Args:
        data: the whole file.
        sectors: those it is in, in its order; more than it needs do not matter.

    Raises:
        ValueError: it is not an ldlinux.sys, or lies in too many pieces; says so as the end of a
            sentence.
    """
    area = patch_area_of(data)
    if len(sectors) < area.total_sectors:
        raise ValueError("has holes")
    extents = list(_extents_of(sectors[1 : area.data_sectors]))
    if len(extents) > area.list_length:
        raise ValueError(f"is in more pieces than its list has places for, {area.list_length}")
    made = bytearray(data)
    size = area.list_length * _EXTENT.size
    listed = b"".join(_EXTENT.pack(*extent) for extent in extents)
    made[area.list_position : area.list_position + size] = listed.ljust(size, b"\0")
    variables = sectors[area.data_sectors : area.total_sectors]
    _VARIABLES.pack_into(made, area.variables_position, *variables)
    checksum_at = area.position + _CHECKSUM_AT
    _WORD.pack_into(made, checksum_at, 0)
    total = sum(struct.unpack_from(f"<{area.words}I", made))
    _WORD.pack_into(made, checksum_at, (_MAGIC - total) & 0xFFFFFFFF)
    return bytes(made)


def _extents_of(sectors: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (first sector, sectors) of what is loaded at once, from the second sector on."""
    first = count = 0
    for sector in sectors:
        if count and sector == first + count and count < _MOST_SECTORS:
            count += 1
            continue
        if count:
            yield first, count
        first, count = sector, 1
    if count:
        yield first, count


def first_sector_in(code: bytes, area: PatchArea) -> int:
    """Return the sector of ldlinux.sys that a boot code loads."""
    low = _WORD.unpack_from(code, area.pointer_low)[0]
    high = _WORD.unpack_from(code, area.pointer_high)[0]
    return int(low | high << 32)


def patched_boot_code(code: bytes, area: PatchArea, sector: int) -> bytes:
    """Return a boot code that loads ldlinux.sys from `sector` of its volume."""
    made = bytearray(code)
    _WORD.pack_into(made, area.pointer_low, sector & 0xFFFFFFFF)
    _WORD.pack_into(made, area.pointer_high, sector >> 32)
    return bytes(made)


def moved_boot_code(code: bytes, old_start: int, new_start: int) -> bytes:
    """Return a boot code that knows its volume's new place; both starts in bytes.

    The partition table counts more, but says nothing of a logical partition.
    """
    (hidden,) = _WORD.unpack_from(code, _HIDDEN_POSITION)
    if hidden * SECTOR_SIZE != old_start or new_start // SECTOR_SIZE > 0xFFFFFFFF:
        return code
    made = bytearray(code)
    _WORD.pack_into(made, _HIDDEN_POSITION, new_start // SECTOR_SIZE)
    return bytes(made)


def moved_back(data: bytes, new: Extents, old: Extents) -> bytes:
    """Return a restored ldlinux.sys as it was in the place where it was recorded.

    If its list is not the one for the `new` place it was not changed, and is returned as it is.
    """
    try:
        if patched_file(data, sectors_of(new)) == data:
            return patched_file(data, sectors_of(old))
    except ValueError:
        pass
    return data


def recorded_places(tree: VolumeTree) -> dict[int, list[tuple[int, int]]]:
    """Return (position, length) of the extents of the volume's boot files, by object number."""
    is_ours = tree.may_start(Starts.SYSLINUX)
    return placed_files(tree) if is_ours else {}


class Syslinux(Fixup):
    """Lets syslinux find its file in the place where the restore put it."""

    def changes(self, machine: Machine, sites: Sequence[Site]) -> Iterator[VolumeChange]:
        """Plan to look at every volume from which syslinux may start."""
        for site in sites:
            for tree, part in site.volumes(machine):
                if not tree.may_start(Starts.SYSLINUX):
                    continue
                places = recorded_places(tree)
                nodes = {item.number: item for item in tree.nodes} if places else {}
                files = {
                    number: PlacedFile(printable_path(item, nodes), item.size, places[number])
                    for number, item in nodes.items()
                    if number in places
                }
                yield FollowedSectors(
                    volume=tree.volume.number,
                    files=frozenset(files),
                    type=tree.volume.type,
                    placed=files,
                    old_start=part.old_start,
                    new_start=part.new_start,
                    sector_size=site.sector_size,
                )


class PlacedFile(NamedTuple):
    """An ldlinux.sys as it was recorded."""

    path: str
    size: int
    extents: Extents


class _Followed(NamedTuple):
    """An ldlinux.sys that names its sectors in the new place."""

    area: PatchArea
    old_first: int  # sector of the volume
    new_first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedSectors(VolumeChange):
    """The numbers of sectors in the boot sector and the files of syslinux on one volume."""

    type: str  # of the volume
    placed: Mapping[int, PlacedFile]  # by number of the file
    old_start: int  # first byte of the volume on the recorded disk
    new_start: int  # the same on the new disk
    sector_size: int  # bytes, of the new disk

    def edits(self, boot_code: bytes, files: Mapping[int, RestoredFile]) -> Edits:
        """Change the files that are as extlinux wrote them; else say that it must run again."""
        starts = is_boot_code(boot_code)
        parts: dict[int, bytes] = {}
        notes: list[str] = []
        followed: list[_Followed] = []
        stays = False  # whatever the file and the boot sector say, it is as true as it was
        problem = "ldlinux.sys is not where it says"
        for number, (path, size, extents) in self.placed.items():
            try:
                if self.sector_size != SECTOR_SIZE:
                    raise ValueError(f"lies on sectors of {self.sector_size} bytes")
                if not SECTOR_SIZE < size <= _LARGEST:
                    raise ValueError("has a strange size")
                data, old = files[number].read(), sectors_of(extents)
                new = sectors_of(_places(files[number].extents))
                if new == old:
                    stays = True
                    continue
                if patched_file(data, old) != data:
                    raise ValueError("has another list of sectors than extlinux would write")
                made = patched_file(data, new)
            except ValueError as error:
                problem = f"{path} {error}"
                continue
            followed.append(_Followed(patch_area_of(made), old[0], new[0]))
            if made != data:
                parts[number] = made
                notes.append(
                    f"{path} (syslinux) lies in other sectors; its list of them and the boot "
                    "sector changed with it."
                )
        named = any(first_sector_in(boot_code, f.area) == f.old_first for f in followed)
        if starts and not stays and not named:
            notes.append(
                f"The {self.type} volume has the boot sector of extlinux, but {problem}: "
                "run extlinux --install again, or it does not start."
            )
        return Edits(self._followed_code(boot_code, followed), parts, tuple(notes))

    def content_before(self, number: int, file: RestoredFile) -> bytes:
        """Give a file the list for the place where it was recorded."""
        return moved_back(file.read(), _places(file.extents), self.placed[number].extents)

    def boot_code_after(self, code: bytes, files: Mapping[int, RestoredFile]) -> bytes:
        """Name the new first sector of the file that the boot code names, if it was changed."""
        followed: list[_Followed] = []
        for number in self.placed.keys() & files.keys():
            try:
                data, new = files[number].read(), sectors_of(_places(files[number].extents))
                old = sectors_of(self.placed[number].extents)
                if patched_file(data, new) == data:  # else it was left as it was
                    followed.append(_Followed(patch_area_of(data), old[0], new[0]))
            except (ValueError, IndexError):
                continue
        return self._followed_code(code, followed)

    def _followed_code(self, code: bytes, followed: Iterable[_Followed]) -> bytes:
        if self.sector_size != SECTOR_SIZE or not is_boot_code(code):
            return code
        made = moved_boot_code(code, self.old_start, self.new_start)
        for area, old_first, new_first in followed:
            if first_sector_in(code, area) == old_first:
                made = patched_boot_code(made, area, new_first)
        return made


def _places(extents: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """Yield (position, length) of whole sectors of a file, up to its first hole."""
    end = 0
    for offset, length, position, _ in extents:
        if offset != end:
            break
        end += length
        yield position, -(-length // SECTOR_SIZE) * SECTOR_SIZE
