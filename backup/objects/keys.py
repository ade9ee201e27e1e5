# SPDX-License-Identifier: Apache-2.0
"""The key hierarchy and the key file, `hash.dat`.

    id + password --Argon2id--> root --HKDF--> kek, verifier, login secret
    recovery key ---HKDF--> kek, login secret
    kek --AES-256-GCM--> master key (random) --HKDF--> everything else, machines' keys among it

The key file holds the parameters, the salt, the verifier and the wrapped master key.  Checking
a guess takes one run of Argon2id, whichever of its fields the guesser starts from.

Source: docs/formats.md "hash.dat"; RFC 9106 (Argon2), RFC 5869 (HKDF).
No secret is written to a log or shown by `repr`.  Erasing secrets from memory is not attempted:
Python does not allow it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import unicodedata
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from backup.objects.data_keys import INFO, MACHINE_KEY_ID_SIZE, DataKey, MachineKey, derive
from backup.objects.errors import (
    BindingError,
    DamagedError,
    InsufficientMemoryError,
    InvalidCredentialsError,
    WrongPasswordError,
)
from backup.objects.key_file import (
    DATA_SET_ID_SIZE,
    KEY_FILE,
    KEY_SIZE,
    LOGIN_MAGIC,
    MAX_RECOVERY_SLOTS,
    SALT_SIZE,
    KdfParameters,
    KeyFile,
    RecoverySlot,
    pack_key_file,
    signed_parts,
    unpack_key_file,
    unpack_login_parameters,
)
from backup.objects.preamble import Buffer
from backup.objects.recovery import SECRET_SIZE, recovery_secret, recovery_text

_ROOT_SIZE = 64
_CODE_SIZE = MACHINE_KEY_ID_SIZE // 2
_ONCE = bytes(12)  # the nonce of a key that seals one message only
_PASSWORD_AAD = INFO + b"wrapped by password"
_RECOVERY_AAD = INFO + b"wrapped by recovery key"


class MasterKey(DataKey):
    """The key that everything of one user derives from.  `secret`: 32 bytes."""

    __slots__ = ()

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MasterKey):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.signature_key)

    @classmethod
    def random(cls) -> Self:
        """Make a new master key."""
        return cls(os.urandom(KEY_SIZE))

    def new_machine_key(self, machine: str) -> MachineKey:
        """Make a new key for the machine of this name.

        Its id, a random half and a code over that and the name, keeps it to data sets of this
        machine: who steals it can seal none that pass for another machine's.
        """
        nonce = os.urandom(MACHINE_KEY_ID_SIZE - _CODE_SIZE)
        return self._machine_key(nonce + self._machine_code(machine, nonce))

    def named(self, key_id: bytes) -> DataKey:
        """Return the key that a table names: this one, or any machine's."""
        return self._machine_key(key_id) if key_id else self

    def is_key_of(self, machine: str, key_id: bytes) -> bool:
        """Tell whether data sets of this machine may be sealed with this key."""
        nonce, code = key_id[:-_CODE_SIZE], key_id[-_CODE_SIZE:]
        return not key_id or hmac.compare_digest(code, self._machine_code(machine, nonce))

    def _machine_key(self, key_id: bytes) -> MachineKey:
        return MachineKey(derive(self._secret, b"machine", key_id), key_id)

    def _machine_code(self, machine: str, nonce: bytes) -> bytes:
        key = derive(self._secret, b"machine id")
        return hmac.digest(key, nonce + machine.encode(), "sha256")[:_CODE_SIZE]

    def key_file_mac(self, data: bytes) -> bytes:
        """Return the 32-byte code that says `data` was written by someone with this key."""
        return hmac.digest(derive(self._secret, b"key file"), data, "sha256")

    def answers_code(self, data_set_id: bytes, data: bytes) -> bytes:
        """Return the 32-byte code that says `data` answers the dialogue of this data set's disc."""
        return hmac.digest(derive(self._secret, b"answers", data_set_id), data, "sha256")

    def wrapped_by(self, kek: bytes, aad: bytes) -> bytes:
        """Return this key sealed under `kek`, which must be fresh: it seals nothing else."""
        return AESGCM(kek).encrypt(_ONCE, self._secret, aad)


@dataclass(frozen=True, slots=True)
class PasswordKeys:
    """What an id and a password give under `parameters`; from one run of Argon2id."""

    parameters: KdfParameters
    kek: bytes = field(repr=False)
    verifier: bytes = field(repr=False)
    login_secret: bytes = field(repr=False)  # 32 bytes, what the server is shown


class NewKeyFile(NamedTuple):
    """What registering gives: the key file's bytes, the master key, and the login secret."""

    data: bytes
    master: MasterKey
    login_secret: bytes


def create_key_file(
    user: str, password: str, *, memory_kib: int = 64 << 10, iterations: int = 3, lanes: int = 4
) -> NewKeyFile:
    """Make a new master key and the key file that `user` and `password` open it with.

    Raises:
        InvalidCredentialsError: the id or the password is empty or not Unicode text.
    """
    master = MasterKey.random()
    data, login_secret = _new_password(
        KdfParameters(b"", memory_kib, iterations, lanes), master, user, password, (), None
    )
    return NewKeyFile(data, master, login_secret)


def change_password(
    data: bytes, master: MasterKey, user: str, password: str
) -> tuple[bytes, bytes]:
    """Return the key file with another id and password, and the new login secret.

    Recovery keys keep working.  The salt is new, so the wrapping key is.

    Raises:
        InvalidCredentialsError: the id or the password is empty or not Unicode text.
    """
    file = _authentic(data, master)
    return _new_password(file.parameters, master, user, password, file.recovery, file.data_set_id)


def password_keys(data: Buffer, user: str, password: str) -> PasswordKeys:
    """Derive everything that an id and password give, with one run of Argon2id.

    `data`: a key file, or the login parameters of one.

    Raises:
        InvalidCredentialsError: the id or the password is empty or not Unicode text.
        UnknownVersionError, DamagedError: `data` cannot be used.
    """
    if bytes(data[: len(LOGIN_MAGIC)]) == LOGIN_MAGIC:
        return _run_argon2id(unpack_login_parameters(bytes(data)), user, password)
    return _run_argon2id(unpack_key_file(data).parameters, user, password)


def unlock(data: Buffer, user: str, password: str) -> MasterKey:
    """Return the master key in the key file `data`.

    Raises:
        WrongPasswordError: the id or the password is wrong.
        InvalidCredentialsError: the id or the password is empty or not Unicode text.
        UnknownVersionError, DamagedError: the key file cannot be used.
    """
    return unlock_with(data, password_keys(data, user, password))


def unlock_with(data: Buffer, keys: PasswordKeys) -> MasterKey:
    """Return the master key in the key file `data`, without running Argon2id again.

    Raises:
        WrongPasswordError: `keys` come from another id or password, or another salt.
        UnknownVersionError, DamagedError: the key file cannot be used.
    """
    file = unpack_key_file(data)
    if file.parameters != keys.parameters or not hmac.compare_digest(file.verifier, keys.verifier):
        raise WrongPasswordError
    master = _unwrap(file.wrapped, keys.kek, _PASSWORD_AAD)
    if master is None:
        raise DamagedError(KEY_FILE, "holds a damaged master key")
    _check_mac(data, master)
    return master


def unlock_with_recovery_key(data: Buffer, text: str) -> MasterKey:
    """Return the master key in the key file `data`, opened with a printed recovery key.

    Raises:
        InvalidRecoveryKeyError: `text` is mistyped.
        WrongPasswordError: it is some other recovery key, or none was ever exported.
        UnknownVersionError, DamagedError: the key file cannot be used.
    """
    secret = recovery_secret(text)
    file = unpack_key_file(data)
    if not file.recovery:
        raise WrongPasswordError("no recovery key was made before this key file was")
    for slot in file.recovery:
        kek = derive(secret, b"recovery", slot.salt)
        master = _unwrap(slot.wrapped, kek, _RECOVERY_AAD)
        if master is not None:
            _check_mac(data, master)
            return master
    raise WrongPasswordError("the recovery key does not belong to this key file")


def add_recovery_key(data: Buffer, master: MasterKey) -> tuple[bytes, str]:
    """Return the key file with one more recovery slot, and the recovery key that opens it.

    The oldest slot is dropped when all are taken.
    """
    file = _authentic(data, master)
    secret, salt = os.urandom(SECRET_SIZE), os.urandom(SALT_SIZE)
    kek = derive(secret, b"recovery", salt)
    login = hashlib.sha256(_recovery_login(secret)).digest()
    slot = RecoverySlot(salt, master.wrapped_by(kek, _RECOVERY_AAD), login)
    slots = (*file.recovery, slot)[-MAX_RECOVERY_SLOTS:]
    data = pack_key_file(replace(file, recovery=slots), master.key_file_mac)
    return data, recovery_text(secret)


def remove_recovery_keys(data: Buffer, master: MasterKey) -> bytes:
    """Return the key file without any recovery slot."""
    return pack_key_file(replace(_authentic(data, master), recovery=()), master.key_file_mac)


def bind(data: Buffer, master: MasterKey, data_set_id: bytes) -> bytes:
    """Return the key file for a disc that carries this one data set.  `data_set_id`: 16 bytes.

    What recovery keys log in with stays at the server.
    """
    if len(data_set_id) != DATA_SET_ID_SIZE:
        raise ValueError(f"a data set id has {DATA_SET_ID_SIZE} bytes, not {len(data_set_id)}")
    file = _authentic(data, master)
    recovery = tuple(slot._replace(login=b"") for slot in file.recovery)
    bound = replace(file, recovery=recovery, data_set_id=data_set_id)
    return pack_key_file(bound, master.key_file_mac)


def verify_binding(data: Buffer, master: MasterKey, data_set_id: bytes) -> None:
    """Check that the key file was made for a disc with this data set.

    Raises:
        BindingError: it was made for another one, or for no disc.
        DamagedError: the key file was changed by someone without the master key.
    """
    bound = _authentic(data, master).data_set_id
    if bound is None:
        raise BindingError("the key file was not made for a disc")
    if bound != data_set_id:
        raise BindingError(
            f"the disc was made for backup {bound.hex()}, but its object table is of backup "
            f"{data_set_id.hex()}: a file was exchanged"
        )


def login_secret(data: Buffer, user: str, password: str) -> bytes:
    """Return the 32 bytes that prove to a server who knows id and password.

    `data`: a key file, or its login parameters.  Errors: as `password_keys`.
    """
    return password_keys(data, user, password).login_secret


def recovery_login_secret(text: str) -> bytes:
    """Return the 32 bytes that prove to a server who has a recovery key.

    Raises:
        InvalidRecoveryKeyError: `text` is mistyped.
    """
    return _recovery_login(recovery_secret(text))


def user_id(text: str) -> str:
    """Return the id in the form that keys derive from: stripped, Unicode NFC.

    Raises:
        InvalidCredentialsError: nothing is left, or it is not Unicode text.
    """
    normal = unicodedata.normalize("NFC", text.strip())
    _utf8(normal, "the id")
    return normal


def _recovery_login(secret: bytes) -> bytes:
    return derive(secret, b"recovery login")


def _new_password(
    parameters: KdfParameters,
    master: MasterKey,
    user: str,
    password: str,
    recovery: tuple[RecoverySlot, ...],
    data_set_id: bytes | None,
) -> tuple[bytes, bytes]:
    """Return a key file under a fresh salt, and the login secret."""
    fresh = replace(parameters, salt=os.urandom(SALT_SIZE))
    keys = _run_argon2id(fresh, user, password)
    wrapped = master.wrapped_by(keys.kek, _PASSWORD_AAD)
    file = KeyFile(fresh, keys.verifier, wrapped, recovery, data_set_id)
    return pack_key_file(file, master.key_file_mac), keys.login_secret


def _run_argon2id(parameters: KdfParameters, user: str, password: str) -> PasswordKeys:
    """Run Argon2id once and split its output."""
    user_bytes = _utf8(user_id(user), "the id")
    password_bytes = _utf8(unicodedata.normalize("NFC", password), "the password")
    try:
        root = Argon2id(
            salt=parameters.salt,
            length=_ROOT_SIZE,
            iterations=parameters.iterations,
            lanes=parameters.lanes,
            memory_cost=parameters.memory_kib,
            ad=user_bytes,
        ).derive(password_bytes)
    except MemoryError as error:
        raise InsufficientMemoryError(parameters.memory_kib << 10) from error
    return PasswordKeys(
        parameters,
        kek=derive(root, b"kek"),
        verifier=derive(root, b"verifier"),
        login_secret=derive(root, b"login"),
    )


def _authentic(data: Buffer, master: MasterKey) -> KeyFile:
    """Decode a key file and check that `master` wrote it."""
    file = unpack_key_file(data)
    _check_mac(data, master)
    return file


def _check_mac(data: Buffer, master: MasterKey) -> None:
    """Check the code over everything before it.  `data`: decodes without error."""
    covered, mac = signed_parts(data)
    if not hmac.compare_digest(master.key_file_mac(covered), mac):
        raise DamagedError(KEY_FILE, "was changed by someone without its key")


def _unwrap(wrapped: bytes, kek: bytes, aad: bytes) -> MasterKey | None:
    """Return the wrapped master key, or None if `kek` does not fit."""
    try:
        return MasterKey(AESGCM(kek).decrypt(_ONCE, wrapped, aad))
    except InvalidTag:
        return None


def _utf8(text: str, what: str) -> bytes:
    """Return `text` in UTF-8; refuses an empty one and one with lone surrogates."""
    if not text:
        raise InvalidCredentialsError(f"{what} is empty")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidCredentialsError(f"{what} is not Unicode text") from error
