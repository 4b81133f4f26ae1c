"""Rows with fixed ids and times for tests."""

from __future__ import annotations

from shoal.clock import NS_PER_S
from shoal.model.enums import (
    FailureAction,
    MountType,
    NodeAvailability,
    NodeRole,
    NodeState,
    PortProtocol,
    PublishMode,
    RestartCondition,
    TaskState,
    UpdateOrder,
    UpdateState,
)
from shoal.model.objects import Node, Service, Task
from shoal.model.specs import (
    ContainerSpec,
    NodeSpec,
    ReplicatedMode,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    Annotations,
    ContainerStatus,
    Driver,
    Endpoint,
    EndpointSpec,
    EngineDescription,
    GenericResource,
    ManagerStatus,
    Meta,
    Mount,
    NodeDescription,
    NodeStatus,
    Placement,
    PlacementPreference,
    Platform,
    PortConfig,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    TaskStatus,
    Ulimit,
    UpdateConfig,
    UpdateStatus,
    Version,
)

NOW_NS = 1_800_000_000 * NS_PER_S
NODE_A = "nodeaaaaaaaaaaaaaaaaaaaaa"
NODE_B = "nodebbbbbbbbbbbbbbbbbbbbb"
SERVICE_ID = "svc0000000000000000000web"


def meta(index: int, age_s: float = 300) -> Meta:
    time_ns = NOW_NS - int(age_s * NS_PER_S)
    return Meta(version=Version(index=index), created_at_ns=time_ns, updated_at_ns=time_ns)


def a_node(node_id: str = NODE_A, hostname: str = "alpha", **changes: object) -> Node:
    return Node(
        id=node_id,
        meta=meta(7, 86_400),
        spec=NodeSpec(
            annotations=Annotations(labels={"rack": "r1"}),
            desired_role=NodeRole.MANAGER,
            availability=NodeAvailability.ACTIVE,
        ),
        description=NodeDescription(
            hostname=hostname,
            platform=Platform(architecture="x86_64", os="linux"),
            resources=Resources(
                nano_cpus=2_000_000_000,
                memory_bytes=25_276_502_016,
                generic=(GenericResource(kind="gpu", count=2),),
            ),
            engine=EngineDescription(engine_version="0.1.0", labels={"disk": "ssd"}),
        ),
        status=NodeStatus(state=NodeState.READY, address="192.0.2.1"),
        manager_status=ManagerStatus(
            raft_id=1, address="192.0.2.1:2377", leader=True, reachable=True
        ),
        role=NodeRole.MANAGER,
    ).replaced(**changes)


def a_worker() -> Node:
    return a_node(
        NODE_B,
        "beta",
        manager_status=None,
        role=NodeRole.WORKER,
        spec=NodeSpec(availability=NodeAvailability.DRAIN),
        status=NodeStatus(state=NodeState.DOWN, message="heartbeat failure", address="192.0.2.2"),
    )


def a_spec(name: str = "web", replicas: int = 2, **changes: object) -> ServiceSpec:
    return ServiceSpec(
        annotations=Annotations(name=name),
        task=TaskSpec(runtime=ContainerSpec(image="web:1")),
        mode=ReplicatedMode(replicas=replicas),
    ).replaced(**changes)


def a_service(**changes: object) -> Service:
    return Service(
        id=SERVICE_ID, meta=meta(20), spec=a_spec(), spec_version=Version(index=20)
    ).replaced(**changes)


def a_full_container() -> ContainerSpec:
    return ContainerSpec(
        image="web:2",
        labels={"tier": "front"},
        command=("httpd",),
        args=("-f", "-p", "80"),
        hostname="web",
        env=("A=1", "B=two words"),
        dir="/srv",
        user="www",
        groups=("adm",),
        read_only=True,
        mounts=(
            Mount(type=MountType.BIND, source="/data", target="/srv", read_only=True),
            Mount(type=MountType.TMPFS, target="/tmp", tmpfs_size_bytes=1 << 20),
        ),
        stop_signal="SIGINT",
        stop_grace_period_ns=3 * NS_PER_S,
        hosts=("192.0.2.7 db",),
        sysctls={"net.core.somaxconn": "1024"},
        capability_add=("CAP_NET_ADMIN",),
        capability_drop=("CAP_CHOWN",),
        ulimits=(Ulimit(name="nofile", soft=10, hard=20),),
        oom_score_adj=100,
    )


def a_full_service() -> Service:
    """A service with every field that this version offers."""
    ports = (
        PortConfig(target_port=80, published_port=8080),
        PortConfig(target_port=81, published_port=8081),
        PortConfig(
            protocol=PortProtocol.UDP,
            target_port=53,
            published_port=5353,
            publish_mode=PublishMode.HOST,
        ),
    )
    task = TaskSpec(
        runtime=a_full_container(),
        resources=ResourceRequirements(
            limits=Resources(nano_cpus=500_000_000, memory_bytes=64 << 20, pids=50),
            reservations=Resources(
                nano_cpus=100_000_000,
                memory_bytes=16 << 20,
                generic=(GenericResource(kind="gpu", count=1),),
            ),
        ),
        restart=RestartPolicy(condition=RestartCondition.ON_FAILURE, max_attempts=3),
        placement=Placement(
            constraints=("node.role==worker",),
            preferences=(PlacementPreference(spread_descriptor="node.labels.rack"),),
            max_replicas=2,
        ),
        log_driver=Driver(name="json-file", options={"max-size": "1m"}),
    )
    update = UpdateConfig(
        parallelism=2,
        delay_ns=NS_PER_S,
        failure_action=FailureAction.ROLLBACK,
        monitor_ns=2 * NS_PER_S,
        max_failure_ratio=0.25,
        order=UpdateOrder.START_FIRST,
    )
    spec = a_spec(
        replicas=4,
        annotations=Annotations(name="web", labels={"app": "shop"}),
        task=task,
        update=update,
        rollback=UpdateConfig(parallelism=1),
        endpoint=EndpointSpec(ports=ports),
    )
    status = UpdateStatus(
        state=UpdateState.COMPLETED,
        started_at_ns=NOW_NS - 60 * NS_PER_S,
        completed_at_ns=NOW_NS - 30 * NS_PER_S,
        message="update completed",
    )
    return a_service(
        spec=spec,
        previous_spec=a_spec(),
        endpoint=Endpoint(spec=spec.endpoint, ports=ports),
        update_status=status,
    )


def a_task(
    slot: int = 1,
    state: TaskState = TaskState.RUNNING,
    *,
    task_id: str = "",
    node_id: str = NODE_A,
    age_s: float = 300,
    desired: TaskState = TaskState.RUNNING,
    error: str = "",
    service: Service | None = None,
) -> Task:
    service = service or a_service()
    running = state >= TaskState.RUNNING
    return Task(
        id=task_id or f"task{slot:021d}",
        meta=meta(30 + slot, age_s),
        spec=service.spec.task,
        spec_version=service.spec_version,
        service_id=service.id,
        slot=slot,
        node_id=node_id,
        service_annotations=service.spec.annotations,
        status=TaskStatus(
            state=state,
            timestamp_ns=NOW_NS - int(age_s * NS_PER_S),
            message="started" if running else "pending task scheduling",
            error=error,
            container=ContainerStatus(container_id="c0ffee", pid=17) if running else None,
        ),
        desired_state=desired,
    )
