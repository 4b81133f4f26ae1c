"""Services' specs go to Docker's JSON and back without losing a field."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cluster.service_bodies import ServiceBody
from engine.http import bodies
from shoal.api.v1 import specs_pb2
from shoal.docker.specs import service_spec_json
from shoal.errors import InvalidArgument, SwarmError, Unimplemented
from shoal.model.specs import (
    ContainerSpec,
    PullOptions,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    GenericResource,
    Placement,
    PlacementPreference,
    Resources,
    RestartPolicy,
    UpdateConfig,
)
from shoal.wire.objects import to_pb
from tests.unit.shoal.wire.rows import rows_of

OURS = {
    "DrainTimeout", "TTLAfterFinish", "DependsOn", "DisconnectPolicy", "ListenTimeout", "Prefer",
    "Avoid", "Strategy", "Addresses", "SwapBytes", "MemorySwappiness", "Devices",
    "Priority", "DisruptionBudget", "FileRotation",
    "ProgressDeadline", "BackoffFactor", "BackoffMax",
}  # fmt: skip
OURS_OF_PORTS = {"Sticky", "Source", "Prefer", "IP", "Interface", "WeightLabel"}
FULL = {
    "Name": "full", "Labels": {"sl": "1"},
    "TaskTemplate": {
        "ContainerSpec": {
            "Image": "web:1", "Labels": {"cl": "1"}, "Command": ["/bin/sh"], "Args": ["-c", "x"],
            "Hostname": "h-{{.Task.Slot}}", "Env": ["A=1"], "Dir": "/tmp", "User": "0:0",
            "Groups": ["5"],
            "Privileges": {
                "SELinuxContext": {"Type": "t"}, "Seccomp": {"Mode": "custom", "Profile": "e30="},
                "AppArmor": {"Mode": "disabled"}, "NoNewPrivileges": True,
            },
            "Init": False, "StopSignal": "SIGINT", "TTY": True, "OpenStdin": True, "ReadOnly": True,
            "Mounts": [
                {"Type": "bind", "Source": "/tmp", "Target": "/h", "ReadOnly": True,
                 "BindOptions": {"Propagation": "rslave", "NonRecursive": True}},
                {"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {
                    "NoCopy": True, "Labels": {"a": "b"}, "DriverConfig": {"Name": "local"}}},
                {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {
                    "SizeBytes": 1048576, "Mode": 1023, "Options": [["noexec"], ["uid", "5"]]}},
                {"Type": "image", "Source": "i", "Target": "/i", "ImageOptions": {"Subpath": "s"}},
            ],
            "StopGracePeriod": 0,
            "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 2000000000, "Retries": 2},
            "Hosts": ["1.2.3.4 foo"], "DNSConfig": {"Nameservers": ["127.0.0.1"]},
            "Secrets": [{"File": {"Name": "s", "UID": "0", "GID": "0", "Mode": 292},
                         "SecretID": "i1", "SecretName": "s1"}],
            "Configs": [{"File": {"Name": "c", "UID": "0", "GID": "0", "Mode": 292},
                         "ConfigID": "i2", "ConfigName": "c1"}],
            "Isolation": "default", "Sysctls": {"net.core.somaxconn": "99"},
            "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_MKNOD"],
            "Ulimits": [{"Name": "nofile", "Hard": 200, "Soft": 100}], "OomScoreAdj": -5,
        },
        "Resources": {
            "Limits": {"NanoCPUs": 500000000, "MemoryBytes": 67108864, "Pids": 50},
            "Reservations": {"GenericResources": [
                {"NamedResourceSpec": {"Kind": "gpu", "Value": "u1"}},
                {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}}]},
        },
        "RestartPolicy": {"Condition": "on-failure", "Delay": 0, "MaxAttempts": 0, "Window": 2},
        "Placement": {
            "Constraints": ["node.role==manager"],
            "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
            "MaxReplicas": 2, "Platforms": [{"Architecture": "amd64", "OS": "linux"}],
        },
        "Networks": [{"Target": "n1", "Aliases": ["fa"], "DriverOpts": {"a": "b"}}],
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
        "ForceUpdate": 7, "Runtime": "container",
    },
    "Mode": {"Replicated": {"Replicas": 0}},
    "UpdateConfig": {"Parallelism": 2, "Delay": 1000000000, "FailureAction": "rollback",
                     "Monitor": 2000000000, "MaxFailureRatio": 0.2, "Order": "start-first"},
    "RollbackConfig": {"Parallelism": 0, "FailureAction": "pause", "MaxFailureRatio": 0,
                       "Order": "stop-first"},
    "EndpointSpec": {"Mode": "vip", "Ports": [
        {"Name": "http", "Protocol": "udp", "TargetPort": 80, "PublishedPort": 8090,
         "PublishMode": "host"}]},
}  # fmt: skip


def read(spec: dict[str, Any], before: ServiceSpec | None = None) -> ServiceSpec:
    """A spec as it comes over the wire."""
    body = bodies.decode(msgspec.json.encode(spec), ServiceBody)
    return body.row(ServiceSpec() if before is None else before)


def of_container(**fields: Any) -> dict[str, Any]:
    return {"TaskTemplate": {"ContainerSpec": {"Image": "web:1", **fields}}}


def _settled(preference: PlacementPreference) -> PlacementPreference:
    """Of the three wishes one."""
    for name in ("spread_descriptor", "prefer", "avoid"):
        if getattr(preference, name):
            return PlacementPreference(**{name: getattr(preference, name)})
    return PlacementPreference(prefer="node.labels.a==b")


def _possible(resources: Resources) -> Resources:
    """Each piece with a name or with a number."""
    generic = (
        one.replaced(count=0) if one.named_value else GenericResource(one.kind, one.count)
        for one in resources.generic
    )
    return resources.replaced(generic=tuple(generic))


def _finite(config: UpdateConfig | None) -> UpdateConfig | None:
    if config is None or 0 <= config.max_failure_ratio <= 1:
        return config
    return config.replaced(max_failure_ratio=0.25)


def _bounded(policy: RestartPolicy | None) -> RestartPolicy | None:
    if policy is None or 0 <= policy.backoff_factor <= 10:
        return policy
    return policy.replaced(backoff_factor=1.5)


@st.composite
def specs(draw: st.DrawFn) -> ServiceSpec:
    """Any spec of containers, with every field, and of alternatives one each."""
    spec = draw(rows_of(ServiceSpec))
    task = spec.task
    container = draw(rows_of(ContainerSpec)).replaced(
        pull_options=draw(st.sampled_from([None, PullOptions("e30=")]))
    )
    return spec.replaced(
        update=_finite(spec.update),
        rollback=_finite(spec.rollback),
        task=task.replaced(
            runtime=container,
            restart=_bounded(task.restart),
            resources=task.resources.replaced(
                limits=_possible(task.resources.limits),
                reservations=_possible(task.resources.reservations),
            ),
            placement=task.placement.replaced(
                preferences=tuple(map(_settled, task.placement.preferences))
            ),
        ),
    )


def without_ours(value: Any, *, port: bool = False) -> Any:
    """What is left of JSON in a client that knows Docker's fields alone."""
    if isinstance(value, list):
        return [without_ours(one, port=port) for one in value]
    if not isinstance(value, dict):
        return value
    hidden = OURS_OF_PORTS if port else OURS
    return {
        key: without_ours(item, port=key == "Ports")
        for key, item in value.items()
        if key not in hidden and not (key == "Monitor" and item == 0)
    }


@settings(deadline=None, max_examples=60)
@given(spec=specs())
def test_a_spec_that_comes_back_as_it_was_shown_is_the_same(spec):
    shown = service_spec_json(spec)
    assert read(shown, spec) == spec
    alone = read(shown)
    container = spec.task.runtime.replaced(pull_options=None)
    if container.isolation == "default":
        container = container.replaced(isolation="")
    assert alone == spec.replaced(task=spec.task.replaced(runtime=container))
    assert service_spec_json(alone) == shown


@settings(deadline=None, max_examples=60)
@given(spec=specs())
def test_a_client_that_knows_docker_s_fields_alone_changes_nothing_of_ours(spec):
    assert read(without_ours(service_spec_json(spec)), spec) == spec


def test_what_docker_writes_is_shown_as_it_was_written():
    assert service_spec_json(read(FULL)) == FULL


@pytest.mark.parametrize(
    ("mode", "row"),
    [
        ({}, ReplicatedMode(1)),
        ({"Replicated": {}}, ReplicatedMode(1)),
        ({"replicated": {"replicas": 0}}, ReplicatedMode(0)),
        ({"ReplicatedJob": {}}, ReplicatedJobMode(1, 1)),
        ({"ReplicatedJob": {"MaxConcurrent": 3}}, ReplicatedJobMode(3, 3)),
        ({"ReplicatedJob": {"TotalCompletions": 4}}, ReplicatedJobMode(1, 4)),
    ],
)
def test_what_a_mode_leaves_out_is_as_in_docker(mode, row):
    assert read({**of_container(), "Mode": mode}).mode == row


def test_networks_of_old_clients_are_found():
    spec = read({**of_container(), "Networks": [{"Target": "old"}]})
    assert [one.target for one in spec.task.networks] == ["old"]


def test_a_wish_in_our_own_words_replaces_the_one_before():
    before = ServiceSpec(task=TaskSpec(listen_timeout_ns=5), drain_timeout_ns=6)
    asked = of_container()
    asked["TaskTemplate"]["ListenTimeout"] = 0
    spec = read({**asked, "DrainTimeout": 7}, before)
    assert (spec.task.listen_timeout_ns, spec.drain_timeout_ns) == (0, 7)


def test_wishes_for_nodes_stay_where_their_places_come_back():
    wishes = (PlacementPreference(prefer="a==b"), PlacementPreference(avoid="c==d"))
    before = ServiceSpec(task=TaskSpec(placement=Placement(preferences=wishes)))
    asked = of_container()
    asked["TaskTemplate"]["Placement"] = {"Preferences": [{"Spread": None}, {}]}
    assert read(asked, before).task.placement.preferences == wishes


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({}, r"mismatched Runtime and \*Spec fields"),
        ({"TaskTemplate": {"Runtime": "x", "ContainerSpec": {}}}, "mismatched Runtime"),
        ({**of_container(), "Mode": {"Global": {}, "Replicated": {}}}, "only one service mode"),
        ({**of_container(), "UpdateConfig": {"Order": "x"}}, 'invalid update order: "x"'),
        ({**of_container(), "EndpointSpec": {"Ports": [{"Protocol": "x"}]}}, "invalid Protocol"),
        (of_container(Mounts=[{"Type": "npipe"}]), 'invalid Mount.Type: "npipe"'),
        (of_container(Mounts=[{"BindOptions": {"NonRecursive": True,
                                               "ReadOnlyNonRecursive": True}}]), "only one of"),
        (of_container(Mounts=[{"Type": "image", "VolumeOptions": {"Subpath": "x"}}]), "Subpath"),
        (of_container(Privileges={"Seccomp": {"Profile": "%"}}), "Seccomp.Profile: is not base64"),
        (of_container(StopGracePeriod="1s"), "StopGracePeriod: expected int"),
        (of_container(TTY="yes"), r"TaskTemplate\.ContainerSpec\.TTY: expected bool, got str"),
        ({"TaskTemplate": {"ContainerSpec": {}, "Placement": {"Preferences": [{}]}}}, "Prefer"),
        ({"TaskTemplate": {"ContainerSpec": {}, "NetworkAttachmentSpec": {}}}, "NetworkAttachment"),
        ({"TaskTemplate": {"ContainerSpec": {}, "Resources": {"Limits": {
            "GenericResources": [{}]}}}}, "NamedResourceSpec"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(spec, text):
    with pytest.raises(InvalidArgument, match=text):
        read(spec)


def test_plugins_are_refused_by_name():
    with pytest.raises(Unimplemented, match="PluginSpec"):
        read({"TaskTemplate": {"PluginSpec": {"Name": "x"}, "Runtime": "plugin"}})


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from _paths(item, (*path, key))


@settings(deadline=None, max_examples=200)
@given(
    path=st.sampled_from(list(_paths(FULL))),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
        | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["Name", "Kind", "x"]), inner, max_size=2),
        max_leaves=4,
    ),
)  # fmt: skip
def test_anything_in_any_place_is_read_or_refused(path, value):
    spec = copy.deepcopy(FULL)
    place: Any = spec
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with suppress(SwarmError):  # all else is a bug
        to_pb(read(spec), specs_pb2.ServiceSpec)
