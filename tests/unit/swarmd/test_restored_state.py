"""What a restored cluster begins with: everything of the backup, and one new manager."""

from __future__ import annotations

import ipaddress

import pytest

from manager.store.tables import Tables
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.ids import NodeId
from shoal.model.enums import NodeAvailability, NodeRole, NodeState
from shoal.model.objects import Cluster, Node
from shoal.model.specs import NodeSpec
from shoal.model.types import ManagerStatus, Meta, NodeDescription, NodeStatus, Version
from swarmd.addresses import HostPort, NodeAddresses
from swarmd.core import RestorePlan, refuse_newer, restored_state
from tests.support.planning import a_service, a_task

OWN = ipaddress.ip_address("192.0.2.7")
PLAN = RestorePlan(
    node_id=NodeId("new"),
    hostname="fresh",
    addresses=NodeAddresses(
        listen=HostPort(ipaddress.ip_address("0.0.0.0"), 2377),
        advertise=HostPort(OWN, 2377),
        data_path=OWN,
    ),
    availability=NodeAvailability.DRAIN,
    version=1_000,
    now_ns=77,
)
CLUSTER = Cluster(id="c1", ingress_pool="10.240.0.0/12")


def a_member(node_id: str, host: str, raft_id: int = 0, **fields) -> Node:
    status = NodeStatus(state=NodeState.READY, address=host)
    manager = ManagerStatus(raft_id=raft_id, address=f"{host}:2377", reachable=True)
    return Node(
        id=node_id,
        meta=Meta(version=Version(index=5), created_at_ns=1),
        description=NodeDescription(hostname=node_id, data_path_address=host),
        spec=NodeSpec(desired_role=NodeRole.MANAGER if raft_id else NodeRole.WORKER),
        status=status,
        manager_status=manager if raft_id else None,
        role=NodeRole.MANAGER if raft_id else NodeRole.WORKER,
        **fields,
    )


def restored(*rows) -> dict[str, object]:
    state = restored_state(Tables(rows, version=9), PLAN)
    return {row.id: row for row in state.rows}


def test_this_node_is_the_only_manager_and_everything_else_stays():
    service, task = a_service("web"), a_task("t1", service_id="web", node_id="w1")
    worker = a_member("w1", "192.0.2.20")
    after = restored(CLUSTER, service, task, worker)
    assert {key: after[key] for key in ("c1", "web", "t1", "w1")} == {
        "c1": CLUSTER, "web": service, "t1": task, "w1": worker,
    }  # fmt: skip
    new = after["new"]
    assert (new.role, new.spec.desired_role) == (NodeRole.MANAGER, NodeRole.MANAGER)
    assert (new.description.hostname, new.spec.availability) == ("fresh", NodeAvailability.DRAIN)
    assert new.manager_status.address == "192.0.2.7:2377"
    assert (new.meta.version.index, new.meta.created_at_ns) == (1_000, 77)


def test_old_managers_are_managers_no_member_and_are_waited_for():
    rows = [CLUSTER, a_member("m1", "192.0.2.1", 11), a_member("m2", "192.0.2.2", 12)]
    state = restored_state(Tables(rows), PLAN)
    assert state.removed == {11, 12}
    for node in state.rows:
        if isinstance(node, Node) and node.id != "new":
            assert node.manager_status is None
            assert node.spec.desired_role is NodeRole.MANAGER  # it may come back as one
            assert node.status.state is NodeState.READY
            assert node.meta.version.index == 1_000


@pytest.mark.parametrize(
    "old", [a_member("m1", str(OWN), 11), a_member("w1", str(OWN))], ids=["manager", "worker"]
)
def test_a_node_whose_address_was_taken_is_down(old):
    after = restored(CLUSTER, old)[old.id]
    assert after.status.state is NodeState.DOWN
    assert "node new has taken its place" in after.status.message
    # Two peers at one address are none: the data path would not be applied anywhere.
    assert (after.status.address, after.description.data_path_address) == ("", "")
    assert after.meta.version.index == 1_000


def test_every_address_of_a_node_counts():
    other = a_member("m1", "192.0.2.1", 11)
    own = a_member("m1", str(OWN), 11)
    for one in (
        other.replaced(manager_status=own.manager_status),
        other.replaced(description=own.description),
        other.replaced(status=own.status),
    ):
        assert restored(CLUSTER, one)["m1"].status.state is NodeState.DOWN


def test_addresses_inside_the_clusters_networks_are_refused():
    with pytest.raises(InvalidArgument, match=r"holds this node's advertise address 192\.0\.2\.7"):
        restored(CLUSTER.replaced(ingress_pool="192.0.0.0/16"))


@pytest.mark.parametrize(
    ("made_by", "own", "is_refused"),
    [
        ("0.1.0", "0.1.0", False),
        ("0.1.0", "0.2.0", False),
        ("0.2.0", "0.1.9", True),
        ("0.10.0", "0.9.0", True),
        ("1.0.0rc1", "0.9.0", True),
        ("", "0.1.0", False),
        ("unknown", "0.1.0", False),
    ],
)
def test_what_a_newer_version_made_is_refused(made_by, own, is_refused):
    if not is_refused:
        refuse_newer(made_by, own)
        return
    with pytest.raises(FailedPrecondition, match=f"made by Shoal {made_by}, this is {own}"):
        refuse_newer(made_by, own)
