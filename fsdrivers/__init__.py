# SPDX-License-Identifier: Apache-2.0
"""Filesystem and partition drivers; they import nothing else of this project."""
