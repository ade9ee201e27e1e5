# SPDX-License-Identifier: Apache-2.0
"""What a data set is sealed with: keys of content ids, signatures, packs and tables.

All of them derive from one secret: the user's master key (`backup.objects.keys`), or the key of one
machine, which derives from the master key and a random id.  A machine that holds only its own key
seals data sets that the master key opens, and opens none of another machine, nor any that was
sealed under the master key itself.

Source: docs/formats.md "Derivations"; RFC 5869 (HKDF).
No secret is shown by `repr`.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backup.objects.errors import OtherKeyError

KEY_SIZE: Final = 32
MACHINE_KEY_ID_SIZE: Final = 32
INFO: Final = b"rebuildkit/1/"  # every HKDF label starts so


class DataKey:
    """What everything of a data set derives from.

    Attributes:
        id: of a machine's key, 32 bytes; empty for the master key.
        content_id_key: 32 bytes.
        signature_key: 32 bytes.
    """

    __slots__ = ("_secret", "content_id_key", "id", "signature_key")

    def __init__(self, secret: bytes, key_id: bytes = b"") -> None:
        if len(secret) != KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(secret)}")
        if len(key_id) not in (0, MACHINE_KEY_ID_SIZE):
            raise ValueError(f"a key id has {MACHINE_KEY_ID_SIZE} bytes, not {len(key_id)}")
        self.id = key_id
        self._secret = secret
        self.content_id_key = derive(secret, b"content id")
        self.signature_key = derive(secret, b"signature")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def pack_key(self, salt: bytes) -> bytes:
        """Return the key of the one pack that has `salt` (32 bytes)."""
        return derive(self._secret, b"pack", salt)

    def table_key(self, preamble: bytes, data_set_id: bytes) -> bytes:
        """Return the key of the one object table that starts with `preamble` and `data_set_id`."""
        return derive(self._secret, b"table " + preamble, data_set_id)

    def named(self, key_id: bytes) -> DataKey:
        """Return the key that a table names; `key_id`: empty for the master key.

        Raises:
            OtherKeyError: this key gives no such key.
        """
        if key_id != self.id:
            whose = "another machine's key" if key_id else "the key of the whole id"
            raise OtherKeyError(f"the data set is sealed with {whose}, which this machine has not")
        return self

    def is_key_of(self, machine: str, key_id: bytes) -> bool:
        """Tell whether data sets of this machine may be sealed with this key.

        Only who has the master key can tell: a machine knows no name but its own.
        """
        return key_id == self.id


class MachineKey(DataKey):
    """The key of one machine; see `backup.objects.keys.MasterKey.machine_key`."""

    __slots__ = ()

    @property
    def secret(self) -> bytes:
        """The 32 bytes that the machine keeps."""
        return self._secret


def derive(secret: bytes, label: bytes, salt: bytes | None = None) -> bytes:
    """Return the 32 bytes that HKDF-SHA256 gives for a label."""
    return HKDF(SHA256(), KEY_SIZE, salt=salt, info=INFO + label).derive(secret)
