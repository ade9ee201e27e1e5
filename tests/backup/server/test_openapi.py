# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document that the server serves, and a fuzzer that reads it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from backup import wire
from backup.client.repository import HttpServer
from backup.server import openapi
from backup.server.app import Api
from backup.server.limits import Limits
from backup.store.local import open_store
from tests.backup.repositories import SECRET, key_file
from tests.backup.server_process import ServerProcess

ROOT = Path(__file__).parents[3]
UNLIMITED = {
    "strangers_per_s": 1e6,
    "all_strangers_per_s": 1e6,
    "guesses_per_s": 1e6,
    "first_delay_s": 0,
}
# An invitation that is used up and a range beyond the end are good requests, too.
CONFIG = """\
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "416", "5xx"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "413", "416", "422", "429", "5xx"]
"""


def test_the_document_has_every_route(tmp_path: Path) -> None:
    """Every route of the server is in the document, and nothing else is."""
    with open_store(tmp_path, create=True) as store:
        routes = Api(store, tmp_path, Limits())._router.routes
    served = set()
    for route in routes:
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}:
            served.add((route.path, method.lower()))
    described = openapi.document()["paths"]
    assert isinstance(described, dict)

    assert {(path, method) for path, item in described.items() for method in item} == served


def test_the_text_has_every_operation_and_kind() -> None:
    """docs/http-api.md speaks of every operation and every kind of error, and of no others."""
    text = (ROOT / "docs" / "http-api.md").read_text()
    described: Any = openapi.document()
    operations = {
        f"{method.upper()} {path}" for path, item in described["paths"].items() for method in item
    }
    kinds = set(described["components"]["schemas"]["Error"]["properties"]["kind"]["enum"])
    table = text.partition("## Errors")[2].partition("## Names")[0]

    assert set(re.findall(r"\*\*`((?:GET|PUT|POST|DELETE) [^`]+)`\*\*", text)) == operations
    rows = re.findall(r"^\| ([0-9, ]+) \| (`[^|]+) \|", table, re.MULTILINE)
    assert {kind for _, kinds in rows for kind in re.findall(r"`([a-z-]+)`", kinds)} == kinds
    for status, kind in wire.ERROR_STATUSES.values():
        assert any(str(status) in row[0] and f"`{kind}`" in row[1] for row in rows), kind


@pytest.mark.parametrize(
    "extent",
    [
        pytest.param(["--max-examples=8", "--generation-deterministic"], id="sample"),
        pytest.param(["--max-time=600"], id="ten minutes", marks=pytest.mark.slow),
    ],
)
def test_fuzzer_finds_nothing(tmp_path: Path, extent: list[str]) -> None:
    """Requests made from the document, good and bad, are answered as the document says."""
    config, log = tmp_path / "schemathesis.toml", tmp_path / "log"
    config.write_text(CONFIG)
    with (
        ServerProcess.start(tmp_path / "data", tls=False, log=log, **UNLIMITED) as server,
        HttpServer(server.url) as host,
    ):
        host.register("user", key_file(), SECRET)
        token = host.login("user", SECRET)._token
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
        command += [server.url + openapi.PATH, f"--header=Authorization: Bearer {token}", *extent]
        hooks = {"SCHEMATHESIS_HOOKS": "tests.backup.server.api_hooks", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, "--no-color"],
            env={**os.environ, **hooks},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Operations:       24 selected / 24 total" in done.stdout
    assert log.read_text() == ""
