# SPDX-License-Identifier: Apache-2.0
"""Partition tables: MBR with logical partitions, and GPT."""
