# SPDX-License-Identifier: Apache-2.0
"""What schemathesis cannot make up: names, key files, digests and commits that are right."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.transport.serialization import Binary

from backup import wire
from backup.repository import DIGEST_SIZE, InvalidRequestError, normalise_name
from tests.backup.repositories import key_file, make_table, other_key_file

POSITIVE = GenerationMode.POSITIVE
NAMED_IN_PATHS = {"user", "machine"}


def _is_name(text: str) -> bool:
    try:
        return normalise_name(text, "user") == text
    except InvalidRequestError:
        return False


NAMES = (
    st.text(min_size=1, max_size=128)
    .map(lambda text: unicodedata.normalize("NFC", text).strip())
    .filter(_is_name)
)
KEY_FILES = st.sampled_from([key_file(), other_key_file()])

schemathesis.openapi.format("name", st.sampled_from(["host", "user"]) | NAMES)
schemathesis.openapi.format("key-file", KEY_FILES.map(wire.pack_base64))


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Drop requests of which nothing is wrong but a name that turns out to be right."""
    parts = case.meta.components.items() if case.meta else ()
    wrong = [place for place, part in parts if part.mode is not POSITIVE]
    names = case.path_parameters or {}
    if wrong != [ParameterLocation.PATH] or not names.keys() <= NAMED_IN_PATHS:
        return True
    return not all(_is_name(str(name)) for name in names.values())


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Make the parts of packs and commits fit together that are meant to be good."""
    name = context.operation.definition.raw.get("operationId")
    if name not in ("putPack", "commit") or case.meta.generation.mode is not POSITIVE:
        return
    body = bytes(getattr(case.body, "data", b"")) or b"?"
    if name == "commit":
        body = _commit(hashlib.sha256(body).digest())
    else:
        case.headers[wire.DIGEST_HEADER] = wire.digest_header(hashlib.sha256(body).digest())
    case.body = Binary(body)


def _commit(seed: bytes) -> bytes:
    """A commit; half of them list a pack, which nobody has sent."""
    packs = seed if seed[0] % 2 else b""
    table = make_table(seed[1], seed[:16])
    digest = hashlib.sha256(table).digest()
    head = wire.CommitHead(1 + seed[2] % 3, len(packs) // DIGEST_SIZE, len(table), digest, None)
    return head.pack() + packs + table
