# SPDX-License-Identifier: Apache-2.0
"""Content from packs to volumes, front to back, with processes that share the work."""
