# SPDX-License-Identifier: Apache-2.0
"""The `rebuildkit` command, one module for each family of verbs."""
