# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: routes to a store, and nothing else.

Source: docs/http-api.md.
Every answer that is not a success is a JSON object with one sentence.  Work on files and the
catalogue runs in threads; hashing and writing release the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from backup import wire
from backup.repository import (
    DIGEST_SIZE,
    MAXIMUM_PACK_COUNT,
    MAXIMUM_PACK_SIZE,
    MAXIMUM_TABLE_SIZE,
    BusyError,
    DigestMismatchError,
    InvalidRequestError,
    NotAuthorisedError,
    NotPermittedError,
    RepositoryError,
    TooLargeError,
    TooManyAttemptsError,
    normalise_name,
)
from backup.server import openapi
from backup.server.administration import Administration
from backup.server.bodies import (
    Body,
    json_response,
    range_response,
    read_at,
    receive_file,
)
from backup.server.contract import ServedRepository, ServedStore
from backup.server.digests import DigestList
from backup.server.exchange import Exchange, StalledError
from backup.server.front import PLACE
from backup.server.limits import Limits
from backup.server.places import Place
from backup.server.sessions import Guesses, Session, Sessions
from backup.server.work import Memory, Threads
from backup.store.files import Kind

_COMMIT_LIMIT = wire.COMMIT_HEAD_SIZE + MAXIMUM_PACK_COUNT * DIGEST_SIZE + MAXIMUM_TABLE_SIZE

_HINTED = (TooManyAttemptsError, BusyError)  # worth another try
_RETRY_AFTER_S = "2"


class Api:
    """The ASGI application over one store."""

    def __init__(
        self,
        store: ServedStore,
        spool: Path,
        limits: Limits,
        *,
        is_open: bool = False,
        report: Callable[[str], None] = lambda line: None,
        logs_requests: bool = False,
    ) -> None:
        """Only store.

        Args:
            store: open as long as the application runs.
            spool: directory for what does not fit into memory.
            limits: of what clients may cost.
            is_open: whether anyone may register; else who has an invitation, and the first.
            report: gets one line for every failure that is not the client's.
            logs_requests: whether it also gets one for every request.
        """
        self._store = store
        self._spool = spool
        self._limits = limits
        self._is_open = is_open
        self._report = report
        self._logs_requests = logs_requests
        self._sessions = Sessions()
        self._guesses = Guesses(limits)
        self._run = Threads().run
        self._memory = Memory(limits)
        self._commits: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._checks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        api = wire.API
        self._router = Router(
            [
                Route(f"{api}/health", self.health, methods=["GET"]),
                Route(openapi.PATH, self.openapi, methods=["GET"]),
                Route(f"{api}/login-parameters/{{user}}", self.login_parameters, methods=["GET"]),
                Route(f"{api}/register", self.register, methods=["POST"]),
                Route(f"{api}/login", self.login, methods=["POST"]),
                Route(f"{api}/key-file", self.get_key_file, methods=["GET"]),
                Route(f"{api}/key-file", self.put_key_file, methods=["PUT"]),
                Route(f"{api}/machines", self.machines, methods=["GET"]),
                Route(f"{api}/data-sets", self.data_sets, methods=["GET"]),
                Route(f"{api}/data-sets/{{id}}/table", self.table, methods=["GET"]),
                Route(f"{api}/damage", self.damage, methods=["GET"]),
                Route(f"{api}/check", self.check, methods=["POST"]),
                Route(f"{api}/machines/{{machine}}/data-sets", self.data_sets, methods=["GET"]),
                Route(f"{api}/machines/{{machine}}/data-sets", self.commit, methods=["POST"]),
                Route(f"{api}/machines/{{machine}}/pending-packs", self.pending, methods=["GET"]),
                Route(f"{api}/machines/{{machine}}/packs", self.put_pack, methods=["POST"]),
                Route(f"{api}/packs/{{digest}}", self.pack, methods=["GET"]),
                *Administration(self._opened, self._proven, self._read_json, self._run).routes(),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the only place where errors become answers."""
        if scope["type"] != "http":
            return
        scope["app"] = self  # with it the router raises HTTPException instead of answering
        place = _place(scope)
        exchange = Exchange(scope, receive, send, self._limits.stall_s)
        place.begin()
        try:
            self._check_head(scope)
            await self._router(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except StalledError:
            place.abort()
        except Exception as error:  # a server must outlive its bugs
            response = self._answer_to(error, Request(scope))
            if exchange.status == 0:
                await response(scope, exchange.receive, exchange.send)
            # A body that has begun cannot be taken back: uvicorn cuts the connection.
        finally:
            place.rest()
        if self._logs_requests:
            taken_ms = (time.monotonic() - exchange.started_s) * 1e3
            path = scope["path"].encode("unicode_escape").decode()
            self._report(f"{scope['method']} {path} {exchange.status} {taken_ms:.0f} ms")

    def _check_head(self, scope: Scope) -> None:
        """Refuse a head that came in one piece and is larger than one in several may be."""
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._limits.head_size:
            raise TooLargeError(
                f"the head of a request may have at most {self._limits.head_size} bytes"
            )

    def _answer_to(self, error: Exception, request: Request) -> Response:
        """Return the answer for an error; report it when it is the server's."""
        headers: dict[str, str] = {}
        if isinstance(error, HTTPException):
            kind = "not-found" if error.status_code == 404 else "invalid-request"
            sentence = "there is nothing at this path"
            if error.status_code == 405:
                sentence = f"{request.method} is not possible at this path"
            status, body = error.status_code, wire.pack_json({"error": sentence, "kind": kind})
            headers.update(error.headers or {})
            if status == 405:
                headers["Allow"] = ", ".join(self._methods_at(request.url.path))
        elif isinstance(error, RepositoryError):
            status, body = wire.pack_error(self._without_place(error))
            if status == 401:
                headers["WWW-Authenticate"] = "Bearer"
                if _place(request.scope).user_id is None:
                    headers["Connection"] = "close"  # a stranger gets one guess for a place
            if isinstance(error, TooLargeError):
                headers["Connection"] = "close"
            if isinstance(error, _HINTED):
                headers["Retry-After"] = _RETRY_AFTER_S
        else:
            status = 500
            sentence = "the server failed; its log says why"
            body = wire.pack_json({"error": sentence, "kind": "store-damaged"})
        if status >= 500 and not isinstance(error, BusyError):
            reason = str(error).replace("\n", " ")
            name = "" if isinstance(error, RepositoryError) else f"{type(error).__name__}: "
            self._report(f"error: {request.method} {request.url.path}: {name}{reason}")
        return Response(body, status, headers, media_type="application/json")

    def _without_place(self, error: RepositoryError) -> RepositoryError:
        """Return an error that does not say where the server keeps things."""
        text = str(error).replace(str(self._spool), "the store")
        return error if text == str(error) else type(error)(text)

    def _methods_at(self, path: str) -> list[str]:
        """Return the methods that a path has, by all its routes."""
        found: set[str] = set()
        for route in self._router.routes:
            assert isinstance(route, Route), "there are no mounts"
            if route.path_regex.match(path):
                found.update(route.methods or ())
        return sorted(found)

    async def health(self, request: Request) -> Response:
        """Say that the server runs."""
        return json_response({"status": "ok", "api": 1})

    async def openapi(self, request: Request) -> Response:
        """Describe the API."""
        return json_response(openapi.document())

    async def login_parameters(self, request: Request) -> Response:
        """Say what deriving the login secret needs."""
        user = request.path_params["user"]
        data = await self._run(_user_id(request), self._store.login_parameters, user)
        return Response(data, media_type="application/octet-stream")

    async def register(self, request: Request) -> Response:
        """Create a user.  Guessing invitations and ids gets slower, as guessing passwords."""
        fields = await self._read_json(request, wire.MAXIMUM_JSON_SIZE)
        user = wire.text_of(fields, "user")
        key_file = wire.unpack_base64(wire.text_of(fields, "key_file"))
        secret = wire.unpack_base64(wire.text_of(fields, "login_secret"))
        invitation = wire.text_of(fields, "invitation") if "invitation" in fields else None
        work = partial(self._store.register, needs_invitation=not self._is_open)
        async with self._guesses.attempt(_host(request), "", _place(request.scope)):
            await self._run(_user_id(request), work, user, key_file, secret, invitation)
        return json_response({}, 201)

    async def login(self, request: Request) -> Response:
        """Hand out a token, to a user or to an enrolled machine."""
        fields = await self._read_json(request, wire.MAXIMUM_LOGIN_SIZE)
        if "credential" in fields:
            return await self._login_machine(request, fields)
        secret = wire.unpack_base64(wire.text_of(fields, "login_secret"))
        user_id = await self._check_login(request, wire.text_of(fields, "user"), secret)
        _place(request.scope).log_in(user_id)
        repository = await self._run(user_id, self._store.repository, user_id)
        return json_response({"token": self._sessions.add(user_id, repository)})

    async def _login_machine(self, request: Request, fields: dict[str, object]) -> Response:
        credential = wire.unpack_base64(wire.text_of(fields, "credential"))
        async with self._guesses.attempt(_host(request), "", _place(request.scope)):
            user_id, repository = await self._run(
                _user_id(request), self._store.check_credential, credential
            )
        _place(request.scope).log_in(user_id)
        token = self._sessions.add(user_id, repository, is_machine=True)
        (machine,) = await self._run(user_id, repository.machines)
        return json_response({"token": token, "user": repository.user, "machine": machine})

    async def _check_login(self, request: Request, user: str, secret: bytes) -> int:
        user = normalise_name(user, "user")
        async with self._guesses.attempt(_host(request), user, _place(request.scope)):
            return await self._run(_user_id(request), self._store.check_login, user, secret)

    async def _read_json(self, request: Request, limit: int) -> dict[str, object]:
        """Return a request's body, a JSON object of at most `limit` bytes."""
        body = Body(request, limit, self._limits)
        with self._memory.json(_user_id(request), body.size):
            return wire.unpack_json(bytes(await body.read(body.size)))

    def _session(self, request: Request) -> tuple[Session, str]:
        """Return the session a request belongs to, and its token."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise NotAuthorisedError("log in first")
        session = self._sessions.get(token)
        _place(request.scope).log_in(session.user_id)
        return session, token

    def _opened(self, request: Request) -> tuple[int, ServedRepository]:
        """Return the number of the user who asks, and their repository."""
        session, _ = self._session(request)
        return session.user_id, session.repository

    async def _proven(self, request: Request) -> tuple[int, ServedRepository, dict[str, object]]:
        """Return user, repository and body of a request that needs more than a token.

        What deletes, shortens retention or hands out access takes the login secret again: a
        token that was stolen does none of it, and a machine's never does.
        """
        session, _ = self._session(request)
        if session.is_machine:
            raise NotPermittedError("an enrolled machine cannot do this: it needs the password")
        fields = await self._read_json(request, wire.MAXIMUM_JSON_SIZE)
        secret = wire.unpack_base64(wire.text_of(fields, "login_secret"))
        await self._check_login(request, session.repository.user, secret)
        return session.user_id, session.repository, fields

    async def get_key_file(self, request: Request) -> Response:
        """Send the key file."""
        user_id, repository = self._opened(request)
        data = await self._run(user_id, repository.key_file)
        return Response(data, media_type="application/octet-stream")

    async def put_key_file(self, request: Request) -> Response:
        """Replace the key file.  A token is not enough: the login secret is asked for again."""
        session, token = self._session(request)
        if session.is_machine:
            raise NotPermittedError("an enrolled machine cannot replace the key file")
        user_id, repository = session.user_id, session.repository
        fields = await self._read_json(request, wire.MAXIMUM_JSON_SIZE)
        key_file = wire.unpack_base64(wire.text_of(fields, "key_file"))
        secret = wire.unpack_base64(wire.text_of(fields, "login_secret"))
        new_secret, expected = None, None
        if "new_login_secret" in fields:
            new_secret = wire.unpack_base64(wire.text_of(fields, "new_login_secret"))
        if "expected" in fields:
            expected = wire.unpack_digest(wire.text_of(fields, "expected"))
        if new_secret is not None and key_file == await self._run(user_id, repository.key_file):
            # The answer to the same request was lost; since then the new secret counts.
            secret = new_secret
        await self._check_login(request, repository.user, secret)
        replace = repository.replace_key_file_of
        if await self._run(user_id, replace, key_file, new_secret, expected):
            self._sessions.revoke_others(user_id, token)
        return json_response({})

    async def machines(self, request: Request) -> Response:
        """List machines."""
        user_id, repository = self._opened(request)
        names = await self._run(user_id, repository.machines)
        return json_response({"machines": [{"name": name} for name in names]})

    async def data_sets(self, request: Request) -> Response:
        """List data sets."""
        user_id, repository = self._opened(request)
        machine = request.path_params.get("machine")
        found = await self._run(user_id, repository.data_sets, machine)
        return json_response({"data_sets": [wire.data_set_fields(info) for info in found]})

    async def damage(self, request: Request) -> Response:
        """List what is known to be damaged."""
        user_id, repository = self._opened(request)
        return json_response(wire.damage_fields(await self._run(user_id, repository.damage)))

    async def check(self, request: Request) -> Response:
        """Read packs and tables, and say which are damaged."""
        user_id, repository = self._opened(request)
        asked = wire.damage_of(await self._read_json(request, wire.MAXIMUM_JSON_SIZE))
        async with self._checks.setdefault(user_id, asyncio.Lock()):
            found = await self._run(user_id, repository.check, asked.packs, asked.tables)
        return json_response(wire.damage_fields(found))

    async def table(self, request: Request) -> Response:
        """Send an object table, or a range of it."""
        user_id, repository = self._opened(request)
        file = await self._run(user_id, repository.open_table, request.path_params["id"])
        size = file.seek(0, 2)
        read = partial(self._run, user_id, read_at, file)
        return range_response(request, size, read, self._memory.chunk_size(user_id), file.close)

    async def pending(self, request: Request) -> Response:
        """List packs that an interrupted run left."""
        user_id, repository = self._opened(request)
        packs = await self._run(user_id, repository.pending_packs, request.path_params["machine"])
        return json_response({"packs": wire.pack_fields(packs)})

    async def put_pack(self, request: Request) -> Response:
        """Receive a pack."""
        user_id, repository = self._opened(request)
        machine = normalise_name(request.path_params["machine"], "machine")
        digest = wire.parse_digest_header(request.headers.get(wire.DIGEST_HEADER, ""))
        body = Body(request, MAXIMUM_PACK_SIZE, self._limits)
        if await self._run(user_id, repository.touch_pack, machine, digest, body.size):
            return json_response({"digest": digest.hex()}, 200)
        with (
            await self._run(user_id, repository.reserve, body.size, Kind.PACK),
            self._memory.chunk_size(user_id) as chunk_size,
            await self._run(user_id, repository.receive) as incoming,
        ):
            write = partial(self._run, user_id, incoming.write)
            await receive_file(body, body.size, chunk_size, write)
            await self._run(user_id, repository.put_received, machine, incoming, digest)
        return json_response({"digest": digest.hex()}, 201)

    async def pack(self, request: Request) -> Response:
        """Send a pack, or a range of it."""
        user_id, repository = self._opened(request)
        digest = wire.unpack_digest(request.path_params["digest"])
        size = await self._run(user_id, repository.pack_size, digest)
        read = partial(self._run, user_id, repository.read_pack, digest)
        return range_response(request, size, read, self._memory.chunk_size(user_id))

    async def commit(self, request: Request) -> Response:
        """Receive a table and the list of its packs, and commit them."""
        user_id, repository = self._opened(request)
        machine = normalise_name(request.path_params["machine"], "machine")
        body = Body(request, _COMMIT_LIMIT, self._limits)
        missing = wire.parse_missing(request.query_params.get(wire.MISSING, "0"))
        head = wire.CommitHead.unpack(bytes(await body.read(wire.COMMIT_HEAD_SIZE)))
        listed_size = head.pack_count * DIGEST_SIZE
        if body.size != wire.COMMIT_HEAD_SIZE + listed_size + head.table_size:
            raise InvalidRequestError("the body does not have the size that its head says")
        with DigestList(self._spool) as packs, self._memory.chunk_size(user_id) as chunk_size:
            await receive_file(
                body, listed_size, chunk_size, partial(self._run, user_id, packs.write)
            )
            with (
                await self._run(user_id, repository.reserve, head.table_size, Kind.TABLE),
                await self._run(user_id, repository.receive) as incoming,
            ):
                write = partial(self._run, user_id, incoming.write)
                await receive_file(body, head.table_size, chunk_size, write)
                if incoming.sha256 is None or incoming.sha256.digest() != head.table_digest:
                    raise DigestMismatchError("the table was damaged on the way")
                work = partial(repository.commit_received, parent=head.parent, missing=missing)
                async with self._commits.setdefault(user_id, asyncio.Lock()):
                    info = await self._run(user_id, work, machine, incoming, packs, head.keep)
        return json_response(wire.data_set_fields(info), 201)


def _place(scope: Scope) -> Place:
    """Return the place of a request's connection; one of its own where nobody counts them."""
    place: Place | None = scope.get("state", {}).get(PLACE)
    return Place() if place is None else place


def _user_id(request: Request) -> int | None:
    """Return whose connection this is."""
    return _place(request.scope).user_id


def _host(request: Request) -> str:
    return request.client.host if request.client else ""
