"""What a request leaves unsaid, filled in from the image and Docker's defaults. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from engine.containers.requests import Config, CreateRequest, HealthConfig, HostConfig
from shoal.model.types import HealthCheck
from worker.health.core import over_image
from worker.images.model import ImageConfig

SHM_BYTES = 64 << 20
RUNTIME = "native"
LOG_DRIVER = "json-file"
STOP_SIGNAL = "SIGTERM"
STOP_TIMEOUT_S = 10


def with_image(request: CreateRequest, image: ImageConfig) -> Config:
    """A request's `Config` over the image's. Source: moby daemon/commit.go, merge."""
    config = request.config()
    entrypoint, command = words(config.entrypoint), words(config.cmd)
    if not entrypoint:
        if not command and image.cmd is not None:
            command = list(image.cmd)
        if entrypoint is None and image.entrypoint is not None:
            entrypoint = list(image.entrypoint)
    if entrypoint == [""]:  # `--entrypoint ""`: not even the image's
        entrypoint = None
    merged: Config = config.replaced(
        user=config.user or image.user,
        exposed_ports=_with_keys(config.exposed_ports, image.exposed_ports),
        env=merge_env(config.env or (), image.env) or config.env,
        cmd=command,
        entrypoint=entrypoint,
        healthcheck=_health(config.healthcheck, image.healthcheck),
        volumes=_with_keys(config.volumes, image.volumes),
        working_dir=config.working_dir or image.working_dir,
        labels={**image.labels, **(config.labels or {})},
        stop_signal=config.stop_signal or image.stop_signal,
        shell=config.shell or (list(image.shell) if image.shell else None),
    )
    return merged


def with_host_defaults(host: HostConfig) -> HostConfig:
    """What Docker fills in before it keeps a `HostConfig`."""
    swap = host.memory_swap
    if host.memory > 0 and swap == 0:
        swap = 2 * host.memory
    swappiness, pids = host.memory_swappiness, host.pids_limit
    filled: HostConfig = host.replaced(
        network_mode=host.network_mode or "default",
        ipc_mode=host.ipc_mode or "private",
        cgroupns_mode=host.cgroupns_mode or ("host" if host.privileged else "private"),
        shm_size=host.shm_size or SHM_BYTES,
        runtime=host.runtime or RUNTIME,
        log_config=host.log_config.replaced(
            type=host.log_config.type or LOG_DRIVER, config=host.log_config.config or {}
        ),
        memory_swap=swap,
        memory_swappiness=None if swappiness == -1 else swappiness,
        pids_limit=None if pids is None or pids <= 0 else pids,
        oom_kill_disable=bool(host.oom_kill_disable),
        console_size=host.console_size or [0, 0],
        cap_add=_capabilities(host.cap_add),
        cap_drop=_capabilities(host.cap_drop),
    )
    return filled


def command_of(config: Config) -> tuple[str, ...]:
    """Program and arguments; empty when neither request nor image has one."""
    return (*(words(config.entrypoint) or ()), *(words(config.cmd) or ()))


def words(value: list[str] | str | None) -> list[str] | None:
    """A command given as a list, or as text that is cut at its blanks."""
    return shlex.split(value) if isinstance(value, str) else value


def merge_env(own: Iterable[str], base: Iterable[str]) -> list[str]:
    """Own variables, then those of the base nobody has replaced."""
    merged = list(own)
    taken = {entry.partition("=")[0] for entry in merged}
    merged += [entry for entry in base if entry.partition("=")[0] not in taken]
    return merged


def _with_keys(
    own: dict[str, dict[str, object]] | None, more: Iterable[str]
) -> dict[str, dict[str, object]] | None:
    return {**{key: {} for key in more}, **(own or {})} or None


def health_check(config: HealthConfig) -> HealthCheck:
    """The check that a container, an image and a service may all have."""
    return HealthCheck(
        test=tuple(config.test or ()),
        interval_ns=config.interval,
        timeout_ns=config.timeout,
        start_period_ns=config.start_period,
        start_interval_ns=config.start_interval,
        retries=config.retries,
    )


def _health(own: HealthConfig | None, image: HealthCheck | None) -> HealthConfig | None:
    merged = over_image(None if own is None else health_check(own), image)
    if merged is None or image is None:
        return own
    return HealthConfig(
        test=list(merged.test),
        interval=merged.interval_ns,
        timeout=merged.timeout_ns,
        start_period=merged.start_period_ns,
        start_interval=merged.start_interval_ns,
        retries=merged.retries,
    )


def _capabilities(given: list[str] | None) -> list[str] | None:
    if given is None:
        return None
    full = (name.upper() for name in given)
    return [name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}" for name in full]
