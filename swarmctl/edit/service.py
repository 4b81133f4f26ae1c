"""A whole service spec: annotations, replicas, ports, updates, and its task template."""

from __future__ import annotations

from shoal.errors import InvalidArgument
from shoal.model.enums import DisconnectAction
from shoal.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from shoal.model.types import (
    DisconnectPolicy,
    Driver,
    EndpointSpec,
    GenericResource,
    NetworkAttachmentConfig,
    Placement,
    PortConfig,
    ResourceRequirements,
    RestartPolicy,
    UpdateConfig,
)
from swarmctl.edit.container import edit_container
from swarmctl.edit.lists import Flags, edited_list, edited_map, merged
from swarmctl.edit.modes import edit_mode
from swarmctl.parsing.ports import target_of
from swarmctl.parsing.values import NO_LIMIT, preference_text

LOG_DRIVER = "json-file"
FOR_GOOD = -1
"""As `--ttl-after-finish`: a finished job is kept."""


def edit_service(spec: ServiceSpec, flags: Flags) -> ServiceSpec:
    """The spec with every given flag applied. Raises InvalidArgument for what does not fit it."""
    annotations = spec.annotations.replaced(
        name=flags.get("name", spec.annotations.name),
        labels=edited_map(spec.annotations.labels, flags, "label"),
    )
    return spec.replaced(
        annotations=annotations,
        task=edit_task(spec.task, flags),
        mode=edit_mode(spec.mode, flags),
        update=_edit_update(spec.update, flags, "update"),
        rollback=_edit_update(spec.rollback, flags, "rollback"),
        endpoint=_edit_endpoint(spec.endpoint, flags),
        drain_timeout_ns=flags.get("drain_timeout", spec.drain_timeout_ns),
        ttl_after_finish_ns=_edit_ttl(spec.ttl_after_finish_ns, flags),
        priority=flags.get("priority", spec.priority),
        disruption_budget=_edit_budget(spec.disruption_budget, flags),
    )


def _edit_budget(budget: int | None, flags: Flags) -> int | None:
    given = flags.get("disruption_budget", budget)
    return None if given == NO_LIMIT else given


def edit_task(task: TaskSpec, flags: Flags) -> TaskSpec:
    """The template of the service's tasks with every given flag applied."""
    if not isinstance(task.runtime, ContainerSpec):
        raise InvalidArgument("the service runs no containers: it cannot be changed from here")
    return task.replaced(
        runtime=edit_container(task.runtime, flags),
        resources=_edit_resources(task.resources, flags),
        restart=_edit_restart(task.restart, flags),
        disconnect=_edit_disconnect(task.disconnect, flags),
        listen_timeout_ns=flags.get("listen_timeout", task.listen_timeout_ns),
        placement=_edit_placement(task.placement, flags),
        log_driver=_edit_log_driver(task.log_driver, flags),
        networks=merged(
            task.networks,
            add=flags.get("network_add", ()),
            remove=flags.get("network_rm", ()),
            key=_network,
        ),
        force_update=task.force_update + (1 if flags.get("force") else 0),
    )


def _edit_ttl(ttl_ns: int | None, flags: Flags) -> int | None:
    wished: int | None = flags.get("ttl_after_finish", ttl_ns)
    return None if wished == FOR_GOOD else wished


def _edit_resources(resources: ResourceRequirements, flags: Flags) -> ResourceRequirements:
    limits, reservations = resources.limits, resources.reservations
    return ResourceRequirements(
        limits=limits.replaced(
            nano_cpus=flags.get("limit_cpu", limits.nano_cpus),
            memory_bytes=flags.get("limit_memory", limits.memory_bytes),
            pids=flags.get("limit_pids", limits.pids),
        ),
        reservations=reservations.replaced(
            nano_cpus=flags.get("reserve_cpu", reservations.nano_cpus),
            memory_bytes=flags.get("reserve_memory", reservations.memory_bytes),
            generic=merged(
                reservations.generic,
                add=flags.get("generic_resource_add", ()),
                remove=flags.get("generic_resource_rm", ()),
                key=_kind,
            ),
        ),
    )


def _edit_restart(policy: RestartPolicy | None, flags: Flags) -> RestartPolicy | None:
    fields = {
        "condition": "restart_condition",
        "delay_ns": "restart_delay",
        "max_attempts": "restart_max_attempts",
        "window_ns": "restart_window",
        "backoff_factor": "restart_backoff",
        "backoff_max_ns": "restart_backoff_max",
    }
    changes = {field: flags[flag] for field, flag in fields.items() if flag in flags}
    if changes.get("backoff_factor") == 0:
        changes.setdefault("backoff_max_ns", None)  # it would mean nothing then
    return (policy or RestartPolicy()).replaced(**changes) if changes else policy


def _edit_disconnect(policy: DisconnectPolicy | None, flags: Flags) -> DisconnectPolicy | None:
    """Going back to `replace` drops the wait, which would mean nothing then."""
    fields = {"action": "disconnect_action", "wait_ns": "disconnect_wait", "on_return": "on_return"}
    changes = {field: flags[flag] for field, flag in fields.items() if flag in flags}
    if not changes:
        return policy
    if changes.get("action") is DisconnectAction.REPLACE:
        changes.setdefault("wait_ns", None)
    return (policy or DisconnectPolicy()).replaced(**changes)


def _edit_update(config: UpdateConfig | None, flags: Flags, kind: str) -> UpdateConfig | None:
    fields = {
        "parallelism": "parallelism",
        "delay_ns": "delay",
        "failure_action": "failure_action",
        "monitor_ns": "monitor",
        "max_failure_ratio": "max_failure_ratio",
        "order": "order",
        "progress_deadline_ns": "progress_deadline",
    }
    changes = {
        field: flags[f"{kind}_{flag}"]
        for field, flag in fields.items()
        if f"{kind}_{flag}" in flags
    }
    return (config or UpdateConfig(parallelism=1)).replaced(**changes) if changes else config


def _edit_placement(placement: Placement, flags: Flags) -> Placement:
    return placement.replaced(
        constraints=edited_list(placement.constraints, flags, "constraint"),
        preferences=merged(
            placement.preferences,
            add=flags.get("placement_pref_add", ()),
            remove=[preference_text(item) for item in flags.get("placement_pref_rm", ())],
            key=preference_text,
        ),
        max_replicas=flags.get("replicas_max_per_node", placement.max_replicas),
        strategy=flags.get("placement_strategy", placement.strategy),
    )


def _edit_log_driver(driver: Driver | None, flags: Flags) -> Driver | None:
    """As in docker, the given options replace all earlier ones; another driver has none of them."""
    name = LOG_DRIVER if driver is None else driver.name
    if "log_driver" in flags:
        return Driver(name=flags["log_driver"], options=dict(flags.get("log_opt", ())))
    if "log_opt" not in flags:
        return driver
    return Driver(name=name, options=dict(flags["log_opt"]))


def _edit_endpoint(endpoint: EndpointSpec, flags: Flags) -> EndpointSpec:
    """An added port that is there already with other options takes its place."""
    gone = {target for targets in flags.get("publish_rm", ()) for target in targets}
    kept = [port for port in endpoint.ports if target_of(port) not in gone]
    added = [port for ports in flags.get("publish_add", ()) for port in ports]
    ports = {_published(port): port for port in [*kept, *added]}
    mode = flags.get("endpoint_mode", endpoint.mode)
    return endpoint.replaced(ports=tuple(ports.values()), mode=mode)


def _published(port: PortConfig) -> tuple[object, ...]:
    return port.published_port, port.address, port.interface, *target_of(port)


def _network(network: NetworkAttachmentConfig) -> str:
    return network.target


def _kind(resource: GenericResource) -> str:
    return resource.kind
