"""Rules for specs: what the cluster refuses, each with the field, the rule and the remedy.

Pure. Two kinds of refusal: what is wrong (InvalidArgument), and what is right but beyond this
version (Unimplemented): a wish that would be ignored is worse than one that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import urlsplit

from manager.ca.cfssl import URLS_MAX
from manager.controlapi.validate_files import file_references
from manager.controlapi.validate_modes import service_mode
from manager.controlapi.validate_names import object_labels, object_name
from manager.controlapi.validate_networks import attachments, fixed_addresses
from manager.controlapi.validate_ports import check_published
from manager.scheduler.constraints import parse_constraints
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model import templates
from shoal.model.defaults import restart_backoff_max_ns, restart_delay_ns
from shoal.model.devices import check_devices
from shoal.model.enums import (
    DisconnectAction,
    FailureAction,
    MountType,
    NodeAvailability,
)
from shoal.model.generic import COUNT_MAX, check_kind
from shoal.model.health import PROGRAM, SHELL, check_settings
from shoal.model.log_drivers import DEFAULT, TASK_OPTIONS
from shoal.model.objects import Node
from shoal.model.privileges import check_privileges
from shoal.model.reference import parse_reference
from shoal.model.specs import (
    ClusterSpec,
    ContainerSpec,
    NodeSpec,
    ReplicatedMode,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    DisconnectPolicy,
    ExternalCa,
    GenericResource,
    HealthCheck,
    Mount,
    PlacementPreference,
    Resources,
    RestartPolicy,
    UpdateConfig,
)
from shoal.security.succession import check_root

MANAGERS_WANTED_MAX = 9
NANO_CPUS_MIN = 1_000_000
WAIT_MAX_NS = 3600 * 1_000_000_000
SECOND_NS = 1_000_000_000
PROGRESS_DEADLINE_MAX_NS = 24 * 3600 * SECOND_NS
BACKOFF_FACTOR_MAX = 10
BACKOFF_MAX_NS = 24 * 3600 * SECOND_NS
DISCONNECT_WAIT_MAX_NS = 24 * 3600 * 1_000_000_000
"""Then the task is orphaned, and so replaced, whatever the policy."""
MEMORY_BYTES_MIN = 4 << 20
SPEC_BYTES_MAX = 256 << 10
"""A service holds its spec and the previous one, a slot's step up to four tasks with it: all of
that has to fit into one log entry (1.5 MiB)."""
URL_LENGTH_MAX = 500
IMAGE_LENGTH_MAX = 512
WISHES_MAX = 32
"""Preferences that are tried on every node for each group of tasks."""
GENERIC_MAX = 32
"""Kinds of generic resources that a task may reserve: each is looked up on every node."""
REGISTRY_AUTH_MAX = 64 << 10
CERTIFICATE_VALIDITY_NS_MIN = 3_600_000_000_000
KEY_ROTATION_NS = range(60_000_000_000, 8_760 * 3_600_000_000_000 + 1)
"""Nodes need a minute to hear of each other's keys; none is kept for longer than a year."""
REBALANCE_INTERVAL_NS = range(10_000_000_000, 24 * 3_600_000_000_000 + 1)
DRAIN_DEADLINE_NS = range(1_000_000_000, 720 * 3_600_000_000_000 + 1)

# Without nested repeats: a name that almost fits must not cost exponential time.
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}")


def service_spec(spec: ServiceSpec) -> None:
    """Refuse a service that cannot be run as it is written."""
    object_name("service name", spec.annotations.name)
    object_labels("service labels", spec.annotations)
    service_mode(spec)
    _task(spec.task)
    if isinstance(spec.mode, ReplicatedMode):
        fixed_addresses(spec, replicas=spec.mode.replicas)
    check_published(spec.endpoint.ports)
    _wait("drain timeout", spec.drain_timeout_ns)
    _update("update", spec.update)
    _update("rollback", spec.rollback)
    if spec.rollback is not None and spec.rollback.failure_action is FailureAction.ROLLBACK:
        raise InvalidArgument("rollback failure action: must be pause or continue")


def service_change(old: ServiceSpec, new: ServiceSpec) -> None:
    """Refuse what an update may not change."""
    if old.annotations.name != new.annotations.name:
        raise InvalidArgument("service name: renaming a service is not possible")
    if type(old.mode) is not type(new.mode):
        raise InvalidArgument("mode: a service's mode cannot be changed: create another service")


def node_change(node: Node, spec: NodeSpec) -> None:
    """Refuse a node spec this version cannot follow."""
    object_labels("node labels", spec.annotations)
    if spec.membership is not node.spec.membership:
        raise InvalidArgument("membership: a node that was let in cannot be put back in the queue")
    if spec.drain is None:
        return
    if spec.availability is not NodeAvailability.DRAIN:
        raise InvalidArgument("drain: goes with availability drain only: leave it out")
    deadline_ns = spec.drain.deadline_ns
    if deadline_ns is not None and deadline_ns not in DRAIN_DEADLINE_NS:
        raise InvalidArgument(
            "drain deadline: must be between 1s and 720h; tasks stop at once without a drain policy"
            " (`swarmctl node drain --stop-first`)"
        )


def cluster_spec(spec: ClusterSpec) -> None:
    """Refuse cluster settings out of range."""
    heartbeat_ns = spec.dispatcher.heartbeat_period_ns
    if heartbeat_ns is not None and not 100_000_000 <= heartbeat_ns <= 3_600_000_000_000:
        raise InvalidArgument("dispatcher heartbeat: must be between 100ms and 1h")
    rebalance_ns = spec.orchestration.rebalance_interval_ns
    if rebalance_ns and rebalance_ns not in REBALANCE_INTERVAL_NS:
        raise InvalidArgument("rebalance interval: must be between 10s and 24h, or 0 for never")
    validity_ns = spec.ca.node_certificate_validity_ns
    if validity_ns is not None and validity_ns < CERTIFICATE_VALIDITY_NS_MIN:
        raise InvalidArgument("certificate expiry: must be at least 1h")
    rotation_ns = spec.network.key_rotation_ns
    if rotation_ns is not None and rotation_ns not in KEY_ROTATION_NS:
        raise InvalidArgument("network key rotation: must be between 1m and 8760h")
    ca = spec.ca
    if ca.signing_ca_certificate or ca.signing_ca_key or ca.force_rotate:
        raise Unimplemented(
            "ca: the root certificate is replaced with RotateRootCa (`swarmctl ca --rotate`), not "
            "with the cluster's settings"
        )
    external_authorities(ca.external_cas)
    if spec.task_defaults.log_driver is not None:
        raise Unimplemented("task defaults: a default log driver is not possible in this version")
    if spec.raft.snapshot_interval is not None and spec.raft.snapshot_interval < 1:
        raise InvalidArgument("snapshot interval: must be at least 1")
    if spec.raft.managers_wanted > MANAGERS_WANTED_MAX:
        raise InvalidArgument(
            f"managers: {spec.raft.managers_wanted} is more than {MANAGERS_WANTED_MAX}: every write"
            " waits for a majority of them"
        )


def external_authorities(authorities: Sequence[ExternalCa]) -> None:
    """Refuse external certificate authorities that could not be asked."""
    if len(authorities) > URLS_MAX:
        raise InvalidArgument(f"external ca: {len(authorities)}, at most {URLS_MAX}")
    for one in authorities:
        if one.protocol != "cfssl":
            raise InvalidArgument(f"external ca: protocol {one.protocol!r} must be cfssl")
        _https_url(one.url)
        if one.options:
            raise Unimplemented(f"external ca: option {min(one.options)!r} is not known")
        if one.ca_certificate:
            try:
                check_root(one.ca_certificate)
            except InvalidArgument as error:
                raise InvalidArgument(f"external ca: {error.message}") from error


def _https_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError as error:
        raise InvalidArgument(f"external ca: url {url!r}: {error}") from error
    if not usable or not url.isprintable() or len(url) > URL_LENGTH_MAX:
        raise InvalidArgument(f"external ca: url {url!r} must be https://HOST[:PORT][/PATH]")
    if "@" in parts.netloc:
        raise InvalidArgument("external ca: url: must hold no password: everybody can read it")


def _preferences(preferences: Sequence[PlacementPreference]) -> None:
    wishes = sum(bool(one.prefer or one.avoid) for one in preferences)
    if wishes > WISHES_MAX:
        raise InvalidArgument(
            f"placement preferences: {wishes} to prefer or avoid, at most {WISHES_MAX} may be"
        )
    for preference in preferences:
        _preference(preference)


def _preference(preference: PlacementPreference) -> None:
    wishes = [text for text in (preference.prefer, preference.avoid) if text]
    if len(wishes) + bool(preference.spread_descriptor) > 1:
        raise InvalidArgument("placement preference: only one of spread, prefer and avoid can be")
    if wishes:
        parse_constraints(wishes)
    elif not preference.spread_descriptor.startswith(("node.labels.", "engine.labels.")):
        raise InvalidArgument(
            f"placement preference: {preference.spread_descriptor!r} must be spread over "
            "node.labels.KEY or engine.labels.KEY"
        )


def _task(task: TaskSpec) -> None:
    if not isinstance(task.runtime, ContainerSpec):
        raise Unimplemented("runtime: only containers can be run by this version")
    _container(task.runtime)
    _resources("limit", task.resources.limits)
    _resources("reservation", task.resources.reservations)
    if task.resources.limits.generic:
        raise InvalidArgument("limit: generic resources can only be reserved")
    _restart(task.restart)
    _disconnect(task.disconnect)
    _wait("listen timeout", task.listen_timeout_ns)
    parse_constraints(task.placement.constraints)
    _preferences(task.placement.preferences)
    attachments(task.networks)
    driver = task.log_driver
    if driver is not None:
        known = TASK_OPTIONS.get(driver.name or DEFAULT)
        if known is None:
            names = ", ".join(sorted(TASK_OPTIONS))
            raise Unimplemented(f"log driver: {driver.name} is not available, only {names}")
        _known("log-opt", driver.options, known)


def _container(container: ContainerSpec) -> None:
    if not container.image:
        raise InvalidArgument("image: must be given")
    if len(container.image) > IMAGE_LENGTH_MAX:
        raise InvalidArgument(
            f"image: {len(container.image)} characters, at most {IMAGE_LENGTH_MAX}"
        )
    try:
        parse_reference(container.image)
    except InvalidArgument as error:
        raise InvalidArgument(f"image: {error.message}") from error
    for text in container.env:
        if text.startswith("=") or not text:
            raise InvalidArgument(f"env: {text!r} must be NAME=VALUE or NAME")
    _no_nul("command", container.command)
    _no_nul("args", container.args)
    _no_nul("env", container.env)
    texts = (container.dir, container.user, container.hostname, container.stop_signal)
    _no_nul("dir, user, hostname, stop signal", texts)
    _no_nul("mount", (text for mount in container.mounts for text in (mount.source, mount.target)))
    for mount in container.mounts:
        _mount(mount)
    if len({mount.target for mount in container.mounts}) != len(container.mounts):
        raise InvalidArgument("mount: two mounts have the same target")
    check_devices(container.devices)
    file_references(container)
    _templates(container)
    grace_ns = container.stop_grace_period_ns
    if grace_ns is not None and grace_ns < 0:
        raise InvalidArgument("stop grace period: must not be negative")
    if not -1000 <= container.oom_score_adj <= 1000:
        raise InvalidArgument("oom score adj: must be between -1000 and 1000")
    options = container.pull_options
    if options is not None and len(options.registry_auth) > REGISTRY_AUTH_MAX:
        raise InvalidArgument(f"registry auth: longer than {REGISTRY_AUTH_MAX} characters")
    _health_check(container.health_check)
    check_privileges(container.privileges)
    if container.isolation not in {"", "default"}:
        raise InvalidArgument(
            f"isolation: {container.isolation!r} is of Windows, and nodes run Linux: use default"
        )


def _health_check(check: HealthCheck | None) -> None:
    if check is None:
        return
    check_settings(check)
    if check.test and check.test[0] in {PROGRAM, SHELL} and not any(check.test[1:2]):
        raise InvalidArgument("health check: a command must be given after CMD or CMD-SHELL")
    _no_nul("health check", check.test)


def _templates(container: ContainerSpec) -> None:
    """Refuse what nodes could not expand: `shoal.model.templates`."""
    texts = [*container.env, container.hostname]
    texts += [text for mount in container.mounts for text in (mount.source, mount.target)]
    for text in texts:
        templates.parse(text)


def _mount(mount: Mount) -> None:
    if not mount.target.startswith("/"):
        raise InvalidArgument(f"mount: the target {mount.target!r} must be an absolute path")
    if mount.type is MountType.BIND:
        if not mount.source.startswith("/"):
            raise InvalidArgument(f"mount: the source {mount.source!r} must be an absolute path")
    elif mount.type is MountType.TMPFS:
        if mount.source:
            raise InvalidArgument("mount: a tmpfs has no source")
    elif mount.type is MountType.VOLUME:
        _volume(mount)
    else:
        raise Unimplemented(f"mount: type {mount.type.name.lower()} is not possible yet")


def _volume(mount: Mount) -> None:
    """Which drivers there are only the node knows, and what a template makes of a name."""
    named = mount.source and "{{" not in mount.source
    if named and not _VOLUME_NAME.fullmatch(mount.source):
        raise InvalidArgument(
            f"mount: the source {mount.source!r} must be the name of a volume: letters, digits,"
            " '_', '.' and '-', two or more; for a directory of the node use type bind"
        )
    if mount.subpath:
        raise Unimplemented("mount: volume-subpath is not possible for services in this version")


def _resources(field: str, resources: Resources) -> None:
    if resources.nano_cpus and resources.nano_cpus < NANO_CPUS_MIN:
        raise InvalidArgument(f"{field}-cpu: must be at least 0.001 CPUs")
    if resources.memory_bytes and resources.memory_bytes < MEMORY_BYTES_MIN:
        raise InvalidArgument(f"{field}-memory: must be at least 4MiB")
    if resources.pids < 0:
        raise InvalidArgument(f"{field}-pids: must not be negative")
    if resources.swap_bytes is not None or resources.memory_swappiness is not None:
        raise Unimplemented(f"{field}: swap settings are not possible in this version")
    _generic(field, resources.generic)


def _generic(field: str, wishes: Sequence[GenericResource]) -> None:
    """Tasks ask for numbers; which of the named pieces they get is the scheduler's choice."""
    if len(wishes) > GENERIC_MAX:
        raise InvalidArgument(
            f"{field}: {len(wishes)} generic resources, at most {GENERIC_MAX} may be"
        )
    for wish in wishes:
        check_kind(wish.kind)
        if wish.named_value:
            raise InvalidArgument(
                f"{field}: generic resource {wish.kind}={wish.named_value}: services ask for a "
                "number of pieces, not for named ones"
            )
        if not 1 <= wish.count <= COUNT_MAX:
            raise InvalidArgument(
                f"{field}: generic resource must be {wish.kind}=N with N from 1 to {COUNT_MAX}"
            )
    if len({wish.kind for wish in wishes}) != len(wishes):
        raise InvalidArgument(f"{field}: a generic resource is asked for twice: write one number")


def _restart(policy: RestartPolicy | None) -> None:
    if policy is None:
        return
    if policy.delay_ns is not None and policy.delay_ns < 0:
        raise InvalidArgument("restart delay: must not be negative")
    if policy.window_ns < 0:
        raise InvalidArgument("restart window: must not be negative")
    _backoff(policy)


def _backoff(policy: RestartPolicy) -> None:
    delay_ns, longest_ns = restart_delay_ns(policy), restart_backoff_max_ns(policy)
    if not policy.backoff_factor:
        if policy.backoff_max_ns is not None:
            raise InvalidArgument("restart backoff max: give it together with a restart backoff")
        return
    if not 1 < policy.backoff_factor <= BACKOFF_FACTOR_MAX:
        raise InvalidArgument(
            f"restart backoff: must be above 1 and at most {BACKOFF_FACTOR_MAX}, or 0 for none"
        )
    if not delay_ns:
        raise InvalidArgument("restart delay: must be above 0s where it is to grow")
    if not delay_ns <= longest_ns <= BACKOFF_MAX_NS:
        raise InvalidArgument("restart backoff max: must be from the restart delay to 24h")


def _disconnect(policy: DisconnectPolicy | None) -> None:
    if policy is None or policy.wait_ns is None:
        return
    if policy.action is not DisconnectAction.WAIT:
        raise InvalidArgument("disconnect wait: give it together with the disconnect action wait")
    if not 1_000_000_000 <= policy.wait_ns <= DISCONNECT_WAIT_MAX_NS:
        raise InvalidArgument("disconnect wait: must be between 1s and 24h")


def _update(field: str, config: UpdateConfig | None) -> None:
    if config is None:
        return
    if config.delay_ns < 0 or (config.monitor_ns or 0) < 0:
        raise InvalidArgument(f"{field}: delay and monitor must not be negative")
    deadline_ns = config.progress_deadline_ns
    if deadline_ns and not SECOND_NS <= deadline_ns <= PROGRESS_DEADLINE_MAX_NS:
        raise InvalidArgument(f"{field} progress deadline: must be 0, or from 1s to 24h")
    if not 0 <= config.max_failure_ratio <= 1:
        raise InvalidArgument(f"{field} max failure ratio: must be between 0 and 1")


def _wait(field: str, timeout_ns: int | None) -> None:
    if timeout_ns is not None and not 0 <= timeout_ns <= WAIT_MAX_NS:
        raise InvalidArgument(f"{field}: must be from 0s to 1h")


def _no_nul(field: str, texts: Iterable[str]) -> None:
    if any("\0" in text for text in texts):
        raise InvalidArgument(f"{field}: must not hold NUL characters")


def _known(field: str, given: Iterable[str], known: Collection[str]) -> None:
    for key in given:
        if key not in known:
            raise InvalidArgument(f"{field}: {key!r} is unknown, use {' or '.join(sorted(known))}")
