"""The simulation of every mode with changes as the control API writes them.

Users go back to revisions, halt updates and resume them; images hang or flap while there is
trouble, restarts back off, updates have deadlines, and services have host-mode ports.
"""

from __future__ import annotations

import random
from contextlib import suppress

from typing_extensions import override

from manager.controlapi.services import (
    create_service,
    pause_update,
    remove_service,
    roll_back_service,
    update_service,
)
from manager.orchestrator.revisions import KEPT, revisions_of
from shoal.errors import SwarmError
from shoal.model.defaults import is_wanted, restart_backoff_max_ns
from shoal.model.enums import FailureAction, TaskState, UpdateState
from shoal.model.modes import is_job
from shoal.model.objects import Service, Task
from shoal.model.plan import Change
from shoal.model.specs import ReplicatedMode, ServiceMode, TaskSpec
from shoal.model.types import PortConfig, RestartPolicy, UpdateConfig
from tests.support.planning import SECOND_NS, a_port
from tests.unit.manager.reconcile.simulated_modes import ModesSimulation

_REPLICAS_MAX = 4
"""Fewer than nodes, so that every task finds one where its port is free."""

_UNDER_WAY = (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED)
_PAUSED = (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)


class ChangesSimulation(ModesSimulation):
    """`hanging`, `flapping`: images whose tasks do not come up, or never stay."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.change_random = random.Random(seed)
        self.hanging: set[str] = set()
        self.flapping: set[str] = set()
        self.host_ports = 0
        self.deadlines = self.resumed = self.gone_back = 0

    # What users do.

    @override
    def user(self) -> None:
        super().user()
        services = sorted(self.cell.tables.services, key=lambda row: row.id)
        if not services:
            return
        for service in services:
            state = None if service.update_status is None else service.update_status.state
            if state in _UNDER_WAY and self.change_random.random() < 0.2:
                self._pause(service, resume=False)
            elif state in _PAUSED and self.change_random.random() < 0.4:
                self._pause(service, resume=True)
        service = self.change_random.choice(services)
        action = self.change_random.random()
        kept = revisions_of(self.cell.tables, service)
        if action < 0.1 and kept:
            self.gone_back += self._call(service, to=self.change_random.choice(kept).number)
        elif action < 0.12:
            self.cell.commit(remove_service(self.cell.tables, service.id))

    def _pause(self, service: Service, *, resume: bool) -> None:
        with suppress(SwarmError):
            now_ns = self.cell.now_ns
            changes = pause_update(
                self.cell.tables, service.id, version=0, now_ns=now_ns, resume=resume
            )
            self.cell.commit(changes)
            self.resumed += resume

    def _call(self, service: Service, *, to: int = 0) -> bool:
        with suppress(SwarmError):
            now_ns = self.cell.now_ns
            changes = roll_back_service(
                self.cell.tables, service.id, version=0, now_ns=now_ns, to=to
            )
            self.cell.commit(changes)
            return True
        return False

    @override
    def _write_new(self, service: Service) -> None:
        now_ns = self.cell.now_ns
        changes: list[Change] = []
        with suppress(SwarmError):
            changes = create_service(
                self.cell.tables, service.spec, service_id=service.id, now_ns=now_ns
            )
        self.cell.commit(changes)

    @override
    def _change(self, service: Service, **fields: object) -> None:
        if is_job(service.spec.mode):
            fields.pop("update", None)
        spec = service.spec.replaced(**fields)
        with suppress(SwarmError):
            now_ns = self.cell.now_ns
            changes = update_service(self.cell.tables, service.id, spec, version=0, now_ns=now_ns)
            self.cell.commit(changes)

    @override
    def _roll_back(self, service: Service) -> None:
        self._call(service)

    @override
    def _scaled(self, service: Service) -> ServiceMode:
        if isinstance(service.spec.mode, ReplicatedMode):
            return ReplicatedMode(replicas=self.change_random.randint(0, _REPLICAS_MAX))
        return super()._scaled(service)

    @override
    def _born(self, service: Service) -> Service:
        mode = ReplicatedMode(replicas=self.change_random.randint(1, _REPLICAS_MAX))
        service = service.replaced(spec=service.spec.replaced(mode=mode))
        if self.change_random.random() < 0.4:
            return super()._born(service)
        self.modes[service.id] = mode
        task = self._fitted(service.id, service.spec.task)
        return service.replaced(spec=service.spec.replaced(task=task))

    @override
    def _fitted(self, service_id: str, task: TaskSpec) -> TaskSpec:
        task = super()._fitted(service_id, task)
        choose = self.change_random.choice
        policy = task.restart or RestartPolicy()
        if policy.delay_ns != 0:
            policy = policy.replaced(backoff_factor=choose([0.0, 1.5, 4.0]), backoff_max_ns=None)
        fate = self.change_random.random()
        image = task.runtime.image  # type: ignore[union-attr]  # they are all containers
        if fate < 0.2:
            self.hanging.add(image)
        elif fate < 0.4:
            self.flapping.add(image)
        return task.replaced(restart=policy)

    @override
    def _update(self, service_id: str) -> UpdateConfig:
        deadline_ns = self.change_random.choice([None, 0, 5 * SECOND_NS, 30 * SECOND_NS])
        return super()._update(service_id).replaced(progress_deadline_ns=deadline_ns)

    @override
    def _ports(self) -> tuple[PortConfig, ...]:
        ports = super()._ports()
        if self.change_random.random() < 0.3:
            self.host_ports += 1  # no two services have the same: it would never come free
            return (a_port(80, 9000 + self.host_ports, host=True),)
        return ports

    # What agents do.

    @override
    def _climb(self, task: Task) -> None:
        image = task.container.image
        if self.trouble and image in self.hanging and task.status.state is TaskState.PREPARING:
            return
        if self.trouble and image in self.flapping and task.status.state is TaskState.STARTING:
            self._report(task, TaskState.FAILED)
            return
        super()._climb(task)

    # What must hold.

    @override
    def check(self) -> None:
        super().check()
        for service in self.cell.tables.services:
            status = service.update_status
            self.deadlines += status is not None and "for lack of progress" in status.message
            newest, *_ = revisions_of(self.cell.tables, service)
            assert (newest.number, newest.spec) == (service.revision, service.spec), service
        for task in self.cell.tables.tasks:
            policy = task.spec.restart or RestartPolicy()
            assert task.restart_delay_ns <= restart_backoff_max_ns(policy), task

    @override
    def _check_rest(self) -> None:
        super()._check_rest()
        numbers: dict[str, list[int]] = {}
        for one in self.cell.tables.revisions:
            numbers.setdefault(one.service_id, []).append(one.number)
        for service in self.cell.tables.services:
            last = service.revision
            kept = sorted(numbers.pop(service.id))
            assert kept == list(range(max(1, last - KEPT + 1), last + 1)), service
        assert not numbers, "they are gone with their services"
        self._check_deadlines()

    def _check_deadlines(self) -> None:
        """No update under way waits for an image for longer than it may."""
        for service in self.cell.tables.services:
            status, limit_ns = service.update_status, _strict_limit_ns(service)
            if status is None or status.state is not UpdateState.UPDATING or not limit_ns:
                continue
            for task in self.cell.tasks(service.id):
                made = task.spec_version == service.spec_version and task.replaces_task_id
                if made and is_wanted(task) and task.status.state is TaskState.PREPARING:
                    begun_ns = (
                        task.status.applied_at_ns,
                        task.start_after_ns,
                        status.started_at_ns,
                    )
                    assert self.cell.now_ns - max(begun_ns) < limit_ns, (task, service)


def _strict_limit_ns(service: Service) -> int:
    """The deadline, where a single task that misses it ends the update."""
    config = service.spec.update or UpdateConfig()
    lenient = config.max_failure_ratio or config.failure_action is FailureAction.CONTINUE
    if lenient or not isinstance(service.spec.mode, ReplicatedMode):
        return 0
    return config.progress_deadline_ns or 0
