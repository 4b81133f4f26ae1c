"""Bodies of the swarm's operations, read and shown; what a node is to its cluster."""

from __future__ import annotations

import time

import pytest

from engine.cluster.choices import chosen
from engine.cluster.loglines import LineStyle
from engine.cluster.settings import ClusterBody, InitBody, NodeBody, cluster_info, next_spec
from engine.cluster.standing import Standing, swarm_info
from engine.http import bodies
from shoal.api.v1 import logs_pb2
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.enums import NodeAvailability, NodeRole, TaskState
from shoal.model.objects import Cluster
from shoal.model.specs import ClusterSpec, NetworkConfig, NodeSpec, RaftConfig
from shoal.model.types import DrainPolicy, RootCa
from shoal.security.root import RootCA

SPEC = ClusterSpec(
    raft=RaftConfig(managers_wanted=3), network=NetworkConfig(key_rotation_ns=3_600_000_000_000)
)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    certificate = RootCA.create(now_ns=time.time_ns()).certificate_pem
    return Cluster(id="c", spec=SPEC, root_ca=RootCa(certificate=certificate))


def test_settings_that_come_back_as_shown_stay_unset(cluster: Cluster):
    shown = cluster_info(cluster)["Spec"]
    assert shown["Orchestration"] == {"TaskHistoryRetentionLimit": 5}
    assert next_spec(cluster, bodies.convert(shown, ClusterBody)) == SPEC


def test_one_setting_is_changed_and_ours_are_kept(cluster: Cluster):
    shown = cluster_info(cluster)["Spec"]
    body = bodies.convert({**shown, "Dispatcher": {"HeartbeatPeriod": 10**9}}, ClusterBody)
    spec = next_spec(cluster, body)
    assert spec.dispatcher.heartbeat_period_ns == 10**9
    assert spec.replaced(dispatcher=SPEC.dispatcher) == SPEC


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("Raft", "KeepOldSnapshots", 1),
        ("Raft", "LogEntriesForSlowFollowers", 500),
        ("Raft", "ElectionTick", 3),
        ("Raft", "HeartbeatTick", 2),
        ("TaskDefaults", "LogDriver", {"Name": "json-file"}),
    ],
)
def test_what_is_impossible_is_refused_by_name(cluster: Cluster, part, field, value):
    body = bodies.convert({part: {field: value}}, ClusterBody)
    with pytest.raises(Unimplemented, match=f"{part}.{field}"):
        next_spec(cluster, body)


def test_init_says_all_that_was_wished():
    wished = {
        "ListenAddr": "0.0.0.0:2377",
        "AdvertiseAddr": "10.0.0.1",
        "Availability": "drain",
        "DefaultAddrPool": ["10.20.0.0/16"],
        "SubnetSize": 26,
        "AutoLockManagers": True,
        "Spec": {"Labels": None, "CAConfig": {"NodeCertExpiry": 10**15}},
    }
    request = bodies.convert(wished, InitBody).request()
    assert request.listen_address == "0.0.0.0:2377"
    assert (request.availability, request.autolock) == (NodeAvailability.DRAIN, True)
    assert (*request.default_address_pools, request.default_address_pool_mask_length) == (
        "10.20.0.0/16",
        26,
    )
    assert request.node_certificate_validity_ns == 10**15
    assert not request.HasField("snapshot_interval")


def test_nodes_and_choices():
    body = bodies.convert({"Role": "Manager", "Availability": "pause", "Labels": {}}, NodeBody)
    spec = body.spec(NodeSpec())
    assert (spec.desired_role, spec.availability) == (NodeRole.MANAGER, NodeAvailability.PAUSE)
    assert chosen(TaskState, "running", "state") is TaskState.RUNNING
    with pytest.raises(InvalidArgument, match='invalid Role: "king": must be one of worker, man'):
        chosen(NodeRole, "king", "Role")


@pytest.mark.parametrize(
    ("standing", "header", "reason"),
    [
        (Standing(), "inactive", 'Use "docker swarm init"'),
        (Standing("active", node_id="n", is_manager=True), "active/manager", ""),
        (Standing("active", node_id="n"), "active/worker", "Worker nodes can't be used"),
        (Standing("locked"), "locked", "Swarm is encrypted"),
        (Standing("error", error="no disk"), "error", "no disk"),
    ],
)
def test_what_a_node_says_of_itself(standing: Standing, header: str, reason: str):
    assert standing.header == header
    assert reason in standing.refusal
    assert bool(standing.refusal) == bool(reason)
    assert swarm_info(standing)["ControlAvailable"] is (header == "active/manager")


def test_lines_are_framed_with_where_they_come_from():
    message = logs_pb2.LogMessage(
        context=logs_pb2.LogContext(service_id="s", node_id="n", task_id="t"),
        timestamp_ns=1_500_000_000,
        stream=logs_pb2.LOG_STREAM_STDERR,
        data=b"hello",
    )
    line = LineStyle(framed=True, timestamps=True, details=True).line(message)
    text = (
        b"1970-01-01T00:00:01.500000000Z com.docker.swarm.node.id=n,"
        b"com.docker.swarm.service.id=s,com.docker.swarm.task.id=t hello\n"
    )
    assert line == b"\x02\0\0\0" + len(text).to_bytes(4, "big") + text
    assert LineStyle(framed=False).line(message) == b"hello\n"


def test_a_drain_with_a_deadline_outlives_changes_of_labels_and_no_other_availability():
    draining = NodeSpec(availability=NodeAvailability.DRAIN, drain=DrainPolicy(5))

    def changed(availability: str) -> NodeSpec:
        body = {"Role": "worker", "Availability": availability, "Labels": {"a": "b"}}
        return bodies.convert(body, NodeBody).spec(draining)

    assert changed("drain").drain == DrainPolicy(5)
    assert changed("active").drain is None
    assert changed("pause").drain is None
