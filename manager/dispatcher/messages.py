"""Assignment messages: from rows to protobuf, numbered, none larger than gRPC takes."""

from __future__ import annotations

from collections.abc import Iterator

from manager.dispatcher.assignments import AssignmentDiff
from manager.dispatcher.endpoints import PeerRow, PortKey, PortRow
from manager.dispatcher.file_sending import key_of
from manager.dispatcher.overlay_messages import overlay_change, overlay_removal
from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.wire.objects import fill_pb

MESSAGE_BYTES_MAX = 2 << 20
"""A message is full when it holds more than this: with its last item it stays below gRPC's limit
of 4 MiB, since no item is larger than a log entry."""


class MessageWriter:
    """Makes the messages of one stream: the complete set first, then increments.

    A message names the endpoint version only when with it all endpoints of that version have been
    sent: the node acknowledges what it has.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._version = 0
        self._complete = True

    def messages(
        self, diff: AssignmentDiff, *, version: int, more: bool
    ) -> list[pb.AssignmentsMessage]:
        """The messages of a diff; none when there is nothing new to say.

        version: of the endpoint table the diff was taken from. more: another diff follows at once.
        """
        parts = _parts(diff)
        ends_set = self._complete and not more
        if not parts and (ends_set or (version != self._version and not self._complete)):
            parts = [pb.AssignmentsMessage()]
        for number, message in enumerate(parts, start=1):
            is_last = number == len(parts)
            self._version = version if is_last else self._version
            message.kind = (
                pb.ASSIGNMENTS_KIND_COMPLETE if self._complete else pb.ASSIGNMENTS_KIND_INCREMENTAL
            )
            message.applies_to = self._sequence
            message.results_in = self._sequence = self._sequence + 1
            message.endpoints_version = self._version
            message.more = self._complete and (more or not is_last)
        if not more:
            self._complete = False
        return parts


def _parts(diff: AssignmentDiff) -> list[pb.AssignmentsMessage]:
    parts: list[pb.AssignmentsMessage] = []
    size_bytes = MESSAGE_BYTES_MAX + 1
    for change in _changes(diff):
        if size_bytes > MESSAGE_BYTES_MAX:
            parts.append(pb.AssignmentsMessage())
            size_bytes = 0
        parts[-1].changes.append(change)
        size_bytes += change.ByteSize()
    return parts


def _changes(diff: AssignmentDiff) -> Iterator[pb.AssignmentChange]:
    for peer in diff.peers:
        yield pb.AssignmentChange(assignment=pb.Assignment(peer=_peer(peer)))
    for port in diff.ports:
        yield pb.AssignmentChange(assignment=pb.Assignment(port=_port(port)))
    yield from map(overlay_change, diff.overlays)
    for row in diff.files:
        change = pb.AssignmentChange()
        fill_pb(row, getattr(change.assignment, key_of(row).kind))
        yield change
    for task in diff.tasks:
        change = pb.AssignmentChange()
        fill_pb(task, change.assignment.task)
        yield change
    for task_id in diff.removed_tasks:
        change = pb.AssignmentChange(remove=True)
        change.assignment.task.id = task_id
        yield change
    for file_key in diff.removed_files:
        change = pb.AssignmentChange(remove=True)
        getattr(change.assignment, file_key.kind).id = file_key.id
        yield change
    yield from map(overlay_removal, diff.removed_overlays)
    for key in diff.removed_ports:
        yield pb.AssignmentChange(assignment=pb.Assignment(port=_port_key(key)), remove=True)
    for node_id in diff.removed_peers:
        gone = pb.PeerNode(node_id=node_id)
        yield pb.AssignmentChange(assignment=pb.Assignment(peer=gone), remove=True)


def _peer(row: PeerRow) -> pb.PeerNode:
    return pb.PeerNode(
        node_id=row.node_id,
        index=row.index,
        address=row.address,
        subnet=row.subnet,
        lost=row.lost,
        network_keys=[
            types_pb2.NetworkKey(generation=key.generation, public_key=key.public_key)
            for key in row.network_keys
        ],
        ipv6=row.ipv6,
        ipv6_addresses=row.ipv6_addresses,
    )


def _port(row: PortRow) -> pb.PublishedPort:
    message = _port_key(row.key)
    message.target_port = row.target_port
    message.publish_mode = types_pb2.PublishMode.ValueType(row.publish_mode)
    message.sticky = row.sticky
    message.source = types_pb2.PublishSource.ValueType(row.source)
    message.prefer = types_pb2.PublishPreference.ValueType(row.prefer)
    message.addresses.extend(member.address for member in row.members)
    if any(member.weight != 1 for member in row.members):
        message.weights.extend(member.weight for member in row.members)
    return message


def _port_key(key: PortKey) -> pb.PublishedPort:
    return pb.PublishedPort(
        service_id=key.service_id,
        protocol=types_pb2.PortProtocol.ValueType(key.protocol),
        published_port=key.published_port,
        address=key.address,
        interface=key.interface,
    )
