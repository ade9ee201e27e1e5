# SPDX-License-Identifier: Apache-2.0
"""What a store keeps of a password, and what it takes for a key file."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from backup.objects.errors import ObjectsError
from backup.objects.key_file import (
    KEY_SIZE,
    MAX_RECOVERY_SLOTS,
    SALT_SIZE,
    TAG_SIZE,
    KdfParameters,
    KeyFile,
    RecoverySlot,
    login_parameters,
    pack_key_file,
    recovery_logins,
)
from backup.repository import (
    MAXIMUM_KEY_FILE_SIZE,
    InvalidRequestError,
    TooLargeError,
    check_login_secret,
)
from backup.store.catalogue import UserRecord

_SALT_SIZE = 16
_NOTHING = bytes(hashlib.sha256().digest_size)  # the hash of no secret
# The key file of who is not here, to take as long to read.
_NOBODY = pack_key_file(
    KeyFile(
        KdfParameters(bytes(SALT_SIZE)),
        _NOTHING,
        bytes(KEY_SIZE + TAG_SIZE),
        (RecoverySlot(bytes(SALT_SIZE), bytes(KEY_SIZE + TAG_SIZE), _NOTHING),),
    ),
    lambda _: _NOTHING,
)


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
    """Return whether this is the login secret of the user's password, or of a recovery key.

    Takes the same time without a user.
    """
    salt = bytes(_SALT_SIZE) if record is None else record.login_salt
    kept = _NOTHING if record is None else record.login_hash
    is_known = hmac.compare_digest(_login_hash(salt, login_secret), kept)
    digest = hashlib.sha256(login_secret).digest()
    logins = recovery_logins(_NOBODY if record is None else record.key_file)
    for login in (*logins, *[_NOTHING] * (MAX_RECOVERY_SLOTS - len(logins))):
        is_known |= hmac.compare_digest(digest, login)
    return is_known


def _login_hash(salt: bytes, login_secret: bytes) -> bytes:
    """Return what is kept of a login secret.

    One SHA-256 is enough: the secret is a 256-bit key that Argon2id made of the password, so
    anyone who steals this hash pays one Argon2id run for each guess, as with the key file.
    """
    return hashlib.sha256(salt + login_secret).digest()
