# SPDX-License-Identifier: Apache-2.0
"""What each operating system needs to start again."""
