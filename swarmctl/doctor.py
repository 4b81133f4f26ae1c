"""`node doctor`: the daemon looks at its node; who the others are, the cluster says."""

from __future__ import annotations

import ipaddress
from typing import Any

import grpc

from shoal.api.v1 import node_pb2 as pb
from shoal.api.v1 import node_pb2_grpc
from shoal.docker.values import Record
from shoal.errors import SwarmError
from shoal.model.objects import Node
from swarmctl.client import Client
from swarmctl.render.tables import one_line

FINDING_COLUMNS = {"Check": "CHECK", "State": "STATE", "What": "WHAT", "Remedy": "REMEDY"}
PEERS_MAX = 1024
TIMEOUT_S = 120.0
"""1024 peers, 64 at once, three packets each of which takes a second to be given up."""

_STATES = {
    pb.FINDING_LEVEL_OK: "ok",
    pb.FINDING_LEVEL_WARNING: "warning",
    pb.FINDING_LEVEL_PROBLEM: "problem",
}


async def diagnose(client: Client) -> list[pb.Finding]:
    """What the daemon finds, the way to the other nodes included where they are known."""
    stub: Any = node_pb2_grpc.NodeControlStub(client.channel)
    own = await client.info()
    extra: list[pb.Finding] = []
    nodes: list[Node] = []
    if own.node_id:
        try:
            nodes = await client.nodes()
        except SwarmError as error:
            extra.append(_unknown_peers(error.message))
    peers = [_peer(node) for node in nodes if node.id != own.node_id and _address(node)]
    if len(peers) > PEERS_MAX:
        extra.append(_unknown_peers(f"{len(peers)} nodes, the first {PEERS_MAX} were asked"))
    request = pb.DiagnoseRequest(peers=peers[:PEERS_MAX])
    try:
        answer = await stub.Diagnose(request, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    return [*answer.findings, *extra]


def finding_row(item: pb.Finding) -> Record:
    """A line of the table."""
    return Record(
        {
            "Check": item.check,
            "State": _STATES.get(item.level, str(item.level)),
            "What": one_line(item.what),
            "Remedy": one_line(item.remedy),
        }
    )


def problems(found: list[pb.Finding]) -> int:
    """How many findings say that something does not work."""
    return sum(item.level == pb.FINDING_LEVEL_PROBLEM for item in found)


def _peer(node: Node) -> pb.DiagnosePeer:
    gateway = ""
    if node.ingress is not None:
        gateway = str(ipaddress.ip_network(node.ingress.subnet).network_address + 1)
    return pb.DiagnosePeer(
        name=node.description.hostname or node.id,
        address=_address(node),
        gateway=gateway,
        ipv6=node.description.ingress_ipv6,
    )


def _address(node: Node) -> str:
    return node.description.data_path_address


def _unknown_peers(reason: str) -> pb.Finding:
    return pb.Finding(
        check="peers",
        level=pb.FINDING_LEVEL_WARNING,
        what=f"not all were asked: {reason}",
        remedy="ask from a manager, which knows all nodes",
    )
