# SPDX-License-Identifier: Apache-2.0
"""What a person meets on the disc: the shell, its screen, prepared answers."""
