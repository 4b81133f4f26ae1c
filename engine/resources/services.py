"""`/services` and `/tasks`: what runs in the cluster is seen, gone back with, and removed.

Services are made and changed with swarmctl: reading Docker's specs is not in this version, and a
change that would lose fields is refused instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.cluster.choices import chosen
from engine.cluster.client import ClusterClient
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.resources.swarm import version_of
from shoal.api.v1 import control_pb2, types_pb2
from shoal.docker.objects import service_json, task_json
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.enums import TaskState

_SERVICE_FILTERS = ("id", "name", "label", "mode", "runtime")
_TASK_FILTERS = (
    "id", "name", "label", "node", "service", "desired-state", "runtime", "_up-to-date",
)  # fmt: skip
_CONTAINER = "container"
"""The one runtime there is."""


def routes(cluster: ClusterClient) -> Iterable[Route]:
    """The operations."""
    calls = _Calls(cluster)
    return [
        Route("GET", "/services", calls.list),
        Route("GET", "/services/{id}", calls.inspect),
        Route("DELETE", "/services/{id}", calls.remove),
        Route("POST", "/services/{id}/update", calls.update),
        Route("GET", "/tasks", calls.list_tasks),
        Route("GET", "/tasks/{id}", calls.inspect_task),
    ]


class _Calls:
    """The handlers."""

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster

    async def list(self, call: Call) -> Answer:
        filters = call.query.filters(_SERVICE_FILTERS)
        wished = control_pb2.Filters(
            ids=filters.values("id"),
            names=filters.values("name"),
            labels=filters.values("label"),
            modes=filters.values("mode"),
        )
        found = await self._cluster.services(wished)
        if not filters.matches("runtime", _CONTAINER):
            found = []
        with_status = call.query.flag("status")
        return json_answer(
            [service_json(one, counts if with_status else None) for one, counts in found]
        )

    async def inspect(self, call: Call) -> Answer:
        defaults = call.query.flag("insertDefaults")
        service = await self._cluster.service(call.path["id"], insert_defaults=defaults)
        return json_answer(service_json(service))

    async def remove(self, call: Call) -> Answer:
        await self._cluster.remove_service(call.path["id"])
        return empty()

    async def update(self, call: Call) -> Answer:
        """Back to the previous spec."""
        version, rollback = version_of(call, "service"), call.query.text("rollback")
        if rollback not in ("", "previous"):
            raise InvalidArgument(f"rollback: {rollback!r}: must be previous")
        service = await self._cluster.service(call.path["id"])
        if not rollback:
            raise Unimplemented(
                "services are not changed through the Docker API on this version, but for"
                " `docker service rollback`: use `swarmctl service update`"
            )
        await self._cluster.roll_back_service(service.id, version)
        return json_answer({"Warnings": None})

    async def list_tasks(self, call: Call) -> Answer:
        filters = call.query.filters(_TASK_FILTERS)
        found = await self._cluster.tasks(_wished_tasks(filters))
        if not filters.matches("runtime", _CONTAINER):
            found = []
        return json_answer([task_json(task) for task in found])

    async def inspect_task(self, call: Call) -> Answer:
        answer: dict[str, Any] = task_json(await self._cluster.task(call.path["id"]))
        return json_answer(answer)


def _wished_tasks(filters: Filters) -> control_pb2.Filters:
    states = [
        chosen(TaskState, text, "desired-state filter") for text in filters.values("desired-state")
    ]
    return control_pb2.Filters(
        ids=filters.values("id"),
        names=filters.values("name"),
        labels=filters.values("label"),
        nodes=filters.values("node"),
        services=filters.values("service"),
        desired_states=[types_pb2.TaskState.ValueType(state) for state in states],
        up_to_date=filters.flag("_up-to-date", default=False),
    )
