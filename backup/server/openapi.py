# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of the API, which the server serves.

Source: OpenAPI 3.1.0; docs/http-api.md, which says what the document cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from backup import repository as r
from backup import wire
from backup.retention import COUNTS, MAXIMUM_COUNT, UNLIMITED

PATH = f"{wire.API}/openapi.json"

_JSON = "application/json"
_BYTES = "application/octet-stream"
_ALWAYS = (400, 408, 413, 500, 503)  # what any request may be answered with
_LOGGED_IN = (401, 403)  # a machine's token opens a part of it
_SECRET_PATTERN = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="  # 32 bytes in base64


def _count(least: int, most: int) -> dict[str, object]:
    return {"type": "integer", "minimum": least, "maximum": most}


_COUNT_OF_RULE = {"anyOf": [{"const": UNLIMITED}, _count(1, MAXIMUM_COUNT)]}
_POLICY: dict[str, object] = {
    "description": "What stays of each machine's data sets; null: the default",
    "type": ["object", "null"],
    "properties": {
        **dict.fromkeys(COUNTS, _COUNT_OF_RULE),
        "within": {
            "type": "string",
            "minLength": 2,
            "pattern": "^([1-9][0-9]{0,2}y)?([1-9][0-9]{0,3}m)?"
            "([1-9][0-9]{0,4}d)?([1-9][0-9]{0,5}h)?$",
        },
    },
    "minProperties": 1,
    "additionalProperties": False,
}

_SCHEMAS: dict[str, object] = {
    "Name": {
        "description": "Printable characters in NFC; no slash, no backslash, not . or ..",
        "type": "string",
        "format": "name",
        "minLength": 1,
        "maxLength": r.MAXIMUM_NAME_LENGTH,
    },
    "Id": {"type": "string", "pattern": f"^[0-9a-f]{{{2 * r.DATA_SET_ID_SIZE}}}$"},
    "Digest": {
        "description": "SHA-256",
        "type": "string",
        "pattern": f"^[0-9a-f]{{{2 * r.DIGEST_SIZE}}}$",
    },
    "Secret": {
        "description": "32 bytes in base64",
        "type": "string",
        "pattern": f"^{_SECRET_PATTERN}$",
    },
    "KeyFile": {
        "description": f"A key file in base64, of at most {r.MAXIMUM_KEY_FILE_SIZE} bytes",
        "type": "string",
        "format": "key-file",
    },
    "Count": _count(0, (1 << 63) - 1),
}


def document() -> dict[str, object]:
    """Return the document, as it stands in JSON."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "rebuildkit server", "version": "1"},
        "paths": {
            f"{wire.API}/health": {
                "get": _operation("health", 200, _object(status={"const": "ok"}, api={"const": 1}))
            },
            PATH: {"get": _operation("openapi", 200, {"type": "object"})},
            **_login_paths(),
            **_key_paths(),
            **_machine_paths(),
            **_administration_paths(),
            **_content_paths(),
        },
        "components": {
            "schemas": {
                **_SCHEMAS,
                "DataSet": _object(
                    id=_ref("Id"),
                    machine=_ref("Name"),
                    created_ns=_ref("Count"),
                    generation=_ref("Count"),
                    table_size=_ref("Count"),
                    pack_count=_ref("Count"),
                    size=_ref("Count"),
                    missing=_ref("Count"),
                    is_damaged={"type": "boolean"},
                ),
                "Damage": _object(packs=_list(_ref("Digest")), tables=_list(_ref("Id"))),
                "DeletedDataSet": {
                    "allOf": [
                        _ref("DataSet"),
                        _object(
                            deleted_ns=_ref("Count"),
                            expires_ns=_ref("Count"),
                            reason={"enum": ["policy", "request"]},
                        ),
                    ]
                },
                "Credential": _object(
                    id=_ref("Count"),
                    machine=_ref("Name"),
                    key_id=_ref("Digest"),
                    created_ns=_ref("Count"),
                ),
                "Error": _object(
                    error={"type": "string"},
                    kind={
                        "enum": sorted({k for _, k in wire.ERROR_STATUSES.values()} | {"not-found"})
                    },
                ),
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _login_paths() -> dict[str, object]:
    login = {
        "oneOf": [
            _closed(user=_ref("Name"), login_secret=_ref("Secret")),
            _closed(credential=_ref("Secret")),
        ]
    }
    logged_in = _object(
        ("token",), token={"type": "string"}, user=_ref("Name"), machine=_ref("Name")
    )
    register = _object(
        ("user", "key_file", "login_secret"),
        user=_ref("Name"),
        key_file=_ref("KeyFile"),
        login_secret=_ref("Secret"),
        invitation={"type": "string"},
    )
    return {
        f"{wire.API}/login-parameters/{{user}}": {
            "get": _operation("loginParameters", 200, None, parameters=[_in_path("user", "Name")]),
        },
        f"{wire.API}/register": {
            "post": _operation(
                "register", 201, {"type": "object"}, (403, 409, 429, 507), body=register
            ),
        },
        f"{wire.API}/login": {
            "post": _operation("login", 200, logged_in, (401, 429), body=login),
        },
    }


def _key_paths() -> dict[str, object]:
    change = _object(
        ("key_file", "login_secret"),
        key_file=_ref("KeyFile"),
        login_secret=_ref("Secret"),
        new_login_secret=_ref("Secret"),
        expected=_ref("Digest"),
    )
    return {
        f"{wire.API}/key-file": {
            "get": _operation("keyFile", 200, None, _LOGGED_IN),
            "put": _operation(
                "replaceKeyFile", 200, {"type": "object"}, (*_LOGGED_IN, 409, 429, 507), body=change
            ),
        },
    }


def _machine_paths() -> dict[str, object]:
    asked = _object(
        packs={**_list(_ref("Digest")), "maxItems": r.MAXIMUM_CHECKED},
        tables={**_list(_ref("Id")), "maxItems": r.MAXIMUM_CHECKED},
    )
    machine = [_in_path("machine", "Name")]
    digest_header: dict[str, object] = {
        "name": wire.DIGEST_HEADER,
        "in": "header",
        "required": True,
        "schema": {"type": "string", "pattern": f"^sha-256=:{_SECRET_PATTERN}:$"},
    }
    missing: dict[str, object] = {
        "name": wire.MISSING,
        "in": "query",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    }
    pack = _object(digest=_ref("Digest"), size=_ref("Count"))
    below = f"{wire.API}/machines/{{machine}}"
    return {
        f"{wire.API}/machines": {
            "get": _operation(
                "machines", 200, _object(machines=_list(_object(name=_ref("Name")))), _LOGGED_IN
            ),
        },
        f"{wire.API}/data-sets": {
            "get": _operation("allDataSets", 200, _data_sets(), _LOGGED_IN),
        },
        f"{wire.API}/damage": {
            "get": _operation("damage", 200, _ref("Damage"), _LOGGED_IN),
        },
        f"{wire.API}/check": {
            "post": _operation("check", 200, _ref("Damage"), (*_LOGGED_IN, 404), body=asked),
        },
        f"{below}/data-sets": {
            "get": _operation("dataSets", 200, _data_sets(), _LOGGED_IN, parameters=machine),
            "post": _operation(
                "commit",
                201,
                _ref("DataSet"),
                (*_LOGGED_IN, 404, 409, 422, 507),
                parameters=[*machine, missing],
                body=_BYTES,
                links={"table": {"id": "$response.body#/id"}},
            ),
        },
        f"{below}/pending-packs": {
            "get": _operation(
                "pendingPacks",
                200,
                _object(packs=_list(pack)),
                _LOGGED_IN,
                parameters=machine,
            ),
        },
        f"{below}/packs": {
            "post": _operation(
                "putPack",
                201,
                _object(digest=_ref("Digest")),
                (200, *_LOGGED_IN, 422, 507),
                parameters=[*machine, digest_header],
                body=_BYTES,
                links={"pack": {"digest": "$response.body#/digest"}},
            ),
        },
    }


def _administration_paths() -> dict[str, object]:
    proven = (*_LOGGED_IN, 429)
    delete = {
        "oneOf": [
            _closed(login_secret=_ref("Secret"), data_sets=_ids()),
            _closed(login_secret=_ref("Secret"), machine=_ref("Name")),
            _closed(login_secret=_ref("Secret"), everything={"const": True}),
        ]
    }
    policies = _object(
        policy=_POLICY,
        machines=_list(_object(machine=_ref("Name"), policy=_POLICY)),
        held=_ids(),
    )
    put_policy = _object(
        ("login_secret", "policy"),
        login_secret=_ref("Secret"),
        policy=_POLICY,
        machine=_ref("Name"),
    )
    enroll = _object(
        login_secret=_ref("Secret"),
        machine=_ref("Name"),
        credential=_ref("Secret"),
        key_id=_ref("Digest"),
    )
    revoke = _object(login_secret=_ref("Secret"), id=_ref("Count"))
    done: dict[str, object] = {"type": "object"}
    return {
        f"{wire.API}/policies": {
            "get": _operation("policies", 200, policies, _LOGGED_IN),
            "put": _operation("setPolicy", 200, done, (*proven, 507), body=put_policy),
        },
        f"{wire.API}/deleted-data-sets": {
            "get": _operation(
                "deletedDataSets",
                200,
                _object(data_sets=_list(_ref("DeletedDataSet"))),
                _LOGGED_IN,
            ),
        },
        f"{wire.API}/delete": {
            "post": _operation("delete", 200, done, (*proven, 404, 409, 507), body=delete),
        },
        f"{wire.API}/bring-back": {
            "post": _operation(
                "bringBack", 200, done, (*_LOGGED_IN, 404, 507), body=_object(data_sets=_ids())
            ),
        },
        f"{wire.API}/credentials": {
            "get": _operation(
                "credentials", 200, _object(credentials=_list(_ref("Credential"))), _LOGGED_IN
            ),
            "post": _operation("enroll", 201, done, (*proven, 409, 507), body=enroll),
        },
        f"{wire.API}/credentials/revoke": {
            "post": _operation("revoke", 200, done, (*proven, 507), body=revoke),
        },
    }


def _content_paths() -> dict[str, object]:
    byte_range: dict[str, object] = {"name": "Range", "in": "header", "schema": {"type": "string"}}
    statuses = (206, *_LOGGED_IN, 404, 416)
    return {
        f"{wire.API}/data-sets/{{id}}/table": {
            "get": _operation(
                "table", 200, None, statuses, parameters=[_in_path("id", "Id"), byte_range]
            ),
        },
        f"{wire.API}/packs/{{digest}}": {
            "get": _operation(
                "pack", 200, None, statuses, parameters=[_in_path("digest", "Digest"), byte_range]
            ),
        },
    }


def _operation(
    name: str,
    status: int,
    answer: Mapping[str, object] | None,
    others: tuple[int, ...] = (),
    *,
    parameters: list[dict[str, object]] | None = None,
    body: Mapping[str, object] | str | None = None,
    links: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, object]:
    """Return an operation.

    Args:
        name: of the operation.
        status: of a good answer.
        answer: schema of its JSON; None for bytes.
        others: further statuses, those of `_ALWAYS` excepted; with 401, a token is needed.
        parameters: in path, query and headers.
        body: schema of the request's JSON, or the type of its bytes.
        links: what else can be asked about what a good answer names, and with what.
    """
    good = {"description": "Done", "content": _content(_BYTES if answer is None else answer)}
    if links:
        good["links"] = {
            name: {"operationId": name, "parameters": given} for name, given in links.items()
        }
    responses: dict[str, object] = {str(status): good}
    for other in sorted((*others, *_ALWAYS)):
        if other < 400:
            responses[str(other)] = good
            continue
        responses[str(other)] = {
            "description": HTTPStatus(other).phrase,
            "content": _content(_ref("Error")),
        }
    operation: dict[str, object] = {"operationId": name, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    if 401 in others and name != "login":
        operation["security"] = [{"token": []}]
    return operation


def _content(schema: Mapping[str, object] | str) -> dict[str, object]:
    if isinstance(schema, str):
        return {schema: {"schema": {"type": "string", "format": "binary", "minLength": 1}}}
    return {_JSON: {"schema": schema}}


def _ref(name: str) -> dict[str, object]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...] | None = None, **properties: object) -> dict[str, object]:
    """Return the schema of an object; without `required`, it has every property."""
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": needed}


def _closed(**properties: object) -> dict[str, object]:
    """Return the schema of an object that has these properties and no others."""
    return {**_object(None, **properties), "additionalProperties": False}


def _list(items: object) -> dict[str, object]:
    return {"type": "array", "items": items}


def _data_sets() -> dict[str, object]:
    return _object(data_sets=_list(_ref("DataSet")))


def _ids() -> dict[str, object]:
    return _list(_ref("Id"))


def _in_path(name: str, schema: str) -> dict[str, object]:
    return {"name": name, "in": "path", "required": True, "schema": _ref(schema)}
