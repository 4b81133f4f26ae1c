"""Where a start-first update would wait for ever: which old tasks stop first after all.

The new task of a slot was refused by every node, and the old one's node would take it if the old
one were not there: it has the host-mode port, or the room. Where that would not help either, the
old task stays, and the progress deadline ends the wait. Swarm waits for ever (moby#36934, #40797).
"""

from __future__ import annotations

from manager.orchestrator.update.progress import SlotProgress
from manager.scheduler.copies import copies_of
from manager.scheduler.filters import Pipeline
from manager.scheduler.usage import Usage
from manager.store.view import View
from shoal.model.defaults import is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Task


def in_the_way(view: View, slot: SlotProgress) -> tuple[Task, ...]:
    """The old tasks of a slot that keep the new one from every node."""
    if not slot.is_on_the_way:
        return ()
    new = slot.current[-1]
    if new.status.state is not TaskState.PENDING or not new.status.error:
        return ()
    old = tuple(task for task in slot.outdated if is_wanted(task))
    node_ids = {task.node_id for task in old if task.node_id}
    if new.node_id:
        node_ids &= {new.node_id}
    fits = any(_fits_without(view, new, old, node_id) for node_id in sorted(node_ids))
    return old if fits else ()


def _fits_without(view: View, new: Task, old: tuple[Task, ...], node_id: str) -> bool:
    node = view.nodes.get(node_id)
    if node is None:
        return False
    gone = {task.id for task in old}
    others = [task for task in view.tasks_of_node(node_id).values() if task.id not in gone]
    copies = copies_of(view, new).get(node_id, 0)
    return not Pipeline(new, view).refusal(Usage(node, others), copies)
