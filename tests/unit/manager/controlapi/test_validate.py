"""Every rule refuses with the field it is about; what is right passes."""

from __future__ import annotations

import pytest

from manager.controlapi import validate
from shoal.errors import InvalidArgument, SwarmError, Unimplemented
from shoal.model.enums import (
    DisconnectAction,
    EndpointMode,
    FailureAction,
    MountType,
    NodeAvailability,
    NodeMembership,
    PortProtocol,
    PublishMode,
    PublishPreference,
)
from shoal.model.specs import (
    ClusterSpec,
    ContainerSpec,
    DispatcherConfig,
    GenericRuntimeSpec,
    GlobalMode,
    NetworkConfig,
    NodeSpec,
    PullOptions,
    RaftConfig,
    ReplicatedMode,
    ServiceSpec,
    TaskDefaults,
)
from shoal.model.types import (
    Annotations,
    CaConfig,
    DisconnectPolicy,
    DrainPolicy,
    Driver,
    EndpointSpec,
    ExternalCa,
    FileReference,
    GenericResource,
    HealthCheck,
    Mount,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    PortConfig,
    Privileges,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    UpdateConfig,
)
from tests.support.planning import a_node, a_service

GOOD = a_service("web").spec
SECOND_NS = 10**9


def waiting(wait_ns: int) -> DisconnectPolicy:
    return DisconnectPolicy(action=DisconnectAction.WAIT, wait_ns=wait_ns)


def spec(**fields) -> ServiceSpec:
    return GOOD.replaced(**fields)


def named(name: str, labels: dict[str, str] | None = None) -> ServiceSpec:
    return spec(annotations=Annotations(name=name, labels=labels or {}))


def task(**fields) -> ServiceSpec:
    return spec(task=GOOD.task.replaced(**fields))


def container(**fields) -> ServiceSpec:
    assert isinstance(GOOD.task.runtime, ContainerSpec)
    return task(runtime=GOOD.task.runtime.replaced(**fields))


def privileges(**fields) -> ServiceSpec:
    return container(privileges=Privileges(**fields))


def mounts(*items: Mount) -> ServiceSpec:
    return container(mounts=items)


def limits(**fields) -> ServiceSpec:
    return task(resources=ResourceRequirements(limits=Resources(**fields)))


def reservations(**fields) -> ServiceSpec:
    return task(resources=ResourceRequirements(reservations=Resources(**fields)))


def ports(*items: PortConfig, mode: EndpointMode = EndpointMode.VIP) -> ServiceSpec:
    return spec(endpoint=EndpointSpec(mode=mode, ports=items))


def port(target: int = 80, published: int = 8080, **fields) -> PortConfig:
    return PortConfig(target_port=target, published_port=published, **fields)


def preference(descriptor: str) -> ServiceSpec:
    return task(placement=Placement(preferences=(PlacementPreference(descriptor),)))


def wish(**fields: str) -> ServiceSpec:
    return task(placement=Placement(preferences=(PlacementPreference(**fields),)))


BAD = InvalidArgument
LATER = Unimplemented
SERVICE_RULES = [
    (named(""), BAD, "service name: must be given"),
    (named("x" * 64), BAD, "service name: 64 characters, at most 63"),
    (named("-web"), BAD, "service name: '-web' must be letters and digits"),
    (named("web_"), BAD, "service name: 'web_'"),
    (named("we.b"), BAD, "service name: 'we.b'"),
    (named("wéb"), BAD, "service name: 'wéb'"),
    (named("web\n"), BAD, "service name:"),
    (named("web", {"": "x"}), BAD, "service labels: '' must not be empty"),
    (named("web", {"a b": "x"}), BAD, "service labels: 'a b' must not"),
    (named("web", {str(n): "" for n in range(1025)}), BAD, "service labels: 1025, at most 1024"),
    (spec(mode=ReplicatedMode(replicas=100_001)), BAD, "replicas: 100001 is more than 100000"),
    (task(runtime=GenericRuntimeSpec(kind="vm")), LATER, "runtime: only containers"),
    (task(networks=(NetworkAttachmentConfig(""),)), BAD, "network: must be given by name or id"),
    (task(networks=(NetworkAttachmentConfig("n"),) * 33), BAD, "network: 33 networks, at most 32"),
    (
        task(networks=(NetworkAttachmentConfig("n", addresses=("10.0.0.9",)),)),
        BAD,
        "network: 1 IPv4 addresses for 3 replicas",
    ),
    (
        task(networks=(NetworkAttachmentConfig("n", driver_options={"x": "1"}),)),
        LATER,
        "network: driver option 'x' is not known",
    ),
    (
        task(networks=(NetworkAttachmentConfig("n", aliases=("a..b",)),)),
        BAD,
        "network alias: must be given",
    ),
    (
        task(networks=(NetworkAttachmentConfig("n", aliases=("a",) * 65),)),
        BAD,
        "network alias: 65 on one network, at most 64",
    ),
    (task(log_driver=Driver("gelf")), LATER, "log driver: gelf is not available, only journald, "),
    (task(log_driver=Driver("none", {"tag": "x"})), BAD, "log-opt: 'tag' is unknown, use max-buf"),
    (task(log_driver=Driver("local", {"tag": "x"})), BAD, "log-opt: 'tag' is unknown, use comp"),
    (task(log_driver=Driver("", {"tag": "x"})), BAD, "log-opt: 'tag' is unknown, use max-file or"),
    (task(placement=Placement(constraints=("zone=1",))), BAD, "constraint 'zone=1'"),
    (preference("zone"), BAD, "placement preference: 'zone' must be spread over node.labels.KEY"),
    (
        task(placement=Placement(preferences=(PlacementPreference(avoid="node.id==a"),) * 33)),
        BAD,
        "placement preferences: 33 to prefer or avoid, at most 32 may be",
    ),
    (wish(prefer="zone=1"), BAD, "constraint 'zone=1'"),
    (wish(avoid="node.labels.n<x"), BAD, "constraint 'node.labels.n<x': 'x' is no decimal number"),
    (
        wish(prefer="node.id==a", avoid="node.id==b"),
        BAD,
        "placement preference: only one of spread,",
    ),
    (
        wish(spread_descriptor="node.labels.a", avoid="node.id==b"),
        BAD,
        "placement preference: only one of spread,",
    ),
    (task(restart=RestartPolicy(delay_ns=-1)), BAD, "restart delay: must not be negative"),
    (task(restart=RestartPolicy(window_ns=-1)), BAD, "restart window: must not be negative"),
    (task(restart=RestartPolicy(backoff_factor=1.0)), BAD, "restart backoff: must be above 1 and"),
    (task(restart=RestartPolicy(backoff_factor=11.0)), BAD, "restart backoff: must be above 1 and"),
    (
        task(restart=RestartPolicy(backoff_factor=float("nan"))),
        BAD,
        "restart backoff: must be above 1 and",
    ),
    (task(restart=RestartPolicy(backoff_max_ns=9)), BAD, "restart backoff max: give it together"),
    (
        task(restart=RestartPolicy(backoff_factor=2.0, delay_ns=0)),
        BAD,
        "restart delay: must be above 0s where it is to grow",
    ),
    (
        task(restart=RestartPolicy(backoff_factor=2.0, backoff_max_ns=1)),
        BAD,
        "restart backoff max: must be from the restart delay to 24h",
    ),
    (task(disconnect=DisconnectPolicy(wait_ns=1)), BAD, "disconnect wait: give it together with"),
    (task(disconnect=waiting(1)), BAD, "disconnect wait: must be between 1s and 24h"),
    (task(disconnect=waiting(86_401 * SECOND_NS)), BAD, "disconnect wait: must be between"),
    (container(image=""), BAD, "image: must be given"),
    (container(image="Nginx"), BAD, "image: invalid image reference 'Nginx'"),
    (container(image="nginx:"), BAD, "image: invalid image reference 'nginx:'"),
    (container(image="n@sha256:12"), BAD, "image: invalid image reference 'n@sha256:12'"),
    (container(image="n" * 513), BAD, "image: 513 characters, at most 512"),
    (container(env=("=x",)), BAD, "env: '=x' must be NAME=VALUE or NAME"),
    (container(env=("",)), BAD, "env: '' must be"),
    (container(env=("A=\0",)), BAD, "env: must not hold NUL"),
    (container(args=("\0",)), BAD, "args: must not hold NUL"),
    (container(command=("a\0",)), BAD, "command: must not hold NUL"),
    (container(dir="\0"), BAD, "dir, user, hostname, stop signal: must not hold NUL"),
    (spec(drain_timeout_ns=-1), BAD, "drain timeout: must be from 0s to 1h"),
    (task(listen_timeout_ns=-1), BAD, "listen timeout: must be from 0s to 1h"),
    (spec(drain_timeout_ns=3_601 * SECOND_NS), BAD, "drain timeout: must be from 0s to 1h"),
    (container(stop_grace_period_ns=-1), BAD, "stop grace period: must not be negative"),
    (container(oom_score_adj=1001), BAD, "oom score adj: must be between -1000 and 1000"),
    (container(health_check=HealthCheck(test=("CMD",))), BAD, "health check: a command must be"),
    (container(health_check=HealthCheck(test=("CMD", "x\0"))), BAD, "health check: must not hold"),
    (container(health_check=HealthCheck(test=("RUN", "x"))), BAD, "Unknown healthcheck type"),
    (container(health_check=HealthCheck(interval_ns=999_999)), BAD, "Interval in Healthcheck"),
    (container(health_check=HealthCheck(retries=-1)), BAD, "Retries in Healthcheck cannot"),
    (container(secrets=(FileReference("s"),)), BAD, "malformed file secret reference"),
    (container(configs=(FileReference("c"),)), BAD, "malformed file config reference"),
    (container(env=("A={{.Task.Nope}}",)), BAD, "template: '{{.Task.Nope}}' is unknown"),
    (container(hostname="{{range .}}"), BAD, "template: '{{range .}}' is unknown"),
    (container(env=('A={{secret "x"}}',)), BAD, "template: secret is only known in the content"),
    (container(isolation="hyperv"), BAD, "isolation: 'hyperv' is of Windows"),
    (container(pull_options=PullOptions("x" * 65_537)), BAD, "registry auth: longer than 65536"),
    (privileges(credential_spec_file="x"), LATER, "credential spec: it is of Windows"),
    (privileges(selinux_role="x", selinux_disable=True), BAD, "selinux: a label is given"),
    (privileges(selinux_type="x\0"), BAD, "selinux: must not hold NUL"),
    (privileges(seccomp_mode="odd"), BAD, "seccomp: mode 'odd' must be default, unconfined"),
    (privileges(seccomp_mode="custom"), BAD, "seccomp: give a profile with the mode custom"),
    (privileges(seccomp_profile=b"{}"), BAD, "seccomp: give a profile with the mode custom"),
    (privileges(seccomp_mode="custom", seccomp_profile=b"{"), BAD, "seccomp: the profile is not"),
    (privileges(seccomp_mode="custom", seccomp_profile=b"[]"), BAD, "seccomp: the profile must"),
    (privileges(apparmor_mode="x"), BAD, "apparmor: mode 'x' must be default or disabled"),
    (mounts(Mount(source="/a", target="b")), BAD, "mount: the target 'b' must be an absolute"),
    (mounts(Mount(source="a", target="/b")), BAD, "mount: the source 'a' must be an absolute"),
    (mounts(Mount(type=MountType.TMPFS, source="/a", target="/b")), BAD, "mount: a tmpfs has no"),
    (mounts(Mount(type=MountType.CLUSTER, target="/b")), LATER, "mount: type cluster"),
    (
        mounts(Mount(type=MountType.VOLUME, source="/a", target="/b")),
        BAD,
        "mount: the source '/a' must be the name of",
    ),
    (
        mounts(Mount(type=MountType.VOLUME, source="a", target="/b")),
        BAD,
        "mount: the source 'a' must be the name of",
    ),
    (
        mounts(Mount(type=MountType.VOLUME, target="/b", subpath="c")),
        LATER,
        "mount: volume-subpath",
    ),
    (mounts(Mount(source="/a\0", target="/b")), BAD, "mount: must not hold NUL"),
    (mounts(*[Mount(source="/a", target="/b")] * 2), BAD, "mount: two mounts have the same"),
    (limits(nano_cpus=999_999), BAD, "limit-cpu: must be at least 0.001 CPUs"),
    (limits(nano_cpus=-1), BAD, "limit-cpu: must be at least"),
    (reservations(memory_bytes=(4 << 20) - 1), BAD, "reservation-memory: must be at least 4MiB"),
    (limits(pids=-1), BAD, "limit-pids: must not be negative"),
    (limits(swap_bytes=1), LATER, "limit: swap settings"),
    (limits(memory_swappiness=1), LATER, "limit: swap settings"),
    (limits(generic=(GenericResource("gpu", 1),)), BAD, "limit: generic resources can only be"),
    (reservations(generic=(GenericResource("gpu", 0),)), BAD, "reservation: generic resource must"),
    (reservations(generic=(GenericResource("", 1),)), BAD, "generic resource: kind '' must be"),
    (reservations(generic=(GenericResource("a=b", 1),)), BAD, "generic resource: kind 'a=b' must"),
    (
        reservations(generic=(GenericResource("ssd", 0, "a"),)),
        BAD,
        "reservation: generic resource ssd=a: services ask for a number",
    ),
    (
        reservations(generic=(GenericResource("gpu", 1), GenericResource("gpu", 2))),
        BAD,
        "reservation: a generic resource is asked for twice",
    ),
    (
        reservations(generic=tuple(GenericResource(f"k{n}", 1) for n in range(33))),
        BAD,
        "reservation: 33 generic resources, at most 32",
    ),
    (ports(port(0)), BAD, "publish: target port 0 must be 1 to 65535"),
    (ports(port(80, 70_000)), BAD, "publish: published port 70000 must be 1 to 65535"),
    (ports(port(80, 0, publish_mode=PublishMode.HOST)), LATER, "publish: mode=host needs a"),
    (
        ports(port(publish_mode=PublishMode.HOST, prefer=PublishPreference.LOCAL)),
        BAD,
        "publish: prefer=local is for mode=ingress",
    ),
    (ports(port(), port(81)), BAD, "publish: port 8080/tcp is given twice"),
    (
        ports(port(publish_mode=PublishMode.HOST, weight_label="size")),
        BAD,
        "publish: weight is for mode=ingress",
    ),
    (ports(port(weight_label="a" * 257)), BAD, "publish: weight: a label of at most 256"),
    (
        ports(port(), port(81, address="192.0.2.1")),
        BAD,
        "publish: port 192.0.2.1:8080/tcp is given twice",
    ),
    (ports(port(address="192.0.2.300")), BAD, "publish: ip: '192.0.2.300' is no IP address"),
    (ports(port(interface="a" * 16)), BAD, "publish: interface: 'aaaaaaaaaaaaaaaa' is longer"),
    (
        ports(port(address="192.0.2.1", interface="eth1")),
        BAD,
        "publish: give ip=192.0.2.1 or interface=eth1",
    ),
    (ports(*(port(80, n) for n in range(1, 1026))), BAD, "publish: 1025 ports, at most 1024"),
    (spec(update=UpdateConfig(delay_ns=-1)), BAD, "update: delay and monitor must not be"),
    (spec(rollback=UpdateConfig(monitor_ns=-1)), BAD, "rollback: delay and monitor must not be"),
    (spec(update=UpdateConfig(progress_deadline_ns=9)), BAD, "update progress deadline: must be 0"),
    (spec(update=UpdateConfig(max_failure_ratio=1.1)), BAD, "update max failure ratio: must be"),
    (
        spec(update=UpdateConfig(max_failure_ratio=float("nan"))),
        BAD,
        "update max failure ratio: must be",
    ),
    (
        spec(rollback=UpdateConfig(failure_action=FailureAction.ROLLBACK)),
        BAD,
        "rollback failure action: must be pause or continue",
    ),
]


@pytest.mark.parametrize(("bad", "error", "text"), SERVICE_RULES, ids=lambda value: str(value)[:40])
def test_a_service_is_refused_with_the_field_and_the_rule(bad, error, text):
    with pytest.raises(SwarmError) as caught:
        validate.service_spec(bad)
    assert type(caught.value) is error
    assert caught.value.message.startswith(text)


@pytest.mark.parametrize(
    "good",
    [
        GOOD,
        named("a"),
        named("x" * 63),
        named("a--b__c-9", {"com.docker.stack.namespace": "x"}),
        spec(mode=ReplicatedMode(replicas=0)),
        container(image="registry.example:5000/a/b_c.d--e:v1.2_3@sha256:" + "a" * 64),
        container(image="sha256:" + "0" * 64),
        container(env=("A=b=c", "A", "A="), health_check=HealthCheck(test=("NONE",))),
        container(stop_grace_period_ns=0, oom_score_adj=-1000, isolation="default"),
        mounts(
            Mount(source="/a", target="/b"),
            Mount(type=MountType.TMPFS, target="/c", read_only=True),
            Mount(type=MountType.VOLUME, target="/d"),
            Mount(type=MountType.VOLUME, source="v_1", target="/e", volume_driver=Driver("nfs")),
            Mount(type=MountType.VOLUME, source="v-{{.Task.Slot}}", target="/f"),
        ),
        limits(nano_cpus=1_000_000, memory_bytes=4 << 20, pids=1),
        reservations(generic=(GenericResource("gpu", 1), GenericResource("ssd", 2))),
        task(log_driver=Driver("json-file", {"max-size": "1m", "max-file": "2"})),
        task(log_driver=Driver("none")),
        task(log_driver=Driver("local", {"compress": "false"})),
        task(log_driver=Driver("syslog", {"syslog-address": "udp://192.0.2.1:514", "tag": "x"})),
        preference("engine.labels.zone"),
        ports(port(), port(protocol=PortProtocol.UDP), port(81, 0), port(82, 0)),
        ports(port(publish_mode=PublishMode.HOST)),
        spec(update=UpdateConfig(failure_action=FailureAction.ROLLBACK, max_failure_ratio=1)),
    ],
    ids=range(20),
)
def test_what_is_right_passes(good):
    validate.service_spec(good)


@pytest.mark.parametrize(
    "bad",
    [
        named("a" * 62 + "."),
        container(image="a" * 511 + "!"),
        container(image="a-" * 250 + "!"),
        container(image="a" * 250 + "/" + "A.-" * 80 + "_"),
        container(image="a.b/" * 120 + "_"),
    ],
    ids=range(5),
)
def test_what_almost_fits_is_refused_without_exponential_work(bad):
    """Without nested repeats these take microseconds; with them, longer than any test may."""
    with pytest.raises(InvalidArgument):
        validate.service_spec(bad)


def test_what_an_update_may_not_change():
    with pytest.raises(InvalidArgument, match="service name: renaming"):
        validate.service_change(GOOD, named("other"))
    with pytest.raises(InvalidArgument, match="mode: a service's mode cannot be changed"):
        validate.service_change(GOOD, spec(mode=GlobalMode()))
    validate.service_change(GOOD, spec(mode=ReplicatedMode(replicas=9)))


NODE_RULES = [
    (NodeSpec(membership=NodeMembership.PENDING), BAD, "membership: a node that was let in"),
    (NodeSpec(drain=DrainPolicy()), BAD, "drain: goes with availability drain only"),
    (
        NodeSpec(availability=NodeAvailability.DRAIN, drain=DrainPolicy(deadline_ns=10)),
        BAD,
        "drain deadline: must be between 1s and 720h",
    ),
    (NodeSpec(annotations=Annotations(labels={" ": ""})), BAD, "node labels: ' ' must not"),
]


@pytest.mark.parametrize(("bad", "error", "text"), NODE_RULES)
def test_a_node_is_refused_with_the_field_and_the_rule(bad, error, text):
    with pytest.raises(error) as caught:
        validate.node_change(a_node("n1"), bad)
    assert caught.value.message.startswith(text)


def external(*, count: int = 1, **fields) -> ClusterSpec:
    one = ExternalCa(**{"protocol": "cfssl", "url": "https://ca:8888"} | fields)
    return ClusterSpec(ca=CaConfig(external_cas=(one,) * count))


def beat(period_ns: int) -> ClusterSpec:
    return ClusterSpec(dispatcher=DispatcherConfig(period_ns))


def rotation(period_ns: int) -> ClusterSpec:
    return ClusterSpec(network=NetworkConfig(period_ns))


CLUSTER_RULES = [
    (beat(99_999_999), BAD, "dispatcher heartbeat: must be between 100ms and 1h"),
    (beat(3_600 * SECOND_NS + 1), BAD, "dispatcher heartbeat: must be"),
    (rotation(60 * SECOND_NS - 1), BAD, "network key rotation: must be between 1m and 8760h"),
    (rotation(8_760 * 3_600 * SECOND_NS + 1), BAD, "network key rotation: must be"),
    (ClusterSpec(ca=CaConfig(3_599 * SECOND_NS)), BAD, "certificate expiry: must be at least 1h"),
    (external(protocol="acme"), BAD, "external ca: protocol 'acme' must be cfssl"),
    (external(url="http://ca:8888"), BAD, "external ca: url"),
    (external(url="https:///sign"), BAD, "external ca: url"),
    (external(url="https://ca:99999/"), BAD, "external ca: url"),
    (external(url="https://[::1/"), BAD, "external ca: url"),
    (external(url="https://ca\n.org/"), BAD, "external ca: url"),
    (external(url="https://ca/" + "x" * 500), BAD, "external ca: url"),
    (external(url="https://user:secret@ca/"), BAD, "external ca: url: must hold no password"),
    (external(options={"profile": "x"}), LATER, "external ca: option 'profile' is not known"),
    (external(ca_certificate=b"junk"), BAD, "external ca: ca certificate: must be exactly one"),
    (external(count=5), BAD, "external ca: 5, at most 4"),
    (ClusterSpec(ca=CaConfig(signing_ca_certificate=b"x")), LATER, "ca: the root certificate"),
    (ClusterSpec(ca=CaConfig(signing_ca_key=b"x")), LATER, "ca: the root certificate"),
    (ClusterSpec(ca=CaConfig(force_rotate=1)), LATER, "ca: the root certificate"),
    (ClusterSpec(task_defaults=TaskDefaults(Driver("x"))), LATER, "task defaults: a default log"),
    (ClusterSpec(raft=RaftConfig(0)), BAD, "snapshot interval: must be at least 1"),
]


@pytest.mark.parametrize(("bad", "error", "text"), CLUSTER_RULES, ids=lambda value: str(value)[:40])
def test_a_cluster_is_refused_with_the_field_and_the_rule(bad, error, text):
    with pytest.raises(error) as caught:
        validate.cluster_spec(bad)
    assert caught.value.message.startswith(text)


def test_cluster_settings_at_their_limits_pass():
    for period_ns in (SECOND_NS // 10, 3_600 * SECOND_NS):
        validate.cluster_spec(beat(period_ns))
    validate.cluster_spec(ClusterSpec(autolock_managers=True))
    validate.cluster_spec(ClusterSpec(ca=CaConfig(3_600 * SECOND_NS), raft=RaftConfig(1)))
