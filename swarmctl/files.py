"""The calls about secrets and configs: the same ones under two names."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc

from shoal.api.v1 import control_pb2, control_pb2_grpc, specs_pb2
from shoal.model.files import FileRow
from shoal.model.specs import ConfigSpec, SecretSpec
from shoal.wire.objects import from_pb, to_pb
from swarmctl.client import CALL_TIMEOUT_S, PAGE_SIZE, Client
from swarmctl.types import Filters


class FileCalls:
    """Secrets, or configs, of a cluster. kind: `Secret` or `Config`."""

    def __init__(self, client: Client, kind: type[FileRow]) -> None:
        self._client = client
        self._kind = kind
        self._name = kind.__name__
        self._stub = control_pb2_grpc.ControlStub(client.channel)

    async def create(self, spec: SecretSpec | ConfigSpec) -> FileRow:
        """A new one; the answer holds no secret's data."""
        message = to_pb(spec, getattr(specs_pb2, f"{self._name}Spec"))
        return self._row(await self._call("Create", spec=message))

    async def get(self, reference: str) -> FileRow:
        """One by id, name or unique id prefix."""
        return self._row(await self._call("Get", **{self._field: reference}))

    async def list(self, filters: Filters | None = None) -> list[FileRow]:
        """All that fit."""
        filters = filters or Filters()
        wanted = control_pb2.Filters(ids=filters.ids, names=filters.names, labels=filters.labels)
        result: list[FileRow] = []
        token = ""
        while True:
            answer = await self._call(
                "List", "s", filters=wanted, page_size=PAGE_SIZE, page_token=token
            )
            result += [from_pb(one, self._kind) for one in getattr(answer, f"{self._field}s")]
            token = answer.next_page_token
            if not token:
                return result

    async def rotate(self, reference: str, data: bytes) -> tuple[FileRow, tuple[str, ...]]:
        """Another content; the object that has the name now, and ids of services behind it."""
        answer = await self._call("Rotate", **{self._field: reference}, data=data)
        return self._row(answer), tuple(answer.service_ids)

    async def remove(self, reference: str) -> None:
        """Remove one that no service refers to."""
        await self._call("Remove", **{self._field: reference})

    @property
    def _field(self) -> str:
        return self._name.lower()

    def _row(self, answer: Any) -> FileRow:
        row: FileRow = from_pb(getattr(answer, self._field), self._kind)
        return row

    async def _call(self, verb: str, plural: str = "", **fields: Any) -> Any:
        method = f"{verb}{self._name}{plural}"
        request = getattr(control_pb2, f"{method}Request")(**fields)
        call: Awaitable[Any] = getattr(self._stub, method)(request, timeout=CALL_TIMEOUT_S)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._client.failure(error) from error
