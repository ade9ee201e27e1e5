# SPDX-License-Identifier: Apache-2.0
"""What client and server must agree on: paths, headers, the framed commit body, error kinds.

Normative text: docs/http-api.md.
No I/O here, and nothing about who may do what.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from backup import repository as r
from backup.retention import Policies, Policy, PolicyError

API = "/v1"
DEFAULT_PORT = 8443
IS_DAMAGED = "is_damaged"  # in a data set; servers may not know it
MISSING = "missing"  # in a data set, and in the query of a commit; servers may not know it
DIGEST_HEADER = "Content-Digest"  # RFC 9530, with sha-256 alone
MAXIMUM_JSON_SIZE = 256 << 10  # a key file in base64 is 88 KiB
IDS_AT_ONCE = 5000  # of data sets in one body, which has room for more
MAXIMUM_LOGIN_SIZE = 4 << 10  # an id and a secret have a tenth of it

ERROR_STATUSES: dict[type[r.RepositoryError], tuple[int, str]] = {
    r.InvalidRequestError: (400, "invalid-request"),
    r.TooLargeError: (413, "too-large"),
    r.DigestMismatchError: (422, "digest-mismatch"),
    r.NotAuthorisedError: (401, "not-authorised"),
    r.NotPermittedError: (403, "not-permitted"),
    r.TooManyAttemptsError: (429, "too-many-attempts"),
    r.AlreadyRegisteredError: (409, "already-registered"),
    r.NotInvitedError: (403, "not-invited"),
    r.NoSuchDataSetError: (404, "no-such-data-set"),
    r.DamagedDataSetError: (404, "damaged-data-set"),
    r.NoSuchPackError: (404, "no-such-pack"),
    r.ConflictError: (409, "conflict"),
    r.StoreFullError: (507, "store-full"),
    r.OverQuotaError: (507, "over-quota"),
    r.StoreDamagedError: (500, "store-damaged"),
    r.InterruptedStreamError: (400, "interrupted-stream"),
    r.TooSlowError: (408, "too-slow"),
    r.BusyError: (503, "busy"),
}
"""HTTP status and `kind` of every error that a server answers with."""

_SHOWN_LENGTH = 300  # characters of a message of the other side

_KINDS = {kind: error for error, (_, kind) in ERROR_STATUSES.items()}

COMMIT_MAGIC = b"RKCOMMIT"
_COMMIT_HEAD = struct.Struct("<8sIIQ32s16s")
"""Magic, keep, number of packs, size of the table, SHA-256 of the table, parent's id or zeros."""
COMMIT_HEAD_SIZE = _COMMIT_HEAD.size
_NO_PARENT = bytes(r.DATA_SET_ID_SIZE)


@dataclass(frozen=True, slots=True)
class CommitHead:
    """The beginning of a commit's body; `pack_count` digests and the table follow it."""

    keep: int
    pack_count: int
    table_size: int
    table_digest: bytes  # SHA-256
    parent: str | None

    def pack(self) -> bytes:
        """Encode to `COMMIT_HEAD_SIZE` bytes."""
        return _COMMIT_HEAD.pack(
            COMMIT_MAGIC,
            self.keep,
            self.pack_count,
            self.table_size,
            self.table_digest,
            _NO_PARENT if self.parent is None else unpack_id(self.parent),
        )

    @classmethod
    def unpack(cls, data: bytes) -> CommitHead:
        """Decode; `data`: exactly `COMMIT_HEAD_SIZE` bytes.

        Raises:
            InvalidRequestError: it does not begin like a commit.
            TooLargeError: more packs or a larger table than a data set may have.
        """
        magic, keep, pack_count, table_size, digest, parent = _COMMIT_HEAD.unpack(data)
        if magic != COMMIT_MAGIC:
            raise r.InvalidRequestError("the body is not a commit")
        if pack_count > r.MAXIMUM_PACK_COUNT:
            raise r.TooLargeError(f"a data set may have at most {r.MAXIMUM_PACK_COUNT} packs")
        if table_size > r.MAXIMUM_TABLE_SIZE:
            raise r.TooLargeError(f"a table may have at most {r.MAXIMUM_TABLE_SIZE} bytes")
        return cls(
            keep, pack_count, table_size, digest, None if parent == _NO_PARENT else parent.hex()
        )


def parse_missing(text: str) -> int:
    """Return how many objects are missing from a data set, from the query of its commit.

    Raises:
        InvalidRequestError: it is not a count.
    """
    if not re.fullmatch("[0-9]{1,18}", text):
        raise r.InvalidRequestError(f"{MISSING} must be a count")
    return int(text)


def is_id(text: str) -> bool:
    """Return whether `text` can be the id of a data set."""
    return _is_hex(text, r.DATA_SET_ID_SIZE)


def unpack_id(text: str) -> bytes:
    """Return a data set's id, 16 bytes, from its hex form."""
    return _unhex(text, r.DATA_SET_ID_SIZE, "the id of a data set")


def unpack_digest(text: str) -> bytes:
    """Return a digest, 32 bytes, from its hex form."""
    return _unhex(text, r.DIGEST_SIZE, "a digest")


def digest_header(digest: bytes) -> str:
    """Return the value of `DIGEST_HEADER`."""
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def parse_digest_header(value: str) -> bytes:
    """Return the SHA-256 in a `DIGEST_HEADER`."""
    prefix, suffix = "sha-256=:", ":"
    if value.startswith(prefix) and value.endswith(suffix):
        return r.check_digest(unpack_base64(value[len(prefix) : -len(suffix)]))
    raise r.InvalidRequestError(f"{DIGEST_HEADER} must be sha-256=:BASE64:")


def parse_fingerprint(text: str) -> bytes:
    """Return a certificate's SHA-256, 32 bytes, from hex with or without colons.

    Raises:
        InvalidRequestError: it is not a fingerprint.
    """
    digits = re.sub(r"[:\s]", "", text).lower().removeprefix("sha256")
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise r.InvalidRequestError(
            "a fingerprint must be 64 hex digits, with or without colons: the certificate's SHA-256"
        )
    return bytes.fromhex(digits)


def format_fingerprint(digest: bytes) -> str:
    """Return a fingerprint as people compare it: upper-case hex with colons."""
    return digest.hex(":").upper()


def pack_base64(data: bytes) -> str:
    """Return `data` as it stands in JSON."""
    return base64.b64encode(data).decode()


def unpack_base64(text: str) -> bytes:
    """Return what `pack_base64` encoded."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise r.InvalidRequestError("a field is not in base64") from error


def pack_error(error: r.RepositoryError) -> tuple[int, bytes]:
    """Return HTTP status and JSON body for an error."""
    status, kind = ERROR_STATUSES.get(type(error), (500, "store-damaged"))
    return status, pack_json({"error": str(error), "kind": kind})


def unpack_error(status: int, body: bytes) -> r.RepositoryError:
    """Return the error that a server answered with."""
    try:
        fields = unpack_json(body)
        message, kind = text_of(fields, "error"), text_of(fields, "kind")
    except r.InvalidRequestError:
        return r.ConnectionFailedError(f"the server answers with HTTP status {status}")
    return _KINDS.get(kind, r.ConnectionFailedError)(shown(message))


def shown(text: str) -> str:
    """Return text from outside as it may be shown: nothing that controls a terminal, not long."""
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return plain if len(plain) <= _SHOWN_LENGTH else f"{plain[:_SHOWN_LENGTH]}..."


def pack_json(value: Mapping[str, object]) -> bytes:
    """Encode a JSON body."""
    return json.dumps(value, separators=(",", ":")).encode()


def unpack_json(body: bytes) -> dict[str, object]:
    """Decode a JSON body.

    Raises:
        InvalidRequestError: it is not a JSON object.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise r.InvalidRequestError("the body is not JSON") from error
    if not isinstance(value, dict):
        raise r.InvalidRequestError("the body is not a JSON object")
    return value


def text_of(fields: dict[str, object], name: str) -> str:
    """Return the text in a field of a JSON object."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise r.InvalidRequestError(f"the field {name!r} is missing or not text")
    return value


def integer_of(fields: dict[str, object], name: str) -> int:
    """Return the integer in a field of a JSON object: a count, a size or a time."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise r.InvalidRequestError(f"the field {name!r} is missing or not a count")
    return value


def objects_of(fields: dict[str, object], name: str) -> list[dict[str, object]]:
    """Return the objects in a field of a JSON object."""
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise r.InvalidRequestError(f"the field {name!r} is missing or not a list of objects")
    return value


def data_set_fields(info: r.DataSetInfo) -> dict[str, object]:
    """Return a data set as it stands in JSON."""
    return asdict(info)


def data_set_of(fields: dict[str, object]) -> r.DataSetInfo:
    """Return what `data_set_fields` encoded."""
    return r.DataSetInfo(
        id=unpack_id(text_of(fields, "id")).hex(),
        machine=r.normalise_name(text_of(fields, "machine"), "machine"),
        created_ns=integer_of(fields, "created_ns"),
        generation=integer_of(fields, "generation"),
        table_size=integer_of(fields, "table_size"),
        pack_count=integer_of(fields, "pack_count"),
        size=integer_of(fields, "size"),
        missing=integer_of(fields, MISSING) if MISSING in fields else 0,
        is_damaged=fields.get(IS_DAMAGED) is True,
    )


def policy_fields(policy: Policy | None) -> dict[str, object] | None:
    """Return a retention policy as it stands in JSON."""
    return None if policy is None else dict(policy.fields())


def policy_of(fields: dict[str, object], name: str) -> Policy | None:
    """Return the retention policy in a field of a JSON object.

    Raises:
        InvalidRequestError: there is neither one nor null.
    """
    value = fields.get(name, "")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise r.InvalidRequestError(f"the field {name!r} is missing or not a retention policy")
    try:
        return Policy.of(value)
    except PolicyError as error:
        raise r.InvalidRequestError(str(error)) from error


def policies_fields(policies: Policies) -> dict[str, object]:
    """Return what a user has set, as it stands in JSON."""
    own = [
        {"machine": machine, "policy": policy_fields(policy)}
        for machine, policy in sorted(policies.machines.items())
    ]
    return {
        "policy": policy_fields(policies.default),
        "machines": own,
        "held": sorted(policies.held),
    }


def policies_of(fields: dict[str, object]) -> Policies:
    """Return what `policies_fields` encoded."""
    own = {}
    for item in objects_of(fields, "machines"):
        policy = policy_of(item, "policy")
        if policy is not None:
            own[r.normalise_name(text_of(item, "machine"), "machine")] = policy
    return Policies(policy_of(fields, "policy"), own, tuple(ids_of(fields, "held")))


def deleted_fields(deleted: r.DeletedDataSet) -> dict[str, object]:
    """Return a deleted data set as it stands in JSON."""
    return {
        **data_set_fields(deleted.info),
        "deleted_ns": deleted.deleted_ns,
        "expires_ns": deleted.expires_ns,
        "reason": deleted.reason,
    }


def deleted_of(fields: dict[str, object]) -> r.DeletedDataSet:
    """Return what `deleted_fields` encoded."""
    return r.DeletedDataSet(
        data_set_of(fields),
        integer_of(fields, "deleted_ns"),
        integer_of(fields, "expires_ns"),
        shown(text_of(fields, "reason")),
    )


def credential_fields(credential: r.Credential) -> dict[str, object]:
    """Return a credential as it stands in JSON."""
    return asdict(credential) | {"key_id": credential.key_id.hex()}


def credential_of(fields: dict[str, object]) -> r.Credential:
    """Return what `credential_fields` encoded."""
    return r.Credential(
        id=integer_of(fields, "id"),
        machine=r.normalise_name(text_of(fields, "machine"), "machine"),
        key_id=unpack_key_id(text_of(fields, "key_id")),
        created_ns=integer_of(fields, "created_ns"),
    )


def unpack_key_id(text: str) -> bytes:
    """Return the id of a machine's key, 32 bytes, from its hex form."""
    return _unhex(text, r.KEY_ID_SIZE, "the id of a key")


def ids_of(fields: dict[str, object], name: str) -> list[str]:
    """Return the ids of data sets in a field of a JSON object."""
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise r.InvalidRequestError(f"the field {name!r} is missing or not a list of ids")
    return [unpack_id(item).hex() for item in value]


def pack_fields(packs: Sequence[r.PackInfo]) -> list[dict[str, object]]:
    """Return packs as they stand in JSON."""
    return [{"digest": pack.digest.hex(), "size": pack.size} for pack in packs]


def packs_of(fields: list[dict[str, object]]) -> list[r.PackInfo]:
    """Return what `pack_fields` encoded."""
    return [
        r.PackInfo(unpack_digest(text_of(item, "digest")), integer_of(item, "size"))
        for item in fields
    ]


def damage_fields(damage: r.Damage) -> dict[str, object]:
    """Return packs and tables as they stand in JSON."""
    return {"packs": [digest.hex() for digest in damage.packs], "tables": list(damage.tables)}


def damage_of(fields: dict[str, object]) -> r.Damage:
    """Return what `damage_fields` encoded."""
    return r.Damage(
        tuple(unpack_digest(item) for item in texts_of(fields, "packs")),
        tuple(unpack_id(item).hex() for item in texts_of(fields, "tables")),
    )


def texts_of(fields: dict[str, object], name: str) -> list[str]:
    """Return the texts in a field of a JSON object."""
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise r.InvalidRequestError(f"the field {name!r} is missing or not a list of texts")
    return value


def _is_hex(text: str, size: int) -> bool:
    """Return whether `text` is lower-case hex.  One form only: it becomes a file name."""
    return len(text) == 2 * size and all(c in "0123456789abcdef" for c in text)


def _unhex(text: str, size: int, what: str) -> bytes:
    if not _is_hex(text, size):
        raise r.InvalidRequestError(f"{what} must have {2 * size} lower-case hex digits")
    return bytes.fromhex(text)
