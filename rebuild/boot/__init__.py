# SPDX-License-Identifier: Apache-2.0
"""Process 1 on the disc: mounts, kernel modules, the medium, keyboard layouts."""
