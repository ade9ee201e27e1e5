# SPDX-License-Identifier: Apache-2.0
"""Change a FAT volume in place."""

from fsdrivers.fat.edit.editor import open_editor

__all__ = ["open_editor"]
