# SPDX-License-Identifier: Apache-2.0
"""Change an ext volume in place, through its journal."""
