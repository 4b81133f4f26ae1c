"""`/secrets` and `/configs`: small files that the cluster keeps and gives to its services.

Former contents, which a rotation leaves behind for tasks that still have them, are not listed: the
Docker API knows one content of a name.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.cluster.client import ClusterClient
from engine.cluster.file_calls import FileBody
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.resources.swarm import version_of
from shoal.api.v1 import control_pb2
from shoal.docker.files import file_json
from shoal.model.files import FileRow, is_former
from shoal.model.objects import Config, Secret

_FILTERS = ("id", "label", "name", "names")


def routes(cluster: ClusterClient) -> Iterable[Route]:
    """The operations of both."""
    for kind in (Secret, Config):
        calls = _Calls(cluster, kind)
        path = f"/{calls.noun}s"
        yield Route("GET", path, calls.list)
        yield Route("POST", f"{path}/create", calls.create)
        yield Route("GET", f"{path}/{{id}}", calls.inspect)
        yield Route("DELETE", f"{path}/{{id}}", calls.remove)
        yield Route("POST", f"{path}/{{id}}/update", calls.update)


class _Calls:
    """The handlers of one kind."""

    def __init__(self, cluster: ClusterClient, kind: type[FileRow]) -> None:
        self._cluster = cluster
        self._kind = kind
        self.noun = kind.__name__.lower()

    async def list(self, call: Call) -> Answer:
        filters = call.query.filters(_FILTERS)
        found: list[FileRow]
        if self._kind is Secret:
            found = [*await self._cluster.secrets(_wished(filters))]
        else:
            found = [*await self._cluster.configs(_wished(filters))]
        return json_answer([file_json(row) for row in found if _is_shown(row, filters)])

    async def create(self, call: Call) -> Answer:
        body = await call.body(FileBody)
        if self._kind is Secret:
            made = await self._cluster.create_secret(body.secret())
        else:
            made = await self._cluster.create_config(body.config())
        return json_answer({"ID": made}, 201)

    async def inspect(self, call: Call) -> Answer:
        return json_answer(file_json(await self._cluster.file(self._kind, call.path["id"])))

    async def update(self, call: Call) -> Answer:
        version = version_of(call, self.noun)
        body = await call.body(FileBody)
        if self._kind is Secret:
            await self._cluster.update_secret(call.path["id"], version, body.secret())
        else:
            await self._cluster.update_config(call.path["id"], version, body.config())
        return empty()

    async def remove(self, call: Call) -> Answer:
        await self._cluster.remove_file(self._kind, call.path["id"])
        return empty(204)


def _wished(filters: Filters) -> control_pb2.Filters:
    return control_pb2.Filters(
        ids=filters.values("id"), names=filters.values("name"), labels=filters.values("label")
    )


def _is_shown(row: FileRow, filters: Filters) -> bool:
    return not is_former(row) and filters.matches("names", row.spec.annotations.name)
