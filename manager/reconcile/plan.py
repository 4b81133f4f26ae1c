"""One round of all planners over one view, as one transaction.

The planners run in the order of a task's life and read what the one before wrote: a new task goes
from nothing to ASSIGNED in a single commit. A round changes at most CHANGES_MAX objects and looks
at a bounded number of tasks; what it leaves over is in `rest`, for the next round. Nothing is
remembered between rounds but that.
"""

from __future__ import annotations

from collections.abc import Iterator

from manager.allocator.plan import Allocation
from manager.orchestrator.gate import plan as gate
from manager.orchestrator.global_ import plan as global_
from manager.orchestrator.handover import plan as handover
from manager.orchestrator.jobs import plan as jobs
from manager.orchestrator.reaper import attachments
from manager.orchestrator.reaper import networks as leaving
from manager.orchestrator.reaper import plan as reaper
from manager.orchestrator.rebalance import plan as rebalance
from manager.orchestrator.replicated import plan as replicated
from manager.orchestrator.restart import plan as restart
from manager.orchestrator.update import plan as update
from manager.orchestrator.update import refresh
from manager.reconcile.dirty import NOTHING, Dirty, dirty_from_event
from manager.scheduler import enforcer
from manager.scheduler.plan import Scheduling
from manager.scheduler.preempt import RETRY_NS
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.modes import is_global
from shoal.model.plan import CHANGES_MAX, Plan

__all__ = ["EXAMINED_MAX", "Dirty", "Round", "dirty_from_event", "plan_round"]

EXAMINED_MAX = 2_000
"""Tasks of dirty services looked at in one round; a single larger service is still one step."""


BACKGROUND = "*"
"""Stands for the background's rebalancing where ids of services are woken; no service has it."""


class Round(Plan, frozen=True):
    """A plan, what is still to be looked at, and which services asked to be woken when.

    `rest` is not empty exactly when `more` is set. `wakes` holds (service id, wall time in
    nanoseconds): at that time the service is dirty.
    """

    rest: Dirty = NOTHING
    wakes: tuple[tuple[str, int], ...] = ()


def plan_round(
    view: View, dirty: Dirty, *, now_ns: int, ids: Iterator[str], limit: int = CHANGES_MAX
) -> Round:
    """Plan everything that is dirty, within the bounds of one transaction: `limit` changes."""
    return _Planning(Draft(view, limit=limit), now_ns=now_ns, ids=ids).run(dirty)


class _Planning:
    """State of one round."""

    def __init__(self, draft: Draft, *, now_ns: int, ids: Iterator[str]) -> None:
        self._view = draft.below
        self._draft = draft
        self._now_ns = now_ns
        self._ids = ids
        self._enforced = False
        self._wakes: list[tuple[str, int]] = []

    def run(self, dirty: Dirty) -> Round:
        draft = self._draft
        service_ids = sorted(self._services_of(dirty))
        for node_id in sorted(self._nodes_of(dirty)):
            enforcer.advance(draft, node_id, now_ns=self._now_ns)
        self._enforced = not draft.more
        allocation = Allocation(draft)
        allocation.networks()
        allocation.services()
        allocation.nodes()
        waiting = self._orchestrate(service_ids, allocation)
        self._give_back_attachments()
        leaving.advance(draft)
        self._rebalance(dirty)
        allocation.tasks(now_ns=self._now_ns)
        waiting |= self._schedule(dirty, service_ids)
        return self._result(dirty, waiting)

    def _services_of(self, dirty: Dirty) -> set[str]:
        view = self._view
        if dirty.everything:
            found = {service.id for service in view.services}
            found.update(task.service_id for task in view.tasks)
            found.update(revision.service_id for revision in view.revisions)
        else:
            found = set(dirty.services)
            for node_id in dirty.nodes:
                found.update(task.service_id for task in view.tasks_of_node(node_id).values())
            if dirty.nodes:
                found.update(one.id for one in view.services if is_global(one.spec.mode))
            found |= gate.followers(view, found)
        found.discard("")
        found.discard(BACKGROUND)
        return found

    def _nodes_of(self, dirty: Dirty) -> set[str]:
        if dirty.everything:
            return {node.id for node in self._view.nodes}
        return set(dirty.nodes)

    def _orchestrate(self, service_ids: list[str], allocation: Allocation) -> set[str]:
        """Run the orchestrators; the result are services that are not finished."""
        examined = 0
        for place, service_id in enumerate(service_ids):
            examined += len(self._view.tasks_of_service(service_id)) + 1
            if examined > EXAMINED_MAX and place:
                self._draft.more = True
                return set(service_ids[place:])
            self._one_service(service_id, hindrance=allocation.hindrance(service_id))
            if self._draft.more:
                return set(service_ids[place:])
        return set()

    def _one_service(self, service_id: str, *, hindrance: str) -> None:
        draft, now_ns, ids = self._draft, self._now_ns, self._ids
        draft.wake_at_ns = None
        service = draft.view.services.get(service_id)
        if service is None or service.pending_delete:
            replicated.retire(draft, service_id)
        else:
            jobs.drop_earlier(draft, service)
            restart.advance(draft, service, now_ns=now_ns, ids=ids)
            handover.advance(draft, service, now_ns=now_ns, ids=ids)
            refresh.advance(draft, service)
            held = gate.advance(draft, service, now_ns=now_ns)
            if not held:
                replicated.advance(draft, service, now_ns=now_ns, ids=ids)
                global_.advance(draft, service, now_ns=now_ns, ids=ids)
                update.advance(draft, service, now_ns=now_ns, ids=ids, hindrance=hindrance)
                rebalance.advance(draft, service_id, now_ns=now_ns, ids=ids)
            restart.start_waiting(draft, service, now_ns=now_ns)
            if not held:
                jobs.advance(draft, service, now_ns=now_ns, ids=ids)
        reaper.advance(draft, service_id, now_ns=now_ns)
        if draft.wake_at_ns is not None:
            self._wakes.append((service_id, draft.wake_at_ns))

    def _give_back_attachments(self) -> None:
        self._draft.wake_at_ns = None
        attachments.advance(self._draft, now_ns=self._now_ns)
        if self._draft.wake_at_ns is not None:
            self._wakes.append(("", self._draft.wake_at_ns))

    def _rebalance(self, dirty: Dirty) -> None:
        """Even out in the background, when its time has come or nodes have changed."""
        if not (dirty.everything or dirty.nodes or BACKGROUND in dirty.services):
            return
        self._draft.wake_at_ns = None
        rebalance.advance_background(self._draft, now_ns=self._now_ns, ids=self._ids)
        if self._draft.wake_at_ns is not None:
            self._wakes.append((BACKGROUND, self._draft.wake_at_ns))

    def _schedule(self, dirty: Dirty, service_ids: list[str]) -> set[str]:
        """Place waiting tasks: of dirty services, or of all when room may have come free."""
        retry_all = _frees(dirty)
        mine = set(service_ids)
        scheduling = Scheduling(self._draft, now_ns=self._now_ns)
        waiting = scheduling.run(
            lambda service_id: retry_all or service_id in mine, changed=service_ids
        )
        known, again_ns = dict(self._wakes), self._now_ns + RETRY_NS
        self._wakes += [
            (service_id, min(known.get(service_id, again_ns), again_ns))
            for service_id in sorted(scheduling.stuck)
        ]
        return waiting

    def _result(self, dirty: Dirty, waiting: set[str]) -> Round:
        draft = self._draft
        rest = NOTHING
        if draft.more:
            # Nodes that were judged are done with: their services would be looked at again, and
            # those that follow them never. What came free may still help those.
            left = waiting or self._services_of(dirty)
            rest = Dirty(
                services=frozenset(left),
                nodes=frozenset() if self._enforced else frozenset(self._nodes_of(dirty)),
                networks=dirty.networks,
                room=_frees(dirty) or not left,
            )
        return Round(
            changes=draft.changes(),
            wake_at_ns=min((at_ns for _, at_ns in self._wakes), default=None),
            notes=draft.notes(),
            more=draft.more,
            rest=rest,
            wakes=tuple(self._wakes),
        )


def _frees(dirty: Dirty) -> bool:
    """Whether room may have come free for tasks of any service."""
    return bool(dirty.everything or dirty.nodes or dirty.tasks or dirty.room)
