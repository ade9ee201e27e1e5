# SPDX-License-Identifier: Apache-2.0
"""Check an NTFS volume: records, indexes, allocation."""

from fsdrivers.ntfs.check.volume import check_volume

__all__ = ["check_volume"]
