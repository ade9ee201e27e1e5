# SPDX-License-Identifier: Apache-2.0
"""QEMU machines and rehearsals; stands alone."""
