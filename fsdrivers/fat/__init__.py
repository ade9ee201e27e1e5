# SPDX-License-Identifier: Apache-2.0
"""FAT12, FAT16 and FAT32 with long names: read, plan, change and check volumes."""

from fsdrivers.fat.check import check_volume
from fsdrivers.fat.edit.editor import FatEditor, open_editor
from fsdrivers.fat.edit.relocate import fix_place, fix_system_files
from fsdrivers.fat.mkfs.plan import FatLayout, minimum_size, plan_volume
from fsdrivers.fat.system import SystemFiles
from fsdrivers.fat.volume import FatVolume, open_volume

__all__ = [
    "FatEditor",
    "FatLayout",
    "FatVolume",
    "SystemFiles",
    "check_volume",
    "fix_place",
    "fix_system_files",
    "minimum_size",
    "open_editor",
    "open_volume",
    "plan_volume",
]
