"""Networks that were removed while tasks of removed services were still on them go with the last.

One that a service asks for again meanwhile stays.
"""

from __future__ import annotations

from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal


def advance(draft: Draft) -> None:
    """Write the removal of networks whose time has come into a draft, or that they stay."""
    view = draft.view
    leaving = [one for one in view.networks if one.pending_delete]
    for network in draft.fitting(sorted(leaving, key=lambda one: one.id)):
        if _is_asked_for(view, network.id):
            draft.update(network.replaced(pending_delete=False))
        elif not is_on_any_task(view, network.id):
            draft.remove(network)
            draft.note("network.removed", network_id=network.id)


def is_on_any_task(view: View, network_id: str) -> bool:
    """Whether a task that has not ended is on a network."""
    return any(
        held.network_id == network_id
        for task in view.tasks
        if not is_terminal(task)
        for held in task.networks
    )


def _is_asked_for(view: View, network_id: str) -> bool:
    return any(
        wish.target == network_id
        for service in view.services
        for wish in service.spec.task.networks
    )
