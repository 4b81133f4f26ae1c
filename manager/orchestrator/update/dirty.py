"""Whether a task is out of date: made from another spec in a way that asks for a new task."""

from __future__ import annotations

from manager.scheduler.filters import fits_placement
from manager.store.view import View
from shoal.model.enums import TaskState
from shoal.model.files import swapped
from shoal.model.objects import Service, Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import Endpoint


def is_dirty(view: View, service: Service, task: Task) -> bool:
    """Whether an update must replace the task.

    A change of the placement alone is clean while the task's node still fits, a change of how the
    image is pulled while the task has its image already, a change of the disconnect policy
    always: it concerns the managers alone. Another content of a secret or config is clean where it
    is swapped below running containers (`refresh`). `force_update` is part of the spec, so a new
    count always dirties. The endpoint counts as soon as the allocator has given one.
    """
    if has_other_endpoint(service, task):
        return True
    if task.spec_version == service.spec_version:
        return False
    new = service.spec.task
    old = with_new_files(task.spec, new).replaced(disconnect=new.disconnect)
    if new == old:
        return False
    if TaskState.READY <= task.status.state <= TaskState.RUNNING:
        new, old = _without_pull_options(new), _without_pull_options(old)
    if new == old:
        return False
    if new.replaced(placement=old.placement) != old:
        return True
    node = view.nodes.get(task.node_id) if task.node_id else None
    return node is None or not fits_placement(node, new.placement)


def has_other_endpoint(service: Service, task: Task) -> bool:
    """Whether the task was given another endpoint than the service now asks for."""
    if task.status.state is TaskState.NEW:
        return False
    return (task.endpoint or Endpoint()).spec != service.spec.endpoint


def with_new_files(old: TaskSpec, new: TaskSpec) -> TaskSpec:
    """The old spec with the contents of the new one, where they may be swapped."""
    if not isinstance(old.runtime, ContainerSpec) or not isinstance(new.runtime, ContainerSpec):
        return old
    runtime = swapped(old.runtime, new.runtime)
    return old if runtime is old.runtime else old.replaced(runtime=runtime)


def _without_pull_options(spec: TaskSpec) -> TaskSpec:
    if not isinstance(spec.runtime, ContainerSpec) or spec.runtime.pull_options is None:
        return spec
    return spec.replaced(runtime=spec.runtime.replaced(pull_options=None))
