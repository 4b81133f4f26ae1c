"""The `deploy` section of a Compose service, and how its tasks are restarted, as rows. Pure."""

from __future__ import annotations

from typing import Any, TypeVar

from shoal.errors import InvalidArgument
from shoal.model.enums import EndpointMode, FailureAction, RestartCondition, UpdateOrder
from shoal.model.specs import (
    GlobalJobMode,
    GlobalMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
)
from shoal.model.types import (
    GenericResource,
    Placement,
    PlacementPreference,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    UpdateConfig,
)
from swarmctl.parsing.units import parse_bytes, parse_cpus, parse_duration

_WordT = TypeVar("_WordT")
_FAILURE_ACTIONS = {
    "pause": FailureAction.PAUSE,
    "continue": FailureAction.CONTINUE,
    "rollback": FailureAction.ROLLBACK,
}
_ORDERS = {"stop-first": UpdateOrder.STOP_FIRST, "start-first": UpdateOrder.START_FIRST}
_CONDITIONS = {
    "none": RestartCondition.NONE,
    "on-failure": RestartCondition.ON_FAILURE,
    "any": RestartCondition.ANY,
}
_ENDPOINT_MODES = {"vip": EndpointMode.VIP, "dnsrr": EndpointMode.DNSRR}


def service_mode(deploy: dict[str, Any]) -> ServiceMode:
    """Replicated with one task unless it says otherwise."""
    name, replicas = deploy.get("mode") or "replicated", deploy.get("replicas")
    if replicas is not None and replicas < 0:
        raise InvalidArgument(f"replicas: {replicas} must not be negative")
    if name in {"global", "global-job"} and replicas is not None:
        raise InvalidArgument(f"replicas can only be used with replicated or replicated-job mode,"
                              f" not with {name}")  # fmt: skip
    count = 1 if replicas is None else replicas
    match name:
        case "replicated":
            return ReplicatedMode(replicas=count)
        case "global":
            return GlobalMode()
        case "replicated-job":
            return ReplicatedJobMode(max_concurrent=count, total_completions=count)
        case "global-job":
            return GlobalJobMode()
        case _:
            raise InvalidArgument(f"Unknown mode: {name}: use replicated, global, replicated-job"
                                  " or global-job")  # fmt: skip


def endpoint_mode(deploy: dict[str, Any]) -> EndpointMode:
    """VIP unless it says otherwise."""
    return _word("endpoint_mode", deploy.get("endpoint_mode") or "vip", _ENDPOINT_MODES)


def update_config(config: dict[str, Any] | None) -> UpdateConfig | None:
    """How updates, or rollbacks, proceed; one task at a time unless it says otherwise."""
    if config is None:
        return None
    monitor = config.get("monitor")
    parallelism = config.get("parallelism", 1)
    if parallelism < 0:
        raise InvalidArgument(f"parallelism: {parallelism} must not be negative")
    return UpdateConfig(
        parallelism=parallelism,
        delay_ns=parse_duration(config.get("delay", "0")),
        failure_action=_word(
            "failure_action", config.get("failure_action") or "pause", _FAILURE_ACTIONS
        ),
        monitor_ns=None if monitor is None else parse_duration(monitor),
        max_failure_ratio=float(config.get("max_failure_ratio", 0.0)),
        order=_word("order", config.get("order") or "stop-first", _ORDERS),
    )


def restart_policy(deploy: dict[str, Any], legacy: str | None) -> RestartPolicy | None:
    """`deploy.restart_policy`; without it what `restart` means, as Docker has it."""
    policy = deploy.get("restart_policy")
    if policy is None:
        return None if legacy is None else _legacy_restart(legacy)
    delay, attempts = policy.get("delay"), policy.get("max_attempts", 0)
    if attempts < 0:
        raise InvalidArgument(f"max_attempts: {attempts} must not be negative")
    return RestartPolicy(
        condition=_word("condition", policy.get("condition") or "any", _CONDITIONS),
        delay_ns=None if delay is None else parse_duration(delay),
        max_attempts=attempts,
        window_ns=parse_duration(policy.get("window", "0")),
    )


def resources(deploy: dict[str, Any]) -> ResourceRequirements:
    """Limits and reservations."""
    given = deploy.get("resources") or {}
    return ResourceRequirements(
        limits=_resources(given.get("limits") or {}),
        reservations=_resources(given.get("reservations") or {}),
    )


def placement(deploy: dict[str, Any]) -> Placement:
    """Where tasks may be."""
    given = deploy.get("placement") or {}
    most = given.get("max_replicas_per_node", 0)
    if most < 0:
        raise InvalidArgument(f"max_replicas_per_node: {most} must not be negative")
    return Placement(
        constraints=tuple(given.get("constraints", ())),
        preferences=tuple(
            PlacementPreference(spread_descriptor=one.get("spread", ""))
            for one in given.get("preferences", ())
        ),
        max_replicas=most,
    )


def _resources(given: dict[str, Any]) -> Resources:
    return Resources(
        nano_cpus=parse_cpus(str(given["cpus"])) if "cpus" in given else 0,
        memory_bytes=parse_bytes(str(given["memory"])) if "memory" in given else 0,
        pids=given.get("pids", 0),
        generic=tuple(map(_generic, given.get("generic_resources", ()))),
    )


def _generic(given: dict[str, Any]) -> GenericResource:
    spec = given.get("discrete_resource_spec") or {}
    count = spec.get("value", 0)
    if not spec.get("kind") or count != int(count) or count < 1:
        raise InvalidArgument(
            "generic_resources: give discrete_resource_spec with kind and a value of at least 1"
        )
    return GenericResource(kind=spec["kind"], count=int(count))


def _legacy_restart(text: str) -> RestartPolicy:
    name, colon, count = text.partition(":")
    if name == "on-failure" and (not colon or count.isdigit()):
        return RestartPolicy(
            condition=RestartCondition.ON_FAILURE, max_attempts=int(count[:9] or "0")
        )
    if name in {"always", "unless-stopped"} and not colon:
        return RestartPolicy(condition=RestartCondition.ANY)
    if text in {"no", ""}:
        return RestartPolicy(condition=RestartCondition.NONE)
    raise InvalidArgument(f"unknown restart policy: {text}: use no, always, unless-stopped or"
                          " on-failure[:N]")  # fmt: skip


def _word(key: str, word: str, words: dict[str, _WordT]) -> _WordT:
    if word not in words:
        raise InvalidArgument(f"{key}: {word!r} is not one of {', '.join(words)}")
    return words[word]
