"""Filters of the list calls as they come: the trust boundary."""

from __future__ import annotations

from manager.controlapi.select import Filters
from shoal.api.v1 import control_pb2 as pb
from shoal.errors import InvalidArgument
from shoal.model.enums import NodeMembership, NodeRole, TaskState


def filters_of(message: pb.Filters) -> Filters:
    """The row of a message. Raises InvalidArgument for unknown enum values."""
    try:
        return Filters(
            ids=tuple(message.ids),
            names=tuple(message.names),
            labels=tuple(message.labels),
            node_labels=tuple(message.node_labels),
            roles=tuple(NodeRole(role) for role in message.roles),
            memberships=tuple(NodeMembership(value) for value in message.memberships),
            modes=tuple(message.modes),
            services=tuple(message.services),
            nodes=tuple(message.nodes),
            desired_states=tuple(TaskState(state) for state in message.desired_states),
            up_to_date=message.up_to_date,
            slot=message.slot,
            drivers=tuple(message.drivers),
        )
    except ValueError as error:
        raise InvalidArgument(f"filters: {error}") from error
