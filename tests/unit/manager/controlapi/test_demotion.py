"""Which managers may be demoted, and which nodes removed."""

from __future__ import annotations

import pytest

from manager.controlapi import nodes
from manager.store.tables import Tables
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.enums import NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.specs import ClusterSpec, NodeSpec, RaftConfig
from shoal.model.types import ManagerStatus

MANAGER = NodeSpec(desired_role=NodeRole.MANAGER)


def managers(*reachable: bool) -> Tables:
    """Managers n1, n2, ..., and the worker w."""
    rows = [
        Node(
            id=f"n{number}",
            spec=MANAGER,
            role=NodeRole.MANAGER,
            manager_status=ManagerStatus(raft_id=number, reachable=up),
        )
        for number, up in enumerate(reachable, 1)
    ]
    return Tables([Cluster(id="c"), Node(id="w"), *rows], version=1)


def demote(view: Tables, name: str) -> list:
    return nodes.update_node(view, name, NodeSpec(), version=0)


def test_a_manager_of_three_is_demoted():
    (change,) = demote(managers(True, True, True), "n2")
    assert change.object.spec.desired_role is NodeRole.WORKER
    assert change.object.role is NodeRole.MANAGER  # until it has left the others


def test_the_last_manager_stays():
    with pytest.raises(FailedPrecondition, match="attempting to demote the last manager"):
        demote(managers(True), "n1")


@pytest.mark.parametrize(
    ("up", "name", "allowed"),
    [
        ((True, True), "n1", True),
        ((True, True, False), "n3", True),
        ((True, True, False), "n1", False),
        ((True, True, True, False, False), "n4", True),
        ((True, True, True, False, False), "n1", False),
        ((True, True, True, True, False), "n1", True),
    ],
)
def test_a_demotion_that_would_lose_the_quorum_is_refused(up, name, allowed):
    view = managers(*up)
    if allowed:
        assert len(demote(view, name)) == 1
    else:
        with pytest.raises(FailedPrecondition, match="loss of quorum"):
            demote(view, name)


def test_a_manager_that_is_no_member_any_more_is_demoted():
    view = managers(True, True)
    view.put(view.nodes.get("n2").replaced(manager_status=None))
    assert len(demote(view, "n2")) == 1


def test_a_manager_is_removed_only_after_its_demotion():
    view = managers(True, True, True)
    with pytest.raises(FailedPrecondition, match="demote it first"):
        nodes.remove_node(view, "n1", force=True, now_ns=1)
    view.put(view.nodes.get("n1").replaced(spec=NodeSpec()))  # it has not left the others yet
    with pytest.raises(FailedPrecondition, match="demote it first"):
        nodes.remove_node(view, "n1", force=True, now_ns=1)
    view.put(view.nodes.get("n1").replaced(role=NodeRole.WORKER))
    assert nodes.remove_node(view, "n1", force=True, now_ns=1)


def test_a_node_on_its_way_to_be_a_manager_is_not_removed():
    view = managers(True)
    view.put(view.nodes.get("w").replaced(spec=MANAGER))
    with pytest.raises(FailedPrecondition, match="demote it first"):
        nodes.remove_node(view, "w", force=True, now_ns=1)


def test_too_many_wanted_managers_are_refused():
    spec = ClusterSpec(raft=RaftConfig(managers_wanted=11))
    with pytest.raises(InvalidArgument, match="managers: 11 is more than 9"):
        nodes.update_cluster(managers(True), spec, version=0, tokens=None)
