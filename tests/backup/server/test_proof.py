# SPDX-License-Identifier: Apache-2.0
"""What a stolen token is not enough for: requests that take the login secret again."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from backup import wire
from backup.client.repository import HttpServer
from backup.repository import RepositoryHost
from backup.retention import Policies
from tests.backup.repositories import SECRET, key_file, make_table, new_user, other_key_file
from tests.backup.server_process import ServerProcess

KEY_ID = bytes(32).hex()
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "/policies", {"policy": {"last": 1}}),
    ("PUT", "/policies", {"policy": None, "machine": "host"}),
    ("POST", "/delete", {"data_sets": []}),
    ("POST", "/delete", {"machine": "host"}),
    ("POST", "/delete", {"everything": True}),
    (
        "POST",
        "/credentials",
        {"machine": "host", "credential": wire.pack_base64(bytes(32)), "key_id": KEY_ID},
    ),
    ("POST", "/credentials/revoke", {"id": 1}),
    ("PUT", "/key-file", {"key_file": wire.pack_base64(other_key_file())}),
]
NAMES = [f"{method} {path} {sorted(fields)}" for method, path, fields in REQUESTS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    with ServerProcess.start(
        directory / "data", tls=False, first_delay_s=0.01, log=directory / "log"
    ) as server:
        yield server


@pytest.fixture
def host(server: ServerProcess) -> Iterator[HttpServer]:
    with HttpServer(server.url) as host:
        yield host


def send(server: ServerProcess, token: str, method: str, path: str, body: dict[str, Any]) -> int:
    """Send a request with a token; return the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        headers = {"Authorization": f"Bearer {token}"}
        connection.request(method, wire.API + path, json.dumps(body), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def registered(host: RepositoryHost) -> str:
    """Register somebody who has two data sets; return the id."""
    user = new_user()
    host.register(user, key_file(), SECRET)
    with host.login(user, SECRET) as repository:
        for _ in range(2):
            repository.commit("host", make_table(), [], 0)
    return user


@pytest.mark.parametrize(("method", "path", "fields"), REQUESTS, ids=NAMES)
def test_a_token_alone_changes_nothing(
    server: ServerProcess, host: HttpServer, method: str, path: str, fields: dict[str, Any]
) -> None:
    """Without the login secret it is no request, with a wrong one it is a wrong login."""
    repository = host.login(registered(host), SECRET)
    token = repository._token
    before = (repository.data_sets(), repository.key_file())
    wrong = {**fields, "login_secret": wire.pack_base64(os.urandom(32))}

    assert send(server, token, method, path, fields) == 400
    assert send(server, token, method, path, wrong) == 401
    assert (repository.data_sets(), repository.key_file()) == before
    assert repository.policies() == Policies()
    assert repository.credentials() == repository.deleted_data_sets() == []


@pytest.mark.parametrize(("method", "path", "fields"), REQUESTS, ids=NAMES)
def test_a_machine_changes_nothing_even_with_the_password(
    server: ServerProcess, host: HttpServer, method: str, path: str, fields: dict[str, Any]
) -> None:
    """What its token may do does not depend on what else is in the request."""
    repository = host.login(registered(host), SECRET)
    credential = os.urandom(32)
    repository.enroll("host", credential, bytes(32))
    token = host.login_machine(credential)._token
    body = {**fields, "login_secret": wire.pack_base64(SECRET)}

    assert send(server, token, method, path, fields) == 403
    assert send(server, token, method, path, body) == 403
    assert len(repository.data_sets()) == 2
    assert repository.key_file() == key_file()
    assert len(repository.credentials()) == 1


def test_a_commit_does_not_shorten_what_is_kept(host: HttpServer) -> None:
    """A stolen token of the password's login commits with `keep` 1, and all stays as it was."""
    repository = host.login(registered(host), SECRET)
    for _ in range(3):
        repository.commit("host", make_table(), [], 1)

    assert len(repository.data_sets()) == 5
    assert repository.policies() == Policies()


def test_bodies_that_cannot_be_right(server: ServerProcess, host: HttpServer) -> None:
    """Each is refused as a request, and deletes nothing."""
    repository = host.login(registered(host), SECRET)
    secret = {"login_secret": wire.pack_base64(SECRET)}
    for method, path, fields in (
        ("POST", "/delete", {}),
        ("POST", "/delete", {"machine": "host", "everything": True}),
        ("POST", "/delete", {"everything": 1}),
        ("POST", "/delete", {"data_sets": "all"}),
        ("POST", "/delete", {"data_sets": [7]}),
        ("POST", "/bring-back", {"data_sets": ["../x"]}),
        ("PUT", "/policies", {}),
        ("PUT", "/policies", {"policy": {}}),
        ("PUT", "/policies", {"policy": {"last": 0}}),
        ("PUT", "/policies", {"policy": {"last": True}}),
        ("PUT", "/policies", {"policy": {"last": "7"}}),
        ("PUT", "/policies", {"policy": {"soon": 7}}),
        ("PUT", "/policies", {"policy": {"within": "1w"}}),
        ("POST", "/credentials", {"machine": "..", "credential": "", "key_id": KEY_ID}),
        ("POST", "/credentials/revoke", {"id": -1}),
    ):
        body = {**fields, **secret}
        assert send(server, repository._token, method, path, body) == 400, (path, fields)

    assert len(repository.data_sets()) == 2
