# SPDX-License-Identifier: Apache-2.0
"""A recovery disc: the plan of its files, and mastering."""
