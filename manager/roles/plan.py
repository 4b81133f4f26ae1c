"""Which nodes' rows say manager, who has to leave the consensus group, whom to promote. Pure.

Invariants: a node's row says MANAGER for as long as it is a member of the consensus group, so that
its certificate does too; nobody is demoted but by the user's word; the leader goes last. Spare
workers are promoted only where the cluster's settings ask for it, and only after a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

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
    view: View, members: Sequence[MemberStatus], *, now_ns: int, short_since_ns: int | None
) -> RolePlan:
    """The next step. short_since_ns: since when plans have said `is_short`."""
    by_node = {one.member.node_id: one for one in members}
    rows = {node.id: _row(node, by_node.get(node.id)) for node in view.nodes}
    promoted, is_short = _promotions(view, members, now_ns=now_ns, short_since_ns=short_since_ns)
    rows |= {node_id: _with_role(rows[node_id], NodeRole.MANAGER) for node_id in promoted}
    changes = tuple(update(rows[node.id]) for node in view.nodes if rows[node.id] != node)
    notes = tuple(Note("node.auto_promoted", (("node_id", one),)) for one in promoted)
    return RolePlan(changes, _to_remove(view, members), is_short=is_short, notes=notes)


def _row(node: Node, member: MemberStatus | None) -> Node:
    if member is not None:
        return node.replaced(role=NodeRole.MANAGER) if member.is_voter else node
    if node.spec.desired_role is NodeRole.WORKER:
        return node.replaced(role=NodeRole.WORKER)
    return node  # it is on its way in, or a majority was lost and it has to be demoted by hand


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


def _with_role(node: Node, role: NodeRole) -> Node:
    return node.replaced(spec=node.spec.replaced(desired_role=role))
