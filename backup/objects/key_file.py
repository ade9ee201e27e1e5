# SPDX-License-Identifier: Apache-2.0
"""The bytes of the key file, `hash.dat`, and of the login parameters.

    preamble (8) | u32 body length | body | code by the master key (32) | SHA-256 (32)

The body is a MessagePack map: parameters and salt of Argon2id, verifier, wrapped master key,
recovery slots, and on a disc the id of its data set.  Decoding bounds every number, so that a
hostile file cannot exhaust the machine; authenticity is up to `keys`.

Source: docs/formats.md "hash.dat".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgpack

from backup.objects.encoding import DECODE_ERRORS
from backup.objects.errors import DamagedError, ObjectsError
from backup.objects.preamble import PREAMBLE_SIZE, Buffer, check_preamble, make_preamble

KEY_FILE_MAGIC: Final = b"RKHASH"
LOGIN_MAGIC: Final = b"RKLOGN"
LOGINS_MINOR: Final = 1  # minor version of a key file with `recovery_logins`
KEY_SIZE: Final = 32
SALT_SIZE: Final = 16
DATA_SET_ID_SIZE: Final = 16
MAX_KEY_FILE_SIZE: Final = 64 << 10

# Bounds on what a file may ask for: above, it would exhaust the machine; below, guessing would
# be cheap.
MEMORY_KIB_RANGE: Final = range(64 << 10, (1 << 20) + 1)
ITERATIONS_RANGE: Final = range(1, 17)
LANES_RANGE: Final = range(1, 17)
MAX_RECOVERY_SLOTS: Final = 16

MAC_SIZE: Final = 32
TAG_SIZE: Final = 16
_WRAPPED_SIZE = KEY_SIZE + TAG_SIZE
_CHECKSUM_SIZE = 32
_BODY_LENGTH = struct.Struct("<I")
KEY_FILE: Final = "the key file (hash.dat)"
LOGIN: Final = "the login parameters"


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """What Argon2id is run with.  Public."""

    salt: bytes  # 16 bytes
    memory_kib: int = 64 << 10
    iterations: int = 3
    lanes: int = 4


class RecoverySlot(NamedTuple):
    """The master key, wrapped for one recovery key."""

    salt: bytes
    wrapped: bytes
    login: bytes = b""  # SHA-256 of the recovery key's login secret; empty: it logs in nowhere


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A decoded `hash.dat`.  Authentic only once `unlock` has returned."""

    parameters: KdfParameters
    verifier: bytes
    wrapped: bytes
    recovery: tuple[RecoverySlot, ...] = ()
    data_set_id: bytes | None = None  # of the disc it lies on; None away from a disc


def is_intact(data: Buffer) -> bool:
    """Return whether a key file is complete and as it was written, as far as one can tell
    without a key: to choose between copies."""
    try:
        unpack_key_file(data)
    except ObjectsError:
        return False
    return True


def unpack_key_file(data: Buffer) -> KeyFile:
    """Decode a key file, checking its form and checksum but, for want of a key, no more.

    Raises:
        UnknownVersionError: another major version; checked first.
        DamagedError: cut short, changed, or not a key file.
    """
    data = bytes(data[: MAX_KEY_FILE_SIZE + 1])
    check_preamble(data, KEY_FILE_MAGIC, KEY_FILE)
    head = PREAMBLE_SIZE + _BODY_LENGTH.size
    tail = MAC_SIZE + _CHECKSUM_SIZE
    if len(data) < head + tail:
        raise DamagedError(KEY_FILE, "is cut short")
    (length,) = _BODY_LENGTH.unpack_from(data, PREAMBLE_SIZE)
    if len(data) != head + length + tail:
        raise DamagedError(KEY_FILE, "has the wrong length")
    if hashlib.sha256(data[:-_CHECKSUM_SIZE]).digest() != data[-_CHECKSUM_SIZE:]:
        raise DamagedError(KEY_FILE)
    fields = _unpackb(data[head : head + length], KEY_FILE)
    bound = fields.get("data_set")
    return KeyFile(
        parameters=_parameters_of(fields.get("kdf"), KEY_FILE),
        verifier=_exactly(fields.get("verifier"), KEY_SIZE, "verifier", KEY_FILE),
        wrapped=_exactly(fields.get("wrapped"), _WRAPPED_SIZE, "wrapped", KEY_FILE),
        recovery=_recovery_of(fields),
        data_set_id=bound
        if bound is None
        else _exactly(bound, DATA_SET_ID_SIZE, "data_set", KEY_FILE),
    )


def pack_key_file(file: KeyFile, mac: Callable[[bytes], bytes]) -> bytes:
    """Encode a key file.  `mac`: returns the 32-byte code by the master key."""
    fields: dict[str, object] = {
        "kdf": _parameters_fields(file.parameters),
        "verifier": file.verifier,
        "wrapped": file.wrapped,
        "recovery": [(slot.salt, slot.wrapped) for slot in file.recovery],
    }
    minor = 0
    if any(slot.login for slot in file.recovery):
        fields["recovery_logins"] = [slot.login for slot in file.recovery]
        minor = LOGINS_MINOR
    if file.data_set_id is not None:
        fields["data_set"] = file.data_set_id
    body = _packb(fields)
    data = make_preamble(KEY_FILE_MAGIC, minor) + _BODY_LENGTH.pack(len(body)) + body
    data += mac(data)
    return data + hashlib.sha256(data).digest()


def login_parameters(data: Buffer) -> bytes:
    """Return what a server tells anyone who wants to log in: parameters and salt, no more."""
    parameters = unpack_key_file(data).parameters
    return make_preamble(LOGIN_MAGIC) + _packb(_parameters_fields(parameters))


def invented_login_parameters(seed: bytes) -> bytes:
    """Return login parameters as a key file made today would give, with `seed` cut to a salt."""
    parameters = KdfParameters(seed[:SALT_SIZE])
    return make_preamble(LOGIN_MAGIC) + _packb(_parameters_fields(parameters))


def unpack_login_parameters(data: bytes) -> KdfParameters:
    """Decode what `login_parameters` made."""
    check_preamble(data, LOGIN_MAGIC, LOGIN)
    return _parameters_of(_unpackb(data[PREAMBLE_SIZE:], LOGIN), LOGIN)


def recovery_logins(data: Buffer) -> list[bytes]:
    """Return the SHA-256 of the login secrets that recovery keys of a key file log in with."""
    return [slot.login for slot in unpack_key_file(data).recovery if slot.login]


def _recovery_of(fields: dict[object, object]) -> tuple[RecoverySlot, ...]:
    """Check and decode the recovery slots of a body."""
    slots = fields.get("recovery", [])
    if not isinstance(slots, list) or len(slots) > MAX_RECOVERY_SLOTS:
        raise DamagedError(KEY_FILE, "has a wrong field (recovery)")
    logins = fields.get("recovery_logins", [b""] * len(slots))
    if not isinstance(logins, list) or len(logins) != len(slots):
        raise DamagedError(KEY_FILE, "has a wrong field (recovery_logins)")
    recovery = []
    for slot, login in zip(slots, logins, strict=True):
        if not isinstance(slot, list) or len(slot) != 2:
            raise DamagedError(KEY_FILE, "has a wrong field (recovery)")
        salt, wrapped = slot
        recovery.append(
            RecoverySlot(
                _exactly(salt, SALT_SIZE, "recovery", KEY_FILE),
                _exactly(wrapped, _WRAPPED_SIZE, "recovery", KEY_FILE),
                login if login == b"" else _exactly(login, KEY_SIZE, "recovery_logins", KEY_FILE),
            )
        )
    return tuple(recovery)


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


def _packb(fields: dict[str, object]) -> bytes:
    """Encode a map."""
    packed: bytes = msgpack.packb(fields)
    return packed


def _unpackb(data: bytes, what: str) -> dict[object, object]:
    """Decode a map that fills `data`."""
    try:
        fields = msgpack.unpackb(data)
    except DECODE_ERRORS as error:
        raise DamagedError(what, "cannot be decoded") from error
    if not isinstance(fields, dict):
        raise DamagedError(what, "cannot be decoded")
    return fields


def signed_parts(data: Buffer) -> tuple[bytes, bytes]:
    """Return what the code covers, and the code.  `data`: a key file that decodes."""
    data = bytes(data)
    end = len(data) - _CHECKSUM_SIZE - MAC_SIZE
    return data[:end], data[end : end + MAC_SIZE]
