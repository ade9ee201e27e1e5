# SPDX-License-Identifier: Apache-2.0
"""The key hierarchy and the key file, `hash.dat`.

    id + password --Argon2id--> root --HKDF--> kek, verifier, login secret
    recovery key ---HKDF--> kek
    kek --AES-256-GCM--> master key (random) --HKDF--> everything else

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
import struct
import unicodedata
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backup.objects.errors import (
    BindingError,
    DamagedError,
    InvalidCredentialsError,
    WrongPasswordError,
)
from backup.objects.preamble import PREAMBLE_SIZE, Buffer, check_preamble, make_preamble
from backup.objects.recovery import SECRET_SIZE, recovery_secret, recovery_text

KEY_FILE_MAGIC = b"RKHASH"
LOGIN_MAGIC = b"RKLOGN"
KEY_SIZE = 32
SALT_SIZE = 16
DATA_SET_ID_SIZE = 16
MAX_KEY_FILE_SIZE = 64 << 10

# Bounds on what a file may ask for, so that a hostile one cannot exhaust the machine, nor make
# guessing cheap.
MEMORY_KIB_RANGE = range(64 << 10, (1 << 20) + 1)
ITERATIONS_RANGE = range(1, 17)
LANES_RANGE = range(1, 17)
MAX_RECOVERY_SLOTS = 16

_ROOT_SIZE = 64
_TAG_SIZE = 16
_WRAPPED_SIZE = KEY_SIZE + _TAG_SIZE
_MAC_SIZE = 32
_CHECKSUM_SIZE = 32
_BODY_LENGTH = struct.Struct("<I")
_INFO = b"rebuildkit/1/"  # every HKDF label starts so
_ONCE = bytes(12)  # the nonce of a key that seals one message only
_KEY_FILE = "the key file (hash.dat)"
_LOGIN = "the login parameters"


class MasterKey:
    """The key that everything of one user derives from.  `secret`: 32 bytes."""

    __slots__ = ("_secret", "content_id_key", "signature_key")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_SIZE:
            raise ValueError(f"a master key has {KEY_SIZE} bytes, not {len(secret)}")
        self._secret = secret
        self.content_id_key = _derive(secret, b"content id")
        self.signature_key = _derive(secret, b"signature")

    def __repr__(self) -> str:
        return "MasterKey(...)"

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

    def pack_key(self, preamble: bytes, salt: bytes) -> bytes:
        """Return the key of the one pack that starts with `preamble` and `salt`."""
        return _derive(self._secret, b"pack " + preamble, salt)

    def table_key(self, preamble: bytes, data_set_id: bytes) -> bytes:
        """Return the key of the one object table that starts with `preamble` and `data_set_id`."""
        return _derive(self._secret, b"table " + preamble, data_set_id)

    def key_file_mac(self, data: bytes) -> bytes:
        """Return the 32-byte code that says `data` was written by someone with this key."""
        return hmac.digest(_derive(self._secret, b"key file"), data, "sha256")

    def wrapped_by(self, kek: bytes, aad: bytes) -> bytes:
        """Return this key sealed under `kek`, which must be fresh: it seals nothing else."""
        return AESGCM(kek).encrypt(_ONCE, self._secret, aad)


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """What Argon2id is run with.  Public."""

    salt: bytes  # 16 bytes
    memory_kib: int = 64 << 10
    iterations: int = 3
    lanes: int = 4


@dataclass(frozen=True, slots=True)
class PasswordKeys:
    """What an id and a password give under `parameters`; from one run of Argon2id."""

    parameters: KdfParameters
    kek: bytes = field(repr=False)
    verifier: bytes = field(repr=False)
    login_secret: bytes = field(repr=False)  # 32 bytes, what the server is shown


class RecoverySlot(NamedTuple):
    """The master key, wrapped for one recovery key."""

    salt: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A decoded `hash.dat`.  Authentic only once `unlock` has returned."""

    preamble: bytes
    parameters: KdfParameters
    verifier: bytes
    wrapped: bytes
    recovery: tuple[RecoverySlot, ...] = ()
    data_set_id: bytes | None = None  # of the disc it lies on; None away from a disc


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
        return _run_argon2id(_unpack_login_parameters(bytes(data)), user, password)
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
    master = _unwrap(file.wrapped, keys.kek, file.preamble + b"password")
    if master is None:
        raise DamagedError(_KEY_FILE, "holds a damaged master key")
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
        kek = _derive(secret, b"recovery", slot.salt)
        master = _unwrap(slot.wrapped, kek, file.preamble + b"recovery")
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
    kek = _derive(secret, b"recovery", salt)
    slot = RecoverySlot(salt, master.wrapped_by(kek, make_preamble(KEY_FILE_MAGIC) + b"recovery"))
    slots = (*file.recovery, slot)[-MAX_RECOVERY_SLOTS:]
    return _pack_key_file(replace(file, recovery=slots), master), recovery_text(secret)


def remove_recovery_keys(data: Buffer, master: MasterKey) -> bytes:
    """Return the key file without any recovery slot."""
    return _pack_key_file(replace(_authentic(data, master), recovery=()), master)


def bind(data: Buffer, master: MasterKey, data_set_id: bytes) -> bytes:
    """Return the key file for a disc that carries this one data set.  `data_set_id`: 16 bytes."""
    if len(data_set_id) != DATA_SET_ID_SIZE:
        raise ValueError(f"a data set id has {DATA_SET_ID_SIZE} bytes, not {len(data_set_id)}")
    return _pack_key_file(replace(_authentic(data, master), data_set_id=data_set_id), master)


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


def login_parameters(data: Buffer) -> bytes:
    """Return what a server tells anyone who wants to log in: parameters and salt, no more."""
    parameters = unpack_key_file(data).parameters
    return make_preamble(LOGIN_MAGIC) + _packb(_parameters_fields(parameters))


def login_secret(data: Buffer, user: str, password: str) -> bytes:
    """Return the 32 bytes that prove to a server who knows id and password.

    `data`: a key file, or its login parameters.  Errors: as `password_keys`.
    """
    return password_keys(data, user, password).login_secret


def user_id(text: str) -> str:
    """Return the id in the form that keys derive from: stripped, Unicode NFC.

    Raises:
        InvalidCredentialsError: nothing is left, or it is not Unicode text.
    """
    normal = unicodedata.normalize("NFC", text.strip())
    _utf8(normal, "the id")
    return normal


def is_intact(data: Buffer) -> bool:
    """Return whether a key file is complete and as it was written, as far as one can tell
    without a key: to choose between copies."""
    try:
        unpack_key_file(data)
    except DamagedError:
        return False
    return True


def unpack_key_file(data: Buffer) -> KeyFile:
    """Decode a key file, checking its form and checksum but, for want of a key, no more.

    Raises:
        UnknownVersionError: another major version; checked first.
        DamagedError: cut short, changed, or not a key file.
    """
    data = bytes(data[: MAX_KEY_FILE_SIZE + 1])
    preamble = check_preamble(data, KEY_FILE_MAGIC, _KEY_FILE)
    head = PREAMBLE_SIZE + _BODY_LENGTH.size
    tail = _MAC_SIZE + _CHECKSUM_SIZE
    if len(data) < head + tail:
        raise DamagedError(_KEY_FILE, "is cut short")
    (length,) = _BODY_LENGTH.unpack_from(data, PREAMBLE_SIZE)
    if len(data) != head + length + tail:
        raise DamagedError(_KEY_FILE, "has the wrong length")
    if hashlib.sha256(data[:-_CHECKSUM_SIZE]).digest() != data[-_CHECKSUM_SIZE:]:
        raise DamagedError(_KEY_FILE)
    fields = _unpackb(data[head : head + length], _KEY_FILE)
    slots = fields.get("recovery", [])
    if not isinstance(slots, list) or len(slots) > MAX_RECOVERY_SLOTS:
        raise DamagedError(_KEY_FILE, "has a wrong field (recovery)")
    recovery = []
    for slot in slots:
        if not isinstance(slot, list) or len(slot) != 2:
            raise DamagedError(_KEY_FILE, "has a wrong field (recovery)")
        salt, wrapped = slot
        recovery.append(
            RecoverySlot(
                _exactly(salt, SALT_SIZE, "recovery", _KEY_FILE),
                _exactly(wrapped, _WRAPPED_SIZE, "recovery", _KEY_FILE),
            )
        )
    bound = fields.get("data_set")
    return KeyFile(
        preamble=preamble,
        parameters=_parameters_of(fields.get("kdf"), _KEY_FILE),
        verifier=_exactly(fields.get("verifier"), KEY_SIZE, "verifier", _KEY_FILE),
        wrapped=_exactly(fields.get("wrapped"), _WRAPPED_SIZE, "wrapped", _KEY_FILE),
        recovery=tuple(recovery),
        data_set_id=bound
        if bound is None
        else _exactly(bound, DATA_SET_ID_SIZE, "data_set", _KEY_FILE),
    )


def _pack_key_file(file: KeyFile, master: MasterKey) -> bytes:
    """Encode a key file: preamble, body length, body, code by `master`, checksum."""
    fields: dict[str, object] = {
        "kdf": _parameters_fields(file.parameters),
        "verifier": file.verifier,
        "wrapped": file.wrapped,
        "recovery": [tuple(slot) for slot in file.recovery],
    }
    if file.data_set_id is not None:
        fields["data_set"] = file.data_set_id
    body = _packb(fields)
    data = make_preamble(KEY_FILE_MAGIC) + _BODY_LENGTH.pack(len(body)) + body
    data += master.key_file_mac(data)
    return data + hashlib.sha256(data).digest()


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
    preamble = make_preamble(KEY_FILE_MAGIC)
    wrapped = master.wrapped_by(keys.kek, preamble + b"password")
    file = KeyFile(preamble, fresh, keys.verifier, wrapped, recovery, data_set_id)
    return _pack_key_file(file, master), keys.login_secret


def _run_argon2id(parameters: KdfParameters, user: str, password: str) -> PasswordKeys:
    """Run Argon2id once and split its output."""
    normal_password = unicodedata.normalize("NFC", password)
    root = Argon2id(
        salt=parameters.salt,
        length=_ROOT_SIZE,
        iterations=parameters.iterations,
        lanes=parameters.lanes,
        memory_cost=parameters.memory_kib,
        ad=_utf8(user_id(user), "the id"),
    ).derive(_utf8(normal_password, "the password"))
    return PasswordKeys(
        parameters,
        kek=_derive(root, b"kek"),
        verifier=_derive(root, b"verifier"),
        login_secret=_derive(root, b"login"),
    )


def _authentic(data: Buffer, master: MasterKey) -> KeyFile:
    """Decode a key file and check that `master` wrote it."""
    file = unpack_key_file(data)
    _check_mac(data, master)
    return file


def _check_mac(data: Buffer, master: MasterKey) -> None:
    """Check the code over everything before it.  `data`: decodes without error."""
    end = len(data) - _CHECKSUM_SIZE
    covered, mac = bytes(data[: end - _MAC_SIZE]), bytes(data[end - _MAC_SIZE : end])
    if not hmac.compare_digest(master.key_file_mac(covered), mac):
        raise DamagedError(_KEY_FILE, "was changed by someone without its key")


def _unwrap(wrapped: bytes, kek: bytes, aad: bytes) -> MasterKey | None:
    """Return the wrapped master key, or None if `kek` does not fit."""
    try:
        return MasterKey(AESGCM(kek).decrypt(_ONCE, wrapped, aad))
    except InvalidTag:
        return None


def _unpack_login_parameters(data: bytes) -> KdfParameters:
    """Decode what `login_parameters` made."""
    check_preamble(data, LOGIN_MAGIC, _LOGIN)
    return _parameters_of(_unpackb(data[PREAMBLE_SIZE:], _LOGIN), _LOGIN)


def _parameters_fields(parameters: KdfParameters) -> dict[str, object]:
    """Return the parameters as the map that is stored."""
    return {
        "name": "argon2id",
        "salt": parameters.salt,
        "memory_kib": parameters.memory_kib,
        "iterations": parameters.iterations,
        "lanes": parameters.lanes,
    }


def _parameters_of(fields: object, what: str) -> KdfParameters:
    """Check and decode stored parameters; refuses what would exhaust the machine."""
    if not isinstance(fields, dict) or fields.get("name") != "argon2id":
        raise DamagedError(what, "names an unknown key derivation")
    return KdfParameters(
        salt=_exactly(fields.get("salt"), SALT_SIZE, "salt", what),
        memory_kib=_bounded(fields.get("memory_kib"), MEMORY_KIB_RANGE, "memory_kib", what),
        iterations=_bounded(fields.get("iterations"), ITERATIONS_RANGE, "iterations", what),
        lanes=_bounded(fields.get("lanes"), LANES_RANGE, "lanes", what),
    )


def _bounded(value: object, allowed: range, name: str, what: str) -> int:
    """Return `value` if it is an integer in `allowed`."""
    if type(value) is not int or value not in allowed:
        raise DamagedError(
            what, f"asks for {name} {value!r}, outside {allowed.start} to {allowed.stop - 1}"
        )
    return value


def _exactly(value: object, size: int, name: str, what: str) -> bytes:
    """Return `value` if it is a string of `size` bytes."""
    if not isinstance(value, bytes) or len(value) != size:
        raise DamagedError(what, f"has a wrong field ({name})")
    return value


def _utf8(text: str, what: str) -> bytes:
    """Return `text` in UTF-8; refuses an empty one and one with lone surrogates."""
    if not text:
        raise InvalidCredentialsError(f"{what} is empty")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidCredentialsError(f"{what} is not Unicode text") from error


def _packb(fields: dict[str, object]) -> bytes:
    """Encode a map."""
    packed: bytes = msgpack.packb(fields)
    return packed


def _unpackb(data: bytes, what: str) -> dict[object, object]:
    """Decode a map that fills `data`."""
    try:
        fields = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise DamagedError(what, "cannot be decoded") from error
    if not isinstance(fields, dict):
        raise DamagedError(what, "cannot be decoded")
    return fields


def _derive(secret: bytes, label: bytes, salt: bytes | None = None) -> bytes:
    """Return the 32 bytes that HKDF-SHA256 gives for a label."""
    return HKDF(SHA256(), KEY_SIZE, salt=salt, info=_INFO + label).derive(secret)
