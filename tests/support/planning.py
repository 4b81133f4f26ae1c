"""Builders and a store without a log, for tests of planners."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count

from manager.store.apply import Commit, apply_entry
from manager.store.tables import Tables
from shoal.model.enums import (
    ActionKind,
    NodeAvailability,
    NodeState,
    PortProtocol,
    PublishMode,
    TaskState,
)
from shoal.model.objects import AnyObject, Network, Node, Service, StoreAction, StoreEntry, Task
from shoal.model.plan import CHANGES_MAX, Change, Plan
from shoal.model.specs import (
    ContainerSpec,
    NetworkSpec,
    NodeSpec,
    ReplicatedMode,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    Annotations,
    EndpointSpec,
    IpamConfig,
    IpamOptions,
    Meta,
    NodeDescription,
    NodeStatus,
    Platform,
    PortConfig,
    Resources,
    TaskStatus,
    UpdateConfig,
    Version,
)

SECOND_NS = 1_000_000_000
START_NS = 1_700_000_000 * SECOND_NS


def numbered_ids(prefix: str = "task") -> Iterator[str]:
    """Ids that sort by age."""
    return (f"{prefix}{number:06}" for number in count(1))


def a_node(
    node_id: str,
    *,
    state: NodeState = NodeState.READY,
    availability: NodeAvailability = NodeAvailability.ACTIVE,
    labels: dict[str, str] | None = None,
    resources: Resources | None = None,
    architecture: str = "x86_64",
) -> Node:
    return Node(
        id=node_id,
        spec=NodeSpec(annotations=Annotations(labels=labels or {}), availability=availability),
        description=NodeDescription(
            hostname=f"host-{node_id}",
            platform=Platform(architecture=architecture, os="linux"),
            resources=resources or Resources(nano_cpus=4 * SECOND_NS, memory_bytes=8 << 30),
        ),
        status=NodeStatus(state=state, address="10.0.0.1"),
    )


def a_service(
    service_id: str = "web",
    *,
    replicas: int = 3,
    task: TaskSpec | None = None,
    ports: tuple[PortConfig, ...] = (),
    update: UpdateConfig | None = None,
    rollback: UpdateConfig | None = None,
) -> Service:
    return Service(
        id=service_id,
        spec=ServiceSpec(
            annotations=Annotations(name=service_id),
            task=task or TaskSpec(runtime=ContainerSpec(image="nginx:1")),
            mode=ReplicatedMode(replicas=replicas),
            endpoint=EndpointSpec(ports=ports),
            update=update,
            rollback=rollback,
        ),
    )


def a_task(
    task_id: str,
    *,
    slot: int = 1,
    service_id: str = "web",
    state: TaskState = TaskState.RUNNING,
    desired: TaskState = TaskState.RUNNING,
    node_id: str = "n1",
    version: int = 1,
    created_at_ns: int = START_NS,
    at_ns: int = 0,
    spec: TaskSpec | None = None,
    **fields: object,
) -> Task:
    """A task; `at_ns`: when the manager learnt of its state."""
    return Task(
        id=task_id,
        meta=Meta(version=Version(index=1), created_at_ns=created_at_ns),
        spec=spec or TaskSpec(runtime=ContainerSpec(image="nginx:1")),
        spec_version=Version(index=version),
        service_id=service_id,
        slot=slot,
        node_id=node_id,
        status=TaskStatus(state=state, applied_at_ns=at_ns, timestamp_ns=at_ns),
        desired_state=desired,
    ).replaced(**fields)


def a_network(network_id: str = "net", subnet: str = "", **fields: object) -> Network:
    """A network as a user asked for it; its name is its id."""
    configs = (IpamConfig(subnet=subnet),) if subnet else ()
    spec = NetworkSpec(annotations=Annotations(name=network_id), ipam=IpamOptions(configs=configs))
    return Network(id=network_id, spec=spec.replaced(**fields))


def a_port(
    target: int = 80,
    published: int = 0,
    *,
    host: bool = False,
    protocol: PortProtocol = PortProtocol.TCP,
) -> PortConfig:
    return PortConfig(
        target_port=target,
        published_port=published,
        protocol=protocol,
        publish_mode=PublishMode.HOST if host else PublishMode.INGRESS,
    )


class Cell:
    """Tables that entries are applied to, as a leader alone would do."""

    def __init__(self, rows: Iterable[AnyObject] = (), *, now_ns: int = START_NS) -> None:
        self.now_ns = now_ns
        self.tables = Tables()
        self.ids = numbered_ids()
        self.commits: list[Commit] = []
        self.put(*rows)

    def put(self, *rows: AnyObject) -> None:
        """Write objects, as their owners (user, agents) do; versions are not checked.

        A new object with a time of creation is written at that time.
        """
        for row in rows:
            exists = self.tables.get_same(row) is not None
            kind = ActionKind.UPDATE if exists else ActionKind.CREATE
            at_ns = 0 if exists else row.meta.created_at_ns
            self._apply([StoreAction(kind=kind, object=row)], at_ns=at_ns)

    def remove(self, row: AnyObject) -> None:
        self._apply([StoreAction(kind=ActionKind.REMOVE, object=row)])

    def commit(self, changes: Iterable[Change]) -> None:
        """Write a plan; each change names the version it was made from."""
        actions = [
            StoreAction(
                kind=change.kind,
                object=change.object,
                expected_version=(
                    0 if change.kind is ActionKind.CREATE else change.object.meta.version.index
                ),
            )
            for change in changes
        ]
        assert len(actions) <= CHANGES_MAX
        if actions:
            self._apply(actions)

    def settle(self, planner: Callable[[Tables], Plan]) -> list[Plan]:
        """Plan and commit until nothing is left: within n/200 rounds and one that finds nothing."""
        plans: list[Plan] = []
        while True:
            plans.append(planner(self.tables))
            assert len(plans) < 100, "no fixpoint"
            if not plans[-1].changes and not plans[-1].more:
                return plans
            self.commit(plans[-1].changes)

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)

    def tasks(self, service_id: str = "web") -> list[Task]:
        """Tasks of a service by slot, then age."""
        found = self.tables.tasks_of_service(service_id).values()
        return sorted(found, key=lambda task: (task.slot, task.meta.created_at_ns, task.id))

    def service(self, service_id: str = "web") -> Service:
        found = self.tables.services.get(service_id)
        assert found is not None
        return found

    def report(self, task_id: str, state: TaskState, **fields: object) -> None:
        """An agent's report, stamped by the manager."""
        task = self.tables.tasks.get(task_id)
        assert task is not None
        status = task.status.replaced(
            state=state, timestamp_ns=self.now_ns, applied_at_ns=self.now_ns, **fields
        )
        self.put(task.with_status(status))

    def _apply(self, actions: list[StoreAction], *, at_ns: int = 0) -> None:
        entry = StoreEntry(actions=tuple(actions), proposed_at_ns=at_ns or self.now_ns)
        self.commits.append(apply_entry(self.tables, entry, self.tables.version + 1))
