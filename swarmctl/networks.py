"""The calls about overlay networks, and the names of networks in a service's flags."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from shoal.api.v1 import control_pb2, control_pb2_grpc, specs_pb2
from shoal.errors import NotFound
from shoal.model.objects import Network
from shoal.model.specs import NetworkSpec
from shoal.wire.objects import from_pb, to_pb
from swarmctl.client import CALL_TIMEOUT_S, PAGE_SIZE, Client
from swarmctl.types import Filters

AnswerT = TypeVar("AnswerT")


async def create_network(client: Client, spec: NetworkSpec) -> Network:
    """Create a network; its number and subnets may be given a moment later."""
    request = control_pb2.CreateNetworkRequest(spec=to_pb(spec, specs_pb2.NetworkSpec))
    answer = await _call(client, _stub(client).CreateNetwork(request, timeout=CALL_TIMEOUT_S))
    return from_pb(answer.network, Network)


async def get_network(client: Client, reference: str) -> Network:
    """A network by id, name or unique id prefix."""
    request = control_pb2.GetNetworkRequest(network=reference)
    answer = await _call(client, _stub(client).GetNetwork(request, timeout=CALL_TIMEOUT_S))
    return from_pb(answer.network, Network)


async def list_networks(client: Client, filters: Filters | None = None) -> list[Network]:
    """All networks that fit."""
    filters = filters or Filters()
    wanted = control_pb2.Filters(
        ids=filters.ids, names=filters.names, labels=filters.labels, drivers=filters.drivers
    )
    result: list[Network] = []
    request = control_pb2.ListNetworksRequest(filters=wanted, page_size=PAGE_SIZE)
    while True:
        answer = await _call(client, _stub(client).ListNetworks(request, timeout=CALL_TIMEOUT_S))
        result += [from_pb(network, Network) for network in answer.networks]
        request.page_token = answer.next_page_token
        if not request.page_token:
            return result


async def remove_network(client: Client, reference: str) -> None:
    """Remove a network that nobody uses."""
    request = control_pb2.RemoveNetworkRequest(network=reference)
    await _call(client, _stub(client).RemoveNetwork(request, timeout=CALL_TIMEOUT_S))


async def with_network_ids(client: Client, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with networks by their ids, as services know them.

    A network to be removed that is not there any more stays as it was written: services may still
    have its id. Raises: NotFound for one that is to be added.
    """
    changed = dict(flags)
    if "network_add" in flags:
        changed["network_add"] = [
            wish.replaced(target=(await get_network(client, wish.target)).id)
            for wish in flags["network_add"]
        ]
    if "network_rm" in flags:
        changed["network_rm"] = [await _id_or_name(client, name) for name in flags["network_rm"]]
    return changed


async def _id_or_name(client: Client, name: str) -> str:
    try:
        return (await get_network(client, name)).id
    except NotFound:
        return name


def _stub(client: Client) -> Any:
    return control_pb2_grpc.ControlStub(client.channel)


async def _call(client: Client, call: Awaitable[AnswerT]) -> AnswerT:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
