# SPDX-License-Identifier: Apache-2.0
"""Check an ext volume: superblock and groups, inodes, names, special files."""
