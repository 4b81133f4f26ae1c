"""Who counts as a manager when the state is in etcd."""

from __future__ import annotations

import pytest

from manager.etcd.backend import Presence
from manager.leadership.etcd_members import members_of
from manager.roles.plan import plan
from manager.store.tables import Tables
from shoal.model.enums import NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.specs import NodeSpec
from shoal.model.types import ManagerStatus

WORKER, MANAGER = NodeRole.WORKER, NodeRole.MANAGER


def a_node(node_id: str, wanted: NodeRole, role: NodeRole) -> Node:
    status = ManagerStatus(address=f"{node_id}:2377") if role is MANAGER else None
    return Node(id=node_id, spec=NodeSpec(desired_role=wanted), role=role, manager_status=status)


@pytest.mark.parametrize(
    ("wanted", "role", "runs", "leads", "counts", "reachable", "later"),
    [
        (MANAGER, MANAGER, True, True, True, True, MANAGER),
        (MANAGER, MANAGER, True, False, True, True, MANAGER),
        (MANAGER, MANAGER, False, False, True, False, MANAGER),
        (MANAGER, WORKER, False, False, False, False, WORKER),  # promoted, not yet certified
        (MANAGER, WORKER, True, False, True, True, MANAGER),
        (WORKER, MANAGER, True, False, False, False, WORKER),  # demoted: at once
        (WORKER, MANAGER, False, False, False, False, WORKER),
        (WORKER, MANAGER, True, True, True, True, MANAGER),  # it resigns first
        (WORKER, WORKER, False, False, False, False, WORKER),
    ],
)
def test_members(wanted, role, runs, leads, counts, reachable, later):
    view = Tables([Cluster(id="c"), a_node("n1", wanted, role)], version=1)
    present = {"n1": Presence("n1:1", 7)} if runs else {}

    members = members_of(view, present, "n1" if leads else "n9")

    assert [one.member.node_id for one in members] == ["n1"] * counts
    assert [one.is_reachable for one in members] == [reachable] * counts
    if counts:
        assert members[0].member.address == ("n1:1" if runs else "n1:2377")
    found = plan(view, members, now_ns=0, short_since_ns=None)
    changed = {change.object.id: change.object.role for change in found.changes}
    assert changed.get("n1", role) is later
    assert found.remove == (7 if leads and wanted is WORKER else 0)
