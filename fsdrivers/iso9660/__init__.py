# SPDX-License-Identifier: Apache-2.0
"""ISO 9660 with Rock Ridge, Joliet and El Torito: read and check volumes; nothing is written."""
