"""Which managers may be demoted, and which nodes removed."""

from __future__ import annotations

import pytest

from manager.ca.autolock import LockWish
from manager.controlapi import nodes
from manager.store.tables import Tables
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.enums import NodeAvailability, NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.specs import ClusterSpec, NodeSpec, RaftConfig
from shoal.model.types import (
    Annotations,
    BlacklistedCertificate,
    CaConfig,
    DrainPolicy,
    ManagerStatus,
    NodeCertificate,
)
from shoal.security.unlock import make_unlock_key

DAY_NS = 24 * 3600 * 10**9
NOW_NS = 20_000 * DAY_NS
LOCK = LockWish(make_unlock_key())
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
    return nodes.update_node(view, name, NodeSpec(), version=0, now_ns=0)


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
        nodes.update_cluster(managers(True), spec, version=0, tokens=None, lock=LOCK)


def blacklisted(node: Node, cluster: Cluster) -> dict[str, int]:
    view = Tables([cluster, node], version=1)
    changes = nodes.remove_node(view, node.id, force=True, now_ns=NOW_NS)
    (after,) = [change.object for change in changes if isinstance(change.object, Cluster)]
    return {one: entry.expires_at_ns for one, entry in after.blacklisted_certificates.items()}


@pytest.mark.parametrize(
    ("validity", "certificate_ends", "days"),
    [(None, None, 97), (30, 60, 67), (30, 20, 37), (365, 10, 372), (None, 800, 807)],
)
def test_a_removed_node_is_refused_a_week_longer_than_any_certificate_it_can_hold(
    validity, certificate_ends, days
):
    """validity, certificate_ends: days; of the settings, and of the certificate it has named."""
    ca = CaConfig(node_certificate_validity_ns=validity and validity * DAY_NS)
    certificate = certificate_ends and NodeCertificate(
        not_after_ns=NOW_NS + certificate_ends * DAY_NS
    )
    cluster = Cluster(id="c", spec=ClusterSpec(ca=ca))
    assert blacklisted(Node(id="w", certificate=certificate), cluster) == {
        "w": NOW_NS + days * DAY_NS
    }


def test_the_blacklist_is_bounded_and_forgets_first_what_ends_first():
    full = {
        f"n{number}": BlacklistedCertificate(expires_at_ns=NOW_NS + 1 + number)
        for number in range(nodes.BLACKLIST_MAX)
    }
    found = blacklisted(Node(id="w"), Cluster(id="c", blacklisted_certificates=full))
    assert len(found) == nodes.BLACKLIST_MAX
    assert full.keys() - found.keys() == {"n0"}
    ended = {"old": BlacklistedCertificate(expires_at_ns=NOW_NS)}
    assert set(blacklisted(Node(id="w"), Cluster(id="c", blacklisted_certificates=ended))) == {"w"}


@pytest.mark.parametrize(
    ("up", "name", "allowed"),
    [
        ((True, True, False), "n1", True),
        ((True, False, False), "n2", True),
        ((True, False, False), "n1", False),
    ],
)
def test_with_the_state_in_etcd_one_other_manager_is_enough(up, name, allowed):
    view = managers(*up)
    for node in list(view.nodes):
        if node.manager_status is not None:
            view.put(node.replaced(manager_status=node.manager_status.replaced(raft_id=0)))
    if allowed:
        assert len(demote(view, name)) == 1
    else:
        with pytest.raises(FailedPrecondition, match="no other manager is reachable"):
            demote(view, name)


def test_with_the_state_in_etcd_settings_of_a_log_are_refused():
    view = managers(True)
    nodes.check_without_log(view, ClusterSpec(raft=RaftConfig(managers_wanted=3)))
    with pytest.raises(InvalidArgument, match="snapshot interval"):
        nodes.check_without_log(view, ClusterSpec(raft=RaftConfig(snapshot_interval=100)))


def test_the_deadline_of_a_drain_counts_from_the_request_that_asks_for_it():
    view = managers(True)
    wish = NodeSpec(availability=NodeAvailability.DRAIN, drain=DrainPolicy(deadline_ns=60 * 10**9))

    def until_ns(spec: NodeSpec, now_ns: int) -> int:
        nonlocal view
        (change,) = nodes.update_node(view, "w", spec, version=0, now_ns=now_ns)
        view = Tables([change.object], version=view.version)
        return change.object.drain_until_ns - 60 * 10**9

    labelled = wish.replaced(annotations=Annotations(labels={"a": "b"}))
    assert until_ns(wish, 1000) == 1000
    assert until_ns(labelled, 2000) == 1000, "another change leaves it alone"
    assert until_ns(labelled, 3000) == 3000, "it was asked for again"
    assert until_ns(labelled.replaced(drain=None), 4000) == -60 * 10**9
