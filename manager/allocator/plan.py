"""The allocator: ports, subnets and addresses, places in the mesh, NEW tasks to PENDING.

A task stays NEW while its service cannot have what it asks for, with the reason in its status;
its update waits for the same reason. Each round tries again for every service that waits: whatever
changed may have freed what it needs. Services that were there first keep what they have: nothing
is ever taken away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.allocator.ingress import IngressIndexes
from manager.allocator.networks.addresses import Addresses, AddressWish
from manager.allocator.networks.subnets import Subnets
from manager.allocator.ports import PortOwners
from manager.store.draft import Draft
from manager.store.view import View
from shoal.errors import SwarmError
from shoal.model.defaults import is_wanted
from shoal.model.enums import EndpointMode, NodeMembership, TaskState
from shoal.model.objects import Service, Task
from shoal.model.plan import Plan
from shoal.model.specs import ServiceSpec
from shoal.model.types import Endpoint, EndpointSpec, NetworkAttachment, TaskStatus, VirtualIp

PENDING_MESSAGE = "pending task scheduling"


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Allocate for all services and nodes that wait for something, and for all NEW tasks."""
    del ids, service_ids
    draft = Draft(view)
    allocation = Allocation(draft)
    allocation.networks()
    allocation.services()
    allocation.nodes()
    allocation.tasks(now_ns=now_ns)
    return draft.plan()


class Allocation:
    """One round; what it learns of ports and addresses in use is shared by its steps."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._owners: PortOwners | None = None
        self._addresses: Addresses | None = None
        self._error_by_service: dict[str, str] = {}

    def networks(self) -> None:
        """Give networks their number and subnets, the oldest first."""
        waiting = [one for one in self._draft.view.networks if one.driver_state is None]
        if not waiting:
            return
        subnets = Subnets(self._draft.view)
        for network in sorted(waiting, key=lambda row: (row.meta.created_at_ns, row.id)):
            if not self._draft.room(network):
                return
            try:
                self._draft.update(subnets.allocated(network))
            except SwarmError as error:
                self._draft.note("allocator.no_subnet", network_id=network.id, error=error.message)

    def services(self) -> None:
        """Give services the endpoint they ask for, the oldest first."""
        waiting = [service for service in self._draft.view.services if needs_endpoint(service)]
        for service in sorted(waiting, key=lambda row: (row.meta.created_at_ns, row.id)):
            self._allocate(service)

    def hindrance(self, service_id: str) -> str:
        """Why the service could not be given its endpoint in this round; "" when nothing was."""
        return self._error_by_service.get(service_id, "")

    def nodes(self) -> None:
        """Give nodes their place in the mesh, in the order in which they joined."""
        waiting = [
            node
            for node in self._draft.view.nodes
            if node.ingress is None and node.spec.membership is NodeMembership.ACCEPTED
        ]
        if not waiting:
            return
        indexes = IngressIndexes(self._draft.view)
        for node in sorted(waiting, key=lambda row: (row.meta.created_at_ns, row.id)):
            if not self._draft.room(node):
                return
            try:
                place = indexes.take()
            except SwarmError as error:
                self._draft.note("allocator.mesh_full", node_id=node.id, error=error.message)
                return
            self._draft.update(node.replaced(ingress=place))

    def tasks(self, *, now_ns: int) -> None:
        """Move NEW tasks to PENDING, or write why they cannot go on."""
        waiting = [
            task
            for task in self._draft.view.unassigned_tasks().values()
            if task.status.state is TaskState.NEW and is_wanted(task)
        ]
        for task in sorted(waiting, key=lambda row: (row.service_id, row.slot, row.id)):
            service = self._draft.view.services.get(task.service_id)
            if service is not None and not service.pending_delete:
                self._advance(task, service, now_ns=now_ns)
        self._attach_containers(now_ns=now_ns)
        self._note_cursors()

    def _attach_containers(self, *, now_ns: int) -> None:
        """Give containers that were put on networks by hand their addresses, or write why not.

        Such a task belongs to no service and has its node from the beginning.
        """
        for task in sorted(self._draft.view.tasks_of_service("").values(), key=lambda one: one.id):
            if task.status.state is not TaskState.NEW or not is_wanted(task):
                continue
            if not self._draft.room(task):
                return
            try:
                networks = self._attachments(task)
            except SwarmError as error:
                self._explain(task, error.message, now_ns=now_ns)
                continue
            status = TaskStatus(
                state=TaskState.ASSIGNED, timestamp_ns=now_ns, message="attached to the network"
            )
            self._draft.update(task.replaced(networks=networks).with_status(status))

    def _advance(self, task: Task, service: Service, *, now_ns: int) -> None:
        error = self._error_by_service.get(service.id)
        if error is None:
            error = self._allocate(service)
            service = self._draft.view.services.get(service.id) or service
        if not error and not needs_endpoint(service) and self._draft.room(task):
            try:
                networks = self._attachments(task)
            except SwarmError as full:
                error = full.message
            else:
                status = TaskStatus(
                    state=TaskState.PENDING, timestamp_ns=now_ns, message=PENDING_MESSAGE
                )
                allocated = task.replaced(endpoint=service.endpoint, networks=networks)
                self._draft.update(allocated.with_status(status))
        if error:
            self._explain(task, error, now_ns=now_ns)

    def _explain(self, task: Task, error: str, *, now_ns: int) -> None:
        status = task.status.replaced(error=error, message="waiting for allocation")
        if status != task.status and self._draft.room(task):
            self._draft.update(task.with_status(status.replaced(timestamp_ns=now_ns)))

    def _attachments(self, task: Task) -> tuple[NetworkAttachment, ...]:
        """The task's addresses on all of its networks. Raises: see `Addresses.take`."""
        wishes = task.spec.networks
        if not wishes:
            return ()
        places = [
            AddressWish(wish.target, wish.addresses, task.service_id, task.slot) for wish in wishes
        ]
        addresses = self._free_addresses().take(places, task)
        return tuple(
            NetworkAttachment(
                network_id=wish.target,
                addresses=given,
                aliases=wish.aliases,
                driver_options=wish.driver_options,
            )
            for wish, given in zip(wishes, addresses, strict=True)
        )

    def _virtual_ips(self, service: Service) -> tuple[VirtualIp, ...]:
        """The service's addresses on its networks: those it has stay. Raises: as above."""
        wanted = vip_networks(service.spec)
        held: dict[str, list[VirtualIp]] = {}
        for one in (service.endpoint or Endpoint()).virtual_ips:
            held.setdefault(one.network_id, []).append(one)
        missing = [network_id for network_id in wanted if network_id not in held]
        places = [AddressWish(network_id) for network_id in missing]
        taken = self._free_addresses().take(places, service) if places else ()
        for network_id, given in zip(missing, taken, strict=True):
            held[network_id] = [VirtualIp(network_id=network_id, address=one) for one in given]
        return tuple(one for network_id in wanted for one in held[network_id])

    def _free_addresses(self) -> Addresses:
        if self._addresses is None:
            self._addresses = Addresses(self._draft.view)
        return self._addresses

    def _note_cursors(self) -> None:
        """Write where addresses were given last; without it they only rest for a shorter time."""
        for network in self._addresses.moved() if self._addresses is not None else ():
            if self._draft.room(network):
                self._draft.update(network)

    def _allocate(self, service: Service) -> str:
        """Allocate the endpoint where it is due; the result is why it cannot be, or ""."""
        if not needs_endpoint(service) or not self._draft.room(service):
            return self._error_by_service.setdefault(service.id, "")
        if self._owners is None:
            self._owners = PortOwners(self._draft.view)
        try:
            endpoint = self._owners.endpoint(service).replaced(
                virtual_ips=self._virtual_ips(service)
            )
        except SwarmError as error:
            self._error_by_service[service.id] = error.message
            return error.message
        service = service.replaced(endpoint=endpoint)
        self._owners.replace(service)
        self._draft.update(service)
        return self._error_by_service.setdefault(service.id, "")


def needs_endpoint(service: Service) -> bool:
    """Whether the service asks for another endpoint than it has."""
    if service.pending_delete:
        return False
    wanted = set(vip_networks(service.spec))
    if service.endpoint is None:
        return service.spec.endpoint != EndpointSpec() or bool(wanted)
    held = {one.network_id for one in service.endpoint.virtual_ips}
    return service.endpoint.spec != service.spec.endpoint or held != wanted


def vip_networks(spec: ServiceSpec) -> tuple[str, ...]:
    """Networks on which the service is to have a virtual address."""
    if spec.endpoint.mode is not EndpointMode.VIP:
        return ()
    return tuple(network.target for network in spec.task.networks)
