# SPDX-License-Identifier: Apache-2.0
"""Every record and flag that NTFS writes to a disk."""
