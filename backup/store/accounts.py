# SPDX-License-Identifier: Apache-2.0
"""What a store keeps of a password, and what it takes for a key file."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from backup.objects.errors import ObjectsError
from backup.objects.key_file import login_parameters
from backup.repository import (
    MAXIMUM_KEY_FILE_SIZE,
    InvalidRequestError,
    TooLargeError,
    check_login_secret,
)
from backup.store.catalogue import UserRecord

_SALT_SIZE = 16


def check_key_file(data: bytes) -> None:
    """Refuse what is not a key file, as far as one can tell without the password."""
    if len(data) > MAXIMUM_KEY_FILE_SIZE:
        raise TooLargeError(f"a key file may have at most {MAXIMUM_KEY_FILE_SIZE} bytes")
    try:
        login_parameters(data)
    except ObjectsError as error:
        raise InvalidRequestError(str(error)) from error


def new_login_hash(login_secret: bytes) -> tuple[bytes, bytes]:
    """Return a new salt and the hash of a login secret."""
    salt = secrets.token_bytes(_SALT_SIZE)
    return salt, _login_hash(salt, check_login_secret(login_secret))


def knows_secret(record: UserRecord | None, login_secret: bytes) -> bool:
    """Return whether this is the user's login secret; takes the same time without a user."""
    salt = bytes(_SALT_SIZE) if record is None else record.login_salt
    kept = bytes(hashlib.sha256().digest_size) if record is None else record.login_hash
    return hmac.compare_digest(_login_hash(salt, login_secret), kept)


def _login_hash(salt: bytes, login_secret: bytes) -> bytes:
    """Return what is kept of a login secret.

    One SHA-256 is enough: the secret is a 256-bit key that Argon2id made of the password, so
    anyone who steals this hash pays one Argon2id run for each guess, as with the key file.
    """
    return hashlib.sha256(salt + login_secret).digest()
