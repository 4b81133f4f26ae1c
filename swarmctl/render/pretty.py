"""`inspect --pretty`: services and nodes for people, in docker's order and words."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.docker.words import spell, timestamp
from shoal.model.defaults import (
    disconnect_wait_ns,
    restart_backoff_max_ns,
    restart_policy,
    update_config,
)
from shoal.model.devices import spelled
from shoal.model.enums import DisconnectAction
from shoal.model.modes import concurrency
from shoal.model.objects import Node, Service
from shoal.model.specs import ContainerSpec, ReplicatedJobMode, ReplicatedMode, TaskSpec
from shoal.model.types import (
    Endpoint,
    FileReference,
    Mount,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    UpdateConfig,
)
from swarmctl.parsing.units import format_binary_size, format_cpus, format_duration
from swarmctl.parsing.values import preference_text
from swarmctl.render.rows import mode_name
from swarmctl.render.times import distance


def service_text(service: Service, now_ns: int) -> str:
    """A service."""
    spec = service.spec
    lines = [f"ID:\t\t{service.id}", f"Name:\t\t{spec.annotations.name}"]
    lines += _labels(spec.annotations.labels)
    lines.append(f"Service Mode:\t{mode_name(spec.mode).title()}")
    if isinstance(spec.mode, ReplicatedMode):
        lines.append(f" Replicas:\t{spec.mode.replicas}")
    if isinstance(spec.mode, ReplicatedJobMode):
        lines.append(f" Total Completions:\t{spec.mode.total_completions}")
        lines.append(f" Max Concurrent:\t{concurrency(spec.mode)}")
    lines += _job(service, now_ns)
    lines += _update_status(service, now_ns)
    lines += _placement(spec.task)
    lines += _update("UpdateConfig", "Update", spec.update)
    lines += _update("RollbackConfig", "Rollback", spec.rollback)
    lines += _restart(spec.task)
    lines += _disconnect(spec.task)
    if isinstance(spec.task.runtime, ContainerSpec):
        lines += _container(spec.task.runtime)
    lines += _log_driver(spec.task)
    lines += _resources(spec.task.resources)
    if spec.priority:
        lines.append(f"Priority:\t{spec.priority}")
    if spec.disruption_budget is not None:
        lines.append(f"Disruption Budget:\t{spec.disruption_budget}")
    lines += _networks(service)
    lines.append(f"Endpoint Mode:\t{spell(spec.endpoint.mode)}")
    lines += _ports(service.endpoint or Endpoint(ports=spec.endpoint.ports))
    if spec.task.listen_timeout_ns is not None:
        lines.append(f"Listen Timeout:\t{format_duration(spec.task.listen_timeout_ns)}")
    if spec.drain_timeout_ns is not None:
        lines.append(f"Drain Timeout:\t{format_duration(spec.drain_timeout_ns)}")
    return "\n".join(lines) + "\n"


def _job(service: Service, now_ns: int) -> list[str]:
    status, ttl_ns = service.job_status, service.spec.ttl_after_finish_ns
    if status is None:
        return []
    begun = distance(now_ns - status.last_execution_at_ns).lower()
    kept = "for good" if ttl_ns is None else format_duration(ttl_ns)
    return [
        "JobStatus:",
        f" Iteration:\t{status.iteration}",
        f" Begun:\t\t{begun} ago",
        f" Kept After End:\t{kept}",
    ]


def role_obstacle(node: Node) -> str:
    """Why a node is not what it is wished to be."""
    return f"not a {spell(node.spec.desired_role)} yet: {node.role_message}"


def node_text(node: Node) -> str:
    """A node."""
    description = node.description
    lines = [f"ID:\t\t\t{node.id}"]
    if node.spec.annotations.name:
        lines.append(f"Name:\t\t\t{node.spec.annotations.name}")
    lines += _labels(node.spec.annotations.labels)
    lines += [
        f"Hostname:              \t{description.hostname}",
        f"Joined at:             \t{timestamp(node.meta.created_at_ns)}",
        "Status:",
        f" State:\t\t\t{spell(node.status.state).capitalize()}",
        *([f" Message:              \t{node.status.message}"] if node.status.message else []),
        *([f" Role:                 \t{role_obstacle(node)}"] if node.role_message else []),
        f" Availability:         \t{spell(node.spec.availability).capitalize()}",
        *_drain(node),
        f" Address:\t\t{node.status.address}",
    ]
    if node.manager_status is not None:
        reach = "Reachable" if node.manager_status.reachable else "Unreachable"
        lines += [
            "Manager Status:",
            f" Address:\t\t{node.manager_status.address}",
            f" Raft Status:\t\t{reach}",
            f" Leader:\t\t{'Yes' if node.manager_status.leader else 'No'}",
        ]
    lines += [
        "Platform:",
        f" Operating System:\t{description.platform.os}",
        f" Architecture:\t\t{description.platform.architecture}",
        "Resources:",
        f" CPUs:\t\t\t{format_cpus(description.resources.nano_cpus)}",
        f" Memory:\t\t{format_binary_size(description.resources.memory_bytes)}",
        *_generic(description.resources),
        f"Engine Version:\t\t{description.engine.engine_version}",
    ]
    if description.engine.labels:
        lines.append("Engine Labels:")
        lines += [f" - {key}={value}" for key, value in sorted(description.engine.labels.items())]
    return "\n".join(lines) + "\n"


def _drain(node: Node) -> list[str]:
    if not node.drain_until_ns:
        return []
    return [f" Drain:\t\t\tTasks start elsewhere first, until {timestamp(node.drain_until_ns)}"]


def _labels(labels: Mapping[str, str]) -> list[str]:
    pairs = sorted(labels.items())
    return ["Labels:", *(f" {key}={value}" for key, value in pairs)] if pairs else []


def _update_status(service: Service, now_ns: int) -> list[str]:
    status = service.update_status
    if status is None or not status.state:
        return []
    lines = ["UpdateStatus:", f" State:\t\t{spell(status.state).replace('-', '_')}"]
    if status.started_at_ns:
        lines.append(f" Started:\t{distance(now_ns - status.started_at_ns).lower()} ago")
    if status.completed_at_ns:
        lines.append(f" Completed:\t{distance(now_ns - status.completed_at_ns).lower()} ago")
    return [*lines, f" Message:\t{status.message}"]


def _placement(task: TaskSpec) -> list[str]:
    placement = task.placement
    lines = ["Placement:"]
    if placement.constraints:
        lines.append(f" Constraints:\t[{' '.join(placement.constraints)}]")
    if placement.preferences:
        wishes = " ".join(map(preference_text, placement.preferences))
        lines.append(f" Preferences:\t[{wishes}]")
    if placement.strategy:
        lines.append(f" Strategy:\t{spell(placement.strategy)}")
    if placement.max_replicas:
        lines.append(f" Max Replicas Per Node:\t{placement.max_replicas}")
    return lines


def _update(title: str, verb: str, config: UpdateConfig | None) -> list[str]:
    if config is None:
        return []
    full = update_config(config)
    return [
        f"{title}:",
        f" Parallelism:\t{full.parallelism}",
        *([f" Delay:\t\t{format_duration(full.delay_ns)}"] if full.delay_ns else []),
        f" On failure:\t{spell(full.failure_action)}",
        f" Monitoring Period: {format_duration(full.monitor_ns or 0)}",
        *_deadline(config),
        f" Max failure ratio: {full.max_failure_ratio:g}",
        f"{f' {verb} order:':<20}{spell(full.order)}",
    ]


def _deadline(config: UpdateConfig) -> list[str]:
    """As docker shows what it does not know: not at all, unless it was asked for."""
    deadline_ns = config.progress_deadline_ns
    if deadline_ns is None:
        return []
    return [f" Progress deadline: {format_duration(deadline_ns) if deadline_ns else 'none'}"]


def _restart(task: TaskSpec) -> list[str]:
    if task.restart is None:
        return []
    policy = restart_policy(task.restart)
    return [
        "RestartPolicy:",
        f" Condition:\t{spell(policy.condition)}",
        f" Delay:\t\t{format_duration(policy.delay_ns or 0)}",
        f" Max attempts:\t{policy.max_attempts}",
        *([f" Window:\t{format_duration(policy.window_ns)}"] if policy.window_ns else []),
        *_backoff(policy),
    ]


def _backoff(policy: RestartPolicy) -> list[str]:
    if not policy.backoff_factor:
        return []
    longest = format_duration(restart_backoff_max_ns(policy))
    return [f" Backoff:\t{policy.backoff_factor:g} times the delay before, at most {longest}"]


def _disconnect(task: TaskSpec) -> list[str]:
    policy = task.disconnect
    if policy is None:
        return []
    waits = policy.action is DisconnectAction.WAIT
    return [
        "DisconnectPolicy:",
        f" Action:\t{spell(policy.action)}",
        *([f" Wait:\t\t{format_duration(disconnect_wait_ns(policy))}"] if waits else []),
        f" On return:\t{spell(policy.on_return)}",
    ]


def _container(container: ContainerSpec) -> list[str]:
    values = [
        ("Image", container.image),
        ("Command", " ".join(container.command)),
        ("Args", " ".join(container.args)),
        ("Hostname", container.hostname),
        ("Env", " ".join(container.env)),
        ("Dir", container.dir),
        ("User", container.user),
        ("Groups", " ".join(container.groups)),
        ("Hosts", ", ".join(container.hosts)),
        ("DNS", " ".join(container.dns.nameservers)),
        ("DNS Search", " ".join(container.dns.search)),
        ("DNS Options", " ".join(container.dns.options)),
        ("Stop Signal", container.stop_signal),
        ("Secret Rotation", _rotation(container)),
        ("Stop Grace", _optional_duration(container.stop_grace_period_ns)),
        ("Read Only", "true" if container.read_only else ""),
        ("No New Privileges", "true" if container.privileges.no_new_privileges else ""),
        ("Sysctls", " ".join(f"{key}={value}" for key, value in container.sysctls.items())),
        ("Capabilities Added", " ".join(container.capability_add)),
        ("Capabilities Dropped", " ".join(container.capability_drop)),
        ("Devices", " ".join(map(spelled, container.devices))),
        ("Ulimits", " ".join(f"{u.name}={u.soft}:{u.hard}" for u in container.ulimits)),
        ("OOM Score Adj", str(container.oom_score_adj) if container.oom_score_adj else ""),
        ("Labels", " ".join(f"{key}={value}" for key, value in container.labels.items())),
    ]
    lines = ["ContainerSpec:", *(f" {name}:\t\t{value}" for name, value in values if value)]
    if container.mounts:
        lines += ["Mounts:", *(line for mount in container.mounts for line in _mount(mount))]
    for title, references in (("Secrets", container.secrets), ("Configs", container.configs)):
        if references:
            lines += [f"{title}:", *(line for one in references for line in _file(one))]
    return lines


def _file(reference: FileReference) -> list[str]:
    return [f" Target:\t{reference.target}", f"  Source:\t{reference.name}"]


def _mount(mount: Mount) -> list[str]:
    return [
        f" Target:\t{mount.target}",
        f"  Source:\t{mount.source}",
        f"  ReadOnly:\t{str(mount.read_only).lower()}",
        f"  Type:\t\t{spell(mount.type)}",
    ]


def _log_driver(task: TaskSpec) -> list[str]:
    if task.log_driver is None:
        return []
    lines = ["Log Driver:", f" Name:\t\t{task.log_driver.name}"]
    if task.log_driver.options:
        options = sorted(task.log_driver.options.items())
        lines += [" LogOpts:", *(f"  {key}:\t{value}" for key, value in options)]
    return lines


def _resources(resources: ResourceRequirements) -> list[str]:
    lines = ["Resources:"]
    for title, part in (("Reservations", resources.reservations), ("Limits", resources.limits)):
        inner = [
            *([f"  CPU:\t\t{format_cpus(part.nano_cpus)}"] if part.nano_cpus else []),
            *([f"  Memory:\t{format_binary_size(part.memory_bytes)}"] if part.memory_bytes else []),
            *([f"  PIDs:\t\t{part.pids}"] if part.pids else []),
            *(f" {line}" for line in _generic(part)),
        ]
        lines += [f" {title}:", *inner] if inner else []
    return lines


def _generic(resources: Resources) -> list[str]:
    return [f" {item.kind}:\t\t{item.named_value or item.count}" for item in resources.generic]


def _networks(service: Service) -> list[str]:
    """The networks of a service, each with the virtual addresses it has there."""
    wishes = service.spec.task.networks
    lines = ["Networks:"] if wishes else []
    for wish in wishes:
        held = service.endpoint.virtual_ips if service.endpoint is not None else ()
        addresses = [one.address for one in held if one.network_id == wish.target]
        lines.append("\t".join([f" {wish.target}", *addresses]))
    return lines


def _ports(endpoint: Endpoint) -> list[str]:
    lines = ["Ports:"] if endpoint.ports else []
    for port in endpoint.ports:
        lines += [
            f" PublishedPort = {port.published_port}",
            f"  Protocol = {spell(port.protocol)}",
            f"  TargetPort = {port.target_port}",
            f"  PublishMode = {spell(port.publish_mode)}",
            *(["  Sticky = true"] if port.sticky else []),
            *([f"  Source = {spell(port.source)}"] if port.source else []),
            *([f"  Prefer = {spell(port.prefer)}"] if port.prefer else []),
            *([f"  IP = {port.address}"] if port.address else []),
            *([f"  Interface = {port.interface}"] if port.interface else []),
            *([f"  Weight = node.labels.{port.weight_label}"] if port.weight_label else []),
        ]
    return lines


def _optional_duration(duration_ns: int | None) -> str:
    return "" if duration_ns is None else format_duration(duration_ns)


def _rotation(container: ContainerSpec) -> str:
    if container.file_rotation is None:
        return ""
    signal = container.file_rotation.signal
    return f"live, signal {signal}" if signal else "live"
