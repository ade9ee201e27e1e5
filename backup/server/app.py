# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: routes to a store, and nothing else.

Source: docs/http-api.md.
Every answer that is no success is a JSON object with one sentence.  Work on files and the
catalogue runs in threads; hashing and writing release the interpreter's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from backup import wire
from backup.repository import (
    DIGEST_SIZE,
    MAXIMUM_PACK_COUNT,
    MAXIMUM_PACK_SIZE,
    MAXIMUM_TABLE_SIZE,
    DigestMismatchError,
    InvalidRequestError,
    NotAuthorisedError,
    RepositoryError,
    TooLargeError,
    normalise_name,
)
from backup.server.bodies import (
    Body,
    file_reader,
    json_response,
    range_response,
    read_json,
    receive_file,
)
from backup.server.contract import ServedRepository, ServedStore
from backup.server.sessions import FIRST_DELAY_S, Refusals, Session, Sessions

_COMMIT_LIMIT = wire.COMMIT_HEAD_SIZE + MAXIMUM_PACK_COUNT * DIGEST_SIZE + MAXIMUM_TABLE_SIZE


class Api:
    """The ASGI application over one store."""

    def __init__(
        self,
        store: ServedStore,
        *,
        report: Callable[[str], None] = lambda line: None,
        logs_requests: bool = False,
        first_delay_s: float = FIRST_DELAY_S,
    ) -> None:
        """Only store.

        Args:
            store: open as long as the application runs.
            report: gets one line for every failure that is not the client's.
            logs_requests: whether it also gets one for every request.
            first_delay_s: before a wrong password is answered for the first time.
        """
        self._store = store
        self._report = report
        self._logs_requests = logs_requests
        self._sessions = Sessions()
        self._refusals = Refusals(first_delay_s)
        api = wire.API
        self._router = Router(
            [
                Route(f"{api}/health", self.health, methods=["GET"]),
                Route(f"{api}/login-parameters/{{user}}", self.login_parameters, methods=["GET"]),
                Route(f"{api}/register", self.register, methods=["POST"]),
                Route(f"{api}/login", self.login, methods=["POST"]),
                Route(f"{api}/key-file", self.get_key_file, methods=["GET"]),
                Route(f"{api}/key-file", self.put_key_file, methods=["PUT"]),
                Route(f"{api}/machines", self.machines, methods=["GET"]),
                Route(f"{api}/data-sets", self.data_sets, methods=["GET"]),
                Route(f"{api}/data-sets/{{id}}/table", self.table, methods=["GET"]),
                Route(f"{api}/machines/{{machine}}/data-sets", self.data_sets, methods=["GET"]),
                Route(f"{api}/machines/{{machine}}/data-sets", self.commit, methods=["POST"]),
                Route(f"{api}/machines/{{machine}}/pending-packs", self.pending, methods=["GET"]),
                Route(f"{api}/machines/{{machine}}/packs", self.put_pack, methods=["POST"]),
                Route(f"{api}/packs/{{digest}}", self.pack, methods=["GET"]),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the only place where errors become answers."""
        if scope["type"] != "http":
            return
        scope["app"] = self  # with it the router raises HTTPException instead of answering
        started_s = time.monotonic()
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._router(scope, receive, watched_send)
        except ClientDisconnect:
            pass
        except Exception as error:  # a server must outlive its bugs
            response = self._answer_to(error, Request(scope))
            if status == 0:
                await response(scope, receive, watched_send)
            # A body that has begun cannot be taken back: uvicorn cuts the connection.
        if self._logs_requests:
            taken_ms = (time.monotonic() - started_s) * 1e3
            path = scope["path"].encode("unicode_escape").decode()
            self._report(f"{scope['method']} {path} {status} {taken_ms:.0f} ms")

    def _answer_to(self, error: Exception, request: Request) -> Response:
        """Return the answer for an error; report it when it is the server's."""
        headers: dict[str, str] = {}
        if isinstance(error, HTTPException):
            kind = "not-found" if error.status_code == 404 else "invalid-request"
            sentence = f"there is no {request.method} at this path"
            status, body = error.status_code, wire.pack_json({"error": sentence, "kind": kind})
            headers.update(error.headers or {})
        elif isinstance(error, RepositoryError):
            status, body = wire.pack_error(error)
            if status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            if isinstance(error, TooLargeError):
                headers["Connection"] = "close"  # the rest of the body is not wanted
        else:
            status = 500
            sentence = "the server failed; its log says why"
            body = wire.pack_json({"error": sentence, "kind": "store-damaged"})
        if status >= 500:
            reason = str(error).replace("\n", " ")
            name = "" if isinstance(error, RepositoryError) else f"{type(error).__name__}: "
            self._report(f"error: {request.method} {request.url.path}: {name}{reason}")
        return Response(body, status, headers, media_type="application/json")

    async def health(self, request: Request) -> Response:
        """Say that the server runs."""
        return json_response({"status": "ok", "api": 1})

    async def login_parameters(self, request: Request) -> Response:
        """Say what deriving the login secret needs."""
        user = request.path_params["user"]
        data = await to_thread.run_sync(self._store.login_parameters, user)
        return Response(data, media_type="application/octet-stream")

    async def register(self, request: Request) -> Response:
        """Create a user.  Asking for ids that are taken gets slower, as guessing passwords."""
        fields = await read_json(request)
        client = f"register {request.client.host if request.client else ''}"
        async with self._refusals.attempt(client):
            await to_thread.run_sync(
                self._store.register,
                wire.text_of(fields, "user"),
                wire.unpack_base64(wire.text_of(fields, "key_file")),
                wire.unpack_base64(wire.text_of(fields, "login_secret")),
            )
        return json_response({}, 201)

    async def login(self, request: Request) -> Response:
        """Hand out a token."""
        fields = await read_json(request)
        secret = wire.unpack_base64(wire.text_of(fields, "login_secret"))
        user_id = await self._check_login(wire.text_of(fields, "user"), secret)
        repository = await to_thread.run_sync(self._store.repository, user_id)
        return json_response({"token": self._sessions.add(user_id, repository)})

    async def _check_login(self, user: str, secret: bytes) -> int:
        user = normalise_name(user, "user")
        async with self._refusals.attempt(user):
            return await to_thread.run_sync(self._store.check_login, user, secret)

    def _session(self, request: Request) -> tuple[Session, str]:
        """Return the session a request belongs to, and its token."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise NotAuthorisedError("log in first")
        return self._sessions.get(token), token

    def _repository(self, request: Request) -> ServedRepository:
        return self._session(request)[0].repository

    async def get_key_file(self, request: Request) -> Response:
        """Send the key file."""
        data = await to_thread.run_sync(self._repository(request).key_file)
        return Response(data, media_type="application/octet-stream")

    async def put_key_file(self, request: Request) -> Response:
        """Replace the key file.  A token is not enough: the login secret is asked for again."""
        session, token = self._session(request)
        repository = session.repository
        fields = await read_json(request)
        key_file = wire.unpack_base64(wire.text_of(fields, "key_file"))
        secret = wire.unpack_base64(wire.text_of(fields, "login_secret"))
        new_secret, expected = None, None
        if "new_login_secret" in fields:
            new_secret = wire.unpack_base64(wire.text_of(fields, "new_login_secret"))
        if "expected" in fields:
            expected = wire.unpack_digest(wire.text_of(fields, "expected"))
        if new_secret is not None and key_file == await to_thread.run_sync(repository.key_file):
            # The answer to the same request was lost; since then the new secret counts.
            secret = new_secret
        await self._check_login(repository.user, secret)
        await to_thread.run_sync(repository.replace_key_file_of, key_file, new_secret, expected)
        if new_secret is not None:
            self._sessions.revoke_others(session.user_id, token)
        return json_response({})

    async def machines(self, request: Request) -> Response:
        """List machines."""
        names = await to_thread.run_sync(self._repository(request).machines)
        return json_response({"machines": [{"name": name} for name in names]})

    async def data_sets(self, request: Request) -> Response:
        """List data sets."""
        machine = request.path_params.get("machine")
        found = await to_thread.run_sync(self._repository(request).data_sets, machine)
        return json_response({"data_sets": [wire.data_set_fields(info) for info in found]})

    async def table(self, request: Request) -> Response:
        """Send an object table, or a range of it."""
        repository = self._repository(request)
        file = await to_thread.run_sync(repository.open_table, request.path_params["id"])
        size = file.seek(0, 2)
        return range_response(request, size, file_reader(file), file.close)

    async def pending(self, request: Request) -> Response:
        """List packs that an interrupted run left."""
        repository = self._repository(request)
        packs = await to_thread.run_sync(repository.pending_packs, request.path_params["machine"])
        return json_response({"packs": wire.pack_fields(packs)})

    async def put_pack(self, request: Request) -> Response:
        """Receive a pack."""
        repository = self._repository(request)
        machine = normalise_name(request.path_params["machine"], "machine")
        digest = wire.parse_digest_header(request.headers.get(wire.DIGEST_HEADER, ""))
        body = Body(request, MAXIMUM_PACK_SIZE)
        if await to_thread.run_sync(repository.touch_pack, machine, digest, body.size):
            return json_response({"digest": digest.hex()}, 200)
        with await to_thread.run_sync(repository.receive) as incoming:
            await receive_file(body, body.size, incoming)
            await to_thread.run_sync(repository.put_received, machine, incoming, digest)
        return json_response({"digest": digest.hex()}, 201)

    async def pack(self, request: Request) -> Response:
        """Send a pack, or a range of it."""
        repository = self._repository(request)
        digest = wire.unpack_digest(request.path_params["digest"])
        size = await to_thread.run_sync(repository.pack_size, digest)
        return range_response(request, size, partial(repository.read_pack, digest))

    async def commit(self, request: Request) -> Response:
        """Receive a table and the list of its packs, and commit them."""
        repository = self._repository(request)
        machine = normalise_name(request.path_params["machine"], "machine")
        body = Body(request, _COMMIT_LIMIT)
        head = wire.CommitHead.unpack(bytes(await body.read(wire.COMMIT_HEAD_SIZE)))
        listed_size = head.pack_count * DIGEST_SIZE
        if body.size != wire.COMMIT_HEAD_SIZE + listed_size + head.table_size:
            raise InvalidRequestError("the body has not the size that its head says")
        packs = wire.split_digests(bytes(await body.read(listed_size)))
        with await to_thread.run_sync(repository.receive) as incoming:
            await receive_file(body, head.table_size, incoming)
            if incoming.sha256 is None or incoming.sha256.digest() != head.table_digest:
                raise DigestMismatchError("the table was damaged on the way")
            work = partial(repository.commit_received, parent=head.parent)
            info = await to_thread.run_sync(work, machine, incoming, packs, head.keep)
        return json_response(wire.data_set_fields(info), 201)
