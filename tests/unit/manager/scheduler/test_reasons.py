"""The reasons that people are given are those of the filters: same order, same verdict."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from manager.scheduler.filters import Pipeline
from manager.scheduler.reasons import TEXT_MAX, reasons
from manager.scheduler.usage import Usage
from shoal.model.enums import NodeAvailability, NodeState
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import (
    DeviceMapping,
    Driver,
    Endpoint,
    GenericResource,
    NetworkAttachmentConfig,
    NetworkKey,
    Placement,
    Platform,
    ResourceRequirements,
    Resources,
)
from tests.support.planning import SECOND_NS, Cell, a_network, a_node, a_port, a_task

GENERIC = st.sampled_from(
    [
        (),
        (GenericResource(kind="gpu", count=2),),
        (GenericResource(kind="gpu", named_value="a"), GenericResource(kind="ssd", count=1)),
    ]
)
RESOURCES = st.builds(
    Resources,
    nano_cpus=st.integers(0, 4).map(lambda cpus: cpus * SECOND_NS),
    memory_bytes=st.integers(0, 4).map(lambda size: size << 30),
    generic=GENERIC,
)
PLACEMENTS = st.builds(
    Placement,
    constraints=st.sampled_from(
        [
            (),
            ("node.labels.zone==a",),
            ("node.labels.zone!=a", "node.role==worker"),
            ("node.ip==?",),
        ]
    ),
    platforms=st.sampled_from([(), (Platform(os="linux"),), (Platform(architecture="arm64"),)]),
    max_replicas=st.integers(0, 2),
)
NODES = st.builds(
    lambda state, availability, zone, resources, keys, devices: _with_devices(
        _with_keys(
            a_node(
                "n1",
                state=state,
                availability=availability,
                labels={"zone": zone} if zone else {},
                resources=resources,
            ),
            keys,
        ),
        devices,
    ),
    st.sampled_from(NodeState),
    st.sampled_from(NodeAvailability),
    st.sampled_from(["", "a", "A", "b"]),
    RESOURCES,
    st.booleans(),
    st.sampled_from([None, (), ("/dev/kvm",), ("/dev/snd/timer",)]),
)
SPECS = st.builds(
    lambda placement, wish, networks, devices: TaskSpec(
        runtime=ContainerSpec(image="nginx:1", devices=devices),
        placement=placement,
        resources=ResourceRequirements(reservations=wish),
        networks=networks,
    ),
    PLACEMENTS,
    RESOURCES,
    st.sampled_from([(), (NetworkAttachmentConfig(target="secret"),)]),
    st.sampled_from([(), (DeviceMapping("/dev/kvm"),), (DeviceMapping("/dev/snd"),)]),
)


def _with_keys(node, keys: bool):
    given_keys = (NetworkKey(public_key=bytes(32)),) if keys else ()
    return node.replaced(description=node.description.replaced(network_keys=given_keys))


def _with_devices(node, devices):
    """None: a node that does not tell."""
    described = node.description.replaced(devices=devices or (), devices_known=devices is not None)
    return node.replaced(description=described)


@given(NODES, SPECS, SPECS, st.booleans(), st.integers(0, 2))
def test_the_first_reason_is_the_refusal_of_the_filters(node, spec, other, has_port, copies):
    endpoint = Endpoint(ports=(a_port(80, 8080, host=True),))
    there = a_task("there", service_id="db", spec=other, endpoint=endpoint)
    task = a_task("new", node_id="", spec=spec, endpoint=endpoint if has_port else None)
    secret = a_network("secret", driver=Driver(name="overlay", options={"encrypted": ""}))
    view = Cell([node, secret, there]).tables
    usage = Usage(node, [there])

    found = reasons(view, task, usage, copies)

    refusal = Pipeline(task, view).refusal(usage, copies)
    assert [one.filter for one in found][:1] == ([refusal] if refusal else [])
    assert all(0 < len(one.text) <= TEXT_MAX for one in found)
