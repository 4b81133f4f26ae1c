"""Clusters of all kinds at rest, random changes to them, and what then really happens.

What happens is found by the simulation of the reconcile tests: its agents climb the ladder rung by
rung, each in its own time or all in step, and what they do is read from the commits alone. Nothing
of `manager.rehearsal` is used.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from typing_extensions import override

from manager.controlapi import services
from manager.orchestrator.update.plan import is_updating
from manager.rehearsal.stage import Build
from manager.store.view import View
from shoal.errors import SwarmError
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import FailureAction, NodeAvailability, NodeState, TaskState, UpdateOrder
from shoal.model.modes import is_job
from shoal.model.objects import Service, Task
from shoal.model.plan import Change
from shoal.model.specs import ServiceSpec
from shoal.model.types import (
    EndpointSpec,
    Placement,
    PortConfig,
    ResourceRequirements,
    Resources,
    UpdateConfig,
)
from tests.support.planning import SECOND_NS, a_node, a_port, a_service
from tests.unit.manager.reconcile.simulated_modes import ModesSimulation

IDLE_LOOKS = 14
LOOK_S = 2.5
Happened = tuple[Counter[tuple[str, int, str, str]], frozenset[str], dict[str, str]]
"""Tasks made (service, slot, node, state at the end), ids of those told to stop, and the nodes of
those that had waited for one."""


class Cluster(ModesSimulation):
    """A simulation whose agents never fail. prompt: they all act at every look."""

    def __init__(self, seed: int, *, prompt: bool) -> None:
        super().__init__(seed)
        self.trouble = False
        self.prompt = prompt
        self.choices = random.Random(seed)

    @override
    def agents(self) -> None:
        dice = self.random, self.mode_random
        if self.prompt:
            self.random, self.mode_random = _Always(0.9), _Always(0.1)
        try:
            super().agents()
        finally:
            self.random, self.mode_random = dice

    def come_to_rest(self) -> None:
        """Go on until nothing was committed for a while, and no update waits for a time."""
        idle = 0
        while idle < IDLE_LOOKS or self._wait():
            before = len(self.cell.commits)
            self.plan()
            self.agents()
            self.plan()
            busy = len(self.cell.commits) > before
            idle = 0 if busy else idle + 1
            self.cell.advance(self.choices.choice([0.1, 0.3]) if busy else LOOK_S)

    def _wait(self) -> bool:
        """Let the time come that an update waits for, its progress deadline say; if there is."""
        at_ns = self.agenda.wake_at_ns
        if at_ns is None or not any(map(is_updating, self.cell.tables.services)):
            return False
        self.cell.now_ns = max(self.cell.now_ns, at_ns)
        return True


class _Always(random.Random):
    """Dice that always fall alike, so that every agent acts and all work is done at once."""

    def __new__(cls, *_: object) -> _Always:
        return super().__new__(cls)

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    @override
    def random(self) -> float:
        return self._value


def a_cluster(seed: int, *, prompt: bool) -> Cluster:
    """Nodes with labels, some of them full, drained or down; services of every mode, at rest."""
    cluster = Cluster(seed, prompt=prompt)
    for number in range(cluster.choices.randint(0, 3)):
        cluster.cell.put(a_node(f"tiny{number}", resources=Resources(memory_bytes=64 << 20)))
    for node in list(cluster.cell.tables.nodes):
        cluster._label(node)
    for _ in range(cluster.choices.randint(2, 6)):
        cluster.network_user()
        cluster.user()
        cluster.plan()
    for node in sorted(cluster.cell.tables.nodes, key=lambda row: row.id):
        dice = cluster.choices.random()
        if dice < 0.1:
            cluster.has_been_down.add(node.id)
            cluster._set_node(node, NodeState.DOWN, node.spec.availability)
        elif dice < 0.3:
            availability = cluster.choices.choice(list(NodeAvailability))
            cluster._set_node(node, node.status.state, availability)
    cluster.come_to_rest()
    return cluster


def some_changes(cluster: Cluster, number: int = 1) -> list[Build]:
    """Calls that users make."""
    return [_a_change(cluster) for _ in range(number)]


def what_happens(cluster: Cluster, builds: Sequence[Build]) -> tuple[Happened, list[str]]:
    """Make the changes and let the cluster come to rest; why changes were refused, "" if not."""
    before = {task.id: task for task in cluster.cell.tables.tasks}
    seen = len(cluster.cell.commits)
    refusals = [_make(cluster, build) for build in builds]
    cluster.come_to_rest()
    tasks: dict[str, Task] = {}
    stopped: set[str] = set()
    placed: dict[str, str] = {}
    for commit in cluster.cell.commits[seen:]:
        for event in commit.events:
            row = event.subject
            if not isinstance(row, Task):
                continue
            was = before.get(row.id)
            if was is None:
                tasks[row.id] = row
            elif not _runs(was) or row.status.state is TaskState.COMPLETE:
                continue
            elif event.object is None or not is_wanted(row):
                stopped.add(row.id)
                placed.pop(row.id, None)
            elif was.status.state < TaskState.ASSIGNED <= row.status.state:
                placed[row.id] = row.node_id
    made = Counter(
        (task.service_id, task.slot, task.node_id, task.status.state.name)
        for task in tasks.values()
    )
    return (made, frozenset(stopped), placed), refusals


def _runs(task: Task) -> bool:
    return is_wanted(task) and not is_terminal(task)


def _make(cluster: Cluster, build: Build) -> str:
    try:
        cluster.cell.commit(build(cluster.cell.tables))
    except SwarmError as refused:
        return refused.message
    return ""


def _a_change(cluster: Cluster) -> Build:
    live = sorted(cluster.cell.tables.services, key=lambda row: row.id)
    live = [service for service in live if not service.pending_delete]
    dice = cluster.choices.random()
    now_ns = cluster.cell.now_ns
    if not live or dice < 0.2:
        return _creation(cluster, now_ns)
    service = cluster.choices.choice(live)
    if dice < 0.3:
        return lambda view: services.remove_service(view, service.id)
    if dice < 0.4:
        return lambda view: services.roll_back_service(view, service.id, version=0, now_ns=now_ns)
    spec = _changed(cluster, service)
    return lambda view: services.update_service(view, service.id, spec, version=0, now_ns=now_ns)


def _creation(cluster: Cluster, now_ns: int) -> Build:
    cluster.images += 1
    name = f"c{cluster.images}"
    born = cluster._born(
        a_service(
            name,
            replicas=cluster.choices.randint(1, 12),
            task=cluster._task(name),
            ports=cluster._ports(),
            update=cluster._update(name),
        )
    )
    spec = _placed(cluster, born.spec)

    def build(view: View) -> Sequence[Change]:
        return services.create_service(view, spec, service_id=name, now_ns=now_ns)

    return build


def _changed(cluster: Cluster, service: Service) -> ServiceSpec:
    """Another spec: image, number, placement, ports, update settings, limits; now and then none."""
    spec = service.spec
    dice = cluster.choices.random()
    if dice < 0.1:
        return spec
    if dice < 0.3:
        return spec.replaced(mode=cluster._scaled(service))
    if dice < 0.4:
        return _placed(cluster, spec)
    if dice < 0.5:
        return spec.replaced(endpoint=EndpointSpec(ports=_some_ports(cluster)))
    spec = spec.replaced(task=cluster._task(service.id))
    if not is_job(spec.mode):
        spec = spec.replaced(update=_an_update(cluster, service))
    return _placed(cluster, spec) if dice < 0.7 else spec


def _placed(cluster: Cluster, spec: ServiceSpec) -> ServiceSpec:
    """With constraints and reservations that some nodes, or none, can meet."""
    choose = cluster.choices.choice
    constraints = choose([(), ("node.labels.zone==a",), ("node.labels.zone!=a",),
                          ("node.hostname==host-n1",), ("node.labels.zone==nowhere",)])  # fmt: skip
    memory = choose([0, 64 << 20, 500 << 20, 4 << 30])
    reserved = ResourceRequirements(reservations=Resources(memory_bytes=memory))
    placement = Placement(constraints=constraints, max_replicas=0)
    task = spec.task.replaced(placement=placement, resources=reserved)
    return spec.replaced(task=task, priority=choose([0, 0, 5]))


def _some_ports(cluster: Cluster) -> tuple[PortConfig, ...]:
    host = (a_port(80, 8090, host=True),)
    return cluster.choices.choice([(), host, cluster._ports(), cluster._ports()])


def _an_update(cluster: Cluster, service: Service) -> UpdateConfig:
    choose = cluster.choices.choice
    order = choose(list(UpdateOrder))
    if order is UpdateOrder.START_FIRST:
        cluster.start_first.add(service.id)
    return UpdateConfig(
        parallelism=choose([0, 1, 1, 2, 3]),
        delay_ns=choose([0, 0, 3 * SECOND_NS]),
        monitor_ns=choose([0, None, SECOND_NS]),
        failure_action=choose(list(FailureAction)),
        progress_deadline_ns=choose([None, 20 * SECOND_NS]),
        order=order,
    )
