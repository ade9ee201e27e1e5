# SPDX-License-Identifier: Apache-2.0
"""The part of the HTTP API that says what is kept, what is deleted, and which machines log in.

Source: docs/http-api.md, "Retention and deletion", "Enrolled machines".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backup import wire
from backup.repository import InvalidRequestError
from backup.server.bodies import json_response
from backup.server.contract import ServedRepository


class Administration:
    """Handlers for `backup.server.app.Api`, which knows who asks."""

    def __init__(
        self,
        opened: Callable[[Request], tuple[int, ServedRepository]],
        proven: Callable[[Request], Awaitable[tuple[int, ServedRepository, dict[str, object]]]],
        read_json: Callable[[Request, int], Awaitable[dict[str, object]]],
        run: Callable[..., Awaitable[Any]],
    ) -> None:
        """Only store.

        Args:
            opened: returns the number of the user who asks, and their repository.
            proven: likewise, and the request's body, once it has proven to know the password.
            read_json: returns a request's body of at most so many bytes.
            run: returns what work of a user returns that is done in a thread.
        """
        self._opened = opened
        self._proven = proven
        self._read_json = read_json
        self._run = run

    def routes(self) -> list[Route]:
        """Return the routes to the handlers."""
        api = wire.API
        return [
            Route(f"{api}/policies", self.get_policies, methods=["GET"]),
            Route(f"{api}/policies", self.put_policy, methods=["PUT"]),
            Route(f"{api}/deleted-data-sets", self.deleted, methods=["GET"]),
            Route(f"{api}/delete", self.delete, methods=["POST"]),
            Route(f"{api}/bring-back", self.bring_back, methods=["POST"]),
            Route(f"{api}/credentials", self.credentials, methods=["GET"]),
            Route(f"{api}/credentials", self.enroll, methods=["POST"]),
            Route(f"{api}/credentials/revoke", self.revoke, methods=["POST"]),
        ]

    async def get_policies(self, request: Request) -> Response:
        """Say what stays of each machine's data sets."""
        user_id, repository = self._opened(request)
        return json_response(wire.policies_fields(await self._run(user_id, repository.policies)))

    async def put_policy(self, request: Request) -> Response:
        """Set what stays of a machine's data sets, or of all machines'."""
        user_id, repository, fields = await self._proven(request)
        machine = wire.text_of(fields, "machine") if "machine" in fields else None
        policy = wire.policy_of(fields, "policy")
        await self._run(user_id, repository.set_policy, machine, policy)
        return json_response({})

    async def deleted(self, request: Request) -> Response:
        """List data sets that are deleted and can be brought back."""
        user_id, repository = self._opened(request)
        found = await self._run(user_id, repository.deleted_data_sets)
        return json_response({"data_sets": [wire.deleted_fields(item) for item in found]})

    async def delete(self, request: Request) -> Response:
        """Delete data sets, a machine, or everything."""
        user_id, repository, fields = await self._proven(request)
        if len({"data_sets", "machine", "everything"}.intersection(fields)) != 1:
            raise InvalidRequestError("say what to delete: data_sets, machine or everything")
        if "data_sets" in fields:
            names = wire.ids_of(fields, "data_sets")
            await self._run(user_id, repository.delete_data_sets, names)
        elif "machine" in fields:
            machine = wire.text_of(fields, "machine")
            await self._run(user_id, repository.delete_machine, machine)
        elif fields.get("everything") is True:
            await self._run(user_id, repository.delete_user)
        else:
            raise InvalidRequestError("everything must be true, or left out")
        return json_response({})

    async def bring_back(self, request: Request) -> Response:
        """Undo the deletion of data sets."""
        user_id, repository = self._opened(request)
        fields = await self._read_json(request, wire.MAXIMUM_JSON_SIZE)
        await self._run(user_id, repository.bring_back, wire.ids_of(fields, "data_sets"))
        return json_response({})

    async def credentials(self, request: Request) -> Response:
        """List what machines log in with."""
        user_id, repository = self._opened(request)
        found = await self._run(user_id, repository.credentials)
        return json_response({"credentials": [wire.credential_fields(item) for item in found]})

    async def enroll(self, request: Request) -> Response:
        """Let a machine log in by itself."""
        user_id, repository, fields = await self._proven(request)
        machine = wire.text_of(fields, "machine")
        credential = wire.unpack_base64(wire.text_of(fields, "credential"))
        key_id = wire.unpack_key_id(wire.text_of(fields, "key_id"))
        await self._run(user_id, repository.enroll, machine, credential, key_id)
        return json_response({}, 201)

    async def revoke(self, request: Request) -> Response:
        """Have a machine's credential open nothing any more."""
        user_id, repository, fields = await self._proven(request)
        await self._run(user_id, repository.revoke, wire.integer_of(fields, "id"))
        return json_response({})
