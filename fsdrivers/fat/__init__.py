# SPDX-License-Identifier: Apache-2.0
"""FAT12, FAT16 and FAT32 with long names: read, plan, change and check volumes."""
