"""The call that shows a service's endpoints, and its answer as rows of two tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import control_pb2_grpc
from shoal.docker.networks import Versions
from shoal.docker.values import Record
from shoal.docker.words import spell
from shoal.model.enums import PortProtocol, PublishMode
from shoal.model.published import place_of
from shoal.model.types import PortConfig
from swarmctl.client import CALL_TIMEOUT_S, Client
from swarmctl.render.tables import one_line

ENDPOINT_COLUMNS = {
    "Task": "TASK",
    "Port": "PORT",
    "Mode": "MODE",
    "Network": "NETWORK",
    "Node": "NODE",
    "Address": "ADDRESS",
    "State": "STATE",
    "WaitsFor": "WAITS FOR",
}
NODE_COLUMNS = {
    "Node": "NODE",
    "Acknowledged": "ACKNOWLEDGED",
    "Behind": "BEHIND",
    "Connected": "CONNECTED",
    "Problem": "PROBLEM",
}

_STATES = {
    pb.SERVICE_ENDPOINT_STATE_READY: "ready",
    pb.SERVICE_ENDPOINT_STATE_DRAINING: "draining",
}


async def service_endpoints(client: Client, reference: str) -> pb.ListServiceEndpointsResponse:
    """Endpoints of a service by id, name or unique id prefix; "": of attached containers."""
    stub: Any = control_pb2_grpc.ControlStub(client.channel)
    request = pb.ListServiceEndpointsRequest(service=reference)
    try:
        answer: pb.ListServiceEndpointsResponse = await stub.ListServiceEndpoints(
            request, timeout=CALL_TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    return answer


async def endpoint_versions(client: Client) -> Versions:
    """Which version of the endpoints each node has in force, and the newest one."""
    answer = await service_endpoints(client, "")
    return Versions(answer.version, {node.node_id: node.version for node in answer.nodes})


def endpoint_row(item: pb.ServiceEndpoint, names: Mapping[str, str]) -> Record:
    """A task behind a published port. names: of nodes, by id."""
    protocol = spell(PortProtocol(item.protocol))
    where = PortConfig(address=item.published_address, interface=item.published_interface)
    at = f"{place_of(where)}:" if where != PortConfig() else ""
    return Record(
        {
            "Task": item.task_id,
            "Port": f"{at}{item.published_port}->{item.target_port}/{protocol}",
            "Mode": spell(PublishMode(item.publish_mode)),
            "Network": "",
            "Address": item.address,
            "Weight": str(item.weight or 1),
            **_place(item, names),
        }
    )


def network_row(item: pb.NetworkEndpoint, names: Mapping[str, str]) -> Record:
    """A task on an overlay network. names: of nodes, by id."""
    return Record(
        {
            "Task": item.task_id,
            "Port": "",
            "Mode": "overlay",
            "Network": item.network or item.network_id,
            "Address": ", ".join(item.addresses),
            "Weight": "1",
            **_place(item, names),
        }
    )


def node_row(item: pb.EndpointNode, version: int, names: Mapping[str, str]) -> Record:
    """What a node has put in force. version: the newest one of the endpoints."""
    return Record(
        {
            "Node": names.get(item.node_id, item.node_id),
            "Acknowledged": str(item.version) if item.version else "never",
            "Behind": str(version - item.version) if item.version else "",
            "Connected": "yes" if item.connected else "no",
            "Problem": one_line(item.problem),
        }
    )


def _place(item: pb.ServiceEndpoint | pb.NetworkEndpoint, names: Mapping[str, str]) -> Record:
    """What both kinds have: where it is, and how far."""
    return Record(
        {
            "Node": names.get(item.node_id, item.node_id),
            "State": _STATES.get(item.state, str(item.state)),
            "WaitsFor": ", ".join(names.get(node_id, node_id) for node_id in item.waits_for),
        }
    )
