# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated ext volume before the first write."""
