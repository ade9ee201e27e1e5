# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated NTFS volume before the first write."""
