"""Other contents of secrets and configs for tasks that run on: written into the tasks' own specs.

Where a service says that files are swapped below its containers (`file_rotation`), a change of
nothing but the contents makes no task out of date (`dirty`). Each running task is given the new
references at once, and its node does the rest; one that does not run yet, when it does, for until
then its node is at work with those that it was given. Nothing else of a task's spec ever changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.slots import age_key
from manager.orchestrator.update.dirty import with_new_files
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Service
from shoal.model.plan import Plan
from shoal.model.specs import ContainerSpec


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Give the running tasks of these services the newest contents."""
    del now_ns, ids
    draft = Draft(view)
    for service_id in sorted(service_ids):
        service = draft.view.services.get(service_id)
        if service is not None:
            advance(draft, service)
    return draft.plan()


def advance(draft: Draft, service: Service) -> None:
    """Write the new references of one service's tasks into a draft."""
    new = service.spec.task
    runtime = new.runtime
    if service.pending_delete or not isinstance(runtime, ContainerSpec):
        return
    if runtime.file_rotation is None:
        return
    for task in sorted(draft.view.tasks_of_service(service.id).values(), key=age_key):
        if task.status.state is not TaskState.RUNNING or not is_wanted(task):
            continue
        spec = with_new_files(task.spec, new)
        if spec != task.spec and draft.room(task):
            draft.update(task.replaced(spec=spec))
            draft.note("task.files_changed", task_id=task.id, service_id=service.id)
