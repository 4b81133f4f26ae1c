"""What becomes of each key of a Compose file."""

from __future__ import annotations

import pytest

from shoal.errors import InvalidArgument
from shoal.model.enums import (
    DependencyCondition,
    EndpointMode,
    FailureAction,
    MountPropagation,
    MountType,
    PortProtocol,
    PublishMode,
    RestartCondition,
    UpdateOrder,
)
from shoal.model.specs import GlobalJobMode, GlobalMode, ReplicatedJobMode, ReplicatedMode
from shoal.model.types import (
    DeviceMapping,
    Driver,
    FileReference,
    GenericResource,
    ServiceDependency,
)
from swarmctl.compose.project import project_text
from tests.unit.swarmctl.compose.site import Site, container_of, load, service_of, spec_of

NS = {"com.docker.stack.namespace": "st"}
S = 1_000_000_000


def test_names_and_labels_are_dockers():
    spec = service_of("labels: {a: 1}\ndeploy: {labels: [b=2]}")
    assert spec.annotations.name == "st_web"
    assert spec.annotations.labels == {**NS, "b": "2", "com.docker.stack.image": "nginx"}
    assert spec.task.runtime.labels == {**NS, "a": "1"}
    assert spec.task.networks[0].target == "st_default"
    assert spec.task.networks[0].aliases == ("web",)


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ("entrypoint: /e -x 'a b'", "command", ("/e", "-x", "a b")),
        ("command: [sh, -c, 'a b']", "args", ("sh", "-c", "a b")),
        ("environment: {B: 2, A: x}", "env", ("A=x", "B=2")),
        ("environment: [HERE, GONE, Q=]", "env", ("GONE", "HERE=h", "Q=")),
        ("env_file: e.env\nenvironment: {X: over}", "env", ("X=over", "Y=2")),
        ("env_file: [{path: no.env, required: false}]", "env", ()),
        ("hostname: h", "hostname", "h"),
        ("working_dir: /w", "dir", "/w"),
        ("user: '1:2'", "user", "1:2"),
        ("stop_signal: SIGINT", "stop_signal", "SIGINT"),
        ("stop_grace_period: 1m30s", "stop_grace_period_ns", 90 * S),
        ("tty: true", "tty", True),
        ("stdin_open: true", "open_stdin", True),
        ("read_only: true", "read_only", True),
        ("init: false", "init", False),
        ("isolation: default", "isolation", "default"),
        ("sysctls: {net.core.somaxconn: 1024}", "sysctls", {"net.core.somaxconn": "1024"}),
        ("sysctls: [a=b]", "sysctls", {"a": "b"}),
        ("oom_score_adj: 5", "oom_score_adj", 5),
        ("cap_add: [net_admin, CAP_SYS_TIME]", "capability_add",
         ("CAP_NET_ADMIN", "CAP_SYS_TIME")),
        ("cap_drop: [all]", "capability_drop", ("ALL",)),
        ("extra_hosts: ['db:10.0.0.9']", "hosts", ("10.0.0.9 db",)),
        ("extra_hosts: {db: 10.0.0.9}", "hosts", ("10.0.0.9 db",)),
    ],
)  # fmt: skip
def test_container_keys(keys, field, value):
    site = Site({"/srv/e.env": "# c\nX=1\nY=2\n"}, {"HERE": "h"})
    assert getattr(container_of(keys, site=site), field) == value


def test_dns_and_ulimits_and_health():
    container = container_of(
        "dns: 1.1.1.1\ndns_search: [a, b]\n"
        "ulimits: {nofile: {soft: 1, hard: 2}, nproc: 5}\n"
        "healthcheck: {test: curl x, interval: 5s, timeout: 1s, retries: 4, start_period: 2s}"
    )
    assert container.dns.nameservers == ("1.1.1.1",)
    assert container.dns.search == ("a", "b")
    assert [(one.name, one.soft, one.hard) for one in container.ulimits] == [
        ("nofile", 1, 2), ("nproc", 5, 5),
    ]  # fmt: skip
    check = container.health_check
    assert check.test == ("CMD-SHELL", "curl x")
    assert (check.interval_ns, check.timeout_ns, check.retries) == (5 * S, S, 4)
    assert container_of("healthcheck: {disable: true}").health_check.test == ("NONE",)


def test_devices():
    container = container_of("devices: [/dev/kvm, '/dev/a:/dev/b:r']")
    assert container.devices == (
        DeviceMapping("/dev/kvm"), DeviceMapping("/dev/a", "/dev/b", "r"),
    )  # fmt: skip


def test_deploy():
    spec = service_of(
        "deploy:\n"
        "  replicas: 3\n"
        "  endpoint_mode: dnsrr\n"
        "  update_config: {parallelism: 2, delay: 1s, failure_action: rollback, monitor: 3s,"
        " max_failure_ratio: 0.3, order: start-first}\n"
        "  rollback_config: {}\n"
        "  resources:\n"
        "    limits: {cpus: '0.5', memory: 64M, pids: 9}\n"
        "    reservations: {cpus: '0.25', memory: 32M,"
        " generic_resources: [{discrete_resource_spec: {kind: gpu, value: 2}}]}\n"
        "  restart_policy: {condition: on-failure, delay: 2s, max_attempts: 3, window: 1m}\n"
        "  placement: {constraints: [node.role == worker],"
        " preferences: [{spread: node.labels.zone}], max_replicas_per_node: 2}\n"
    )
    assert spec.mode == ReplicatedMode(replicas=3)
    assert spec.endpoint.mode is EndpointMode.DNSRR
    update = spec.update
    assert (update.parallelism, update.delay_ns, update.monitor_ns) == (2, S, 3 * S)
    assert update.failure_action is FailureAction.ROLLBACK
    assert update.order is UpdateOrder.START_FIRST
    assert update.max_failure_ratio == 0.3
    assert spec.rollback.parallelism == 1
    limits, reservations = spec.task.resources.limits, spec.task.resources.reservations
    assert (limits.nano_cpus, limits.memory_bytes, limits.pids) == (S // 2, 64 << 20, 9)
    assert reservations.generic == (GenericResource(kind="gpu", count=2),)
    policy = spec.task.restart
    assert policy.condition is RestartCondition.ON_FAILURE
    assert (policy.delay_ns, policy.max_attempts, policy.window_ns) == (2 * S, 3, 60 * S)
    assert spec.task.placement.constraints == ("node.role == worker",)
    assert spec.task.placement.preferences[0].spread_descriptor == "node.labels.zone"
    assert spec.task.placement.max_replicas == 2


@pytest.mark.parametrize(
    ("deploy", "mode"),
    [
        ("{}", ReplicatedMode(replicas=1)),
        ("{mode: global}", GlobalMode()),
        ("{mode: global-job}", GlobalJobMode()),
        ("{mode: replicated-job, replicas: 4}",
         ReplicatedJobMode(max_concurrent=4, total_completions=4)),
    ],
)  # fmt: skip
def test_modes(deploy, mode):
    assert service_of(f"deploy: {deploy}").mode == mode


@pytest.mark.parametrize(
    ("text", "condition", "attempts"),
    [
        ("always", RestartCondition.ANY, 0),
        ("unless-stopped", RestartCondition.ANY, 0),
        ("on-failure:4", RestartCondition.ON_FAILURE, 4),
        ("'no'", RestartCondition.NONE, 0),
    ],
)
def test_restart_of_before(text, condition, attempts):
    policy = service_of(f"restart: {text}").task.restart
    assert (policy.condition, policy.max_attempts) == (condition, attempts)


def test_ports():
    spec = service_of(
        "ports: ['8080:80', 53/udp, '127.0.0.1:7:7', {target: 443, published: 8443, mode: host}]"
    )
    assert [
        (one.published_port, one.target_port, one.protocol, one.publish_mode, one.address)
        for one in spec.endpoint.ports
    ] == [
        (0, 53, PortProtocol.UDP, PublishMode.INGRESS, ""),
        (7, 7, PortProtocol.TCP, PublishMode.INGRESS, "127.0.0.1"),
        (8080, 80, PortProtocol.TCP, PublishMode.INGRESS, ""),
        (8443, 443, PortProtocol.TCP, PublishMode.HOST, ""),
    ]


def test_volumes():
    rest = (
        "volumes:\n  data: {driver: local, driver_opts: {type: none}, labels: {a: b}}\n"
        "  theirs: {external: true, name: shared}\n  own: {name: mine}\n"
    )
    mounts = container_of(
        "volumes: ['data:/d:ro,nocopy', 'theirs:/t', 'own:/o', './x:/x:rshared', '~/h:/h', /anon,"
        " {type: tmpfs, target: /m, tmpfs: {size: 1048576}}]\ntmpfs: ['/r:size=1m,mode=700']",
        site=Site(environ={"HOME": "/home/u"}),
        rest=rest,
    ).mounts
    assert [(one.type, one.source, one.target) for one in mounts] == [
        (MountType.VOLUME, "st_data", "/d"), (MountType.VOLUME, "shared", "/t"),
        (MountType.VOLUME, "mine", "/o"), (MountType.BIND, "/srv/x", "/x"),
        (MountType.BIND, "/home/u/h", "/h"), (MountType.VOLUME, "", "/anon"),
        (MountType.TMPFS, "", "/m"), (MountType.TMPFS, "", "/r"),
    ]  # fmt: skip
    assert mounts[0].read_only
    assert mounts[0].volume_nocopy
    assert mounts[0].volume_driver == Driver(name="local", options={"type": "none"})
    assert mounts[0].volume_labels == {**NS, "a": "b"}
    assert mounts[1].volume_driver is None
    assert mounts[3].propagation is MountPropagation.RSHARED
    assert mounts[6].tmpfs_size_bytes == 1 << 20
    assert (mounts[7].tmpfs_size_bytes, mounts[7].tmpfs_mode) == (1 << 20, 0o700)


def test_networks():
    spec = spec_of(
        "services:\n"
        "  a: {image: x, networks: {back: {aliases: [sql], ipv4_address: 10.9.0.7}, ext: }}\n"
        "  b: {image: x}\n"
        "networks:\n"
        "  back: {driver: overlay, driver_opts: {encrypted: ''}, attachable: true,\n"
        "    internal: true, labels: [l=1],"
        " ipam: {config: [{subnet: 10.9.0.0/24, gateway: 10.9.0.1}]}}\n"
        "  ext: {external: true, name: theirs}\n"
        "  unused: {}\n"
    )
    assert [one.annotations.name for one in spec.networks] == ["st_back", "st_default"]
    back = spec.networks[0]
    assert back.annotations.labels == {**NS, "l": "1"}
    assert back.driver == Driver(name="overlay", options={"encrypted": ""})
    assert back.attachable
    assert back.internal
    assert back.ipam.configs[0].subnet == "10.9.0.0/24"
    wishes = spec.services[0].task.networks
    assert [(one.target, one.aliases, one.addresses) for one in wishes] == [
        ("st_back", ("sql", "a"), ("10.9.0.7",)), ("theirs", ("a",), ()),
    ]  # fmt: skip


def test_secrets_and_configs():
    site = Site({"/srv/pw": "hidden"}, {"TOKEN": "t"})
    spec = spec_of(
        "services: {a: {image: x, secrets: [pw, {source: tok, target: /t, uid: '5', mode: 0400},"
        " ext], configs: [c]}}\n"
        "secrets: {pw: {file: ./pw}, tok: {environment: TOKEN, name: token},"
        " ext: {external: true}}\n"
        "configs: {c: {content: 'x', template_driver: golang}}\n",
        site=site,
    )
    assert [(one.annotations.name, one.data) for one in spec.secrets] == [
        ("st_pw", b"hidden"), ("token", b"t"),
    ]  # fmt: skip
    assert spec.configs[0].templating == Driver(name="golang")
    container = spec.services[0].task.runtime
    assert container.secrets == (
        FileReference(name="ext", target="ext", uid="0", gid="0", mode=0o444),
        FileReference(name="st_pw", target="pw", uid="0", gid="0", mode=0o444),
        FileReference(name="token", target="/t", uid="5", gid="0", mode=0o400),
    )
    assert "hidden" not in spec.source


def test_services_come_in_the_order_of_their_dependencies():
    spec = spec_of(
        "services:\n"
        "  a: {image: x, depends_on: [c]}\n"
        "  b: {image: x}\n"
        "  c: {image: x, depends_on: {b: {condition: service_completed_successfully}}}\n"
    )
    assert [one.annotations.name for one in spec.services] == ["st_b", "st_c", "st_a"]
    assert spec.services[1].depends_on == (
        ServiceDependency(service="st_b", condition=DependencyCondition.COMPLETED),
    )


def test_what_docker_ignores_is_told_in_its_words():
    project = load("services: {a: {image: x, build: ., links: [b], container_name: n}}")
    assert project.warnings == (
        "Ignoring unsupported options: build, links",
        "Ignoring deprecated options:\n\n"
        "container_name: Setting the container name is not supported.",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services:\n  a:\n    image: x\n    bogus: 1\n",
         "0.yml:4: services.a.bogus: Additional property bogus is not allowed"),
        ("services:\n  a:\n    image: x\n    deploy:\n      replicas: many\n",
         "0.yml:5: services.a.deploy.replicas: 'many' must be a whole number"),
        ("services: {a: {image: x, deploy: {mode: odd}}}", "services.a.deploy: Unknown mode: odd"),
        ("services: {a: {image: x, deploy: {mode: global, replicas: 2}}}",
         "replicas can only be used"),
        ("services: {a: {image: x, mem_limit: 5m}}", "Set resource limits using deploy.resources"),
        ("version: '2.4'\nservices: {a: {image: x}}", "0.yml:1: version: '2.4' is not supported"),
        ("version: 3\nservices: {a: {image: x}}", "0.yml:1: version: must be text"),
        ("services: {a: {image: x, ports: ['1:99999']}}",
         "services.a.ports.0: Does not match format 'ports'"),
        ("services: {a: {image: x, healthcheck: {interval: soon}}}",
         "Does not match format 'duration'"),
        ("services: {a: {image: x, healthcheck: {disable: true, test: x}}}",
         "test and disable can't be set at the same time"),
        ("services: {a: {build: .}}", "services.a: image: must be given"),
        ("services: {}", "no services"),
        ("services: {a: {image: x, volumes: ['v:/v']}}", "undefined volume 'v'"),
        ("services: {a: {image: x, volumes: ['/a:/b:odd']}}", "option 'odd' is unknown"),
        ("services: {a: {image: x, networks: [n]}}", "undefined network 'n'"),
        ("services: {a: {image: x, secrets: [s]}}", "undefined secret 's'"),
        ("services: {a: {image: x, depends_on: [b]}}", "depends on undefined service 'b'"),
        ("services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}",
         "depends_on: a -> b -> a is a cycle"),
        ("services: {a: {image: x, secrets: [s]}}\nsecrets: {s: {}}",
         "0.yml:2: secrets.s: a secret has one of file and environment"),
        ("services: {a: {image: x, secrets: [s]}}\nsecrets: {s: {environment: NO}}",
         "variable NO is not set"),
        ("services: {a: {image: x}}\nconfigs:\n  c: {file: ./no}",
         "0.yml:3: configs.c: /srv/no: there is no such file"),
        ("services: {a: {image: x, env_file: no.env}}", "/srv/no.env: there is no such file"),
        ("services: {a: {image: x, environment: {A: true}}}", "must be of type"),
        ("services: {a: {image: x, secrets: [{source: s, mode: 1.5}]}}\n"
         "secrets: {s: {external: true}}",
         "services.a.secrets: mode: 1.5 must be a whole number"),
        ("services: {a: {image: x, ulimits: {odd: 5}}}", "unknown limit 'odd'"),
        ("services:\n  a:\n    image: x\n    devices:\n      - kvm\n",
         "device 'kvm': must be an absolute path"),
        ("bogus: 1", "0.yml:1: bogus: Additional property bogus is not allowed"),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_line(text, message):
    with pytest.raises(InvalidArgument) as caught:
        spec_of(text)
    assert message in caught.value.message


def test_later_files_lie_over_earlier_ones():
    base = (
        "services:\n  a: {image: x:1, command: [old], environment: {A: 1, B: 1},"
        " ports: ['80:80', '90:90'], dns: [1.1.1.1], deploy: {replicas: 2}}\n"
    )
    over = (
        "services:\n  a: {image: x:2, command: [new], environment: [B=2], dns: [2.2.2.2],"
        " ports: [{target: 81, published: 80}], deploy: {labels: {l: m}}}\n  b: {image: y}\n"
    )
    a, b = spec_of(base, over).services
    container = a.task.runtime
    assert container.image == "x:2"
    assert container.args == ("new",)
    assert container.env == ("A=1", "B=2")
    assert container.dns.nameservers == ("1.1.1.1", "2.2.2.2")
    assert [(one.published_port, one.target_port) for one in a.endpoint.ports] == [
        (80, 81), (90, 90),
    ]  # fmt: skip
    assert a.mode == ReplicatedMode(replicas=2)
    assert a.annotations.labels["l"] == "m"
    assert b.annotations.name == "st_b"


def test_faults_of_a_later_file_are_found_in_it():
    with pytest.raises(InvalidArgument, match=r"1\.yml:2: services\.a\.depends_on"):
        spec_of("services: {a: {image: x}}", "services:\n  a: {depends_on: [no]}\n")


def test_the_whole_reads_back_as_it_is():
    text = (
        "services: {a: {image: x, command: 'echo $$HOME', ports: ['80:80'], volumes: ['v:/v'],"
        " environment: [A=$$x], healthcheck: {test: 'a'}, networks: {n: {aliases: [q]}},"
        " depends_on: [b]}, b: {image: y}}\nvolumes: {v: }\nnetworks: {n: }\n"
    )
    spec = spec_of(text)
    assert spec_of(project_text(load(text))).services == spec.services
