"""Who is a manager: rows follow the members, members follow the user's wishes, spares are found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.consensus.changes import MemberStatus
from manager.consensus.roster import Member
from manager.roles.plan import (
    MESSAGE_LENGTH_MAX,
    NEVER_LABEL,
    PROMOTE_AFTER_NS,
    PROMOTION_NS,
    STALLED,
    plan,
)
from manager.store.tables import Tables
from shoal.model.enums import NodeAvailability, NodeRole, NodeState
from shoal.model.objects import Cluster, Node
from shoal.model.specs import ClusterSpec, NodeSpec, RaftConfig
from shoal.model.types import Annotations, Meta, NodeStatus, Version

NOW_NS = 10**18
LONG_AGO_NS = NOW_NS - PROMOTE_AFTER_NS


def a_node(name: str, *, desired=NodeRole.WORKER, role=NodeRole.WORKER, **fields) -> Node:
    labels = fields.pop("labels", {})
    spec = NodeSpec(
        annotations=Annotations(labels=labels),
        desired_role=desired,
        availability=fields.pop("availability", NodeAvailability.ACTIVE),
    )
    state = fields.pop("state", NodeState.READY)
    meta = Meta(version=Version(index=1), updated_at_ns=fields.pop("updated_at_ns", NOW_NS))
    return Node(id=name, meta=meta, spec=spec, role=role, status=NodeStatus(state=state), **fields)


def a_manager(name: str, **fields) -> Node:
    return a_node(name, desired=NodeRole.MANAGER, role=NodeRole.MANAGER, **fields)


def a_member(name: str, **fields) -> MemberStatus:
    number = int(name[1:])
    fields = {"is_voter": True, "is_leader": False, "is_reachable": True, "behind": 0} | fields
    return MemberStatus(Member(number, name, f"{name}:2377"), **fields)


def planned(nodes, members, *, wanted=0, short_since_ns=None, refused=None):
    cluster = Cluster(id="c", spec=ClusterSpec(raft=RaftConfig(managers_wanted=wanted)))
    view = Tables([cluster, *nodes], version=1)
    found = plan(view, members, now_ns=NOW_NS, short_since_ns=short_since_ns, refused=refused or {})
    return found, {change.object.id: change.object for change in found.changes}


def test_a_node_is_a_manager_once_it_votes():
    wish = a_node("n1", desired=NodeRole.MANAGER)
    assert planned([wish], [])[1] == {}
    assert planned([wish], [a_member("n1", is_voter=False)])[1] == {}
    rows = planned([wish], [a_member("n1")])[1]
    assert rows["n1"].role is NodeRole.MANAGER


def test_a_demoted_node_is_a_manager_until_it_is_out():
    demoted = a_node("n1", role=NodeRole.MANAGER)
    members = [a_member("n1"), a_member("n2", is_leader=True)]
    found, rows = planned([demoted, a_manager("n2")], members)
    assert (found.remove, rows) == (1, {})
    found, rows = planned([demoted, a_manager("n2")], members[1:])
    assert found.remove == 0
    assert rows["n1"].role is NodeRole.WORKER


def test_a_promotion_that_was_taken_back_ends_a_membership():
    found, _ = planned([a_node("n1"), a_manager("n2")], [a_member("n1", is_voter=False)])
    assert found.remove == 1


def test_a_member_without_a_node_is_removed():
    found, _ = planned([a_manager("n2")], [a_member("n1"), a_member("n2")])
    assert found.remove == 1


def test_the_leader_goes_last():
    nodes = [a_node(f"n{n}", role=NodeRole.MANAGER) for n in (1, 2)] + [a_manager("n3")]
    members = [a_member("n1", is_leader=True), a_member("n2"), a_member("n3")]
    assert planned(nodes, members)[0].remove == 2
    assert planned(nodes, [members[0], members[2]])[0].remove == 1


def test_a_manager_that_lost_its_place_by_force_stays_one_until_it_is_demoted():
    assert planned([a_manager("n1")], [])[1] == {}


# -- what is in the way ------------------------------------------------------------------------


def message(node: Node, *members: MemberStatus, refused: str = "") -> str:
    rows = planned([node, a_manager("n9")], members, refused={node.id: refused})[1]
    return rows.get(node.id, node).role_message


WISH = a_node("n1", desired=NodeRole.MANAGER)


@pytest.mark.parametrize(
    ("node", "members", "shown"),
    [
        (a_node("n1", role=NodeRole.MANAGER), [a_member("n1")], "no"),
        (a_node("n1"), [], ""),
        (a_manager("n1"), [a_member("n1")], ""),
        (a_manager("n1"), [], ""),
        (WISH, [], "no"),
        (WISH, [a_member("n1", is_voter=False)], ""),
    ],
)
def test_a_refusal_is_shown_for_as_long_as_it_matters(node, members, shown):
    assert message(node, *members, refused="no") == shown
    assert message(node.replaced(role_message="old"), *members, refused="no") == shown


def test_a_promotion_says_what_it_waits_for():
    down = WISH.replaced(status=NodeStatus(state=NodeState.DOWN))
    assert "when it is back" in message(down)
    assert message(WISH) == ""
    learner = a_member("n1", is_voter=False)
    assert message(WISH, learner) == ""
    cut_off = a_member("n1", is_voter=False, is_reachable=False)
    assert message(WISH, cut_off) == "the other managers cannot reach it at n1:2377"
    assert message(WISH, a_member("n1", is_reachable=False)) == ""  # it votes: it is one


def test_a_promotion_that_stands_still_is_told_once():
    waiting = a_node("n1", desired=NodeRole.MANAGER, updated_at_ns=NOW_NS - PROMOTION_NS)
    assert message(waiting) == STALLED
    told = a_node("n1", desired=NodeRole.MANAGER).replaced(role_message=STALLED)
    assert message(told) == STALLED


def test_a_long_refusal_is_cut():
    assert len(message(WISH, refused="x" * 9000)) == MESSAGE_LENGTH_MAX


# -- promotion by itself -----------------------------------------------------------------------


def a_short_cluster(*spares: Node):
    nodes = [a_manager("n1"), a_manager("n2"), *spares]
    return nodes, [a_member("n1", is_leader=True), a_member("n2")]


def test_nobody_is_promoted_unless_it_was_asked_for():
    nodes, members = a_short_cluster(a_node("n3"))
    found, rows = planned(nodes, members, wanted=0, short_since_ns=LONG_AGO_NS)
    assert (rows, found.is_short) == ({}, False)


def test_a_spare_is_promoted_after_a_while():
    nodes, members = a_short_cluster(a_node("n3"), a_node("n4"))
    found, rows = planned(nodes, members, wanted=3)
    assert (rows, found.is_short) == ({}, True)
    found, rows = planned(nodes, members, wanted=3, short_since_ns=LONG_AGO_NS + 1)
    assert (rows, found.is_short) == ({}, True)
    found, rows = planned(nodes, members, wanted=3, short_since_ns=LONG_AGO_NS)
    assert {name: row.spec.desired_role for name, row in rows.items()} == {"n3": NodeRole.MANAGER}
    assert rows["n3"].role is NodeRole.WORKER


def test_an_unreachable_manager_counts_as_missing_and_is_not_demoted():
    nodes, members = a_short_cluster(a_node("n3"))
    members[1] = a_member("n2", is_reachable=False)
    found, rows = planned(nodes, members, wanted=2, short_since_ns=LONG_AGO_NS)
    assert list(rows) == ["n3"]
    assert found.remove == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"state": NodeState.DOWN},
        {"state": NodeState.UNKNOWN},
        {"availability": NodeAvailability.DRAIN},
        {"availability": NodeAvailability.PAUSE},
        {"labels": {NEVER_LABEL: "never"}},
    ],
    ids=str,
)
def test_who_is_no_spare(fields):
    nodes, members = a_short_cluster(a_node("n3", **fields))
    found, rows = planned(nodes, members, wanted=3, short_since_ns=LONG_AGO_NS)
    assert (rows, found.is_short) == ({}, True)


def test_a_promotion_under_way_counts_for_a_time():
    coming = a_node("n3", desired=NodeRole.MANAGER)
    nodes, members = a_short_cluster(coming, a_node("n4"))
    assert planned(nodes, members, wanted=3, short_since_ns=LONG_AGO_NS)[1] == {}
    stuck = a_node("n3", desired=NodeRole.MANAGER, updated_at_ns=NOW_NS - PROMOTION_NS)
    nodes, members = a_short_cluster(stuck, a_node("n4"))
    rows = planned(nodes, members, wanted=3, short_since_ns=LONG_AGO_NS)[1]
    assert rows["n4"].spec.desired_role is NodeRole.MANAGER
    assert rows.pop("n3").role_message == STALLED
    assert list(rows) == ["n4"]
    told = a_node("n3", desired=NodeRole.MANAGER).replaced(role_message=STALLED)
    nodes, members = a_short_cluster(told, a_node("n4"))
    assert list(planned(nodes, members, wanted=3, short_since_ns=LONG_AGO_NS)[1]) == ["n4"]


def test_managers_are_spread_over_zones():
    nodes = [a_manager("n1", labels={"zone": "a"})]
    nodes += [a_node("n2", labels={"zone": "a"}), a_node("n3", labels={"zone": "b"})]
    nodes += [a_node("n4", labels={"zone": "b"}), a_node("n5", labels={"zone": "c"})]
    members = [a_member("n1", is_leader=True)]
    rows = planned(nodes, members, wanted=3, short_since_ns=LONG_AGO_NS)[1]
    assert set(rows) == {"n3", "n5"}


@st.composite
def situations(draw):
    roles = st.sampled_from(NodeRole)
    nodes, members = [], []
    for number in range(draw(st.integers(1, 6))):
        name = f"n{number + 1}"
        if draw(st.booleans()) or number == 0:
            state = draw(st.sampled_from(NodeState))
            nodes.append(a_node(name, desired=draw(roles), role=draw(roles), state=state))
        if draw(st.booleans()):
            flags = {"is_voter": draw(st.booleans()), "is_reachable": draw(st.booleans())}
            members.append(a_member(name, **flags))
    return nodes, members, draw(st.integers(0, 5)), draw(st.sampled_from([None, LONG_AGO_NS]))


@given(situations())
def test_laws(situation):
    nodes, members, wanted, since_ns = situation
    found, rows = planned(nodes, members, wanted=wanted, short_since_ns=since_ns)
    voters = {one.member.node_id for one in members if one.is_voter}
    by_id = {node.id: node for node in nodes}
    for name, row in rows.items():
        old = by_id[name]
        # Nobody is demoted by itself, and a voter is never called a worker.
        assert row.spec.desired_role >= old.spec.desired_role
        assert row.spec.replaced(desired_role=old.spec.desired_role) == old.spec
        assert name not in voters or row.role is NodeRole.MANAGER
    if found.remove:
        node = by_id.get(f"n{found.remove}")
        assert node is None or node.spec.desired_role is NodeRole.WORKER
    promoted = [n for n, row in rows.items() if row.spec.desired_role > by_id[n].spec.desired_role]
    assert len(promoted) <= wanted
    # Order-blind, and a fixpoint: who has just become a worker may be a spare in the next round.
    again, reordered = planned(nodes[::-1], members[::-1], wanted=wanted, short_since_ns=since_ns)
    assert (reordered, again.is_short) == (rows, found.is_short)
    applied = [rows.get(node.id, node) for node in nodes]
    rows = planned(applied, members, wanted=wanted, short_since_ns=since_ns)[1]
    applied = [rows.get(node.id, node) for node in applied]
    assert planned(applied, members, wanted=wanted, short_since_ns=since_ns)[1] == {}
