"""What people are shown of a service's endpoints: who answers, who drains, what each node has done.

Pure: the store, the endpoint table and the nodes' acknowledgements, put together. The table says
who is balanced to; tasks that have left it and still run are shown as draining, with the nodes that
may still send connections to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

from manager.dispatcher.endpoints import EndpointTable, PortRow, free_at
from manager.store.view import View
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.model.defaults import is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task

_READY = pb.SERVICE_ENDPOINT_STATE_READY
_DRAINING = pb.SERVICE_ENDPOINT_STATE_DRAINING


def service_endpoints(
    view: View,
    table: EndpointTable,
    service: Service,
    *,
    manager_id: str,
    acknowledged: Mapping[str, int],
    problems: Mapping[str, str],
    connected: frozenset[str],
) -> pb.ListServiceEndpointsResponse:
    """manager_id: who counts the versions. acknowledged: newest one by node that is not down.

    problems: ports a node cannot serve. connected: nodes that have a session.
    """
    response = pb.ListServiceEndpointsResponse(version=table.version, manager_id=manager_id)
    tasks = [task for _, task in sorted(view.tasks_of_service(service.id).items())]
    draining = [task for task in tasks if _is_draining(task)]
    behind = {
        task.id: sorted(n for n, v in acknowledged.items() if v < free_at(table, task))
        for task in draining
    }
    for row in _rows(table, service):
        for member in row.members:
            shown = _endpoint(row, _READY)
            shown.task_id, shown.node_id = member.task_id, member.node_id
            shown.address, shown.weight = member.address, member.weight
            response.endpoints.append(shown)
        for task in filter(_has_address, draining):
            shown = _endpoint(row, _DRAINING)
            shown.task_id, shown.node_id = task.id, task.node_id
            shown.address = task.status.address
            shown.waits_for.extend(behind[task.id])
            response.endpoints.append(shown)
    response.network_endpoints.extend(_on_networks(view, table, tasks, behind))
    for node_id in sorted({node.id for node in view.nodes} | acknowledged.keys()):
        response.nodes.add(
            node_id=node_id,
            version=acknowledged.get(node_id, 0),
            connected=node_id in connected,
            problem=problems.get(node_id, ""),
        )
    return response


def _rows(table: EndpointTable, service: Service) -> Iterator[PortRow]:
    mine = (row for row in table.ports.values() if row.service_id == service.id)
    order = attrgetter("published_port", "protocol", "address", "interface")
    yield from sorted(mine, key=order)


def _on_networks(
    view: View, table: EndpointTable, tasks: Iterable[Task], behind: Mapping[str, list[str]]
) -> Iterator[pb.NetworkEndpoint]:
    """Tasks that take connections on overlay networks, and those that drain there."""
    for task in tasks:
        for row in table.overlays.places_of(task.id):
            if not row.ready and task.id not in behind:
                continue
            network = view.networks.get(row.network_id)
            yield pb.NetworkEndpoint(
                network_id=row.network_id,
                network=network.spec.annotations.name if network is not None else "",
                task_id=task.id,
                node_id=row.node_id,
                addresses=row.addresses,
                state=_READY if row.ready else _DRAINING,
                waits_for=() if row.ready else behind[task.id],
            )


def _is_draining(task: Task) -> bool:
    return task.status.state is TaskState.RUNNING and not is_wanted(task)


def _has_address(task: Task) -> bool:
    return bool(task.status.address)


def _endpoint(row: PortRow, state: pb.ServiceEndpointState.ValueType) -> pb.ServiceEndpoint:
    return pb.ServiceEndpoint(
        protocol=types_pb2.PortProtocol.ValueType(row.protocol),
        published_port=row.published_port,
        target_port=row.target_port,
        publish_mode=types_pb2.PublishMode.ValueType(row.publish_mode),
        published_address=row.address,
        published_interface=row.interface,
        state=state,
    )
