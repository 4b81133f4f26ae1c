"""What a node says of itself between two registrations, as a change of its row."""

from __future__ import annotations

from collections.abc import Callable

from manager.store.view import View
from shoal.errors import FailedPrecondition
from shoal.model.objects import Node
from shoal.model.plan import Change, update


def require_node(view: View, node_id: str) -> Node:
    """The node's row. Raises FailedPrecondition when it was removed."""
    node = view.nodes.get(node_id)
    if node is None:
        raise FailedPrecondition(f"node {node_id} was removed from the cluster")
    return node


def redescribed(node_id: str, **facts: object) -> Callable[[View], list[Change]]:
    """The node with these fields of its description, for a commit. Raises as `require_node`."""

    def build(view: View) -> list[Change]:
        node = require_node(view, node_id)
        description = node.description.replaced(**facts)
        return (
            []
            if description == node.description
            else [update(node.replaced(description=description))]
        )

    return build
