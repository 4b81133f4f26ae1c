"""Preemption: a task that fits nowhere may take the place of tasks of lower priority.

Only services with a priority take part: where none has one, nothing here ever happens. Equals are
never stopped for each other. What is stopped is as little as does: on one node the least important
tasks, the youngest first, and not more than the room needs; of the nodes the one where least is
lost. Spared are services that would be left with more places unserved than their disruption budget
says, and tasks that their policy lets run once only.

Nothing is remembered between rounds. Room that is about to come free, because tasks on the node are
stopping, is counted as free here and given away once, so that nobody is stopped twice for one task;
the scheduler itself gives room to the more important tasks first when it has come free. Bounded:
PREEMPTIONS_MAX tasks are stopped per round; of large clusters a round sees WINDOW nodes, those with
stopping tasks first, and the next try, RETRY_NS later, others; NODES_MAX are looked at closely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from manager.scheduler.copies import copies_of
from manager.scheduler.filters import Pipeline, is_ready
from manager.scheduler.usage import Usage
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import RestartCondition, TaskState
from shoal.model.objects import Node, Service, Task
from shoal.model.types import RestartPolicy

PREEMPTIONS_MAX = 20
NODES_MAX = 32
EVALUATIONS_MAX = 5_000
"""Nodes looked at in one round, for all tasks together."""
WINDOW = 256
RETRY_NS = 2_000_000_000
"""A task for which nobody could be stopped is tried again: budgets and other nodes may help it."""
PREEMPTED_NOTE = "task.preempted"
REASON = "preempted by service {name}, which has priority {priority}"

Loss = tuple[int, int, str]
"""What taking a place costs: the highest priority that is stopped, how many, and the node."""


def priorities(view: View) -> Mapping[str, int]:
    """Priority by service; empty where all are equal, and nobody can be preempted."""
    found = {service.id: service.spec.priority for service in view.services}
    return found if len(set(found.values())) > 1 else {}


class Preemption:
    """One round. `stuck`: ids of services with tasks that are to be tried again after RETRY_NS."""

    def __init__(self, draft: Draft, ranks: Mapping[str, int], *, now_ns: int) -> None:
        self.stuck: set[str] = set()
        self._draft = draft
        self._ranks = ranks
        self._now_ns = now_ns
        self._seen: list[str] | None = None
        self._grounds: dict[str, _Ground] = {}
        self._left = PREEMPTIONS_MAX
        self._evaluations = 0

    def run(self, groups: Iterable[Sequence[Task]]) -> None:
        """Make room for waiting tasks, in groups of equal ones, the most important first."""
        for group in groups:
            rank = self._ranks.get(group[0].service_id)
            if rank is None or rank <= min(self._ranks.values()):
                continue
            pipeline = Pipeline(group[0], self._draft.view)
            copies = Counter(copies_of(self._draft.view, group[0]))
            for task in group:
                exhausted = not self._left or self._evaluations >= EVALUATIONS_MAX
                if exhausted or not self._make_room(task, rank, pipeline, copies):
                    self.stuck.add(task.service_id)
                    break

    def _make_room(self, task: Task, rank: int, pipeline: Pipeline, copies: Counter[str]) -> bool:
        """Whether the task will fit somewhere, if need be after others have been stopped."""
        nodes = [task.node_id] if task.node_id else self._window()
        promising: list[tuple[int, _Ground]] = []
        for node_id in nodes:
            ground = self._ground(node_id)
            if ground is None:
                continue
            self._evaluations += 1
            if not pipeline.refusal(ground.usage, copies[node_id]):
                ground.claim(task)
                copies[node_id] += 1
                return True
            lower = len(ground.below(rank))
            if lower and not pipeline.refusal(ground.at_best(rank), copies[node_id]):
                promising.append((lower, ground))
        promising.sort(key=lambda one: (-one[0], one[1].node.id))
        found = [
            (loss, victims, ground)
            for _, ground in promising[:NODES_MAX]
            for loss, victims in self._victims(rank, ground, pipeline, copies)
        ]
        if not found:
            return False
        _, victims, ground = min(found, key=lambda one: one[0])
        if len(victims) > self._left or not self._draft.room(*victims):
            return False
        self._stop(victims, task, rank)
        ground.drop(victims)
        ground.claim(task)
        copies[ground.node.id] += 1
        return True

    def _window(self) -> list[str]:
        """Ids of the nodes that this round looks at; each time of trying has others."""
        if self._seen is None:
            view = self._draft.view
            ready = sorted(node.id for node in view.nodes if is_ready(node))
            start = self._now_ns // RETRY_NS * WINDOW % max(len(ready), 1)
            turned = ready[start:] + ready[:start] if len(ready) > WINDOW else ready
            stopping = [
                node_id
                for node_id in turned
                if any(not is_wanted(task) for task in view.tasks_of_node(node_id).values())
            ]
            self._seen = list(dict.fromkeys(stopping + turned))[:WINDOW]
        return self._seen

    def _ground(self, node_id: str) -> _Ground | None:
        node = self._draft.view.nodes.get(node_id)
        if node is None or not is_ready(node):
            return None
        if node_id not in self._grounds:
            tasks = self._draft.view.tasks_of_node(node_id).values()
            self._grounds[node_id] = _Ground(node, tasks, self._ranks)
        return self._grounds[node_id]

    def _victims(
        self, rank: int, ground: _Ground, pipeline: Pipeline, copies: Counter[str]
    ) -> Iterable[tuple[Loss, list[Task]]]:
        """The fewest tasks that must go from one node, within what their services may lose."""
        node_id = ground.node.id
        chosen: list[Task] = []
        taken: Counter[str] = Counter()
        for task in ground.below(rank):
            if self._spares(task, taken[task.service_id]):
                continue
            chosen.append(task)
            taken[task.service_id] += 1
            if not pipeline.refusal(ground.without(chosen), copies[node_id]):
                break
        else:
            return
        for task in reversed(chosen[:-1]):  # the most important first: who need not go stays
            fewer = [one for one in chosen if one is not task]
            if not pipeline.refusal(ground.without(fewer), copies[node_id]):
                chosen = fewer
        highest = max(self._ranks[task.service_id] for task in chosen)
        yield (highest, len(chosen), node_id), chosen

    def _spares(self, task: Task, taken: int) -> bool:
        """Whether the task's service may not lose one more, besides `taken` ones."""
        view = self._draft.view
        service = view.services.get(task.service_id)
        if service is None or service.pending_delete:
            return False
        policy = task.spec.restart or RestartPolicy()
        if policy.condition is RestartCondition.NONE and task.status.state >= TaskState.STARTING:
            return True
        budget = service.spec.disruption_budget
        if budget is None or task.status.state is not TaskState.RUNNING:
            return False
        return unserved(view, service) + taken >= budget

    def _stop(self, victims: Sequence[Task], task: Task, rank: int) -> None:
        service = self._draft.view.services.get(task.service_id)
        name = task.service_id if service is None else service.spec.annotations.name
        reason = REASON.format(name=name, priority=rank)
        for victim in victims:
            stopped = victim.with_desired_state(TaskState.SHUTDOWN).replaced(stop_reason=reason)
            self._draft.update(stopped)
            self._draft.note(
                PREEMPTED_NOTE,
                task_id=victim.id,
                service_id=victim.service_id,
                node_id=victim.node_id,
                by_service_id=task.service_id,
            )
        self._left -= len(victims)


class _Ground:
    """What a node will have when everything that is stopping there has ended."""

    def __init__(self, node: Node, tasks: Iterable[Task], ranks: Mapping[str, int]) -> None:
        self.node = node
        self._ranks = ranks
        self._tasks = {task.id: task for task in tasks if is_wanted(task) and not is_terminal(task)}
        self._claimed: list[Task] = []
        self._below: dict[int, list[Task]] = {}
        self._at_best: dict[int, Usage] = {}
        self.usage = self.without(())

    def at_best(self, rank: int) -> Usage:
        """What is used when all tasks of lower priority have gone."""
        if rank not in self._at_best:
            self._at_best[rank] = self.without(self.below(rank))
        return self._at_best[rank]

    def without(self, tasks: Sequence[Task]) -> Usage:
        """What is used when these tasks have gone."""
        gone = {task.id for task in tasks}
        kept = (task for task_id, task in self._tasks.items() if task_id not in gone)
        usage = Usage(self.node, kept)
        for task in self._claimed:
            wishes = task.spec.resources.reservations.generic
            usage.add(task.replaced(assigned_generic_resources=usage.pick(wishes) or ()))
        return usage

    def below(self, rank: int) -> list[Task]:
        """Tasks of lower priority, those that are missed least first."""
        if rank not in self._below:
            found = (
                task
                for task in self._tasks.values()
                if task.service_id in self._ranks and self._ranks[task.service_id] < rank
            )
            self._below[rank] = sorted(
                found,
                key=lambda task: (self._ranks[task.service_id], -task.meta.created_at_ns, task.id),
            )
        return self._below[rank]

    def drop(self, tasks: Iterable[Task]) -> None:
        """These are stopping now."""
        for task in tasks:
            del self._tasks[task.id]
        self._forget()

    def claim(self, task: Task) -> None:
        """Count a waiting task that will have its room here."""
        there = task.status.replaced(state=TaskState.ASSIGNED)
        self._claimed.append(task.replaced(node_id=self.node.id, status=there))
        self._forget()

    def _forget(self) -> None:
        self._below.clear()
        self._at_best.clear()
        self.usage = self.without(())


def yielding(view: View, service: Service) -> Iterator[str]:
    """How each less important service gives way to this one's waiting tasks, for people."""
    for other in sorted(view.services, key=lambda one: (one.spec.priority, one.id)):
        if other.spec.priority >= service.spec.priority:
            continue
        tasks = [task for task in view.tasks_of_service(other.id).values() if task.node_id]
        stopping = sum(bool(task.stop_reason) and not is_terminal(task) for task in tasks)
        budget, lacks = other.spec.disruption_budget, unserved(view, other)
        name = f"service {other.spec.annotations.name} of priority {other.spec.priority}"
        if stopping:
            yield f"{name}: {stopping} of its tasks are stopping to make room"
        elif budget is not None and lacks >= budget:
            spent = f"its disruption budget is {budget}, {lacks} places are unserved"
            yield f"{name} is spared: {spent}"
        elif any(is_wanted(task) and not is_terminal(task) for task in tasks):
            yield f"{name} may give way, where that makes room enough"


def unserved(view: View, service: Service) -> int:
    """Places of a service where none of its tasks runs that is to go on running."""
    places: set[tuple[int, str]] = set()
    served: set[tuple[int, str]] = set()
    for task in view.tasks_of_service(service.id).values():
        if is_terminal(task):
            continue
        place = (task.slot, "" if task.slot else task.node_id)
        if is_wanted(task) or task.stop_reason:
            places.add(place)
        if is_wanted(task) and task.status.state is TaskState.RUNNING:
            served.add(place)
    return len(places - served)
