"""`/services` and `/tasks`: what runs in the cluster is made, changed, seen and removed.

A change keeps what its client does not know (`engine.cluster.service_bodies`). Credentials for a
registry come in a header and are never shown; an update without them keeps those it had.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.cluster.choices import chosen
from engine.cluster.client import ClusterClient
from engine.cluster.registry_auth import auth_of, with_auth
from engine.cluster.service_bodies import ServiceBody
from engine.cluster.words import told
from engine.containers.names import invent
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.resources.swarm import version_of
from shoal.api.v1 import control_pb2, types_pb2
from shoal.docker.objects import service_json, task_json
from shoal.errors import InvalidArgument, SequenceConflict
from shoal.model.enums import TaskState
from shoal.model.specs import ServiceSpec
from worker.images.registry.api import Credentials

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
        Route("POST", "/services/create", calls.create),
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

    async def create(self, call: Call) -> Answer:
        """A new service; the nameless get a name."""
        spec = (await call.body(ServiceBody)).row(ServiceSpec())
        if not spec.annotations.name:
            spec = spec.replaced(annotations=spec.annotations.replaced(name=invent(())))
        service_id, warnings = await self._cluster.create_service(with_auth(spec, _auth(call)))
        answer = {"ID": service_id}
        return json_answer({**answer, "Warnings": warnings} if warnings else answer, 201)

    async def update(self, call: Call) -> Answer:
        """Another spec, or back to the previous one."""
        version = version_of(call, "service")
        service = await self._cluster.service(call.path["id"])
        if version != service.meta.version.index:  # what the client does not know is taken from it
            raise told(SequenceConflict(f"service {service.id}: is at another version"))
        if _goes_back(call):
            warnings = await self._cluster.roll_back_service(service, version)
        else:
            spec = (await call.body(ServiceBody)).row(service.spec)
            auth = _auth(call) or auth_of(service, call.query.text("registryAuthFrom"))
            warnings = await self._cluster.update_service(
                service.id, version, with_auth(spec, auth)
            )
        return json_answer({"Warnings": warnings or None})

    async def list_tasks(self, call: Call) -> Answer:
        filters = call.query.filters(_TASK_FILTERS)
        found = await self._cluster.tasks(_wished_tasks(filters))
        if not filters.matches("runtime", _CONTAINER):
            found = []
        return json_answer([task_json(task) for task in found])

    async def inspect_task(self, call: Call) -> Answer:
        answer: dict[str, Any] = task_json(await self._cluster.task(call.path["id"]))
        return json_answer(answer)


def _goes_back(call: Call) -> bool:
    rollback = call.query.text("rollback")
    if rollback not in ("", "previous"):
        raise InvalidArgument(f'invalid rollback option "{rollback}": must be previous')
    return bool(rollback)


def _auth(call: Call) -> str:
    """Credentials for workers, as they came; those of nobody are none. Raises: InvalidArgument."""
    nobody = call.credentials() == Credentials()
    return "" if nobody else call.header("X-Registry-Auth")


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
