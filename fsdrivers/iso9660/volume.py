# SPDX-License-Identifier: Apache-2.0
"""Read an ISO 9660 volume, from an image or straight from the drive.

Source: [ECMA-119], [SUSP], [RRIP], [Joliet], [El Torito].  A volume has up to four trees of
names over the same content; one of them is shown: the one asked for, or the first of those in
`NAMESPACES` that is there.  Sectors of a drive are as large as those of the format, so a drive
is read as an image is.

Where the two copies of a number differ, the first one (little-endian) counts, as it does for
Linux, and `warnings` says so.

Not done: UDF and HFS trees of hybrid discs, files on other volumes of a set, record formats of
extended attribute records, attributes in AL entries, sparse files (refused by name).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError, FilesystemError, UnsupportedError
from fsdrivers.extents import read_extents
from fsdrivers.iso9660 import description, zisofs
from fsdrivers.iso9660.descriptors import (
    DescriptorSet,
    PlacedDescriptor,
    find_sessions,
    geometry_of,
    read_descriptors,
)
from fsdrivers.iso9660.directory import File, Item, iter_files, iter_items, read_file, unpack_item
from fsdrivers.iso9660.eltorito import BootCatalogue, read_catalogue
from fsdrivers.iso9660.format import (
    SECTOR_SIZE,
    SELF_NAME,
    FileFlag,
    little,
)
from fsdrivers.iso9660.geometry import Geometry, Section, section_of
from fsdrivers.iso9660.names import checked_name, joliet_name, plain_name
from fsdrivers.iso9660.nodes import LinkKey, directory_node, file_node, link_key
from fsdrivers.iso9660.rockridge import RockRidge, parse_entries
from fsdrivers.iso9660.susp import SuspEntry, find_skip, iter_entries, rock_ridge_version
from fsdrivers.losses import DAMAGE, Damage, Losses, OnDamage
from fsdrivers.volume import Entry, Extent, Kind, Node, Plain, Volume

Namespace = Literal["rockridge", "joliet", "enhanced", "plain"]
NAMESPACES: tuple[Namespace, ...] = ("rockridge", "joliet", "enhanced", "plain")
ASSOCIATED_SUFFIX = b";associated"  # behind the name of an associated file, where shown
CACHED_CONTENTS = 64
MAXIMUM_DIFFERING = 10_000
_ASSOCIATED = FileFlag.ASSOCIATED.value
_DIRECTORY = FileFlag.DIRECTORY.value


@dataclass(frozen=True, slots=True)
class View:
    """One tree of names.

    Attributes:
        namespace: whose names they are.
        placed: the descriptor that leads to its root.
        skip: bytes to skip in System Use areas, of Rock Ridge.
        version: of Rock Ridge, or level of Joliet, as text.
    """

    namespace: Namespace
    placed: PlacedDescriptor
    skip: int = 0
    version: str = ""


class _Content(NamedTuple):
    """Where the content of a file is, and how it is compressed."""

    extents: list[Extent]
    compression: zisofs.Compression | None


class IsoVolume(Volume):
    """An opened ISO 9660 volume.  Made by `open_volume`; owns no descriptor."""

    type = "iso9660"

    def __init__(
        self,
        device: Device,
        descriptors: DescriptorSet,
        views: dict[Namespace, View],
        namespace: Namespace,
        *,
        show_associated: bool,
        tolerated: tuple[str, ...],
    ) -> None:
        self.device = device
        self.descriptors = descriptors
        self.geometry: Geometry = geometry_of(descriptors, device)
        self.views = views
        self.view = views[namespace]
        self.namespace = namespace
        self._tolerated = tolerated
        self._differing: dict[int | None, CorruptError] = {}  # by position
        self.size = self.geometry.size
        self.block_size = self.geometry.block_size
        self.uuid = description.uuid_of(descriptors.primary.descriptor)
        self.label = description.label_of(self.view.placed.descriptor)
        self._show_associated = show_associated
        self._contents: dict[int, _Content] = {}

    def describe(self) -> dict[str, Plain]:
        """Return what the descriptors say; `fsdrivers.iso9660.description` lists the keys."""
        return description.pack_description(
            self.descriptors, {name: view.version for name, view in self.views.items()}
        )

    def warnings(self) -> list[str]:
        """Return what was tolerated so far."""
        made = list(self._tolerated)
        if self._differing and not self.descriptors.ignores_big_endian:  # else that is said
            first = next(iter(self._differing.values()))
            made.append(
                "the two copies of a number differ, and the little-endian one counts "
                f"(places: {len(self._differing)}); first: {first}"
            )
        return made

    def _note_differing(self, error: CorruptError) -> None:
        """Remember a number whose two copies differ."""
        if len(self._differing) < MAXIMUM_DIFFERING:
            self._differing.setdefault(error.position, error)

    def used_size(self) -> int:
        """Return the size of the volume: a disc has no free space."""
        return self.size

    def boot_catalogue(self) -> BootCatalogue | None:
        """Read the boot catalogue, None if the volume has none.

        Raises:
            CorruptError: it is outside, or does not start as it must.
        """
        if self.descriptors.boot_position is None:
            return None
        return read_catalogue(self.device, self.descriptors.catalogue_sector * SECTOR_SIZE)

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield every name, the root first, each directory followed by what is in it.

        Raises:
            CorruptError, DeviceError: without `on_damage`, at the directory that cannot be read,
                or that is met a second time.
        """
        losses = Losses(on_damage)
        links: dict[LinkKey, Node] = {}
        root = self.root_section()
        number = self.directory_number(root)
        node, damage = self._root_node(root, losses)
        yield Entry(number, b"", node)
        if damage is not None:
            losses.add(number, damage, is_kept=True)
        seen = {number}
        budget = self.device.size - root.size  # no byte belongs to two directories
        stack = [(number, self.iter_directory(root, number, losses))]
        while stack:
            parent, files = stack[-1]
            file = None
            try:
                file = next(files, None)
            except DAMAGE as error:
                losses.add(parent, error)
            if file is None:
                stack.pop()
                continue
            name = plain_name(file.item.name, is_directory=file.item.is_directory)
            attributes: RockRidge | None = None
            try:
                attributes = self.attributes(file.item)
            except DAMAGE as error:  # it keeps the name that every reader knows
                losses.add(parent, error, name, is_kept=True)
            try:
                if self._is_hidden(file.item, attributes):
                    continue
                name = self._name_of(file.item, attributes)
                section = self.section_of_directory(file, attributes)
                if section is None:
                    node = self._file_node(file, attributes, links)
                else:
                    number = self.directory_number(section)
                    position = file.item.position
                    if number in seen:
                        raise CorruptError("directory met twice", position, "a new one", number)
                    budget -= section.size
                    if budget < 0:
                        raise CorruptError("directories larger than their volume", position)
                    node = self._directory_node(number, file, attributes)
            except DAMAGE as error:
                losses.add(parent, error, name)
                continue
            yield Entry(parent, name, node)
            if section is not None:
                seen.add(number)
                stack.append((number, self.iter_directory(section, number, losses)))
        losses.add_uncounted(self.directory_number(root), "nothing counts the files of a disc")

    def root_section(self) -> Section:
        """Return where the root directory of this view is."""
        placed = self.view.placed
        return section_of(placed.root, placed.root_position)

    def directory_number(self, section: Section) -> int:
        """Return where the content of a directory starts, which is its number."""
        return self.geometry.span(section)[0]

    def iter_directory(
        self, section: Section, number: int, losses: Losses | None = None
    ) -> Iterator[File]:
        """Yield the objects in a directory, with no regard to what is hidden.

        Args:
            section: where it is.
            number: of it.
            losses: told of what cannot be read; what else there is, is yielded.

        Raises:
            CorruptError, DeviceError: it passes the end of the device, or does not start as a
                directory does; or at the record that is damaged, unless `losses` are told.
        """
        if losses is None or not losses.are_told:
            return iter_files(self._iter_checked(section))
        told = losses

        def tell(error: Damage) -> None:
            told.add(number, error)

        return iter_files(self._iter_checked(section, tell), tell)

    def _iter_checked(
        self, section: Section, on_damage: Callable[[Damage], None] | None = None
    ) -> Iterator[Item]:
        """Yield all records of a directory, of which the first has to be its own.

        Without that there is no directory, whatever else is there.
        """
        damages: list[Damage] = []

        def tell(error: Damage) -> None:
            damages.append(error)
            if on_damage is not None:
                on_damage(error)

        count = 0
        for item in self.iter_items(section, None if on_damage is None else tell):
            if not count and not damages and (item.name != SELF_NAME or not item.is_directory):
                raise CorruptError("start of a directory", item.position, "its own record")
            count += 1
            yield item
        if not count and not damages:
            start, _ = self.geometry.span(section)
            raise CorruptError("a directory without a record", start, "its own", "none")

    def iter_items(
        self, section: Section, on_damage: Callable[[Damage], None] | None = None
    ) -> Iterator[Item]:
        """Yield all records of a directory.  Raises as `iter_directory`."""
        if section.is_interleaved:
            raise UnsupportedError("interleaved directories")
        for extent in self.geometry.extents_of(section, 0):
            yield from iter_items(
                self.device.read,
                extent.position,
                extent.length,
                self.block_size,
                differs=self._note_differing,
                on_damage=on_damage,
            )

    def section_of_directory(self, file: File, attributes: RockRidge | None) -> Section | None:
        """Return where the directory that a record stands for is, None if it stands for none.

        Raises:
            CorruptError: a relocated directory is not where it should be.
        """
        if attributes is not None and attributes.child_block is not None:
            item = self.first_item(attributes.child_block, file.item.position)
            return section_of(item.record, file.item.position)._replace(
                block=attributes.child_block, attribute_blocks=0
            )
        if not file.item.is_directory:
            return None
        if len(file.sections) > 1:
            raise CorruptError("directory of several sections", file.item.position)
        return file.sections[0]

    def extents(self, node: Node) -> list[Extent]:
        """Return where the content of a file is; directories have none.

        Raises:
            CorruptError: it passes the end of the device.
            UnsupportedError: it is sparse, or compressed: `read` gives what no extent has.
        """
        content = self._content(node)
        if content.compression is not None:
            raise UnsupportedError("extents of a compressed file")
        return content.extents

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of content from `offset`; less only at the end."""
        content = self._content(node)
        if content.compression is None:
            length = min(length, node.size - offset)
            return read_extents(self.device, content.extents, offset, length)

        def stored(start: int, count: int) -> bytes:
            size = sum(extent.length for extent in content.extents)
            return read_extents(self.device, content.extents, start, min(count, size - start))

        return zisofs.read(stored, node.number, content.compression, offset, length)

    def attributes(self, item: Item) -> RockRidge | None:
        """Return what Rock Ridge says of a record, None if this view has none."""
        if self.view.namespace != "rockridge":
            return None
        return parse_entries(self.iter_entries(item))

    def iter_entries(self, item: Item, skip: int | None = None) -> Iterator[SuspEntry]:
        """Yield the System Use entries of a record.

        Raises:
            CorruptError: one is damaged, or a continuation is outside.
        """
        skip = self.view.skip if skip is None else skip
        return iter_entries(
            item.system_use[skip:],
            item.system_use_position + skip,
            self._read_inside,
            self.block_size,
            differs=self._note_differing,
        )

    def _read_inside(self, position: int, length: int) -> bytes:
        """Read metadata; CorruptError where the device has none."""
        if position + length > self.device.size:
            raise CorruptError("metadata beyond the end of the image", position)
        return self.device.read(position, length)

    def first_item(self, block: int, position: int) -> Item:
        """Return the record that a directory starts with; `position` is of what led here."""
        start = self.geometry.position(block)
        if start + self.block_size > self.device.size:
            raise CorruptError("directory beyond the end of the image", position, None, start)
        item = unpack_item(self.device.read(start, self.block_size), 0, start)
        if item.name != SELF_NAME or not item.is_directory:
            raise CorruptError("start of a directory", start, "its own record", item.name)
        return item

    def _root_node(self, section: Section, losses: Losses) -> tuple[Node, Damage | None]:
        """Return the node of the root, and why its attributes are lost, which are in its first
        record.

        Raises:
            CorruptError, DeviceError: they are lost, and nobody is told.
        """
        number = self.directory_number(section)
        placed = self.view.placed
        item = Item(placed.root, SELF_NAME, b"", placed.root_position, placed.root_position)
        attributes = None
        damage: Damage | None = None
        if self.view.namespace == "rockridge":
            try:
                first = self.first_item(number // self.block_size, placed.root_position)
                start = find_skip(first.system_use)
                attributes = parse_entries(self.iter_entries(first, start_of(first, start)))
                item = first
            except DAMAGE as error:
                if not losses.are_told:
                    raise
                damage = error
        return directory_node(number, item, attributes), damage

    def _directory_node(self, number: int, file: File, attributes: RockRidge | None) -> Node:
        """Return the node of a directory; a relocated one says itself what it is."""
        item = file.item
        if attributes is not None and attributes.child_block is not None:
            item = self.first_item(attributes.child_block, item.position)
            attributes = self.attributes(item)
        return directory_node(number, item, attributes)

    def _file_node(
        self, file: File, attributes: RockRidge | None, links: dict[LinkKey, Node]
    ) -> Node:
        """Return the node of anything else, the same one for all its names."""
        key = None if attributes is None else link_key(file, attributes)
        if key is None:
            return file_node(file, attributes)
        node = links.get(key)
        if node is None:
            node = links[key] = file_node(file, attributes)
        return node

    def _is_hidden(self, item: Item, attributes: RockRidge | None) -> bool:
        """Tell whether a record is shown elsewhere, or only on demand."""
        if attributes is not None and attributes.is_relocated:
            return True
        return bool(item.record.flags & _ASSOCIATED) and not self._show_associated

    def _name_of(self, item: Item, attributes: RockRidge | None) -> bytes:
        """Return the name that this view has for a record."""
        is_directory = bool(item.record.flags & _DIRECTORY)
        if attributes is not None and attributes.name is not None:
            name = attributes.name
        elif self.namespace == "joliet":
            name = joliet_name(item.name, is_directory=is_directory, position=item.position)
        elif self.namespace == "enhanced":
            name = item.name
        else:
            name = plain_name(item.name, is_directory=is_directory)
        if item.record.flags & _ASSOCIATED:
            name += ASSOCIATED_SUFFIX
        return checked_name(name, item.position)

    def _content(self, node: Node) -> _Content:
        """Return where the content of a node is."""
        if node.kind is not Kind.FILE:
            return _Content([], None)
        content = self._contents.get(node.number)
        if content is None:
            content = self._find_content(node)
            if len(self._contents) >= CACHED_CONTENTS:
                self._contents = {}  # as a whole, so that other threads' use of it holds
            self._contents[node.number] = content
        return content

    def _find_content(self, node: Node) -> _Content:
        """Read the directory records of a file again."""
        file = read_file(
            self._read_inside,
            node.number,
            self.device.size,
            self.block_size,
        )
        primary = self.descriptors.primary.descriptor
        own = little(primary.sequence_both), 0
        if little(primary.set_size_both) > 1 and little(file.item.record.sequence_both) not in own:
            raise UnsupportedError("files on other discs of a set")
        attributes = self.attributes(file.item)
        compression = None
        if attributes is not None and attributes.is_sparse:
            raise UnsupportedError("sparse files of Rock Ridge")
        if attributes is not None and attributes.compression is not None:
            compression = zisofs.compression_of(attributes.compression, node.number)
        extents: list[Extent] = []
        offset = 0
        for section in file.sections:
            extents += self.geometry.extents_of(section, offset)
            offset += section.size
        return _Content(extents, compression)


def start_of(item: Item, skip: int | None) -> int:
    """Return where the entries of the root's own record start: skipping does not apply to it."""
    return item.system_use.find(b"SP") if skip is not None else 0


def open_volume(
    device: Device,
    *,
    prefer: Namespace = "rockridge",
    session: int | Literal["last"] = 0,
    show_associated: bool = False,
) -> IsoVolume:
    """Open the ISO 9660 volume on `device`.

    Args:
        device: an image, or a drive with a disc in it.
        prefer: whose names to show; where the volume has none of them, the first that it has.
        session: sector at which the session to be read starts, or "last" for the newest one
            in an image.
        show_associated: list associated files too (resource forks of old Macintosh systems),
            under their names with `ASSOCIATED_SUFFIX`.

    Raises:
        NotRecognisedError: there are no volume descriptors.
        CorruptError: they lead nowhere.
        UnsupportedError: blocks larger than sectors.
    """
    sector = find_sessions(device)[-1] if session == "last" else session
    descriptors = read_descriptors(device, sector)
    plain = View("plain", descriptors.primary)
    views: dict[Namespace, View] = {"plain": plain}
    tolerated = list(descriptors.problems)
    probing = IsoVolume(
        device, descriptors, views, "plain", show_associated=False, tolerated=tuple(tolerated)
    )
    try:
        found = _find_rock_ridge(probing)
        if found is not None:
            views["rockridge"] = found
    except (FilesystemError, DeviceError) as error:
        tolerated.append(f"no Rock Ridge: {error}")
    if descriptors.joliet is not None:
        level = descriptors.joliet.descriptor.joliet_level
        views["joliet"] = View("joliet", descriptors.joliet, version=str(level))
    if descriptors.enhanced is not None:
        views["enhanced"] = View("enhanced", descriptors.enhanced)
    namespace = next(name for name in (prefer, *NAMESPACES) if name in views)
    if probing.size > device.size:
        tolerated.append(f"the volume has {probing.size} bytes, the image {device.size}")
    return IsoVolume(
        device,
        descriptors,
        views,
        namespace,
        show_associated=show_associated,
        tolerated=tuple(tolerated),
    )


def _find_rock_ridge(volume: IsoVolume) -> View | None:
    """Return the view of Rock Ridge if the root announces it."""
    root = volume.root_section()
    item = volume.first_item(root.block + root.attribute_blocks, root.position)
    skip = find_skip(item.system_use)
    if skip is None:
        return None
    entries = list(volume.iter_entries(item, start_of(item, skip)))
    version = rock_ridge_version(entries)
    return View("rockridge", volume.view.placed, skip, version) if version else None
