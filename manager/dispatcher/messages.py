"""Assignment messages: from rows to protobuf."""

from __future__ import annotations

from manager.dispatcher.assignments import AssignmentDiff
from manager.dispatcher.endpoints import PeerRow, PortKey, PortRow
from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.wire.objects import fill_pb


def assignments_message(
    diff: AssignmentDiff, *, kind: pb.AssignmentsKind.ValueType, sequence: int, version: int
) -> pb.AssignmentsMessage:
    """The message of a diff. sequence: number of messages sent before it on this stream."""
    message = pb.AssignmentsMessage(
        kind=kind, applies_to=sequence, results_in=sequence + 1, endpoints_version=version
    )
    for peer in diff.peers:
        message.changes.add().assignment.peer.CopyFrom(_peer(peer))
    for port in diff.ports:
        message.changes.add().assignment.port.CopyFrom(_port(port))
    for task in diff.tasks:
        fill_pb(task, message.changes.add().assignment.task)
    for task_id in diff.removed_tasks:
        change = message.changes.add(remove=True)
        change.assignment.task.id = task_id
    for key in diff.removed_ports:
        message.changes.add(remove=True).assignment.port.CopyFrom(_port_key(key))
    for node_id in diff.removed_peers:
        change = message.changes.add(remove=True)
        change.assignment.peer.node_id = node_id
    return message


def _peer(row: PeerRow) -> pb.PeerNode:
    return pb.PeerNode(node_id=row.node_id, index=row.index, address=row.address, subnet=row.subnet)


def _port(row: PortRow) -> pb.PublishedPort:
    message = _port_key(row.key)
    message.target_port = row.target_port
    message.publish_mode = types_pb2.PublishMode.ValueType(row.publish_mode)
    message.addresses.extend(member.address for member in row.members)
    return message


def _port_key(key: PortKey) -> pb.PublishedPort:
    return pb.PublishedPort(
        service_id=key.service_id,
        protocol=types_pb2.PortProtocol.ValueType(key.protocol),
        published_port=key.published_port,
    )
