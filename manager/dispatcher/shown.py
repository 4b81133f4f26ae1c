"""What people are shown of a service's endpoints: who answers, who drains, what each node has done.

Pure: the store, the endpoint table and the nodes' acknowledgements, put together. The table says
who is balanced to; tasks that have left it and still run are shown as draining, with the nodes that
may still send connections to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from manager.dispatcher.endpoints import EndpointTable, PortRow
from manager.store.view import View
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.model.defaults import is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task


def service_endpoints(
    view: View,
    table: EndpointTable,
    service: Service,
    *,
    acknowledged: Mapping[str, int],
    problems: Mapping[str, str],
    connected: frozenset[str],
) -> pb.ListServiceEndpointsResponse:
    """acknowledged: newest version by node that is not down. problems: ports a node cannot serve.

    connected: nodes that have a session.
    """
    response = pb.ListServiceEndpointsResponse(version=table.version)
    draining = [
        task for _, task in sorted(view.tasks_of_service(service.id).items()) if _is_draining(task)
    ]
    for row in _rows(table, service):
        for member in row.members:
            shown = _endpoint(row, pb.SERVICE_ENDPOINT_STATE_READY)
            shown.task_id, shown.node_id = member.task_id, member.node_id
            shown.address = member.address
            response.endpoints.append(shown)
        for task in draining:
            shown = _endpoint(row, pb.SERVICE_ENDPOINT_STATE_DRAINING)
            shown.task_id, shown.node_id = task.id, task.node_id
            shown.address = task.status.address
            left_at = table.left_at(task.id)
            shown.waits_for.extend(sorted(n for n, v in acknowledged.items() if v < left_at))
            response.endpoints.append(shown)
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
    yield from sorted(mine, key=lambda row: (row.published_port, row.protocol))


def _is_draining(task: Task) -> bool:
    running = task.status.state is TaskState.RUNNING and bool(task.status.address)
    return running and not is_wanted(task)


def _endpoint(row: PortRow, state: pb.ServiceEndpointState.ValueType) -> pb.ServiceEndpoint:
    return pb.ServiceEndpoint(
        protocol=types_pb2.PortProtocol.ValueType(row.protocol),
        published_port=row.published_port,
        target_port=row.target_port,
        publish_mode=types_pb2.PublishMode.ValueType(row.publish_mode),
        state=state,
    )
