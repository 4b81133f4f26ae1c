"""What the resolver of the node is told of overlay networks: pure.

A service's name and aliases stand for its virtual addresses, or for the addresses of its ready
tasks where it has none; `tasks.NAME` always for the tasks'. A service without a ready task is known
all the same, so that nobody outside is asked for its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from worker.network.local.naming import Client, Place
from worker.network.overlay.api import OverlayNetwork, OverlayService, OverlayState, TaskPlace
from worker.network.overlay.plan import version_of

NAME_DIGITS = 12


def known_names(state: OverlayState) -> dict[str, Place]:
    """Everything that has a name, by a key of its own."""
    networks = {network.network_id: network.name for network in state.networks}
    services = {(one.network_id, one.service_id): one for one in state.services}
    found: dict[str, Place] = {}
    for (network, service_id), service in services.items():
        if network in networks:
            key = f"{network}/{service_id}"
            names = (service.name, *service.aliases)
            found[key] = _place(network, networks[network], names, service.virtual_ips)
            found[f"{key}/tasks"] = _place(network, networks[network], _of_tasks(names), ())
    for one in state.endpoints:
        if one.ready and one.network_id in networks:
            own = (*one.names, one.task_id[:NAME_DIGITS])
            shared = _shared(services.get((one.network_id, one.service_id)))
            found[f"{one.network_id}/{one.task_id}"] = _place(
                one.network_id, networks[one.network_id], (*own, *shared), one.addresses
            )
    return found


def client_of(
    place: TaskPlace,
    networks: Mapping[str, OverlayNetwork],
    servers: Iterable[str],
    *,
    forwards: bool,
) -> Client:
    """A task that asks. servers: who is asked about everything else."""
    places = tuple(
        Place(network=link.network_id, network_name=networks[link.network_id].name, names=())
        for link in place.links
    )
    return Client(
        container=place.task_id,
        netns_path=place.netns_path,
        places=places,
        servers=tuple(servers),
        forwards=forwards,
    )


def _shared(service: OverlayService | None) -> tuple[str, ...]:
    """The names that a task has in common with the others of its service."""
    if service is None:
        return ()
    names = (service.name, *service.aliases)
    return _of_tasks(names) if service.virtual_ips else (*_of_tasks(names), *names)


def _of_tasks(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"tasks.{name}" for name in names)


def _place(
    network: str, network_name: str, names: tuple[str, ...], addresses: Iterable[str]
) -> Place:
    by_version = {version_of(address): address for address in addresses}
    return Place(
        network=network,
        network_name=network_name,
        names=names,
        ipv4=by_version.get(4, ""),
        ipv6=by_version.get(6, ""),
    )
