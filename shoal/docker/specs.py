"""Services' specs in the shapes of Docker's API, for the API and for `--format`.

Nothing is lost: a spec that is read back from here is the same spec. What Docker leaves out when it
is empty is left out here, too, and stays known to templates as absent; zero where zero is not the
same as nothing said is written. What Docker has no field for stands under a name of its own. Only
credentials for registries are never shown.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, assert_never

from shoal.docker.values import OpenMap, Record, compact, record
from shoal.docker.words import spell
from shoal.model.enums import MountPropagation, MountRecursive, MountType
from shoal.model.specs import (
    ContainerSpec,
    GenericRuntimeSpec,
    GlobalJobMode,
    GlobalMode,
    NetworkAttachmentSpec,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    DeviceMapping,
    DisconnectPolicy,
    DnsConfig,
    Driver,
    EndpointSpec,
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

_MODES = {"Replicated", "Global", "ReplicatedJob", "GlobalJob"}
DEFAULT_ISOLATION = "default"
"""Docker knows no service without a word for it."""


def service_spec_json(spec: ServiceSpec) -> Record:
    """A service's spec."""
    return compact(
        Name=spec.annotations.name,
        Labels=OpenMap(spec.annotations.labels),
        TaskTemplate=task_spec_json(spec.task, of_service=True),
        Mode=_mode(spec.mode),
        UpdateConfig=spec.update and _update_config(spec.update),
        RollbackConfig=spec.rollback and _update_config(spec.rollback),
        EndpointSpec=endpoint_spec_json(spec.endpoint),
        DrainTimeout=spec.drain_timeout_ns,
        TTLAfterFinish=spec.ttl_after_finish_ns,
        Priority=spec.priority or None,
        DisruptionBudget=spec.disruption_budget,
        DependsOn=[
            record({"Service": item.service, "Condition": spell(item.condition)})
            for item in spec.depends_on
        ]
        or None,
    )


def task_spec_json(spec: TaskSpec, *, of_service: bool = False) -> Record:
    """The template of tasks; a task's own copy does not say that it is of a container."""
    container = attachment = runtime = None
    match spec.runtime:
        case ContainerSpec():
            container = container_json(spec.runtime)
            runtime = "container" if of_service else None
        case NetworkAttachmentSpec():
            attachment = record({"ContainerID": spec.runtime.container_id})
            runtime = "attachment"
        case GenericRuntimeSpec():
            runtime = spec.runtime.kind
        case _:
            assert_never(spec.runtime)
    return compact(
        ContainerSpec=container,
        NetworkAttachmentSpec=attachment,
        Resources=_requirements(spec.resources),
        RestartPolicy=spec.restart and _restart(spec.restart),
        Placement=_placement(spec.placement),
        Networks=[_network_config(item) for item in spec.networks] or None,
        LogDriver=None if spec.log_driver is None else driver_json(spec.log_driver),
        ForceUpdate=spec.force_update,
        Runtime=runtime,
        DisconnectPolicy=spec.disconnect and _disconnect(spec.disconnect),
        ListenTimeout=spec.listen_timeout_ns,
    )


def container_json(container: ContainerSpec) -> Record:
    """A task's container."""
    return compact(
        Image=container.image,
        Labels=_open(container.labels),
        Command=_listed(container.command),
        Args=_listed(container.args),
        Hostname=container.hostname or None,
        Env=_listed(container.env),
        Dir=container.dir or None,
        User=container.user or None,
        Groups=_listed(container.groups),
        Privileges=_privileges(container.privileges) or None,
        Init=container.init,
        StopSignal=container.stop_signal or None,
        TTY=container.tty or None,
        OpenStdin=container.open_stdin or None,
        ReadOnly=container.read_only or None,
        Mounts=[_mount(item) for item in container.mounts] or None,
        StopGracePeriod=container.stop_grace_period_ns,
        Healthcheck=container.health_check and _health(container.health_check),
        Hosts=_listed(container.hosts),
        DNSConfig=_dns(container.dns),
        Secrets=[_file(item, "Secret") for item in container.secrets] or None,
        Configs=[_file(item, "Config") for item in container.configs] or None,
        Isolation=container.isolation or DEFAULT_ISOLATION,
        Sysctls=_open(container.sysctls),
        CapabilityAdd=_listed(container.capability_add),
        CapabilityDrop=_listed(container.capability_drop),
        Ulimits=[
            record({"Name": item.name, "Hard": item.hard, "Soft": item.soft})
            for item in container.ulimits
        ]
        or None,
        OomScoreAdj=container.oom_score_adj or None,
        FileRotation=container.file_rotation and record({}, Signal=container.file_rotation.signal),
        Devices=[_device(item) for item in container.devices] or None,
    )


def ports_json(ports: Iterable[PortConfig]) -> list[Record]:
    """Published ports. Where they answer and whom they prefer is ours."""
    return [
        compact(
            Name=port.name or None,
            Protocol=spell(port.protocol),
            TargetPort=port.target_port,
            PublishedPort=port.published_port or None,
            PublishMode=spell(port.publish_mode),
            Sticky=port.sticky or None,
            Source=spell(port.source) if port.source else None,
            Prefer=spell(port.prefer) if port.prefer else None,
            IP=port.address or None,
            Interface=port.interface or None,
            WeightLabel=port.weight_label or None,
        )
        for port in ports
    ]


def endpoint_spec_json(spec: EndpointSpec) -> Record:
    """How a service is reached."""
    return compact(Mode=spell(spec.mode), Ports=ports_json(spec.ports) or None)


def resources_json(resources: Resources) -> Record:
    """An amount of each resource. Swap is ours: Docker has it beside limits and reservations."""
    return compact(
        NanoCPUs=resources.nano_cpus or None,
        MemoryBytes=resources.memory_bytes or None,
        Pids=resources.pids or None,
        GenericResources=generic_json(resources.generic) or None,
        SwapBytes=resources.swap_bytes,
        MemorySwappiness=resources.memory_swappiness,
    )


def generic_json(resources: Iterable[GenericResource]) -> list[Record]:
    """Pieces that have names, and numbers of those that have none."""
    return [
        record({"NamedResourceSpec": {"Kind": item.kind, "Value": item.named_value}})
        if item.named_value
        else record({"DiscreteResourceSpec": {"Kind": item.kind, "Value": item.count}})
        for item in resources
    ]


def driver_json(driver: Driver) -> Record:
    """A pluggable part."""
    return compact(Name=driver.name or None, Options=_open(driver.options))


def _listed(texts: tuple[str, ...]) -> list[str] | None:
    return list(texts) or None


def _open(texts: Mapping[str, str]) -> OpenMap | None:
    return OpenMap(texts) or None


def _mode(mode: ServiceMode) -> Record:
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
    return Record(fields, absent=_MODES - set(fields))


def _update_config(config: UpdateConfig) -> Record:
    return compact(
        Parallelism=config.parallelism,
        Delay=config.delay_ns or None,
        FailureAction=spell(config.failure_action),
        Monitor=config.monitor_ns,
        MaxFailureRatio=_ratio(config.max_failure_ratio),
        Order=spell(config.order),
        ProgressDeadline=config.progress_deadline_ns,
    )


def _ratio(ratio: float) -> float:
    """The ratio; whole numbers without a decimal point, as Go's JSON has them."""
    return int(ratio) if ratio.is_integer() else ratio


def _requirements(resources: ResourceRequirements) -> Record:
    limits = resources_json(resources.limits)
    return record({"Limits": limits, "Reservations": resources_json(resources.reservations)})


def _restart(policy: RestartPolicy) -> Record:
    return compact(
        Condition=spell(policy.condition),
        Delay=policy.delay_ns,
        MaxAttempts=policy.max_attempts,
        Window=policy.window_ns or None,
        BackoffFactor=_ratio(policy.backoff_factor) or None,
        BackoffMax=policy.backoff_max_ns,
    )


def _disconnect(policy: DisconnectPolicy) -> Record:
    """Ours: Docker has no such thing."""
    return compact(
        Action=spell(policy.action), OnReturn=spell(policy.on_return), Wait=policy.wait_ns
    )


def _preference(item: PlacementPreference) -> Record:
    """Docker spreads alone; nodes to prefer or to avoid are ours."""
    spread = item.spread_descriptor
    return compact(
        Spread=record({"SpreadDescriptor": spread}) if spread else None,
        Prefer=item.prefer or None,
        Avoid=item.avoid or None,
    )


def _placement(placement: Placement) -> Record:
    return compact(
        Constraints=_listed(placement.constraints),
        Preferences=[_preference(item) for item in placement.preferences] or None,
        MaxReplicas=placement.max_replicas or None,
        Platforms=[
            compact(Architecture=item.architecture or None, OS=item.os or None)
            for item in placement.platforms
        ]
        or None,
        Strategy=spell(placement.strategy) if placement.strategy else None,
    )


def _network_config(config: NetworkAttachmentConfig) -> Record:
    """Addresses of tasks are ours."""
    return compact(
        Target=config.target,
        Aliases=_listed(config.aliases),
        DriverOpts=_open(config.driver_options),
        Addresses=_listed(config.addresses),
    )


def _mount(mount: Mount) -> Record:
    subpath, of_image = mount.subpath or None, mount.type is MountType.IMAGE
    return compact(
        Type=spell(mount.type),
        Source=mount.source or None,
        Target=mount.target,
        ReadOnly=mount.read_only or None,
        Consistency=mount.consistency or None,
        BindOptions=_bind(mount) or None,
        VolumeOptions=compact(
            NoCopy=mount.volume_nocopy or None,
            Labels=_open(mount.volume_labels),
            Subpath=None if of_image else subpath,
            DriverConfig=mount.volume_driver and driver_json(mount.volume_driver),
        )
        or None,
        ImageOptions=compact(Subpath=subpath if of_image else None) or None,
        TmpfsOptions=compact(
            SizeBytes=mount.tmpfs_size_bytes or None,
            Mode=mount.tmpfs_mode or None,
            Options=_tmpfs_options(mount.tmpfs_options),
        )
        or None,
    )


def _bind(mount: Mount) -> Record:
    is_default = mount.propagation is MountPropagation.RPRIVATE
    return compact(
        Propagation=None if is_default else spell(mount.propagation),
        NonRecursive=mount.recursive is MountRecursive.DISABLED or None,
        CreateMountpoint=mount.create_source or None,
        ReadOnlyNonRecursive=mount.recursive is MountRecursive.WRITABLE or None,
        ReadOnlyForceRecursive=mount.recursive is MountRecursive.READONLY or None,
    )


def _tmpfs_options(options: str) -> list[list[str]] | None:
    """`noexec,uid=5` is `[["noexec"], ["uid", "5"]]`."""
    return [option.split("=", 1) for option in options.split(",")] if options else None


def _file(reference: FileReference, kind: str) -> Record:
    """runtime: for the runtime alone, not a file of the container's."""
    file = record(
        {
            "Name": reference.target,
            "UID": reference.uid,
            "GID": reference.gid,
            "Mode": reference.mode,
        }
    )
    return compact(
        File=file,
        Runtime=record({}) if reference.runtime else None,
        **{f"{kind}ID": reference.id, f"{kind}Name": reference.name},
    )


def _device(device: DeviceMapping) -> Record:
    """As of a container in Docker, whose services have none; the rest is as on the node."""
    return compact(
        PathOnHost=device.host_path,
        PathInContainer=device.container_path or None,
        CgroupPermissions=device.permissions or None,
    )


def _health(check: HealthCheck) -> Record:
    return compact(
        Test=_listed(check.test),
        Interval=check.interval_ns or None,
        Timeout=check.timeout_ns or None,
        StartPeriod=check.start_period_ns or None,
        StartInterval=check.start_interval_ns or None,
        Retries=check.retries or None,
    )


def _dns(dns: DnsConfig) -> Record:
    return compact(
        Nameservers=_listed(dns.nameservers),
        Search=_listed(dns.search),
        Options=_listed(dns.options),
    )


def _privileges(privileges: Privileges) -> Record:
    profile = base64.b64encode(privileges.seccomp_profile).decode()
    return compact(
        CredentialSpec=compact(
            Config=privileges.credential_spec_config or None,
            File=privileges.credential_spec_file or None,
            Registry=privileges.credential_spec_registry or None,
        )
        or None,
        SELinuxContext=compact(
            Disable=privileges.selinux_disable or None,
            User=privileges.selinux_user or None,
            Role=privileges.selinux_role or None,
            Type=privileges.selinux_type or None,
            Level=privileges.selinux_level or None,
        )
        or None,
        Seccomp=compact(Mode=privileges.seccomp_mode or None, Profile=profile or None) or None,
        AppArmor=compact(Mode=privileges.apparmor_mode or None) or None,
        NoNewPrivileges=privileges.no_new_privileges or None,
    )
