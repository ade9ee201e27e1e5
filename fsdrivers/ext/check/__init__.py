# SPDX-License-Identifier: Apache-2.0
"""Check an ext volume: superblock and groups, inodes, names, special files."""

from fsdrivers.ext.check.volume import check_volume

__all__ = ["check_volume"]
