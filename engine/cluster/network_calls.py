"""The cluster's networks: the engine's calls about them."""

from __future__ import annotations

from engine.cluster.calls import CALL_TIMEOUT_S, PAGE_SIZE, Calls
from shoal.api.v1 import control_pb2, specs_pb2
from shoal.model.objects import Network
from shoal.model.specs import NetworkSpec
from shoal.wire.objects import from_pb, to_pb


class NetworkCalls(Calls):
    """Calls about networks. Named by id, name or unique id prefix."""

    async def networks(self) -> list[Network]:
        """All of them."""
        request = control_pb2.ListNetworksRequest(page_size=PAGE_SIZE)
        found: list[Network] = []
        async for answer in self._pages(self._control.ListNetworks, request):
            found += (from_pb(one, Network) for one in answer.networks)
        return found

    async def network(self, reference: str) -> Network:
        """One of them."""
        request = control_pb2.GetNetworkRequest(network=reference)
        answer = await self._call(self._control.GetNetwork(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.network, Network)

    async def create_network(self, spec: NetworkSpec) -> str:
        """The new network's id."""
        request = control_pb2.CreateNetworkRequest(spec=to_pb(spec, specs_pb2.NetworkSpec))
        answer = await self._call(self._control.CreateNetwork(request, timeout=CALL_TIMEOUT_S))
        return answer.network.id

    async def remove_network(self, reference: str) -> None:
        """Remove one that nobody uses."""
        request = control_pb2.RemoveNetworkRequest(network=reference)
        await self._call(self._control.RemoveNetwork(request, timeout=CALL_TIMEOUT_S))
