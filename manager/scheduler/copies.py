"""How many tasks of a service are where, as far as its next ones are concerned."""

from __future__ import annotations

from collections import Counter

from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.objects import Task


def copies_of(view: View, task: Task) -> dict[str, int]:
    """Wanted tasks of the service by node.

    A task that is about to be replaced by a waiting one is not counted: the surplus of a
    start-first update is short, and counting it would block the update where every node holds its
    maximum already.
    """
    siblings = view.tasks_of_service(task.service_id)
    replaced = {sibling.replaces_task_id for sibling in siblings.values() if is_wanted(sibling)}
    copies: Counter[str] = Counter(
        sibling.node_id
        for sibling in siblings.values()
        if sibling.node_id
        and is_wanted(sibling)
        and not is_terminal(sibling)
        and sibling.id not in replaced
        and sibling.id != task.id
    )
    return copies
