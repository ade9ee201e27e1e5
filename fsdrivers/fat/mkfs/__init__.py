# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated FAT volume before the first write."""

from fsdrivers.fat.mkfs.plan import largest_size, minimum_size, plan_volume

__all__ = ["largest_size", "minimum_size", "plan_volume"]
