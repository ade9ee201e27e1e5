# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated FAT volume before the first write."""
