"""Rolling updates: replace out-of-date tasks, a few slots at a time, and stop when they fail.

State of an update (`service.update_status`, all else is read from the tasks):

    (none) ── something is out of date ─► UPDATING ── all done, monitor passed ─► COMPLETED
    UPDATING ── too many failures ─► PAUSED, or with failure action rollback:
    ROLLBACK_STARTED ── as an update, to the previous spec ─► ROLLBACK_COMPLETED / ROLLBACK_PAUSED

A task that makes no progress for too long counts as failed (`update.deadline`). A rollback is never
rolled back. PAUSED ends when the user updates the service again, which clears
the status. An update that meets a newer spec simply goes on to that. Slots with stop-first order
get a replacement that is prepared while the old task stops; start-first keeps the old task until
the new one runs, unless the old one does not run either, or the new one fits nowhere beside it
(`update.giving_way`): waiting would never end there.

Jobs are not updated: a change begins another iteration of them. A global service's slots on nodes
that take no tasks at this moment are left as they are, and no part of the update.

While the new spec cannot be served (another service has its port), no slot is begun: the old tasks
go on, the status names what is waited for, and the update goes on once it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.ground import Ground
from manager.orchestrator.revisions import record
from manager.orchestrator.slots import Slot, ended_by_itself, node_is_lost, service_slots
from manager.orchestrator.tasks import new_task
from manager.orchestrator.update.deadline import held_up_at_ns, why_held_up
from manager.orchestrator.update.giving_way import in_the_way
from manager.orchestrator.update.progress import SlotProgress, progress_of
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import UPDATE_WAITS, is_wanted, update_config
from shoal.model.enums import (
    FailureAction,
    RevisionCause,
    TaskState,
    UpdateOrder,
    UpdateState,
)
from shoal.model.modes import is_job
from shoal.model.objects import Service, Task
from shoal.model.plan import Plan
from shoal.model.types import UpdateConfig, UpdateStatus

_IN_PROGRESS = frozenset({UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED})
_PAUSED = frozenset({UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED})
_STOPS_FIRST = "; stop-first where no node takes both tasks of a slot"
_MONITOR_MARGIN_NS = 1_000_000_000


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Drive the updates of these services."""
    draft = Draft(view)
    for service_id in sorted(service_ids):
        service = draft.view.services.get(service_id)
        if service is not None:
            advance(draft, service, now_ns=now_ns, ids=ids)
    return draft.plan()


def state_of(service: Service) -> UpdateState:
    """State of the service's newest update."""
    status = service.update_status
    return UpdateState.UNKNOWN if status is None else status.state


def is_updating(service: Service) -> bool:
    """Whether an update or rollback is under way."""
    return state_of(service) in _IN_PROGRESS


def advance(
    draft: Draft, service: Service, *, now_ns: int, ids: Iterator[str], hindrance: str = ""
) -> None:
    """Write the next step of one service's update into a draft.

    hindrance: why tasks of the present spec cannot be started by now, "" when they can.
    """
    if service.pending_delete or is_job(service.spec.mode):
        return
    slots = [progress_of(draft.view, service, slot) for slot in service_slots(draft.view, service)]
    for slot in slots:
        _retire_outdated(draft, slot)
    ground = Ground(draft.view, service)
    progress = [one for one in slots if ground.takes(one.slot)]
    if state_of(service) in _PAUSED:
        return
    if not is_updating(service):
        if not any(slot.is_due for slot in progress) or not draft.room(service):
            return
        service = _begin(draft, service, now_ns=now_ns)
    config = config_of(service)
    progress = [_timed(draft, service, slot, config, now_ns=now_ns) for slot in progress]
    if _stop_on_failure(draft, service, progress, config, now_ns=now_ns):
        return
    service = _tell(draft, service, hindrance)
    for slot in progress:
        service = _give_way(draft, service, slot)
    if hindrance:
        return
    if any(slot.is_due for slot in progress):
        _update_slots(draft, service, progress, config, now_ns=now_ns, ids=ids)
    else:
        _complete(draft, service, progress, config, now_ns=now_ns)


def config_of(service: Service) -> UpdateConfig:
    """The settings in force: those for rollbacks while one is under way."""
    rolling_back = state_of(service) is UpdateState.ROLLBACK_STARTED
    return update_config(service.spec.rollback if rolling_back else service.spec.update)


def _timed(
    draft: Draft, service: Service, slot: SlotProgress, config: UpdateConfig, *, now_ns: int
) -> SlotProgress:
    """The slot, held up when its new task has made no progress by the deadline."""
    since_ns = (service.update_status or UpdateStatus()).started_at_ns
    at_ns = held_up_at_ns(slot, config, since_ns=since_ns)
    if at_ns is None:
        return slot
    if now_ns < at_ns:
        draft.wake(at_ns)
        return slot
    return slot.replaced(held_up=slot.current[-1])


def monitor_ns_of(config: UpdateConfig) -> int:
    """How long a slot is watched after it was done, nanoseconds."""
    monitor_ns = config.monitor_ns or 0
    return monitor_ns if config.delay_ns < monitor_ns else config.delay_ns + _MONITOR_MARGIN_NS


def _with_state(draft: Draft, service: Service, status: UpdateStatus) -> Service:
    service = service.replaced(update_status=status)
    draft.update(service)
    draft.note(
        "update.state_changed",
        service_id=service.id,
        state=status.state.name,
        message=status.message,
    )
    return service


def _begin(draft: Draft, service: Service, *, now_ns: int) -> Service:
    return _with_state(
        draft,
        service,
        UpdateStatus(
            state=UpdateState.UPDATING, started_at_ns=now_ns, message="update in progress"
        ),
    )


def _tell(draft: Draft, service: Service, hindrance: str) -> Service:
    """Have the status say what the update waits for, and no longer when it waits for nothing."""
    status = service.update_status or UpdateStatus()
    message = status.message.partition(UPDATE_WAITS)[0]
    if hindrance:
        message += UPDATE_WAITS + hindrance
    if message == status.message or not draft.room(service):
        return service
    return _with_state(draft, service, status.replaced(message=message))


def _give_way(draft: Draft, service: Service, slot: SlotProgress) -> Service:
    """Stop the old task of a slot whose new one fits nowhere beside it, and say so."""
    old = in_the_way(draft.view, slot)
    if not old or not draft.room(*old, service):
        return service
    for task in old:
        draft.update(task.with_desired_state(TaskState.SHUTDOWN))
    draft.note("update.gave_way", service_id=service.id, task_id=old[0].id)
    status = service.update_status or UpdateStatus()
    message, waits, reason = status.message.partition(UPDATE_WAITS)
    if _STOPS_FIRST in message:
        return service
    status = status.replaced(message=f"{message}{_STOPS_FIRST}{waits}{reason}")
    return _with_state(draft, service, status)


def _retire_outdated(draft: Draft, slot: SlotProgress) -> None:
    """Stop old tasks of a slot whose new task runs, and all but one that are up to date.

    Two tasks are up to date when a change was taken back while its task was on the way, or when a
    lost task is not to be kept beside its replacement any more.
    """

    def demerit(task: Task) -> tuple[bool, bool]:
        lost = node_is_lost(draft.view, task)
        return lost, task.status.state is not TaskState.RUNNING

    by_merit = sorted(slot.current, key=demerit)
    old = by_merit[1:]
    if by_merit and by_merit[0].status.state is TaskState.RUNNING:
        old += [task for task in slot.outdated if is_wanted(task)]
    if old and draft.room(*old):
        for task in old:
            draft.update(task.with_desired_state(TaskState.SHUTDOWN))


def _stop_on_failure(
    draft: Draft,
    service: Service,
    progress: list[SlotProgress],
    config: UpdateConfig,
    *,
    now_ns: int,
) -> bool:
    """Pause or roll back when more of the slots failed than the ratio allows."""
    status = service.update_status or UpdateStatus()
    monitor_ns, since_ns = monitor_ns_of(config), status.started_at_ns
    failures = [
        failure
        for slot in progress
        if (failure := slot.held_up or slot.failure(monitor_ns=monitor_ns, since_ns=since_ns))
    ]
    total = sum(slot.is_due or bool(slot.made) for slot in progress)
    if not failures or len(failures) / total <= config.max_failure_ratio:
        return False
    if config.failure_action is FailureAction.CONTINUE:
        return False
    if not draft.room(service):
        return True
    task = min(failures, key=lambda failed: (failed.status.applied_at_ns, failed.id))
    why = _why(task, config)
    if status.state is UpdateState.ROLLBACK_STARTED:
        _pause(draft, service, UpdateState.ROLLBACK_PAUSED, f"rollback paused {why}")
    elif config.failure_action is not FailureAction.ROLLBACK:
        _pause(draft, service, UpdateState.PAUSED, f"update paused {why}")
    elif service.previous_spec is None:
        nothing = "there is no previous spec to roll back to"
        _pause(draft, service, UpdateState.PAUSED, f"update paused {why}; {nothing}")
    else:
        _roll_back(draft, service, f"update rolled back {why}", now_ns=now_ns)
    return True


def _why(failed: Task, config: UpdateConfig) -> str:
    if ended_by_itself(failed):
        return f"due to failure or early termination of task {failed.id}"
    return why_held_up(failed, config)


def _pause(draft: Draft, service: Service, state: UpdateState, message: str) -> None:
    status = service.update_status or UpdateStatus()
    _with_state(draft, service, status.replaced(state=state, message=message))


def _roll_back(draft: Draft, service: Service, message: str, *, now_ns: int) -> None:
    """Take the previous spec; the store gives it a new version, so this round ends here."""
    changed = service.replaced(
        spec=service.previous_spec, previous_spec=None, previous_spec_version=None
    )
    recorded = record(draft.view, service, changed, RevisionCause.FAILED_BACK)
    if not draft.room(service, new=len(recorded.made)):
        return
    for made in recorded.made:
        draft.create(made)
    status = UpdateStatus(
        state=UpdateState.ROLLBACK_STARTED,
        started_at_ns=now_ns,
        message=message,
    )
    _with_state(draft, recorded.service, status)


def _update_slots(
    draft: Draft,
    service: Service,
    progress: list[SlotProgress],
    config: UpdateConfig,
    *,
    now_ns: int,
    ids: Iterator[str],
) -> None:
    """Begin with as many slots as parallelism allows beside those that are in flight."""
    due = [slot for slot in progress if slot.is_due]
    free = len(due)
    if config.parallelism:
        busy = sum(_is_in_flight(draft, slot, config, now_ns=now_ns) for slot in progress)
        free = max(0, config.parallelism - busy)
    for slot in due[:free]:
        if not _update_slot(draft, service, slot, config, now_ns=now_ns, ids=ids):
            return


def _is_in_flight(draft: Draft, slot: SlotProgress, config: UpdateConfig, *, now_ns: int) -> bool:
    if not slot.made or slot.held_up:
        return False
    done_at_ns = slot.done_at_ns
    if done_at_ns is None:
        return bool(slot.current)
    if now_ns >= done_at_ns + config.delay_ns:
        return False
    draft.wake(done_at_ns + config.delay_ns)
    return True


def _update_slot(
    draft: Draft,
    service: Service,
    progress: SlotProgress,
    config: UpdateConfig,
    *,
    now_ns: int,
    ids: Iterator[str],
) -> bool:
    """Put a new task into a slot. Returns False when this round has no room left."""
    old = [task for task in progress.outdated if is_wanted(task)]
    kept = _kept_for_now(old, config)
    stopped = [task for task in old if task is not kept]
    if not draft.room(*stopped, new=1):
        return False
    for task in stopped:
        draft.update(task.with_desired_state(TaskState.SHUTDOWN))
    draft.create(
        new_task(
            draft.view,
            service,
            place=progress.slot.place,
            task_id=next(ids),
            now_ns=now_ns,
            waits=kept is None,
            start_after_ns=now_ns,
            replaces=kept or _predecessor(progress.slot, old),
        )
    )
    return True


def _kept_for_now(old: list[Task], config: UpdateConfig) -> Task | None:
    """The task that goes on serving until its replacement runs; None with stop-first."""
    if config.order is not UpdateOrder.START_FIRST:
        return None
    return next((task for task in old if task.status.state is TaskState.RUNNING), None)


def _predecessor(slot: Slot, old: list[Task]) -> Task:
    return old[-1] if old else slot.newest


def _complete(
    draft: Draft,
    service: Service,
    progress: list[SlotProgress],
    config: UpdateConfig,
    *,
    now_ns: int,
) -> None:
    """Finish when every slot was done and the last one has been watched for a while."""
    made = [slot for slot in progress if slot.made]
    if any(slot.is_on_the_way and not slot.held_up for slot in made):
        return
    last_ns = max((slot.done_at_ns or 0 for slot in made), default=0)
    end_ns = last_ns + monitor_ns_of(config)
    if made and now_ns < end_ns:
        draft.wake(end_ns)
        return
    if not draft.room(service):
        return
    rolled_back = state_of(service) is UpdateState.ROLLBACK_STARTED
    status = service.update_status or UpdateStatus()
    _with_state(
        draft,
        service,
        status.replaced(
            state=UpdateState.ROLLBACK_COMPLETED if rolled_back else UpdateState.COMPLETED,
            completed_at_ns=now_ns,
            message="rollback completed" if rolled_back else "update completed",
        ),
    )
