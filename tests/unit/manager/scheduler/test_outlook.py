"""What a service could never get on the cluster's nodes is told at once, and nothing else is."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from manager.scheduler.outlook import warnings
from manager.scheduler.plan import plan
from shoal.model.enums import NodeAvailability, NodeMembership, NodeState, TaskState
from shoal.model.specs import (
    ContainerSpec,
    GlobalMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    Annotations,
    DeviceMapping,
    Driver,
    EndpointSpec,
    GenericResource,
    NetworkAttachmentConfig,
    Placement,
    Platform,
    ResourceRequirements,
    Resources,
)
from tests.support.planning import Cell, a_network, a_node, a_port, a_service, a_task

GIB = 1 << 30
SMALL = a_node(
    "n1",
    labels={"zone": "a"},
    resources=Resources(
        nano_cpus=2 * 10**9, memory_bytes=4 * GIB, generic=(GenericResource(kind="gpu", count=1),)
    ),
)
LARGE = a_node(
    "n2",
    labels={"disk": "ssd"},
    state=NodeState.DOWN,
    availability=NodeAvailability.DRAIN,
    resources=Resources(nano_cpus=4 * 10**9, memory_bytes=2 * GIB),
)
SECRET = a_network("secret", driver=Driver(name="overlay", options={"encrypted": ""}))


def _spec(*, replicas: int = 1, mode=None, ports=(), devices=(), networks=(), wish=None, **placed):
    return ServiceSpec(
        annotations=Annotations(name="web"),
        task=TaskSpec(
            runtime=ContainerSpec(image="a", devices=devices),
            resources=ResourceRequirements(reservations=Resources(**(wish or {}))),
            placement=Placement(**placed),
            networks=networks,
        ),
        mode=mode or ReplicatedMode(replicas=replicas),
        endpoint=EndpointSpec(ports=ports),
    )


def _fits(places: int, wanted: int) -> str:
    return (
        f"replicas: {places} of {wanted} tasks fit on the cluster's nodes at once, with nothing "
        "else on them"
    )


def _told(spec: ServiceSpec, *rows) -> tuple[str, ...]:
    return warnings(Cell([*(rows or (SMALL, LARGE)), SECRET]).tables, spec)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            _spec(wish={"nano_cpus": 8 * 10**9, "memory_bytes": 64 * GIB}),
            (
                "reserve-cpu: no node of the cluster has 8 CPUs, the most is 4",
                "reserve-memory: no node of the cluster has 65536 MiB, the most is 4096 MiB",
            ),
        ),
        (
            _spec(wish={"nano_cpus": 3 * 10**9, "memory_bytes": 3 * GIB}),
            ("no node of the cluster has all that is to be reserved at once",),
        ),
        (
            _spec(wish={"generic": (GenericResource(kind="gpu", count=2),)}),
            ("generic-resource: no node of the cluster has gpu=2, the most is 1",),
        ),
        (
            _spec(constraints=("node.labels.zone==b", "node.labels.zone!=c")),
            ("constraint 'node.labels.zone==b': no node of the cluster meets it",),
        ),
        (
            _spec(constraints=("node.labels.zone==a", "node.labels.disk==ssd")),
            ("no node of the cluster meets all constraints at once",),
        ),
        (
            _spec(constraints=("node.labels.zone==a",), wish={"nano_cpus": 3 * 10**9}),
            (
                "no node of the cluster meets everything that the service asks for at once: "
                "resources on 1 of 2; constraint on 1 of 2",
            ),
        ),
        (
            _spec(platforms=(Platform(architecture="sparc"),)),
            ("no node of the cluster has a platform of the image",),
        ),
        (
            _spec(networks=(NetworkAttachmentConfig(target="secret"),)),
            ("no node of the cluster has keys for encrypted networks (CONFIG_WIREGUARD)",),
        ),
        (
            _spec(replicas=5, max_replicas=2),
            (_fits(4, 5),),
        ),
        (
            _spec(replicas=9, wish={"memory_bytes": GIB}),
            (_fits(6, 9),),
        ),
        (
            _spec(replicas=3, ports=(a_port(80, 80, host=True),)),
            (_fits(2, 3),),
        ),
        (
            _spec(mode=ReplicatedJobMode(max_concurrent=3, total_completions=9), max_replicas=1),
            (_fits(2, 3),),
        ),
        (
            _spec(constraints=("service.name==db",)),
            ("constraint 'service.name==db': there is no such service yet: tasks wait",),
        ),
    ],
)
def test_what_no_node_has(spec, expected):
    assert _told(spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        _spec(replicas=4),
        _spec(replicas=4, max_replicas=2),
        _spec(constraints=("node.labels.disk==ssd",)),  # DOWN and drained: it may come back
        _spec(replicas=100, ports=(a_port(80, 80),)),
        _spec(mode=GlobalMode(), wish={"memory_bytes": 4 * GIB}),
        _spec(constraints=("service.labels.tier==data", "service.name!=nobody")),
        _spec(devices=(DeviceMapping("/dev/kvm"),)),  # nobody knows
    ],
)
def test_what_some_node_has_is_no_matter(spec):
    assert _told(spec) == ()


def test_devices_that_are_known_to_be_on_no_node():
    known = SMALL.replaced(description=SMALL.description.replaced(devices_known=True))
    spec = _spec(devices=(DeviceMapping("/dev/kvm"),))
    assert _told(spec, known) == (
        "no node of the cluster has all devices that the service asks for",
    )


def test_nodes_that_were_not_let_in_do_not_count():
    out = SMALL.replaced(spec=SMALL.spec.replaced(membership=NodeMembership.PENDING))
    assert _told(_spec(constraints=("node.labels.zone==a",)), out, LARGE) != ()
    assert _told(_spec(constraints=("node.labels.zone==z",)), out) == ()


def test_a_service_that_is_there_is_no_matter():
    rows = (SMALL, a_service("db"))
    assert _told(_spec(constraints=("service.name == DB",)), *rows) == ()


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["", "a", "b"])), min_size=1, max_size=4),
    st.integers(0, 4),
    st.sampled_from([(), ("node.labels.zone==a",), ("node.labels.zone!=b",)]),
    st.integers(0, 2),
    st.integers(1, 6),
)
def test_told_exactly_when_tasks_wait_on_an_empty_cluster(nodes, gib, constraints, most, replicas):
    rows = [
        a_node(f"n{index}", labels={"zone": zone} if zone else {},
               resources=Resources(memory_bytes=size * GIB))
        for index, (size, zone) in enumerate(nodes)
    ]  # fmt: skip
    wish = {"memory_bytes": gib * GIB}
    spec = _spec(replicas=replicas, wish=wish, constraints=constraints, max_replicas=most)
    pending = [
        a_task(f"p{slot}", slot=slot, state=TaskState.PENDING, node_id="", spec=spec.task)
        for slot in range(1, replicas + 1)
    ]
    cell = Cell([*rows, *pending])
    told = warnings(cell.tables, spec)
    cell.settle(lambda tables: plan(tables, now_ns=cell.now_ns, ids=cell.ids))
    assert bool(told) == any(not task.node_id for task in cell.tables.tasks)
