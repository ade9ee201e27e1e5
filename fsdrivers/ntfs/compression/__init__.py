# SPDX-License-Identifier: Apache-2.0
"""The compressions of NTFS: LZNT1, and those of WOF (Xpress and LZX)."""
