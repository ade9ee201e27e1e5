# SPDX-License-Identifier: Apache-2.0
"""The boot environment of a recovery disc: kernel, modules, Python, engine."""
