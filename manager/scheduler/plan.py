"""The scheduler: PENDING tasks to nodes, or the reason why there is none for them.

Tasks of one service version are one group: filters run once per node and group, and a heap gives
the next best node. The error of an unplaced task is only written when it changes. Tasks that come
with a node (global services) are only checked.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from manager.scheduler.company import Company, awaits
from manager.scheduler.constraints import is_of_services, node_matches
from manager.scheduler.copies import copies_of
from manager.scheduler.filters import READY, Pipeline, count_refusals, explain, is_ready, wishes_of
from manager.scheduler.preempt import Preemption, priorities
from manager.scheduler.rank import FAILURES_MAX, FAILURES_WINDOW_NS, EmptiestFirst, Ranking
from manager.scheduler.usage import HostPlace, Usage, host_places
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_wanted, packs
from shoal.model.enums import TaskState
from shoal.model.images import holds, mark_of
from shoal.model.objects import Task
from shoal.model.plan import Plan
from shoal.model.specs import ContainerSpec
from shoal.model.types import Annotations, Placement, TaskStatus

ASSIGNED_MESSAGE = "scheduler assigned task to node"
CONFIRMED_MESSAGE = "scheduler confirmed task can run on preassigned node"
PENDING_MESSAGE = "pending task scheduling"
EVALUATIONS_MAX = 20_000
"""Filter runs per round; what is left waits for the next one, so that no round takes long."""

GroupKey = tuple[str, int, tuple[HostPlace, ...]]
# Tasks of one version may still differ in their ports, when those were changed alone.


def plan(view: View, *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Place every PENDING task that has no node."""
    del ids
    draft = Draft(view)
    Scheduling(draft, now_ns=now_ns).run(all_services)
    return draft.plan()


def all_services(service_id: str) -> bool:
    """Selects every service."""
    del service_id
    return True


class Scheduling:
    """One round. Node usage is counted once, when the first task asks for it.

    stuck: services whose waiting tasks are to be tried again after `preempt.RETRY_NS`.
    """

    def __init__(self, draft: Draft, *, now_ns: int) -> None:
        self.stuck: set[str] = set()
        self._draft = draft
        self._now_ns = now_ns
        self._usage: dict[str, Usage] | None = None
        self._emptiest: EmptiestFirst | None = None
        self._evaluations = 0
        self._ranks = priorities(draft.view)
        self._refused: list[list[Task]] = []
        self._holders: dict[bytes, frozenset[str]] = {}

    def run(self, selects: Callable[[str], bool], changed: Iterable[str] = ()) -> set[str]:
        """Place the tasks of the selected services, and those that want to be near changed ones.

        Where services have priorities, the most important come first, and for those that fit
        nowhere less important ones are stopped.

        Returns: ids of the services that did not get their turn in this round.
        """
        waiting: set[str] = set()
        for group in self._groups(selects, self._annotations(changed)):
            if self._evaluations >= EVALUATIONS_MAX:
                self._draft.more = True
                waiting.add(group[0].service_id)
                continue
            tasks = self._draft.fitting(group)
            if len(tasks) < len(group):
                waiting.add(group[0].service_id)
            if tasks:
                self._take_group(tasks)
        if self._ranks:
            preemption = Preemption(self._draft, self._ranks, now_ns=self._now_ns)
            preemption.run(self._refused)
            self.stuck = preemption.stuck
        return waiting

    def _ready(self) -> list[Usage]:
        return [usage for usage in self._nodes() if is_ready(usage.node)]

    def _order(self) -> EmptiestFirst:
        if self._emptiest is None:
            self._emptiest = EmptiestFirst(self._ready())
        return self._emptiest

    def _annotations(self, service_ids: Iterable[str]) -> list[Annotations]:
        services = self._draft.view.services
        found = (services.get(service_id) for service_id in service_ids)
        return [service.spec.annotations for service in found if service is not None]

    def _holders_of(self, task: Task) -> frozenset[str]:
        """Ids of ready nodes that have said they have the task's image."""
        runtime = task.spec.runtime
        mark = mark_of(runtime.image) if isinstance(runtime, ContainerSpec) else b""
        if mark not in self._holders:
            self._holders[mark] = frozenset(
                usage.node.id
                for usage in self._ready()
                if usage.node.description.images and holds(usage.node.description.images, mark)
            )
        return self._holders[mark]

    def _groups(
        self, selects: Callable[[str], bool], changed: list[Annotations]
    ) -> list[list[Task]]:
        tasks_by_group: dict[GroupKey, list[Task]] = {}
        for task in self._draft.view.unassigned_tasks().values():
            if (
                task.status.state is TaskState.PENDING
                and is_wanted(task)
                and (selects(task.service_id) or awaits(task, changed))
            ):
                key = (task.service_id, task.spec_version.index, host_places(task.endpoint))
                tasks_by_group.setdefault(key, []).append(task)
        return [
            sorted(tasks_by_group[key], key=lambda task: (task.slot, task.id))
            for key in sorted(tasks_by_group, key=lambda key: (-self._rank(key[0]), key))
        ]

    def _rank(self, service_id: str) -> int:
        return self._ranks.get(service_id, 0)

    def _by_id(self) -> dict[str, Usage]:
        if self._usage is None:
            view = self._draft.view
            self._usage = {
                node.id: Usage(node, view.tasks_of_node(node.id).values())
                for node in sorted(view.nodes, key=lambda node: node.id)
            }
        return self._usage

    def _nodes(self) -> Iterable[Usage]:
        return self._by_id().values()

    def _take_group(self, group: list[Task]) -> None:
        """Confirm or place tasks of one version."""
        given = [task for task in group if task.node_id]
        free = [task for task in group if not task.node_id]
        if given:
            self._confirm_group(given)
        if free:
            self._place_group(free)

    def _confirm_group(self, group: list[Task]) -> None:
        """Assign equal tasks to the nodes that they came with, or say why they cannot be."""
        pipeline = Pipeline(group[0], self._draft.view)
        for task in group:
            usage = self._by_id().get(task.node_id)
            self._evaluations += 1
            refusal = READY if usage is None else pipeline.refusal(usage, 0)
            if usage is None or refusal:
                self._refuse([task], explain({refusal: 1}))
            else:
                self._assign(task, usage, CONFIRMED_MESSAGE)

    def _place_group(self, group: list[Task]) -> None:
        """Place equal tasks, or say why they cannot be."""
        view = self._draft.view
        first = group[0]
        pipeline = Pipeline(first, view)
        copies = copies_of(view, first)
        failures = _failures(view, first, self._now_ns)
        preferences = first.spec.placement.preferences
        waiting = deque(group)
        holders = self._holders_of(first)
        fullest_first = packs(first.spec.placement, view.cluster)
        if preferences or fullest_first:
            candidates = self._ready()
        else:
            candidates = self._place_on_new_nodes(waiting, pipeline, copies, failures, holders)
        if not waiting:
            return
        self._evaluations += len(candidates)
        ranking = Ranking(
            [
                usage
                for usage in candidates
                if not pipeline.refusal(usage, copies.get(usage.node.id, 0))
            ],
            copies,
            failures,
            [one.spread_descriptor for one in preferences if one.spread_descriptor],
            packs=fullest_first,
            demerits=_demerits(candidates, first.spec.placement, pipeline.company),
            holders=holders,
        )
        while waiting and self._place(waiting[0], pipeline, ranking, copies):
            waiting.popleft()
        if waiting:
            self._refuse(waiting, self._explain(pipeline, copies))

    def _place_on_new_nodes(
        self,
        waiting: deque[Task],
        pipeline: Pipeline,
        copies: dict[str, int],
        failures: Mapping[str, int],
        holders: Collection[str],
    ) -> list[Usage]:
        """Place tasks on nodes that have none of the service, while there are any.

        Returns: when tasks are left over, all nodes that may still be candidates for them.
        """
        candidates: list[Usage] = []
        nodes = self._order().each(holders)
        while waiting and (usage := next(nodes, None)) is not None:
            node_id = usage.node.id
            self._evaluations += 1
            if copies.get(node_id) or failures.get(node_id, 0) >= FAILURES_MAX:
                candidates.append(usage)
            elif not pipeline.refusal(usage, 0):
                self._assign(waiting.popleft(), usage, ASSIGNED_MESSAGE)
                copies[node_id] = 1
                candidates.append(usage)
        nodes.close()
        return candidates

    def _place(
        self, task: Task, pipeline: Pipeline, ranking: Ranking, copies: dict[str, int]
    ) -> bool:
        def fits(usage: Usage) -> bool:
            self._evaluations += 1
            return not pipeline.refusal(usage, copies.get(usage.node.id, 0))

        def place(usage: Usage) -> None:
            self._assign(task, usage, ASSIGNED_MESSAGE)

        return ranking.take(fits, place)

    def _explain(self, pipeline: Pipeline, copies: dict[str, int]) -> str:
        return explain(
            count_refusals(
                pipeline.refusal(usage, copies.get(usage.node.id, 0)) for usage in self._nodes()
            )
        )

    def _assign(self, task: Task, usage: Usage, message: str) -> None:
        wishes = task.spec.resources.reservations.generic
        placed = task.replaced(
            node_id=usage.node.id,
            assigned_generic_resources=(usage.pick(wishes) or ()) if wishes else (),
        ).with_status(
            TaskStatus(state=TaskState.ASSIGNED, timestamp_ns=self._now_ns, message=message)
        )
        usage.add(placed)
        self._draft.update(placed)

    def _refuse(self, tasks: Iterable[Task], error: str) -> None:
        """Equal tasks stay where they are."""
        self._refused.append([*tasks])
        for task in self._refused[-1]:
            if task.status.error != error and self._draft.room(task):
                status = task.status.replaced(
                    error=error, message=PENDING_MESSAGE, timestamp_ns=self._now_ns
                )
                self._draft.update(task.with_status(status))


def _demerits(
    candidates: Iterable[Usage], placement: Placement, company: Company
) -> dict[str, int]:
    """Wishes to prefer or avoid nodes that they do not meet, by node."""
    wishes = [
        (constraints, [one for one in constraints if is_of_services(one.key)], liked)
        for constraints, liked in wishes_of(placement)
    ]
    if not wishes:
        return {}
    return {
        usage.node.id: sum(
            (node_matches(usage.node, constraints) and company.meets(usage, about_others))
            is not liked
            for constraints, about_others, liked in wishes
        )
        for usage in candidates
    }


def _failures(view: View, task: Task, now_ns: int) -> Counter[str]:
    """Recent failures of the task's service version by node."""
    since_ns = now_ns - FAILURES_WINDOW_NS
    return Counter(
        sibling.node_id
        for sibling in view.tasks_of_service(task.service_id).values()
        if sibling.status.state in {TaskState.FAILED, TaskState.REJECTED}
        and sibling.spec_version == task.spec_version
        and (sibling.status.applied_at_ns or sibling.status.timestamp_ns) >= since_ns
    )
