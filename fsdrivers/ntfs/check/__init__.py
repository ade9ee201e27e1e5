# SPDX-License-Identifier: Apache-2.0
"""Check an NTFS volume: records, indexes, allocation."""
