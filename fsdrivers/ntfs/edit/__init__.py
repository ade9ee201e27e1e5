# SPDX-License-Identifier: Apache-2.0
"""Change an NTFS volume in place."""
