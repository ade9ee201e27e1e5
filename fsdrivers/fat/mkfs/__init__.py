# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated FAT volume before the first write."""

from fsdrivers.fat.mkfs.default import default_description
from fsdrivers.fat.mkfs.plan import largest_size, minimum_size, plan_volume

__all__ = ["default_description", "largest_size", "minimum_size", "plan_volume"]
