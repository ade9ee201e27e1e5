# SPDX-License-Identifier: Apache-2.0
"""Change a FAT volume in place."""
