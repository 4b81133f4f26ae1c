"""`/nodes`: the machines of the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine.cluster.choices import chosen
from engine.cluster.client import ClusterClient
from engine.cluster.settings import NodeBody, tls_info
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.resources.swarm import version_of
from shoal.api.v1 import control_pb2, types_pb2
from shoal.docker.objects import node_json
from shoal.model.enums import NodeMembership, NodeRole
from shoal.model.objects import Node

_FILTERS = ("id", "name", "label", "node.label", "role", "membership")


def routes(cluster: ClusterClient) -> Iterable[Route]:
    """The operations."""
    calls = _Calls(cluster)
    return [
        Route("GET", "/nodes", calls.list),
        Route("GET", "/nodes/{id}", calls.inspect),
        Route("DELETE", "/nodes/{id}", calls.remove),
        Route("POST", "/nodes/{id}/update", calls.update),
    ]


class _Calls:
    """The handlers."""

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster

    async def list(self, call: Call) -> Answer:
        filters = _wished(call.query.filters(_FILTERS))
        return json_answer(await self._shown(*await self._cluster.nodes(filters)))

    async def inspect(self, call: Call) -> Answer:
        return json_answer((await self._shown(await self._cluster.node(call.path["id"])))[0])

    async def _shown(self, *nodes: Node) -> Sequence[dict[str, Any]]:
        """Nodes that have left trust whom the cluster does: clients wait for all others to."""
        root = b""
        if any(node.status.left for node in nodes):
            root = (await self._cluster.cluster()).root_ca.certificate
        return [
            _node(node, root if node.status.left else node.description.trust_root) for node in nodes
        ]

    async def remove(self, call: Call) -> Answer:
        await self._cluster.remove_node(call.path["id"], force=call.query.flag("force"))
        return empty()

    async def update(self, call: Call) -> Answer:
        version = version_of(call, "node")
        body = await call.body(NodeBody)
        node = await self._cluster.node(call.path["id"])
        await self._cluster.update_node(node.id, version, body.spec(node.spec))
        return empty()


def _node(node: Node, root: bytes) -> dict[str, Any]:
    """root: whom the node trusts; empty: nobody knows."""
    found = node_json(node)
    if root:
        found["Description"]["TLSInfo"] = tls_info(root)
    return found


def _wished(filters: Filters) -> control_pb2.Filters:
    roles = [chosen(NodeRole, text, "role filter") for text in filters.values("role")]
    memberships = [
        chosen(NodeMembership, text, "membership filter") for text in filters.values("membership")
    ]
    return control_pb2.Filters(
        ids=filters.values("id"),
        names=filters.values("name"),
        labels=filters.values("label"),
        node_labels=filters.values("node.label"),
        roles=[types_pb2.NodeRole.ValueType(one) for one in roles],
        memberships=[types_pb2.NodeMembership.ValueType(one) for one in memberships],
    )
