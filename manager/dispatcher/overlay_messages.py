"""Rows of overlay networks as assignments: to set, and to forget by their keys."""

from __future__ import annotations

from typing import assert_never

from manager.dispatcher.overlays import (
    EndpointRow,
    NetworkRow,
    OverlayKey,
    OverlayKind,
    OverlayRow,
    ServiceRow,
)
from shoal.api.v1 import dispatcher_pb2 as pb


def overlay_change(row: OverlayRow) -> pb.AssignmentChange:
    """The change that sets a row."""
    match row:
        case NetworkRow():
            return pb.AssignmentChange(assignment=pb.Assignment(network=_network(row)))
        case ServiceRow():
            return pb.AssignmentChange(assignment=pb.Assignment(overlay_service=_service(row)))
        case EndpointRow():
            return pb.AssignmentChange(assignment=pb.Assignment(overlay_endpoint=_endpoint(row)))
        case _:
            assert_never(row)


def overlay_removal(key: OverlayKey) -> pb.AssignmentChange:
    """The change that forgets a row."""
    change = pb.AssignmentChange(remove=True)
    match key.kind:
        case OverlayKind.NETWORK:
            change.assignment.network.network_id = key.network_id
        case OverlayKind.SERVICE:
            change.assignment.overlay_service.network_id = key.network_id
            change.assignment.overlay_service.service_id = key.id
        case OverlayKind.ENDPOINT:
            change.assignment.overlay_endpoint.network_id = key.network_id
            change.assignment.overlay_endpoint.task_id = key.id
        case _:
            assert_never(key.kind)
    return change


def _network(row: NetworkRow) -> pb.OverlayNetwork:
    return pb.OverlayNetwork(
        network_id=row.network_id,
        name=row.name,
        vni=row.vni,
        subnets=[
            pb.OverlaySubnet(subnet=subnet, gateway=gateway) for subnet, gateway in row.subnets
        ],
        mtu=row.mtu,
        internal=row.internal,
        encrypted=row.encrypted,
    )


def _service(row: ServiceRow) -> pb.OverlayService:
    return pb.OverlayService(
        network_id=row.network_id,
        service_id=row.service_id,
        name=row.name,
        virtual_ips=row.virtual_ips,
        aliases=row.aliases,
    )


def _endpoint(row: EndpointRow) -> pb.OverlayEndpoint:
    return pb.OverlayEndpoint(
        network_id=row.network_id,
        task_id=row.task_id,
        service_id=row.service_id,
        node_id=row.node_id,
        addresses=row.addresses,
        names=row.names,
        ready=row.ready,
    )
