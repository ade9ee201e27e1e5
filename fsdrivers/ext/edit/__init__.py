# SPDX-License-Identifier: Apache-2.0
"""Change an ext volume in place, through its journal."""

from fsdrivers.ext.edit.editor import open_editor

__all__ = ["open_editor"]
