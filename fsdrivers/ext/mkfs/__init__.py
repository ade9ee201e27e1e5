# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated ext volume before the first write."""

from fsdrivers.ext.mkfs.default import default_description
from fsdrivers.ext.mkfs.plan import largest_size, minimum_size, plan_volume

__all__ = ["default_description", "largest_size", "minimum_size", "plan_volume"]
