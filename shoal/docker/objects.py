"""Rows in the shapes of Docker's API, for the API and for `--format`.

Fields that Docker leaves out when empty are left out here, and stay known to templates as absent.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, assert_never

import msgspec

from shoal.docker.values import OpenMap, Record, record
from shoal.docker.words import spell, timestamp
from shoal.model.enums import MountRecursive, MountType
from shoal.model.objects import Node, Service, Task
from shoal.model.specs import (
    ContainerSpec,
    GenericRuntimeSpec,
    GlobalJobMode,
    GlobalMode,
    NetworkAttachmentSpec,
    NodeSpec,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    DisconnectPolicy,
    DnsConfig,
    Driver,
    Endpoint,
    EndpointSpec,
    FileReference,
    HealthCheck,
    Meta,
    Mount,
    NetworkAttachment,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    PortConfig,
    Privileges,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    TaskStatus,
    UpdateConfig,
    UpdateStatus,
)


class ServiceCounts(msgspec.Struct, frozen=True):
    """Tasks of a service by what matters in a list."""

    running: int = 0
    desired: int = 0
    completed: int = 0


def service_json(service: Service, counts: ServiceCounts | None = None) -> Record:
    """A service as `GET /services/{id}` answers."""
    status = None
    if counts is not None:
        status = record(
            {
                "RunningTasks": counts.running,
                "DesiredTasks": counts.desired,
                "CompletedTasks": counts.completed,
            }
        )
    return record(
        {**_meta(service.id, service.meta), "Spec": service_spec_json(service.spec)},
        PreviousSpec=service.previous_spec and service_spec_json(service.previous_spec),
        Endpoint=_endpoint(service.endpoint or Endpoint()),
        UpdateStatus=service.update_status and _update_status(service.update_status),
        ServiceStatus=status,
        JobStatus=service.job_status
        and record(
            {
                "JobIteration": {"Index": service.job_status.iteration},
                "LastExecution": timestamp(service.job_status.last_execution_at_ns),
            }
        ),
    )


def service_spec_json(spec: ServiceSpec) -> Record:
    """A service's spec."""
    return record(
        {
            "Name": spec.annotations.name,
            "Labels": OpenMap(spec.annotations.labels),
            "TaskTemplate": task_spec_json(spec.task),
            "Mode": _mode(spec.mode),
        },
        UpdateConfig=spec.update and _update_config(spec.update),
        RollbackConfig=spec.rollback and _update_config(spec.rollback),
        EndpointSpec=_endpoint_spec(spec.endpoint),
        DrainTimeout=spec.drain_timeout_ns,
    )


def task_spec_json(spec: TaskSpec) -> Record:
    """The template of tasks."""
    runtime: dict[str, Any] = {}
    match spec.runtime:
        case ContainerSpec():
            runtime = {"ContainerSpec": container_json(spec.runtime)}
        case NetworkAttachmentSpec():
            attachment = record({"ContainerID": spec.runtime.container_id})
            runtime = {"NetworkAttachmentSpec": attachment}
        case GenericRuntimeSpec():
            runtime = {"Runtime": spec.runtime.kind}
        case _:
            assert_never(spec.runtime)
    return record(
        {
            **runtime,
            "Resources": _requirements(spec.resources),
            "Placement": _placement(spec.placement),
            "ForceUpdate": spec.force_update,
        },
        RestartPolicy=spec.restart and _restart(spec.restart),
        DisconnectPolicy=spec.disconnect and _disconnect(spec.disconnect),
        ListenTimeout=spec.listen_timeout_ns,
        Networks=[_network_config(item) for item in spec.networks],
        LogDriver=spec.log_driver and _driver(spec.log_driver),
    )


def container_json(container: ContainerSpec) -> Record:
    """A task's container."""
    return record(
        {"Image": container.image},
        Labels=OpenMap(container.labels),
        Command=list(container.command),
        Args=list(container.args),
        Hostname=container.hostname,
        Env=list(container.env),
        Dir=container.dir,
        User=container.user,
        Groups=list(container.groups),
        Privileges=_privileges(container.privileges),
        TTY=container.tty,
        OpenStdin=container.open_stdin,
        ReadOnly=container.read_only,
        Mounts=[_mount(item) for item in container.mounts],
        StopSignal=container.stop_signal,
        StopGracePeriod=container.stop_grace_period_ns,
        Healthcheck=container.health_check and _health(container.health_check),
        Hosts=list(container.hosts),
        DNSConfig=_dns(container.dns),
        Secrets=[_file(item, "Secret") for item in container.secrets],
        Configs=[_file(item, "Config") for item in container.configs],
        Isolation=container.isolation,
        Init=container.init,
        Sysctls=OpenMap(container.sysctls),
        CapabilityAdd=list(container.capability_add),
        CapabilityDrop=list(container.capability_drop),
        Ulimits=[
            record({"Name": item.name, "Soft": item.soft, "Hard": item.hard})
            for item in container.ulimits
        ],
        OomScoreAdj=container.oom_score_adj,
    )


def task_json(task: Task) -> Record:
    """A task as `GET /tasks/{id}` answers."""
    return record(
        {
            **_meta(task.id, task.meta),
            "Labels": OpenMap(task.annotations.labels),
            "Spec": task_spec_json(task.spec),
            "ServiceID": task.service_id,
            "Status": _status(task.status),
            "DesiredState": spell(task.desired_state),
        },
        Name=task.annotations.name,
        Slot=task.slot,
        NodeID=task.node_id,
        NetworksAttachments=[_attachment(item) for item in task.networks],
        JobIteration=None if task.job_iteration is None else {"Index": task.job_iteration},
        GenericResources=_generic(task.assigned_generic_resources),
    )


def node_json(node: Node) -> Record:
    """A node as `GET /nodes/{id}` answers."""
    description = node.description
    manager = None
    if node.manager_status is not None:
        manager = record(
            {
                "Reachability": "reachable" if node.manager_status.reachable else "unreachable",
                "Addr": node.manager_status.address,
            },
            Leader=node.manager_status.leader,
        )
    return record(
        {
            **_meta(node.id, node.meta),
            "Spec": node_spec_json(node.spec),
            "Description": record(
                {
                    "Hostname": description.hostname,
                    "Platform": record(
                        {
                            "Architecture": description.platform.architecture,
                            "OS": description.platform.os,
                        }
                    ),
                    "Resources": _resources(description.resources),
                    "Engine": record(
                        {"EngineVersion": description.engine.engine_version},
                        Labels=OpenMap(description.engine.labels),
                        Plugins=[_driver(item) for item in description.engine.plugins],
                    ),
                },
                TLSInfo=description.trust_root
                and record({"TrustRoot": description.trust_root.decode(errors="replace")}),
                NetworkKeys=[
                    record(
                        {
                            "Generation": key.generation,
                            "PublicKey": base64.b64encode(key.public_key).decode(),
                        }
                    )
                    for key in description.network_keys
                ],
            ),
            "Status": record(
                {"State": spell(node.status.state), "Addr": node.status.address},
                Message=node.status.message,
            ),
        },
        ManagerStatus=manager,
        RoleMessage=node.role_message,
    )


def node_spec_json(spec: NodeSpec) -> Record:
    """A node's spec."""
    return record(
        {
            "Labels": OpenMap(spec.annotations.labels),
            "Role": spell(spec.desired_role),
            "Availability": spell(spec.availability),
        },
        Name=spec.annotations.name,
    )


def ports_json(ports: Iterable[PortConfig]) -> list[Record]:
    """Published ports."""
    return [
        record(
            {"Protocol": spell(port.protocol), "TargetPort": port.target_port},
            Name=port.name,
            PublishedPort=port.published_port,
            PublishMode=spell(port.publish_mode),
            Sticky=port.sticky,
            Source=spell(port.source) if port.source else "",
            Prefer=spell(port.prefer) if port.prefer else "",
            IP=port.address,
            Interface=port.interface,
            WeightLabel=port.weight_label,
        )
        for port in ports
    ]


def _meta(object_id: str, meta: Meta) -> dict[str, Any]:
    return {
        "ID": object_id,
        "Version": record({"Index": meta.version.index}),
        "CreatedAt": timestamp(meta.created_at_ns),
        "UpdatedAt": timestamp(meta.updated_at_ns),
    }


def _mode(mode: ServiceMode) -> Record:
    names = {"Replicated", "Global", "ReplicatedJob", "GlobalJob"}
    match mode:
        case ReplicatedMode():
            fields: dict[str, Any] = {"Replicated": record({"Replicas": mode.replicas})}
        case GlobalMode():
            fields = {"Global": record({})}
        case ReplicatedJobMode():
            job = record(
                {"MaxConcurrent": mode.max_concurrent, "TotalCompletions": mode.total_completions}
            )
            fields = {"ReplicatedJob": job}
        case GlobalJobMode():
            fields = {"GlobalJob": record({})}
        case _:
            assert_never(mode)
    return Record(fields, absent=names - set(fields))


def _update_config(config: UpdateConfig) -> Record:
    return record(
        {
            "Parallelism": config.parallelism,
            "FailureAction": spell(config.failure_action),
            "MaxFailureRatio": _ratio(config.max_failure_ratio),
            "Order": spell(config.order),
        },
        Delay=config.delay_ns,
        Monitor=config.monitor_ns,
    )


def _ratio(ratio: float) -> float:
    """The ratio; whole numbers without a decimal point, as Go's JSON has them."""
    return int(ratio) if ratio == int(ratio) else ratio


def _update_status(status: UpdateStatus) -> Record:
    return record(
        {"State": spell(status.state).replace("-", "_"), "Message": status.message},
        StartedAt=status.started_at_ns and timestamp(status.started_at_ns),
        CompletedAt=status.completed_at_ns and timestamp(status.completed_at_ns),
    )


def _endpoint_spec(spec: EndpointSpec) -> Record:
    return record({"Mode": spell(spec.mode)}, Ports=ports_json(spec.ports))


def _endpoint(endpoint: Endpoint) -> Record:
    return record(
        {"Spec": _endpoint_spec(endpoint.spec)},
        Ports=ports_json(endpoint.ports),
        VirtualIPs=[
            record({"NetworkID": item.network_id}, Addr=item.address)
            for item in endpoint.virtual_ips
        ],
    )


def _requirements(resources: ResourceRequirements) -> Record:
    limits = _resources(resources.limits)
    return record({"Limits": limits, "Reservations": _resources(resources.reservations)})


def _resources(resources: Resources) -> Record:
    return record(
        {},
        NanoCPUs=resources.nano_cpus,
        MemoryBytes=resources.memory_bytes,
        Pids=resources.pids,
        GenericResources=_generic(resources.generic),
    )


def _generic(resources: Iterable[Any]) -> list[Record]:
    return [
        record({"NamedResourceSpec": {"Kind": item.kind, "Value": item.named_value}})
        if item.named_value
        else record({"DiscreteResourceSpec": {"Kind": item.kind, "Value": item.count}})
        for item in resources
    ]


def _restart(policy: RestartPolicy) -> Record:
    return record(
        {"Condition": spell(policy.condition), "MaxAttempts": policy.max_attempts},
        Delay=policy.delay_ns,
        Window=policy.window_ns,
    )


def _disconnect(policy: DisconnectPolicy) -> Record:
    """Ours: docker has no such thing."""
    return record(
        {"Action": spell(policy.action), "OnReturn": spell(policy.on_return)}, Wait=policy.wait_ns
    )


def _preference(item: PlacementPreference) -> Record:
    """Docker spreads alone; nodes to prefer or to avoid are ours."""
    if item.spread_descriptor:
        return record({"Spread": record({"SpreadDescriptor": item.spread_descriptor})})
    return record({}, Prefer=item.prefer, Avoid=item.avoid)


def _placement(placement: Placement) -> Record:
    return record(
        {},
        Constraints=list(placement.constraints),
        Preferences=[_preference(item) for item in placement.preferences],
        MaxReplicas=placement.max_replicas,
        Strategy=spell(placement.strategy) if placement.strategy else None,
        Platforms=[
            record({}, Architecture=item.architecture, OS=item.os) for item in placement.platforms
        ],
    )


def _driver(driver: Driver) -> Record:
    return record({"Name": driver.name}, Options=OpenMap(driver.options))


def _network_config(config: NetworkAttachmentConfig) -> Record:
    return record(
        {"Target": config.target},
        Aliases=list(config.aliases),
        Addresses=list(config.addresses),
        DriverOpts=OpenMap(config.driver_options),
    )


def _attachment(attachment: NetworkAttachment) -> Record:
    return record(
        {"Network": record({"ID": attachment.network_id})}, Addresses=list(attachment.addresses)
    )


def _mount(mount: Mount) -> Record:
    propagation, recursive = spell(mount.propagation), mount.recursive
    bind = record(
        {},
        Propagation="" if propagation == "rprivate" else propagation,
        NonRecursive=recursive is MountRecursive.DISABLED,
        ReadOnlyNonRecursive=recursive is MountRecursive.WRITABLE,
        ReadOnlyForceRecursive=recursive is MountRecursive.READONLY,
        CreateMountpoint=mount.create_source,
    )
    driver = mount.volume_driver
    volume = record(
        {},
        NoCopy=mount.volume_nocopy,
        Labels=dict(mount.volume_labels),
        Subpath=mount.subpath,
        DriverConfig=driver and record({}, Name=driver.name, Options=dict(driver.options)),
    )
    return record(
        {"Type": spell(mount.type), "Target": mount.target},
        Source=mount.source,
        ReadOnly=mount.read_only,
        Consistency=mount.consistency,
        BindOptions=bind if mount.type is MountType.BIND else None,
        VolumeOptions=volume if mount.type is MountType.VOLUME else None,
        TmpfsOptions=record({}, SizeBytes=mount.tmpfs_size_bytes, Mode=mount.tmpfs_mode)
        if mount.type is MountType.TMPFS
        else None,
    )


def _file(reference: FileReference, kind: str) -> Record:
    file = record(
        {
            "Name": reference.target,
            "UID": reference.uid,
            "GID": reference.gid,
            "Mode": reference.mode,
        }
    )
    return record({"File": file, f"{kind}ID": reference.id, f"{kind}Name": reference.name})


def _health(check: HealthCheck) -> Record:
    return record(
        {},
        Test=list(check.test),
        Interval=check.interval_ns,
        Timeout=check.timeout_ns,
        Retries=check.retries,
        StartPeriod=check.start_period_ns,
        StartInterval=check.start_interval_ns,
    )


def _dns(dns: DnsConfig) -> Record:
    return record(
        {}, Nameservers=list(dns.nameservers), Search=list(dns.search), Options=list(dns.options)
    )


def _privileges(privileges: Privileges) -> Record:
    profile = base64.b64encode(privileges.seccomp_profile).decode()
    return record(
        {},
        NoNewPrivileges=privileges.no_new_privileges,
        Seccomp=record({}, Mode=privileges.seccomp_mode, Profile=profile),
        AppArmor=record({}, Mode=privileges.apparmor_mode),
    )


def _status(status: TaskStatus) -> Record:
    container = None
    if status.container is not None:
        container = record(
            {
                "ContainerID": status.container.container_id,
                "PID": status.container.pid,
                "ExitCode": status.container.exit_code,
            }
        )
    return record(
        {
            "Timestamp": timestamp(status.timestamp_ns),
            "State": spell(status.state),
            "Message": status.message,
            "PortStatus": record({}, Ports=ports_json(status.port_status.ports)),
        },
        Err=status.error,
        ContainerStatus=container,
    )
