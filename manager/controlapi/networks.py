"""Changes to networks, and the networks of services: what each request writes, decided on one view.

Services name networks by name or id; what is stored is the id, so that a network of the same name
that is made later is another one.
"""

from __future__ import annotations

from collections.abc import Iterable

from manager.allocator.networks.subnets import Subnets
from manager.allocator.networks.wishes import address_in
from manager.controlapi.validate_networks import network_spec
from manager.orchestrator.reaper.networks import is_on_any_task
from manager.store.view import View
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.defaults import is_terminal
from shoal.model.objects import Network
from shoal.model.plan import Change, create, remove, update
from shoal.model.specs import NetworkSpec, ServiceSpec
from shoal.model.types import Endpoint, NetworkAttachmentConfig

USERS_SHOWN_MAX = 5
NODE_NETWORKS = frozenset({"bridge", "host", "none"})


def create_network(view: View, spec: NetworkSpec, *, network_id: str) -> list[Change]:
    """A new network; the allocator gives it its number and what it does not ask for itself.

    Raises InvalidArgument, Unimplemented.
    """
    network_spec(spec)
    Subnets(view).check(spec.ipam.configs)
    return [create(Network(id=network_id, spec=spec))]


def remove_network(view: View, reference: str) -> list[Change]:
    """Remove a network that nobody uses. Raises FailedPrecondition, naming its users.

    One that only tasks of removed services are still on is marked: it goes when they have ended.
    """
    network = view.networks.resolve(reference)
    users = list(_users(view, network.id))
    if not users and is_on_any_task(view, network.id):
        return [update(network.replaced(pending_delete=True))]
    if users:
        more = len(users) - USERS_SHOWN_MAX
        shown = ", ".join(users[:USERS_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
        raise FailedPrecondition(
            f"network {network.spec.annotations.name} is in use by {shown}: remove them, or take"
            " the network out of the services first (`swarmctl service update --network-rm`)"
        )
    return [remove(network)]


def with_network_ids(view: View, spec: ServiceSpec, *, service_id: str = "") -> ServiceSpec:
    """The spec with every network it names by its id.

    service_id: whose spec it is; empty: a new service's. Raises: NotFound; InvalidArgument for a
    network given twice, for those of nodes alone, and for addresses that the service cannot have.
    """
    if not spec.task.networks:
        return spec
    resolved: dict[str, NetworkAttachmentConfig] = {}
    for wish in spec.task.networks:
        if wish.target in NODE_NETWORKS:
            raise InvalidArgument(
                f"network: {wish.target} is a network of each node: services join overlay networks"
                " (`swarmctl network create`)"
            )
        network = view.networks.resolve(wish.target)
        if network.id in resolved:
            raise InvalidArgument(
                f"network: {network.spec.annotations.name} is given twice: give all its aliases"
                " at once"
            )
        _check_addresses(view, network, wish.addresses, service_id)
        resolved[network.id] = wish.replaced(target=network.id)
    return spec.replaced(task=spec.task.replaced(networks=tuple(resolved.values())))


def _check_addresses(
    view: View, network: Network, addresses: Iterable[str], service_id: str
) -> None:
    """Refuse addresses that are not the network's, or another service's for as long as it is."""
    wanted = set(addresses)
    for address in addresses:
        address_in(address, network)
    for service in view.services if wanted else ():
        endpoint = service.endpoint or Endpoint()
        held = {
            one.address.partition("/")[0]
            for one in endpoint.virtual_ips
            if one.network_id == network.id
        }
        if service.id != service_id:
            asking = (one for one in service.spec.task.networks if one.target == network.id)
            held.update(address for one in asking for address in one.addresses)
        taken = sorted(wanted & held)
        if taken:
            raise InvalidArgument(
                f"network {network.spec.annotations.name}: ip: {taken[0]} belongs to service"
                f" {service.spec.annotations.name}: choose another one"
            )


def _users(view: View, network_id: str) -> Iterable[str]:
    """Services that ask for the network, then tasks that are on it and will stay."""
    asking: set[str] = set()
    for service in sorted(view.services, key=lambda row: row.spec.annotations.name):
        if any(wish.target == network_id for wish in service.spec.task.networks):
            asking.add(service.id)
            yield f"service {service.spec.annotations.name}"
    for task in sorted(view.tasks, key=lambda row: row.annotations.name):
        if task.service_id in asking or is_terminal(task):
            continue
        if task.service_id and view.services.get(task.service_id) is None:
            continue
        if any(held.network_id == network_id for held in task.networks):
            kind = "task" if task.service_id else "container"
            yield f"{kind} {task.annotations.name or task.id}"
