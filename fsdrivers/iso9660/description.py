# SPDX-License-Identifier: Apache-2.0
"""The only place that knows the keys of an ISO 9660 volume's description, its label and UUID.

Source: [ECMA-119] 8.4; measured: blkid of util-linux 2.38 makes the UUID of the time of
modification, or of creation where there is none, digits as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from fsdrivers.iso9660 import format as iso
from fsdrivers.iso9660.descriptors import DescriptorSet
from fsdrivers.volume import Plain

_TEXTS = (
    "system_id",
    "volume_id",
    "set_id",
    "publisher_id",
    "preparer_id",
    "application_id",
    "copyright_file",
    "abstract_file",
    "bibliographic_file",
)
_TIMES = ("created", "modified", "expires", "effective")
_DIGIT_GROUPS = (4, 2, 2, 2, 2, 2, 2)


def uuid_of(descriptor: iso.VolumeDescriptor) -> str:
    """Return YYYY-MM-DD-HH-MM-SS-cc, or nothing where there is no time."""
    for stored in (descriptor.modified, descriptor.created):
        digits = stored[:16]
        if digits != iso.EMPTY_DIGITS and digits.isdigit():
            break
    else:
        return ""
    groups, start = [], 0
    for size in _DIGIT_GROUPS:
        groups.append(digits[start : start + size].decode("ascii"))
        start += size
    return "-".join(groups)


def label_of(descriptor: iso.VolumeDescriptor) -> bytes:
    """Return the volume identifier without padding; that of Joliet as UTF-8."""
    stored = descriptor.volume_id
    if descriptor.joliet_level:
        text = stored.decode("utf-16-be", "surrogatepass").rstrip("\0 ")
        return text.encode("utf-8", "surrogatepass")
    return stored.rstrip(b"\0 ")


def pack_description(descriptors: DescriptorSet, versions: Mapping[str, str]) -> dict[str, Plain]:
    """Return the description.

    Args:
        descriptors: of the session shown.
        versions: of the trees of names there are.

    Keys: type, block_size, blocks, the texts and times of the primary descriptor as stored without
    padding, set_size and sequence, namespaces (tree -> version), is_xa, boot_catalogue
    (sector, None if there is none), application_use (what the mastering program keeps there).
    """
    primary = descriptors.primary.descriptor
    marker = primary.application_use[iso.CD_XA_OFFSET : iso.CD_XA_OFFSET + len(iso.CD_XA_ID)]
    described: dict[str, Plain] = {
        "type": "iso9660",
        "block_size": primary.block_size,
        "blocks": primary.blocks,
        "set_size": iso.little(primary.set_size_both),
        "sequence": iso.little(primary.sequence_both),
        "namespaces": dict(versions),
        "is_xa": marker == iso.CD_XA_ID,
        "boot_catalogue": None
        if descriptors.boot_position is None
        else descriptors.catalogue_sector,
        "application_use": primary.application_use.rstrip(b"\0 "),
    }
    described.update({name: getattr(primary, name).rstrip(b"\0 ") for name in _TEXTS})
    described.update({name: getattr(primary, name) for name in _TIMES})
    return described
