# SPDX-License-Identifier: Apache-2.0
"""Change an NTFS volume in place."""

from fsdrivers.ntfs.edit.editor import open_editor

__all__ = ["open_editor"]
