"""What a node has left: reservations, host-mode ports and the number of tasks on it.

Counted are reservations of tasks that are assigned and have not ended, also of those that are being
stopped: their memory is not free before they are. The number of tasks counts only wanted ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from manager.scheduler.constraints import keeps_away
from shoal.model.enums import PortProtocol, PublishMode, TaskState
from shoal.model.objects import Node, Task
from shoal.model.published import is_at_odds
from shoal.model.specs import TaskSpec
from shoal.model.types import Endpoint, GenericResource, PortConfig, Resources

PortKey = tuple[PortProtocol, int]
HostPlace = tuple[PortProtocol, int, str, str]
"""Protocol, number, and the address or interface."""
_ASSIGNED = TaskState.ASSIGNED
_RUNNING = TaskState.RUNNING
_COMPLETE = TaskState.COMPLETE
_NO_WISH = TaskSpec().resources


class Usage:
    """One node in a scheduling round; the round's own placements are added as they are made."""

    __slots__ = ("choosy", "generic_counts", "generic_names", "giving_way", "memory_bytes",
                 "nano_cpus", "node", "ports", "tasks")  # fmt: skip

    def __init__(self, node: Node, tasks: Iterable[Task]) -> None:
        resources = node.description.resources
        self.node = node
        self.tasks = 0
        self.nano_cpus = resources.nano_cpus
        self.memory_bytes = resources.memory_bytes
        self.generic_counts: dict[str, int] = {}
        self.generic_names: dict[str, set[str]] = {}
        for generic in resources.generic:
            self._give(generic)
        self.ports: dict[PortKey, list[PortConfig]] = {}
        self.choosy: list[Task] = []
        """Tasks that keep away from some other services."""
        self.giving_way: list[Task] = []
        """Tasks that are being stopped for more important ones."""
        for task in tasks:
            self.add(task)

    def add(self, task: Task) -> None:
        """Count a task that is on the node."""
        if not _ASSIGNED <= task.status.state <= _RUNNING:
            return
        self.tasks += task.desired_state <= _COMPLETE
        resources = task.spec.resources
        if resources is not _NO_WISH:  # the common case: this is the hot path of large clusters
            self.nano_cpus -= resources.reservations.nano_cpus
            self.memory_bytes -= resources.reservations.memory_bytes
        for generic in task.assigned_generic_resources:
            if generic.named_value:
                self.generic_names.get(generic.kind, set()).discard(generic.named_value)
            else:
                left = self.generic_counts.get(generic.kind, 0) - generic.count
                self.generic_counts[generic.kind] = left
        constraints = task.spec.placement.constraints
        if constraints and keeps_away(constraints):
            self.choosy.append(task)
        if task.stop_reason:
            self.giving_way.append(task)
        if task.endpoint is not None and task.endpoint.ports:
            for port in host_ports(task.endpoint):
                self.ports.setdefault(_key(port), []).append(port)

    def has_room(self, wish: Resources) -> bool:
        """Whether these reservations fit into what is left."""
        if wish.nano_cpus and wish.nano_cpus > self.nano_cpus:
            return False
        if wish.memory_bytes and wish.memory_bytes > self.memory_bytes:
            return False
        return not wish.generic or self.pick(wish.generic) is not None

    @property
    def fullness(self) -> int:
        """Millionths that are reserved of CPUs or memory, whichever is scarcer."""
        own = self.node.description.resources
        return max(
            _share(own.nano_cpus - self.nano_cpus, own.nano_cpus),
            _share(own.memory_bytes - self.memory_bytes, own.memory_bytes),
        )

    def can_publish(self, ports: Iterable[PortConfig]) -> bool:
        """Whether nobody on the node has a host-mode port that is at odds with one of these."""
        return not any(is_at_odds(port, self.ports.get(_key(port), ())) for port in ports)

    def pick(self, wishes: Iterable[GenericResource]) -> tuple[GenericResource, ...] | None:
        """The pieces that meet a wish for generic resources; None when there are too few.

        Named pieces are given in the order of their names, so that equal input gives equal output.
        """
        picked: list[GenericResource] = []
        for kind, count in sorted(_wanted_counts(wishes).items()):
            names = sorted(self.generic_names.get(kind, ()))
            if len(names) >= count:
                picked += [GenericResource(kind=kind, named_value=name) for name in names[:count]]
            elif self.generic_counts.get(kind, 0) >= count:
                picked.append(GenericResource(kind=kind, count=count))
            else:
                return None
        return tuple(picked)

    def short_of(self, wishes: Iterable[GenericResource]) -> list[tuple[str, int]]:
        """Kinds of generic resources of which too little is left, and how much is wished."""
        return [
            (kind, count)
            for kind, count in sorted(_wanted_counts(wishes).items())
            if self.left_of(kind) < count
        ]

    def left_of(self, kind: str) -> int:
        """The most of a kind that one task could get: named pieces and counted ones do not mix."""
        return max(len(self.generic_names.get(kind, ())), self.generic_counts.get(kind, 0))

    def still_has(self, assigned: Iterable[GenericResource]) -> bool:
        """Whether generic resources that a task was given are there and not counted yet."""
        for generic in assigned:
            if generic.named_value:
                if generic.named_value not in self.generic_names.get(generic.kind, ()):
                    return False
            elif generic.count > self.generic_counts.get(generic.kind, 0):
                return False
        return True

    def _give(self, generic: GenericResource) -> None:
        if generic.named_value:
            self.generic_names.setdefault(generic.kind, set()).add(generic.named_value)
        else:
            have = self.generic_counts.get(generic.kind, 0)
            self.generic_counts[generic.kind] = have + generic.count


def host_ports(endpoint: Endpoint | None) -> list[PortConfig]:
    """The ports that a task with this endpoint binds on its node."""
    if endpoint is None:
        return []
    return [
        port
        for port in endpoint.ports
        if port.publish_mode is PublishMode.HOST and port.published_port
    ]


def host_places(endpoint: Endpoint | None) -> tuple[HostPlace, ...]:
    """The same, as far as tasks compete for them; in an order."""
    return tuple(
        (port.protocol, port.published_port, port.address, port.interface)
        for port in host_ports(endpoint)
    )


def _share(part: int, whole: int) -> int:
    return part * 1_000_000 // whole if whole > 0 else 0


def _key(port: PortConfig) -> PortKey:
    return port.protocol, port.published_port


def _wanted_counts(wishes: Iterable[GenericResource]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for wish in wishes:
        counts[wish.kind] += 1 if wish.named_value else wish.count
    return counts
