"""What init refuses, and the first entry of a new cluster."""

from __future__ import annotations

import ipaddress

import pytest

from manager.ca.core import new_cluster_secrets
from shoal.errors import InvalidArgument
from shoal.ids import ClusterId, NodeId
from shoal.model import defaults
from shoal.model.enums import ActionKind, NodeAvailability, NodeMembership, NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.types import ExternalCa
from shoal.security.root import RootCA
from shoal.security.tokens import parse_join_token
from shoal.wire.objects import entry_from_bytes, entry_to_bytes
from swarmd.addresses import HostPort, NodeAddresses
from swarmd.core import InitWish, NewNode, first_entry, plan_init

NOW_NS = 1_700_000_000_000_000_000
WHO = NewNode(NodeId("n" * 25), ClusterId("c" * 25), "node-1")


def addresses(advertise: str = "192.0.2.7", data_path: str = "192.0.2.7") -> NodeAddresses:
    return NodeAddresses(
        listen=HostPort(ipaddress.ip_address("0.0.0.0"), 2377),
        advertise=HostPort(ipaddress.ip_address(advertise), 2377),
        data_path=ipaddress.ip_address(data_path),
    )


def plan(**wish):
    return plan_init(InitWish(**wish), addresses())


def test_what_is_not_said_stays_unsaid_in_the_spec():
    found = plan()
    assert found.data_path_port == defaults.DATA_PATH_PORT
    assert found.ingress_pool == defaults.INGRESS_POOL
    assert found.default_address_pools == (defaults.ADDRESS_POOL,)
    assert found.default_address_pool_mask_length == defaults.ADDRESS_POOL_MASK_LENGTH
    assert found.availability is NodeAvailability.ACTIVE
    spec = found.spec
    assert spec.annotations.name == "default"
    assert spec.orchestration.task_history_retention_limit is None
    assert spec.dispatcher.heartbeat_period_ns is None
    assert spec.ca.node_certificate_validity_ns is None
    assert spec.raft.snapshot_interval is None
    assert found.certificate_validity_s == 90 * 24 * 3600


def test_what_is_said_is_kept():
    found = plan(
        availability=2,
        data_path_port=49151,
        ingress_pool="10.99.0.0/22",
        task_history_retention_limit=0,
        dispatcher_heartbeat_period_ns=10**9,
        node_certificate_validity_ns=7_200 * 10**9,
        snapshot_interval=5,
    )
    assert found.availability is NodeAvailability.DRAIN
    assert (found.data_path_port, found.ingress_pool) == (49151, "10.99.0.0/22")
    assert found.spec.orchestration.task_history_retention_limit == 0
    assert found.spec.dispatcher.heartbeat_period_ns == 10**9
    assert found.spec.raft.snapshot_interval == 5
    assert found.certificate_validity_s == 7_200


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        ({"data_path_port": 1023}, "data path port"),
        ({"data_path_port": 49152}, "data path port"),
        ({"availability": 3}, "availability"),
        ({"ingress_pool": "10.0.0.1/16"}, "ingress pool"),
        ({"ingress_pool": "fd00::/64"}, "ingress pool"),
        ({"ingress_pool": "10.0.0.0/23 "}, "ingress pool"),
        ({"ingress_pool": "10.0.0.0/24"}, "/22"),
        ({"ingress_pool": "0.0.0.0/0"}, "ingress pool"),
        ({"ingress_pool": "224.0.0.0/12"}, "cannot be routed"),
        ({"ingress_pool": "192.0.0.0/16"}, "advertise address 192.0.2.7"),
        ({"node_certificate_validity_ns": 3_599 * 10**9}, "1h"),
        ({"dispatcher_heartbeat_period_ns": 0}, "heartbeat"),
        ({"snapshot_interval": 0}, "snapshot interval"),
    ],
)
def test_what_breaks_a_rule_is_refused(wish, word):
    with pytest.raises(InvalidArgument) as caught:
        plan(**wish)
    assert word in str(caught.value)


EXTERNAL = RootCA.create(now_ns=NOW_NS).certificate_pem


def external(root_pem: bytes) -> ExternalCa:
    return ExternalCa(protocol="cfssl", url="https://ca:8888", ca_certificate=root_pem)


def test_a_cluster_with_an_external_authority_begins_with_the_rotation_to_its_root():
    secrets = new_cluster_secrets(now_ns=NOW_NS)
    entry = first_entry(plan(external_cas=(external(EXTERNAL),)), WHO, secrets, now_ns=NOW_NS)
    cluster = entry.actions[0].object
    assert isinstance(cluster, Cluster)
    assert cluster.root_ca.key == secrets.root_key_pem
    rotation = cluster.root_ca.rotation
    assert rotation is not None
    assert (rotation.ca_certificate, rotation.ca_key) == (EXTERNAL, b"")
    assert rotation.cross_signed_certificate


def test_external_authorities_of_a_new_cluster_have_one_root():
    with pytest.raises(InvalidArgument, match="cacert must be given with init"):
        plan(external_cas=(external(b""),))
    other = RootCA.create(now_ns=NOW_NS).certificate_pem
    with pytest.raises(InvalidArgument, match="must have the same root"):
        plan(external_cas=(external(EXTERNAL), external(other)))


def test_the_pool_may_not_hold_the_data_path_either():
    with pytest.raises(InvalidArgument, match="data path address"):
        plan_init(InitWish(), addresses(data_path="10.241.0.1"))


def test_the_first_entry_holds_the_cluster_and_its_manager():
    secrets = new_cluster_secrets(now_ns=NOW_NS)
    entry = first_entry(plan(availability=1), WHO, secrets, now_ns=NOW_NS)
    assert entry_from_bytes(entry_to_bytes(entry)) == entry
    assert [action.kind for action in entry.actions] == [ActionKind.CREATE] * 2
    cluster, node = (action.object for action in entry.actions)
    assert isinstance(cluster, Cluster)
    assert isinstance(node, Node)
    assert (cluster.id, node.id) == (WHO.cluster_id, WHO.node_id)
    assert cluster.root_ca.certificate == secrets.root_certificate_pem
    assert cluster.root_ca.key == secrets.root_key_pem
    for token in (cluster.root_ca.join_tokens.worker, cluster.root_ca.join_tokens.manager):
        parsed = parse_join_token(token)
        assert parsed.digest == cluster.root_ca.certificate_digest
        parsed.verify_root(cluster.root_ca.certificate)
    assert cluster.ingress_subnet_mask_length == defaults.INGRESS_SUBNET_MASK_LENGTH
    assert node.role is node.spec.desired_role is NodeRole.MANAGER
    assert node.spec.availability is NodeAvailability.PAUSE
    assert node.spec.membership is NodeMembership.ACCEPTED
    assert node.description.hostname == "node-1"
    assert node.manager_status is not None
    assert node.manager_status.address == "192.0.2.7:2377"
    assert node.manager_status.leader
    assert node.manager_status.reachable
    assert entry.proposed_at_ns == NOW_NS
