"""A cluster with agents, users and disasters, all from one seed and on a virtual clock."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_interface, ip_network
from itertools import combinations

from manager.allocator.networks.subnets import vni_of
from manager.allocator.plan import needs_endpoint
from manager.allocator.ports import check_ports
from manager.orchestrator.slots import node_is_lost
from manager.orchestrator.update.dirty import is_dirty
from manager.reconcile.agenda import Agenda
from manager.reconcile.plan import dirty_from_event, plan_round
from manager.store.tables import Tables
from manager.store.view import is_unassigned
from shoal.errors import SwarmError
from shoal.model.defaults import UPDATE_WAITS, disconnect_wait_ns, is_terminal, is_wanted
from shoal.model.enums import (
    DisconnectAction,
    FailureAction,
    NodeAvailability,
    NodeState,
    PublishMode,
    RestartCondition,
    ReturnAction,
    TaskState,
    UpdateOrder,
    UpdateState,
)
from shoal.model.objects import Node, Service, Task
from shoal.model.specs import ContainerSpec, ReplicatedMode, ServiceMode, TaskSpec
from shoal.model.types import (
    ContainerStatus,
    DisconnectPolicy,
    DrainPolicy,
    Endpoint,
    EndpointSpec,
    NetworkAttachmentConfig,
    Placement,
    PortConfig,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    UpdateConfig,
)
from tests.support.planning import SECOND_NS, Cell, a_network, a_node, a_port, a_service

_LADDER = [
    TaskState.ASSIGNED,
    TaskState.ACCEPTED,
    TaskState.PREPARING,
    TaskState.READY,
    TaskState.STARTING,
    TaskState.RUNNING,
]
_UNDER_WAY = (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED)
_NODES = 5
MEMORY = 64 << 20
_PREFIX_LENGTH = 26
"""Room for twice what all services together may have."""


class Simulation:
    """Everything that happens to one cluster; `check` holds after each commit."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.network_random = random.Random(seed)  # of its own: seeds stay what they were
        self.drain_random = random.Random(seed)
        self.cell = Cell(a_node(f"n{i}", resources=_room()) for i in range(_NODES))
        self.agenda = Agenda()
        self.seen = 0
        self.trouble = True
        self.has_been_down: set[str] = set()
        self.start_first: set[str] = set()
        self.keeping: set[str] = set()
        self.handing_over: set[str] = set()
        self.images = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.network_user()
            self.user()
            self._ask_for_moves()
            self.disaster()
            self.plan()
            for _ in range(self.random.randint(1, 6)):
                self.agents()
                self.plan()
                self.cell.advance(self.random.choice([0.05, 0.5, 2.0, 7.0]))

    def heal(self) -> None:
        """End of all trouble: nodes are well, containers run on, users resume paused updates.

        Once all has come to rest, users free the ports that services still wait for.
        """
        self.trouble = False
        for place in range(_NODES - len(self.cell.tables.nodes)):
            self.cell.put(a_node(f"new{place}", resources=_room()))
        for node in list(self.cell.tables.nodes):
            self._set_node(node, NodeState.READY, NodeAvailability.ACTIVE)
        self._calm_down()
        while self._free_ports():
            self._calm_down()

    def _calm_down(self) -> None:
        for _ in range(240):
            for service in list(self.cell.tables.services):
                status = service.update_status
                if status is not None and status.state in {
                    UpdateState.PAUSED,
                    UpdateState.ROLLBACK_PAUSED,
                }:
                    self.cell.put(service.replaced(update_status=None))
            self.plan()
            self.agents()
            self.cell.advance(2.5)
        self.plan()

    def _free_ports(self) -> bool:
        """Take the ports away from who has them, where services say that they wait for them.

        Whoever waits says so; who does not wait has what it asks for. Returns whether any did.
        """
        services = sorted(self.cell.tables.services, key=lambda row: row.id)
        waiting = [service for service in services if needs_endpoint(service)]
        for service in waiting:
            hindrance = _hindrance(self.cell.tables, service)
            assert hindrance, service
            new = [
                task for task in self.cell.tasks(service.id) if task.status.state is TaskState.NEW
            ]
            assert all(task.status.error == hindrance for task in new), new
            status = service.update_status
            if status is not None and status.state in _UNDER_WAY:
                assert status.message.endswith(UPDATE_WAITS + hindrance), status
            for owner in services:
                if f"by service {owner.id}:" in hindrance:
                    self._change(owner, endpoint=EndpointSpec())
        for service in services:
            status = service.update_status
            if status is not None and service not in waiting:
                assert UPDATE_WAITS not in status.message, status
        return bool(waiting)

    # What the managers do.

    def plan(self) -> None:
        for _ in range(60):
            self._watch()
            dirty = self.agenda.take(self.cell.now_ns)
            if not dirty:
                self._check_rest()
                return
            done = plan_round(self.cell.tables, dirty, now_ns=self.cell.now_ns, ids=self.cell.ids)
            self.cell.commit(done.changes)
            self.agenda.finish(dirty, done)
            self.check()
        raise AssertionError("planning does not come to rest")

    def _watch(self) -> None:
        for commit in self.cell.commits[self.seen :]:
            for event in commit.events:
                self.agenda.add(dirty_from_event(event.action, event.old, event.object))
        self.seen = len(self.cell.commits)

    # What the agents do.

    def agents(self) -> None:
        for task in sorted(self.cell.tables.tasks, key=lambda row: row.id):
            node = self.cell.tables.nodes.get(task.node_id) if task.node_id else None
            if node is None or node.status.state is not NodeState.READY or is_terminal(task):
                continue
            if task.status.state < TaskState.ASSIGNED or self.random.random() < 0.25:
                continue
            if task.desired_state >= TaskState.SHUTDOWN:
                self._report(task, TaskState.SHUTDOWN)
            elif self.trouble and self.random.random() < 0.06:
                self._fail(task)
            else:
                self._climb(task)

    def _climb(self, task: Task) -> None:
        place = _LADDER.index(task.status.state)
        waits = task.status.state is TaskState.READY and task.desired_state <= TaskState.READY
        if place + 1 < len(_LADDER) and not waits:
            self._report(task, _LADDER[place + 1])

    def _fail(self, task: Task) -> None:
        if task.status.state < TaskState.STARTING:
            self._report(task, TaskState.REJECTED)
        else:
            self._report(task, self.random.choice([TaskState.FAILED, TaskState.COMPLETE]))

    def _report(self, task: Task, state: TaskState) -> None:
        container = task.status.container or ContainerStatus(container_id=task.id)
        if state is TaskState.STARTING:
            container = container.replaced(started_at_ns=self.cell.now_ns)
        if state > TaskState.RUNNING:
            container = container.replaced(finished_at_ns=self.cell.now_ns)
        self.cell.report(task.id, state, container=container)

    # What users do.

    def user(self) -> None:
        services = sorted(self.cell.tables.services, key=lambda row: row.id)
        live = [service for service in services if not service.pending_delete]
        action = self.random.random()
        if len(live) < 2 or (action < 0.1 and len(live) < 4):
            self._create()
        elif action < 0.3:
            service = self.random.choice(live)
            self._change(service, mode=self._scaled(service))
        elif action < 0.6:
            service = self.random.choice(live)
            self._change(service, task=self._task(service.id), update=self._update(service.id))
        elif action < 0.65:
            service = self.random.choice(live)
            ports = self._ports()
            self._change(service, endpoint=EndpointSpec(ports=ports))
        elif action < 0.66:
            service = self.random.choice(live)
            task = service.spec.task.replaced(disconnect=self._disconnect(service.id))
            self._change(service, task=task)
        elif action < 0.7:
            self.cell.put(self.random.choice(live).replaced(pending_delete=True))
        elif action < 0.72:
            self.cell.remove(self.random.choice(live))
        elif action < 0.8:
            self._roll_back(self.random.choice(live))

    def _ask_for_moves(self) -> None:
        services = sorted(self.cell.tables.services, key=lambda row: row.id)
        if services and self.drain_random.random() < 0.3:
            service = self.drain_random.choice(services)
            self.cell.put(service.replaced(rebalance_moves=self.drain_random.randint(0, 4)))

    def _create(self) -> None:
        self.images += 1
        name = f"s{self.images}"
        service = a_service(
            name,
            replicas=self.random.randint(1, 6),
            task=self._task(name),
            ports=self._ports(),
            update=self._update(name),
            rollback=UpdateConfig(parallelism=2, failure_action=FailureAction.CONTINUE),
        )
        service = self._born(service)
        if self._accepts(service):
            self._write_new(service)

    def _write_new(self, service: Service) -> None:
        """Create it; for other kinds of simulation."""
        self.cell.put(service)

    def _born(self, service: Service) -> Service:
        """The service as it is created; for other kinds of simulation."""
        return service

    def _scaled(self, service: Service) -> ServiceMode:
        """The mode with other numbers."""
        del service
        return ReplicatedMode(replicas=self.random.randint(0, 7))

    def _change(self, service: Service, **fields: object) -> None:
        spec = service.spec.replaced(**fields)
        changed = service.replaced(spec=spec, previous_spec=service.spec, update_status=None)
        if self._accepts(changed):
            self.cell.put(changed)

    def _roll_back(self, service: Service) -> None:
        if service.previous_spec is not None:
            changed = service.replaced(
                spec=service.previous_spec, previous_spec=service.spec, update_status=None
            )
            if self._accepts(changed):
                self.cell.put(changed)

    def _accepts(self, service: Service) -> bool:
        return not _hindrance(self.cell.tables, service)

    def _disconnect(self, service_id: str) -> DisconnectPolicy | None:
        choose = self.random.choice
        action, on_return = choose(list(DisconnectAction)), choose(list(ReturnAction))
        if self.random.random() < 0.4:
            return None
        if on_return is ReturnAction.KEEP_ORIGINAL:
            self.keeping.add(service_id)
        wait_ns = choose([None, SECOND_NS, 20 * SECOND_NS])
        return DisconnectPolicy(
            action=action,
            wait_ns=wait_ns if action is DisconnectAction.WAIT else None,
            on_return=on_return,
        )

    def _task(self, service_id: str) -> TaskSpec:
        self.images += 1
        choose = self.random.choice
        return TaskSpec(
            runtime=ContainerSpec(image=f"image:{self.images}"),
            resources=ResourceRequirements(
                reservations=Resources(memory_bytes=choose([0, MEMORY]))
            ),
            restart=RestartPolicy(
                condition=choose([*[RestartCondition.ANY] * 4, *RestartCondition]),
                delay_ns=choose([0, None, 3 * SECOND_NS]),
                max_attempts=choose([0, 0, 0, 2]),
                window_ns=choose([0, SECOND_NS, 60 * SECOND_NS]),
            ),
            placement=Placement(max_replicas=choose([0, 0, 2])),
            networks=self._networks(),
            disconnect=self._disconnect(service_id),
        )

    def _update(self, service_id: str) -> UpdateConfig:
        choose = self.random.choice
        order = choose(list(UpdateOrder))
        if order is UpdateOrder.START_FIRST:
            self.start_first.add(service_id)
        return UpdateConfig(
            parallelism=choose([0, 1, 2]),
            delay_ns=choose([0, 0, 3 * SECOND_NS]),
            failure_action=choose(list(FailureAction)),
            monitor_ns=choose([0, None, SECOND_NS]),
            max_failure_ratio=choose([0.0, 0.5]),
            order=order,
        )

    def _ports(self) -> tuple[PortConfig, ...]:
        published = self.random.choice([0, 8080, 8081, 30_000])
        return self.random.choice([(), (a_port(80, published),), (a_port(80), a_port(81))])

    def network_user(self) -> None:
        """Networks come, and go when no service may want them any more."""
        networks = sorted(self.cell.tables.networks, key=lambda row: row.id)
        action = self.network_random.random()
        if action < 0.3 and len(networks) < 3:
            self.images += 1
            subnet = self.network_random.choice(["", f"10.{self.images}.0.0/{_PREFIX_LENGTH}"])
            ipv6 = self.network_random.random() < 0.5
            self.cell.put(a_network(f"net{self.images}", subnet, ipv6_enabled=ipv6))
        elif action < 0.5 and networks:
            network = self.network_random.choice(networks)
            if not self._wants(network.id):
                self.cell.remove(network)

    def _wants(self, network_id: str) -> bool:
        specs = [task.spec for task in self.cell.tables.tasks if not is_terminal(task)]
        for service in self.cell.tables.services:
            specs.append(service.spec.task)
            if service.previous_spec is not None:
                specs.append(service.previous_spec.task)
        return any(wish.target == network_id for spec in specs for wish in spec.networks)

    def _networks(self) -> tuple[NetworkAttachmentConfig, ...]:
        return tuple(
            NetworkAttachmentConfig(target=network.id)
            for network in sorted(self.cell.tables.networks, key=lambda row: row.id)
            if self.network_random.random() < 0.5
        )

    # What happens to nodes.

    def disaster(self) -> None:
        nodes = sorted(self.cell.tables.nodes, key=lambda row: row.id)
        action = self.random.random()
        node = self.random.choice(nodes)
        if action < 0.12:
            self.has_been_down.add(node.id)
            self._set_node(node, NodeState.DOWN, node.spec.availability)
        elif action < 0.4:
            self._set_node(node, NodeState.READY, node.spec.availability)
        elif action < 0.5:
            self._set_node(node, node.status.state, self.random.choice(list(NodeAvailability)))
        elif self.drain_random.random() < 0.12:
            self._drain(node)
        elif action < 0.53 and len(nodes) > 3:
            self.has_been_down.add(node.id)
            self.cell.remove(node)
        elif action < 0.6 and len(nodes) < _NODES:
            self.images += 1
            self.cell.put(a_node(f"m{self.images}", resources=_room()))

    def _drain(self, node: Node) -> None:
        """Have the node emptied with a deadline."""
        deadline_ns = self.drain_random.choice([SECOND_NS, 20 * SECOND_NS, 300 * SECOND_NS])
        policy = DrainPolicy(deadline_ns=deadline_ns)
        spec = node.spec.replaced(availability=NodeAvailability.DRAIN, drain=policy)
        self.cell.put(node.replaced(spec=spec, drain_until_ns=self.cell.now_ns + deadline_ns))

    def _set_node(self, node: Node, state: NodeState, availability: NodeAvailability) -> None:
        self.cell.put(
            node.replaced(
                status=node.status.replaced(state=state),
                spec=node.spec.replaced(availability=availability, drain=None),
                drain_until_ns=0,
            )
        )

    # What must always hold, and what must hold in the end.

    def check(self) -> None:
        tables = self.cell.tables
        self._check_slots()
        self._check_networks()
        ports = Counter(
            (port.protocol, port.published_port)
            for service in tables.services
            if service.endpoint is not None and not service.pending_delete
            for port in service.endpoint.ports
            if port.publish_mode is PublishMode.INGRESS
        )
        assert not [port for port, count in ports.items() if count > 1], ports
        indexes = [node.ingress.index for node in tables.nodes if node.ingress is not None]
        assert len(indexes) == len(set(indexes))
        for node in tables.nodes:
            reserved = sum(
                task.spec.resources.reservations.memory_bytes
                for task in tables.tasks_of_node(node.id).values()
                if not is_terminal(task) and not is_unassigned(task)
            )
            assert reserved <= node.description.resources.memory_bytes

    def _check_networks(self) -> None:
        """No two networks have one number or subnet, no two on a network one address."""
        tables = self.cell.tables
        made = [network for network in tables.networks if network.driver_state is not None]
        numbers = {vni_of(network) for network in made}
        subnets = [ip_network(one.subnet) for network in made for one in network.ipam.configs]
        assert len(numbers) == len(made), made
        assert 0 not in numbers, made
        for one, other in combinations(subnets, 2):
            assert one.version != other.version or not one.overlaps(other), made
        given = Counter(
            (held.network_id, ip_interface(held.address).ip)
            for service in tables.services
            if service.endpoint is not None
            for held in service.endpoint.virtual_ips
        )
        given.update(
            (held.network_id, ip_interface(address).ip)
            for task in tables.tasks
            if not is_terminal(task)
            for held in task.networks
            for address in held.addresses
        )
        given.update(
            (network.id, ip_interface(one.gateway).ip)
            for network in made
            for one in network.ipam.configs
        )
        assert not [key for key, count in given.items() if count > 1], given

    def _check_slots(self) -> None:
        """At no moment two tasks of a slot are wanted, or at work where no node was lost.

        Two with a start-first update, and one more that may come back with its node. Start-first
        does not wait for those that an update before it has told to stop: they are not counted.
        """
        wanted: Counter[tuple[str, object]] = Counter()
        at_work: Counter[tuple[str, object]] = Counter()
        for task in self.cell.tables.tasks:
            if task.desired_state >= TaskState.REMOVE or is_terminal(task):
                continue
            key = (task.service_id, self._place(task))
            if task.takes_over:
                self.handing_over.add(task.service_id)
            wanted[key] += is_wanted(task)
            in_the_way = is_wanted(task) or task.service_id not in self.start_first
            if task.node_id not in self.has_been_down and in_the_way:
                at_work[key] += task.status.state >= TaskState.STARTING
        for count_by_slot in (wanted, at_work):
            for key, count in count_by_slot.items():
                most = 1 + (key[0] in self.start_first) + (key[0] in self.keeping)
                most += key[0] in self.handing_over
                assert count <= most, self.cell.tasks(key[0])

    def _place(self, task: Task) -> object:
        """What no two tasks of a service that are at work have in common."""
        return task.slot

    def _check_rest(self) -> None:
        """When planning came to rest: all is answered, and the slots are those of the spec."""
        tables = self.cell.tables
        slots: dict[str, set[int]] = {}
        for task in tables.tasks:
            if task.desired_state < TaskState.REMOVE:
                slots.setdefault(task.service_id, set()).add(task.slot)
            if is_wanted(task):
                assert not is_terminal(task), task
                assert not node_is_lost(tables, task) or self._may_be_away(task), task
        for service in tables.services:
            mode = service.spec.mode
            assert isinstance(mode, ReplicatedMode)
            used = slots.get(service.id, set())
            if service.spec.depends_on:
                continue  # it is held, or was until a moment ago: see test_held
            assert len(used) == (0 if service.pending_delete else mode.replicas), service.id

    def _may_be_away(self, task: Task) -> bool:
        """Whether a wanted task on a lost node is in order."""
        service = self.cell.tables.services.get(task.service_id)
        policy = None if service is None else service.spec.task.disconnect
        node = self.cell.tables.nodes.get(task.node_id)
        if policy is None or node is None or service is None:
            return False
        if node.spec.availability is NodeAvailability.DRAIN or is_terminal(task):
            return False
        if policy.action is DisconnectAction.WAIT and not is_dirty(self.cell.tables, service, task):
            age_ns = self.cell.now_ns - node.meta.updated_at_ns
            if age_ns < disconnect_wait_ns(policy):
                return True
        slot = [row for row in self.cell.tasks(service.id) if row.slot == task.slot]
        restart = task.spec.restart or RestartPolicy()
        answered = len(slot) > 1 or restart.condition is RestartCondition.NONE
        return policy.on_return is ReturnAction.KEEP_ORIGINAL and answered

    def check_goal(self) -> None:
        """Every slot runs one task of the present spec, or ended for good by its policy."""
        tables = self.cell.tables
        known = {service.id for service in tables.services}
        assert {task.service_id for task in tables.tasks} <= known
        for service in tables.services:
            assert not service.pending_delete
            status = service.update_status
            assert status is None or status.state not in _UNDER_WAY, status
            self._check_service(service)

    def _check_service(self, service: Service) -> None:
        tasks = self.cell.tasks(service.id)
        wished = [wish.target for wish in service.spec.task.networks]
        held = (service.endpoint or Endpoint()).virtual_ips
        assert list(dict.fromkeys(one.network_id for one in held)) == wished, service
        for task in tasks:
            if task.status.state is TaskState.RUNNING:
                asked = [wish.target for wish in task.spec.networks]
                assert [one.network_id for one in task.networks] == asked, task
        for slot in {task.slot for task in tasks}:
            members = [task for task in tasks if task.slot == slot]
            wanted = [task for task in members if is_wanted(task)]
            policy = members[-1].spec.restart or RestartPolicy()
            finite = policy.max_attempts or policy.condition is not RestartCondition.ANY
            if is_terminal(members[-1]) and finite:
                # It ended for good. A start-first update then leaves the old task in place.
                assert len(wanted) <= 1
                continue
            (task,) = wanted
            assert task.status.state is TaskState.RUNNING, (task, service)
            assert not is_dirty(self.cell.tables, service, task), (task, service)
            assert [one.network_id for one in task.networks] == wished, task


def _hindrance(tables: Tables, service: Service) -> str:
    """Why the service cannot have its ports at this moment."""
    try:
        check_ports(tables, service.spec, service_id=service.id)
    except SwarmError as error:
        return error.message
    return ""


def _room() -> Resources:
    return Resources(nano_cpus=4 * SECOND_NS, memory_bytes=40 * MEMORY)
