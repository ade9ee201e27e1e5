# SPDX-License-Identifier: Apache-2.0
"""Judge restored disks against a data set, object by object."""
