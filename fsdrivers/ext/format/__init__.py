# SPDX-License-Identifier: Apache-2.0
"""Every record and flag that ext writes to a disk."""
