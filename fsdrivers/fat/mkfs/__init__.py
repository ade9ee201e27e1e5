# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated FAT volume before the first write."""

from fsdrivers.fat.mkfs.plan import minimum_size, plan_volume

__all__ = ["minimum_size", "plan_volume"]
