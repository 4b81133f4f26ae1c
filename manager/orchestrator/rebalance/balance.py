"""How evenly the tasks of a service lie on the nodes, and the move that evens them out the most.

Measured by the scheduler's own order: first the branches of the spread preferences, one level after
the other, then wishes to prefer or avoid nodes that are not met, then the service's tasks per node,
then all tasks per node. Of counts the sum of squares is taken. A move is only made when the first
of these sums that it changes gets smaller; so each lowers one number of the whole cluster, in that
order of importance, and moving comes to an end whatever is moved when: nothing goes to and fro.

Tasks that are handed over count where they go to, not where they still are.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from manager.orchestrator.rebalance.eligible import is_movable
from manager.scheduler.constraints import label_of, node_matches
from manager.scheduler.filters import Pipeline, is_ready, wishes_of
from manager.scheduler.usage import Usage
from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Node, Service, Task
from shoal.model.row import Row

FAILURES_WINDOW_NS = 300_000_000_000
"""A node on which a task of the version failed within this time gets none by a move."""
EVALUATIONS_MAX = 2_000
"""Filter runs on behalf of one `Balance`; what is left is looked at another time."""
LOOKS_PER_EVALUATION = 10
"""Nodes whose numbers are looked at for the price of one filter run."""

_Branches = tuple[str, ...]
_Group = tuple[_Branches, int]
_Gain = tuple[int, ...]
_COMPLETE = TaskState.COMPLETE
_RUNNING = TaskState.RUNNING


class Move(Row, frozen=True):
    """One task that goes from a fuller to an emptier node."""

    task: Task
    to_node_id: str


class Balance:
    """Counts of a view; `make` counts a move that was decided, and the next one builds on it."""

    def __init__(self, view: View, *, now_ns: int, settled_ns: int = 0) -> None:
        """settled_ns: nodes whose row changed within that time before now get nothing."""
        self._view = view
        self._now_ns = now_ns
        self._settled_ns = settled_ns
        self._moved: set[str] = set()
        self._arrivals: list[tuple[str, str]] = []
        self._leaving = {
            task.replaces_task_id for task in view.tasks if task.takes_over and is_wanted(task)
        }
        self._totals = self._count_all()
        self._usage: dict[str, Usage] = {}
        self._open = [node for node in view.nodes if is_ready(node) and self._is_settled(node)]
        self.evaluations = 0

    def best(self, service: Service) -> Move | None:
        """The move of a task of the service that evens out the most; None: as even as can be."""
        tasks = [
            task
            for task in self._view.tasks_of_service(service.id).values()
            if self._counts(task) and task.id not in self._moved
        ]
        sources = self._sources(service, tasks)
        if not sources:
            return None
        sums = _Sums(service, self._view.nodes, tasks, self._arrived(service))
        targets = self._targets(service, next(iter(sources.values())), sums)
        best: tuple[_Gain, str, str] | None = None
        for source in _fullest(sources, sums, self._totals):
            for target in targets:
                if source != target:
                    gain = (*sums.gain(source, target), self._total_gain(source, target))
                    choice = (gain, source, target)
                    best = choice if best is None else min(best, choice)
        if best is None or best[0] >= (0,) * len(best[0]):
            return None
        return Move(task=sources[best[1]], to_node_id=best[2])

    def make(self, move: Move) -> None:
        """Count a move as made."""
        self._moved.add(move.task.id)
        self._arrivals.append((move.task.service_id, move.to_node_id))
        self._totals[move.task.node_id] -= 1
        self._totals[move.to_node_id] += 1
        usage = self._usage_of(move.to_node_id)
        usage.add(move.task.replaced(node_id=move.to_node_id))

    def _arrived(self, service: Service) -> list[str]:
        return [node_id for service_id, node_id in self._arrivals if service_id == service.id]

    def _counts(self, task: Task) -> bool:
        return (
            bool(task.node_id)
            and is_wanted(task)
            and not is_terminal(task)
            and task.id not in self._leaving
            and not (task.takes_over and task.replaces_task_id in self._moved)
        )

    def _sources(self, service: Service, tasks: Iterable[Task]) -> dict[str, Task]:
        """The youngest task that may be moved, of each node that has one."""
        found: dict[str, Task] = {}
        for task in sorted(tasks, key=lambda task: (task.meta.created_at_ns, task.id)):
            if is_movable(self._view, service, task):
                found[task.node_id] = task
        return found

    def _targets(self, service: Service, like: Task, sums: _Sums) -> list[str]:
        """Of the nodes of each group the emptiest that would take a task like this one."""
        failed = _failed_on(self._view, service, since_ns=self._now_ns - FAILURES_WINDOW_NS)
        groups: dict[_Group, list[tuple[int, int, str]]] = {}
        for node in self._open:
            if node.id not in failed:
                key = (sums.copies[node.id], self._totals[node.id], node.id)
                groups.setdefault(sums.group(node.id), []).append(key)
        self.evaluations += len(self._open) // LOOKS_PER_EVALUATION
        pipeline = Pipeline(like, self._view)
        found: list[str] = []
        for waiting in groups.values():
            heapq.heapify(waiting)
            while waiting:
                copies, _, node_id = heapq.heappop(waiting)
                self.evaluations += 1
                if not pipeline.refusal(self._usage_of(node_id), copies):
                    found.append(node_id)
                    break
        return found

    def _count_all(self) -> Counter[str]:
        """Tasks by node. The one pass over every task of the cluster."""
        leaving = self._leaving
        return Counter(
            task.node_id
            for task in self._view.tasks
            if task.desired_state <= _COMPLETE
            and task.status.state <= _RUNNING
            and task.node_id
            and task.id not in leaving
        )

    def _is_settled(self, node: Node) -> bool:
        return not self._settled_ns or node.meta.updated_at_ns + self._settled_ns <= self._now_ns

    def _total_gain(self, source: str, target: str) -> int:
        return _gain_of(self._totals[source], self._totals[target])

    def _usage_of(self, node_id: str) -> Usage:
        usage = self._usage.get(node_id)
        if usage is None:
            node = self._view.nodes.get(node_id) or Node(id=node_id)
            usage = Usage(node, self._view.tasks_of_node(node_id).values())
            self._usage[node_id] = usage
        return usage


class _Sums:
    """The counts of one service that a move changes."""

    def __init__(
        self, service: Service, nodes: Iterable[Node], tasks: Iterable[Task], arrived: Iterable[str]
    ) -> None:
        placement = service.spec.task.placement
        preferences = [one.spread_descriptor for one in placement.preferences]
        descriptors = [descriptor for descriptor in preferences if descriptor]
        wishes = wishes_of(placement)
        self._paths = {
            node.id: tuple(label_of(node, descriptor) for descriptor in descriptors)
            for node in nodes
        }
        self._demerits = {
            node.id: sum(node_matches(node, wish) is not liked for wish, liked in wishes)
            for node in (nodes if wishes else ())
        }
        self.copies: Counter[str] = Counter(task.node_id for task in tasks)
        self.copies.update(arrived)
        self._branches: Counter[_Branches] = Counter()
        for node_id, count in self.copies.items():
            path = self._paths.get(node_id, ())
            for depth in range(1, len(path) + 1):
                self._branches[path[:depth]] += count

    def group(self, node_id: str) -> _Group:
        """What nodes have in common that differ in their numbers of tasks alone."""
        return self._paths[node_id], self._demerits.get(node_id, 0)

    def gain(self, source: str, target: str) -> Iterator[int]:
        """How each sum changes, the most important first; less is better."""
        left, right = self._paths[source], self._paths[target]
        for depth in range(1, len(left) + 1):
            one, other = left[:depth], right[:depth]
            yield 0 if one == other else _gain_of(self._branches[one], self._branches[other])
        yield self._demerits.get(target, 0) - self._demerits.get(source, 0)
        yield _gain_of(self.copies[source], self.copies[target])


def _gain_of(source: int, target: int) -> int:
    """Half the change of the sum of squares when one goes over."""
    return target - source + 1


def _fullest(node_ids: Iterable[str], sums: _Sums, totals: Counter[str]) -> Sequence[str]:
    """Of the nodes of each group the fullest: no other is part of a better move."""
    first: dict[_Group, tuple[int, int, str]] = {}
    for node_id in node_ids:
        key = (-sums.copies[node_id], -totals[node_id], node_id)
        group = sums.group(node_id)
        first[group] = min(first.get(group, key), key)
    return [node_id for _, _, node_id in first.values()]


def _failed_on(view: View, service: Service, *, since_ns: int) -> set[str]:
    """Nodes on which a task of the service's version failed lately."""
    return {
        task.node_id
        for task in view.tasks_of_service(service.id).values()
        if task.status.state in {TaskState.FAILED, TaskState.REJECTED}
        and task.spec_version == service.spec_version
        and (task.status.applied_at_ns or task.status.timestamp_ns) >= since_ns
    }
