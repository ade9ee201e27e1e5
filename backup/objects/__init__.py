# SPDX-License-Identifier: Apache-2.0
"""The shared model: objects, keys, table and packs."""
