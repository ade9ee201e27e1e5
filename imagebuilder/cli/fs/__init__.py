# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs`: look into volumes and change them without mounting."""
