"""Which nodes' rows say manager, who has to leave the consensus group, whom to promote. Pure.

Invariants: a node's row says MANAGER for as long as it is a member of the consensus group, so that
its certificate does too; nobody is demoted but by the user's word; the leader goes last. Spare
workers are promoted only where the cluster's settings ask for it, and only after a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from manager.consensus.changes import MemberStatus
from manager.store.view import View
from shoal.model.enums import NodeAvailability, NodeMembership, NodeRole, NodeState
from shoal.model.objects import Node
from shoal.model.plan import Change, Note, update
from shoal.model.row import Row

PROMOTE_AFTER_NS = 30 * 1_000_000_000
"""How long too few managers are reachable before a worker is promoted for it."""
PROMOTION_NS = 60 * 1_000_000_000
"""A promotion that takes longer does not count as under way."""
STALLED = (
    "the node has not asked the other managers to let it in for a minute: `swarmctl info` on it, or"
    " the log of its swarmd, says what keeps it"
)
MESSAGE_LENGTH_MAX = 500
SPREAD_LABEL = "zone"
"""Spare workers are taken from where the fewest managers are, by this node label."""
NEVER_LABEL = "shoal.manager"
NEVER_VALUE = "never"
"""A node with this label is never promoted by itself."""


class RolePlan(Row, frozen=True):
    """What to commit, and the one member to take out now (0: none).

    is_short: fewer managers are reachable than the cluster's settings want.
    """

    changes: tuple[Change, ...] = ()
    remove: int = 0
    is_short: bool = False
    notes: tuple[Note, ...] = ()


def plan(
    view: View,
    members: Sequence[MemberStatus],
    *,
    now_ns: int,
    short_since_ns: int | None,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> RolePlan:
    """The next step. short_since_ns: since when plans have said `is_short`.

    refused: by node id, why it could not be let in or let go when that was tried last.
    """
    by_node = {one.member.node_id: one for one in members}
    to_remove = _to_remove(view, members)
    rows: dict[str, Node] = {}
    for node in view.nodes:
        member = by_node.get(node.id)
        obstacle = _obstacle(node, member, refused.get(node.id, ""), now_ns)
        rows[node.id] = _with_message(_row(node, member), obstacle)
    promoted, is_short = _promotions(view, members, now_ns=now_ns, short_since_ns=short_since_ns)
    rows |= {node_id: _with_role(rows[node_id], NodeRole.MANAGER) for node_id in promoted}
    changes = tuple(update(rows[node.id]) for node in view.nodes if rows[node.id] != node)
    notes = tuple(Note("node.auto_promoted", (("node_id", one),)) for one in promoted)
    return RolePlan(changes, to_remove, is_short=is_short, notes=notes)


def _row(node: Node, member: MemberStatus | None) -> Node:
    if member is not None:
        return node.replaced(role=NodeRole.MANAGER) if member.is_voter else node
    if node.spec.desired_role is NodeRole.WORKER:
        return node.replaced(role=NodeRole.WORKER)
    return node  # it is on its way in, or a majority was lost and it has to be demoted by hand


def _obstacle(node: Node, member: MemberStatus | None, refusal: str, now_ns: int) -> str:
    """What is in the way of the wished role, "" when nothing is: a change under way is none."""
    if node.spec.desired_role is NodeRole.WORKER:
        return "" if member is None else refusal
    if member is None:
        return "" if node.role is NodeRole.MANAGER else refusal or _why_not_in(node, now_ns)
    if member.is_voter or member.is_reachable:
        return ""
    return f"the other managers cannot reach it at {member.member.address}"


def _why_not_in(node: Node, now_ns: int) -> str:
    """What keeps a node from asking to be let in as a manager."""
    if node.status.state is not NodeState.READY:
        return "the node has no session with the managers: it becomes one when it is back"
    # What was said once stays: to say it makes the row a newer one.
    stalled = now_ns - node.meta.updated_at_ns >= PROMOTION_NS or node.role_message == STALLED
    return STALLED if stalled else ""


def _to_remove(view: View, members: Sequence[MemberStatus]) -> int:
    """The first member that is not to be one; others before the leader, so that it leads on."""
    unwanted = [one for one in members if not _is_wanted(view.nodes.get(one.member.node_id))]
    unwanted.sort(key=lambda one: (one.is_leader, one.member.raft_id))
    return unwanted[0].member.raft_id if unwanted else 0


def _is_wanted(node: Node | None) -> bool:
    return node is not None and node.spec.desired_role is NodeRole.MANAGER


def _promotions(
    view: View, members: Sequence[MemberStatus], *, now_ns: int, short_since_ns: int | None
) -> tuple[list[str], bool]:
    wanted = 0 if view.cluster is None else view.cluster.spec.raft.managers_wanted
    up = {
        one.member.node_id: view.nodes.get(one.member.node_id)
        for one in members
        if one.is_voter and one.is_reachable and _is_wanted(view.nodes.get(one.member.node_id))
    }
    coming = {
        node.id: node for node in view.nodes if node.id not in up and _is_coming(node, now_ns)
    }
    missing = wanted - len(up) - len(coming)
    if missing <= 0:
        return [], len(up) < wanted
    if short_since_ns is None or now_ns - short_since_ns < PROMOTE_AFTER_NS:
        return [], True
    taken = Counter(_place(node) for node in (*up.values(), *coming.values()) if node is not None)
    spare = {node.id: node for node in view.nodes if _is_spare(node)}
    chosen: list[str] = []
    while spare and len(chosen) < missing:
        node = min(spare.values(), key=lambda one: (taken[_place(one)], one.id))
        taken[_place(node)] += 1
        chosen.append(node.id)
        del spare[node.id]
    return chosen, True


def _is_coming(node: Node, now_ns: int) -> bool:
    return (
        node.spec.desired_role is NodeRole.MANAGER
        and node.role is NodeRole.WORKER
        and node.status.state is NodeState.READY
        and now_ns - node.meta.updated_at_ns < PROMOTION_NS
        and node.role_message != STALLED
    )


def _is_spare(node: Node) -> bool:
    return (
        node.role is NodeRole.WORKER
        and node.spec.desired_role is NodeRole.WORKER
        and node.status.state is NodeState.READY
        and node.spec.availability is NodeAvailability.ACTIVE
        and node.spec.membership is NodeMembership.ACCEPTED
        and _labels(node).get(NEVER_LABEL) != NEVER_VALUE
    )


def _labels(node: Node) -> Mapping[str, str]:
    return node.spec.annotations.labels


def _place(node: Node) -> str:
    return _labels(node).get(SPREAD_LABEL, "")


def _with_message(node: Node, message: str) -> Node:
    message = message[:MESSAGE_LENGTH_MAX]
    return node if node.role_message == message else node.replaced(role_message=message)


def _with_role(node: Node, role: NodeRole) -> Node:
    return node.replaced(spec=node.spec.replaced(desired_role=role))
