# SPDX-License-Identifier: Apache-2.0
"""FAT12, FAT16 and FAT32 with long names: read, plan, change and check volumes."""

from fsdrivers.fat.check import Finding, check_volume
from fsdrivers.fat.editor import FatEditor, open_editor
from fsdrivers.fat.mkfs import FatLayout, minimum_size, plan_volume
from fsdrivers.fat.volume import FatVolume, open_volume

__all__ = [
    "FatEditor",
    "FatLayout",
    "FatVolume",
    "Finding",
    "check_volume",
    "minimum_size",
    "open_editor",
    "open_volume",
    "plan_volume",
]
