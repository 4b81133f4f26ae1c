"""The simulation with services of every mode, nodes that change labels, and leaders that change."""

from __future__ import annotations

import random

from typing_extensions import override

from manager.orchestrator.ground import Ground
from manager.orchestrator.handover.linger import lingers
from manager.orchestrator.jobs.plan import is_open
from manager.orchestrator.slots import Slot, ended_by_itself, node_is_lost, service_slots
from manager.orchestrator.update.dirty import is_dirty
from manager.reconcile.agenda import Agenda
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import (
    NodeAvailability,
    NodeState,
    RestartCondition,
    ReturnAction,
    TaskState,
)
from shoal.model.modes import concurrency, is_global, is_job, is_of_this_iteration, iteration_of
from shoal.model.objects import Node, Service, Task
from shoal.model.specs import (
    GlobalJobMode,
    GlobalMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
    TaskSpec,
)
from shoal.model.types import JobStatus, Placement, RestartPolicy
from tests.unit.manager.reconcile.simulated import Simulation

_ZONES = ("a", "b")


class ModesSimulation(Simulation):
    """Every service has a mode of its own; jobs' containers end, well or not."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.mode_random = random.Random(seed)
        self.modes: dict[str, ServiceMode] = {}

    # What users do.

    @override
    def _born(self, service: Service) -> Service:
        choose = self.mode_random.choice
        mode = choose(
            [service.spec.mode, GlobalMode(), self._scaled_job(), GlobalJobMode(), GlobalMode()]
        )
        self.modes[service.id] = mode
        spec = service.spec.replaced(mode=mode, task=self._fitted(service.id, service.spec.task))
        if not is_job(mode):
            return service.replaced(spec=spec)
        ttl_ns = choose([None, None, 30 * 10**9])
        spec = spec.replaced(update=None, rollback=None, ttl_after_finish_ns=ttl_ns)
        return service.replaced(
            spec=spec, job_status=JobStatus(last_execution_at_ns=self.cell.now_ns)
        )

    @override
    def _change(self, service: Service, **fields: object) -> None:
        if not is_job(service.spec.mode):
            super()._change(service, **fields)
            return
        fields.pop("update", None)
        iteration = (iteration_of(service) or 0) + 1
        status = JobStatus(iteration=iteration, last_execution_at_ns=self.cell.now_ns)
        super()._change(service.replaced(job_status=status), **fields)

    @override
    def _roll_back(self, service: Service) -> None:
        if not is_job(service.spec.mode):
            super()._roll_back(service)

    @override
    def _scaled(self, service: Service) -> ServiceMode:
        match service.spec.mode:
            case ReplicatedMode():
                return super()._scaled(service)
            case ReplicatedJobMode():
                return self._scaled_job()
            case mode:
                return mode

    def _scaled_job(self) -> ReplicatedJobMode:
        total = self.mode_random.randint(0, 6)
        return ReplicatedJobMode(
            max_concurrent=self.mode_random.randint(0, total), total_completions=total
        )

    @override
    def _task(self, service_id: str) -> TaskSpec:
        return self._fitted(service_id, super()._task(service_id))

    def _fitted(self, service_id: str, task: TaskSpec) -> TaskSpec:
        mode = self.modes.get(service_id)
        if mode is None or not is_global(mode):
            return task
        zone = self.mode_random.choice(["", "", *_ZONES])
        constraints = (f"node.labels.zone=={zone}",) if zone else ()
        return task.replaced(placement=Placement(constraints=constraints))

    # What happens to nodes, containers and managers.

    @override
    def disaster(self) -> None:
        super().disaster()
        if self.mode_random.random() < 0.2:
            nodes = sorted(self.cell.tables.nodes, key=lambda row: row.id)
            self._label(self.mode_random.choice(nodes))
        if self.mode_random.random() < 0.1:
            self.agenda = Agenda()  # of a new leader

    def _label(self, node: Node) -> None:
        labels = {"zone": self.mode_random.choice(_ZONES)}
        annotations = node.spec.annotations.replaced(labels=labels)
        self.cell.put(node.replaced(spec=node.spec.replaced(annotations=annotations)))

    @override
    def _climb(self, task: Task) -> None:
        ends = task.desired_state is TaskState.COMPLETE and self.mode_random.random() < 0.5
        if ends and task.status.state is TaskState.RUNNING:
            self._report(task, TaskState.COMPLETE)
        else:
            super()._climb(task)

    # What must hold.

    @override
    def check(self) -> None:
        super().check()
        for service in self.cell.tables.services:
            if is_job(service.spec.mode):
                self._check_work(service)

    def _check_work(self, service: Service) -> None:
        """Nothing is begun that is done already, and not more at once than allowed."""
        mode, under_way = service.spec.mode, 0
        for slot in service_slots(self.cell.tables, service):
            done = [task for task in slot.tasks if task.status.state is TaskState.COMPLETE]
            for task in slot.tasks:
                under_way += is_wanted(task) and not is_terminal(task)
                assert all(
                    task.meta.created_at_ns <= other.status.applied_at_ns for other in done
                ), slot
        if isinstance(mode, ReplicatedJobMode) and service.id not in self.keeping:
            assert under_way <= concurrency(mode), service

    @override
    def _place(self, task: Task) -> object:
        service = self.cell.tables.services.get(task.service_id)
        mode = self.modes.get(task.service_id, ReplicatedMode())
        iteration = None if service is None else task.job_iteration
        return (task.node_id if is_global(mode) else task.slot), iteration

    @override
    def _check_rest(self) -> None:
        tables = self.cell.tables
        for task in tables.tasks:
            mode = self.modes.get(task.service_id, ReplicatedMode())
            if not is_wanted(task):
                continue
            completed = is_job(mode) and task.status.state is TaskState.COMPLETE
            assert not is_terminal(task) or completed, task
            lost = node_is_lost(tables, task) and not completed
            stays = isinstance(mode, GlobalJobMode) and tables.nodes.get(task.node_id) is not None
            assert not lost or stays or self._may_be_away(task), task
        for service in tables.services:
            slots = service_slots(tables, service)
            if service.pending_delete:
                assert not slots, service
            else:
                self._check_places(service, slots)

    def _check_places(self, service: Service, slots: list[Slot]) -> None:
        match service.spec.mode:
            case ReplicatedMode(replicas=replicas):
                assert len(slots) == replicas, service
            case ReplicatedJobMode() as mode:
                ground = Ground(self.cell.tables, service)
                work = [slot for slot in slots if is_open(slot, ground)]
                assert len(slots) <= mode.total_completions, service
                full = len(work) >= concurrency(mode) or len(slots) == mode.total_completions
                assert full, service
                for task in self.cell.tasks(service.id):
                    current = is_of_this_iteration(service, task)
                    assert current or task.desired_state is TaskState.REMOVE, task
            case _:
                nodes = Ground(self.cell.tables, service).node_ids()
                assert {slot.node_id for slot in slots} >= set(nodes), service
                self._check_displaced(service)

    def _check_displaced(self, service: Service) -> None:
        """Nothing is wanted where it must not be."""
        ground = Ground(self.cell.tables, service)
        for task in self.cell.tasks(service.id):
            if is_wanted(task) and not is_terminal(task):
                stays = lingers(self.cell.tables, service, task, now_ns=self.cell.now_ns)
                assert not ground.must_leave(task) or stays or self._may_be_away(task), task

    @override
    def _may_be_away(self, task: Task) -> bool:
        service = self.cell.tables.services.get(task.service_id)
        policy = None if service is None else service.spec.task.disconnect
        node = self.cell.tables.nodes.get(task.node_id)
        mode = self.modes.get(task.service_id, ReplicatedMode())
        if is_global(mode) and policy is not None and node is not None and not is_terminal(task):
            stays = policy.on_return is ReturnAction.KEEP_ORIGINAL  # nobody can replace it
            if stays and node.spec.availability is not NodeAvailability.DRAIN:
                return True
        return super()._may_be_away(task)

    @override
    def check_goal(self) -> None:
        for service in self.cell.tables.services:
            if service_slots(self.cell.tables, service):  # else no node fits
                assert service.spec.ttl_after_finish_ns is None, "it finished long ago"
        for node in self.cell.tables.nodes:
            assert node.status.state is NodeState.READY
        super().check_goal()

    @override
    def _check_service(self, service: Service) -> None:
        mode = service.spec.mode
        if isinstance(mode, ReplicatedMode):
            super()._check_service(service)
            return
        slots = service_slots(self.cell.tables, service)
        ground = Ground(self.cell.tables, service)
        for slot in slots:
            if not ground.takes(slot):
                assert all(is_terminal(task) for task in slot.wanted), slot
            elif is_job(mode):
                assert slot.completed or self._gave_up(slot), slot
            elif self._gave_up(slot):
                assert len(slot.wanted) <= 1, slot  # a start-first update leaves the old task
            else:
                (task,) = slot.wanted
                assert task.status.state is TaskState.RUNNING, task
                assert not is_dirty(self.cell.tables, service, task), task
        if isinstance(mode, ReplicatedJobMode):
            assert len(slots) == mode.total_completions, service

    def _gave_up(self, slot: Slot) -> bool:
        """Whether the restart policy ends the attempts of the slot."""
        policy = slot.newest.spec.restart or RestartPolicy()
        finite = policy.max_attempts or policy.condition is not RestartCondition.ANY
        ended = is_terminal(slot.newest) and (
            ended_by_itself(slot.newest) or policy.condition is RestartCondition.NONE
        )
        return bool(finite) and ended
