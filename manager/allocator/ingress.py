"""A node's place in the routing mesh: an index that no other node has, and a subnet by it.

Index N of a pool cut into equal subnets is the N-th subnet; number 0 stays free. Indexes are
1..4095 and freed with the node's row.
"""

from __future__ import annotations

import ipaddress

from manager.store.view import View
from shoal.errors import ResourceExhausted
from shoal.model.defaults import INGRESS_POOL, INGRESS_SUBNET_MASK_LENGTH
from shoal.model.objects import Cluster
from shoal.model.types import NodeIngress

INDEX_MAX = 4095


class IngressIndexes:
    """Free places in the mesh."""

    def __init__(self, view: View) -> None:
        cluster = view.cluster or Cluster()
        self._used = {node.ingress.index for node in view.nodes if node.ingress is not None}
        self._pool = ipaddress.ip_network(cluster.ingress_pool or INGRESS_POOL)
        self._length = cluster.ingress_subnet_mask_length or INGRESS_SUBNET_MASK_LENGTH
        self._next = 1

    def take(self) -> NodeIngress:
        """The lowest free place. Raises: ResourceExhausted."""
        count = 1 << max(0, self._length - self._pool.prefixlen)
        last = min(INDEX_MAX, count - 1)
        while self._next in self._used:
            self._next += 1
        if self._next > last:
            raise ResourceExhausted(
                f"no place in the routing mesh: {self._pool} holds {last} subnets of "
                f"/{self._length}, and all are in use; remove nodes that are gone"
            )
        self._used.add(self._next)
        return NodeIngress(index=self._next, subnet=self._subnet(self._next))

    def _subnet(self, index: int) -> str:
        size = 1 << (self._pool.max_prefixlen - self._length)
        return f"{self._pool.network_address + index * size}/{self._length}"
