# SPDX-License-Identifier: Apache-2.0
"""The rebuild engine and the shell on the disc."""
