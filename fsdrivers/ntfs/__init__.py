# SPDX-License-Identifier: Apache-2.0
"""NTFS.

The reader is imported when it is first called: the declarations of its records take their time.
"""
