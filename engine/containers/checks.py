"""Requests that cannot be carried out, refused in Docker's words before anything is made. Pure.

What the machine lacks is `Unimplemented` and names the field; what contradicts itself is
`InvalidArgument`.
"""

from __future__ import annotations

import re

from engine.containers.defaults import health_check
from engine.containers.requests import (
    Config,
    HealthConfig,
    HostConfig,
    Resources,
    RestartPolicy,
)
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.health import check_settings
from shoal.model.row import Row
from worker.images.oci import Platform

MEMORY_BYTES_MIN = 6 << 20
_CPUS = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")
_POLICIES = ("", "no", "always", "unless-stopped", "on-failure")


class NodeFacts(Row, frozen=True):
    """What of the node decides whether a request can be honoured."""

    cpus: int
    cgroup_version: int
    platform: Platform
    runtimes: frozenset[str] = frozenset({"native"})
    swap_limit: bool = True
    can_exec: bool = True
    """Whether the runtime runs further processes in a container."""


def check(config: Config, host: HostConfig, command: tuple[str, ...], facts: NodeFacts) -> None:
    """Refuse what is wrong in itself. Raises: InvalidArgument, Unimplemented."""
    if not command or not command[0]:
        raise InvalidArgument("no command specified")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidArgument(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute"
            " path"
        )
    for entry in config.env or ():
        if not entry.partition("=")[0]:
            raise InvalidArgument(f"invalid environment variable: {entry}")
    if config.healthcheck is not None:
        _check_health(config.healthcheck, facts)
    if config.network_disabled:
        raise Unimplemented("NetworkDisabled: not possible here, use the network mode none")
    _check_host(host, facts)
    check_resources(host, facts)
    check_restart_policy(host.restart_policy)
    if host.auto_remove and host.restart_policy.name not in {"", "no"}:
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")
    _check_modes(config, host)


def check_resources(asked: Resources, facts: NodeFacts) -> None:
    """Limits, of `create` and `update`. Source: moby daemon/daemon_unix.go."""
    _check_memory(asked, facts)
    _check_cpu(asked, facts)
    if asked.blkio_weight and not 10 <= asked.blkio_weight <= 1000:
        raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    _refuse(
        ("KernelMemory", asked.kernel_memory, "the kernel has given this limit up"),
        ("KernelMemoryTCP", asked.kernel_memory_tcp, "use Memory, which counts sockets, too"),
        ("CpuCount", asked.cpu_count, "it is of Windows"),
        ("CpuPercent", asked.cpu_percent, "it is of Windows"),
        ("IOMaximumIOps", asked.io_maximum_iops, "it is of Windows"),
        ("IOMaximumBandwidth", asked.io_maximum_bandwidth, "it is of Windows"),
    )
    for request in asked.device_requests or ():
        wished = " ".join(f"[{' '.join(one)}]" for one in request.capabilities or ())
        raise Unimplemented(
            f'could not select device driver "{request.driver}" with capabilities: [{wished}]'
        )


def check_restart_policy(policy: RestartPolicy) -> None:
    """Name and count. Raises: InvalidArgument."""
    if policy.name not in _POLICIES:
        raise InvalidArgument(f"invalid restart policy '{policy.name}'")
    if policy.maximum_retry_count < 0:
        raise InvalidArgument("maximum retry count cannot be negative")
    if policy.maximum_retry_count and policy.name != "on-failure":
        raise InvalidArgument(
            f"maximum retry count cannot be used with restart policy '{policy.name}'"
        )


def _check_memory(asked: Resources, facts: NodeFacts) -> None:
    memory, swap, reserved = asked.memory, asked.memory_swap, asked.memory_reservation
    if 0 != memory < MEMORY_BYTES_MIN:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if 0 < swap < memory:
        raise InvalidArgument(
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        )
    if memory == 0 and swap > 0:
        raise InvalidArgument(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if asked.memory_swappiness is not None and not -1 <= asked.memory_swappiness <= 100:
        raise InvalidArgument(
            f"Invalid value: {asked.memory_swappiness}, valid memory swappiness range is 0-100"
        )
    if 0 != reserved < MEMORY_BYTES_MIN:
        raise InvalidArgument("Minimum memory reservation allowed is 6MB")
    if 0 < memory < reserved:
        raise InvalidArgument(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )
    if facts.cgroup_version == 2:
        swappiness = asked.memory_swappiness not in {None, -1}
        _refuse(
            ("MemorySwappiness", swappiness, "cgroup v2 has no such limit"),
            ("OomKillDisable", asked.oom_kill_disable, "cgroup v2 has no such switch"),
        )


def _check_cpu(asked: Resources, facts: NodeFacts) -> None:
    if asked.nano_cpus and (asked.cpu_period or asked.cpu_quota):
        other = "Period" if asked.cpu_period else "Quota"
        raise InvalidArgument(f"Conflicting options: Nano CPUs and CPU {other} cannot both be set.")
    if not 0 <= asked.nano_cpus <= facts.cpus * 1_000_000_000:
        raise InvalidArgument(
            f"Range of CPUs is from 0.01 to {facts.cpus}.00, as there are only {facts.cpus} CPUs"
            " available"
        )
    if asked.cpu_shares < 0:
        raise InvalidArgument("CPU shares cannot be negative")
    if asked.cpu_period and not 1000 <= asked.cpu_period <= 1_000_000:
        raise InvalidArgument(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < asked.cpu_quota < 1000:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if asked.cpu_realtime_period and asked.cpu_realtime_runtime > asked.cpu_realtime_period:
        raise InvalidArgument("cpu real-time runtime cannot be higher than cpu real-time period")
    for name, given in (("cpus", asked.cpuset_cpus), ("mems", asked.cpuset_mems)):
        if given and not _CPUS.fullmatch(given):
            raise InvalidArgument(f"Invalid value {given} for cpuset {name}")
    numbers = [int(number) for number in re.findall("[0-9]+", asked.cpuset_cpus)]
    if max(numbers, default=0) >= facts.cpus:
        raise InvalidArgument(
            f"Requested CPUs are not available - requested {asked.cpuset_cpus}, available:"
            f" 0-{facts.cpus - 1}"
        )


def _check_health(health: HealthConfig, facts: NodeFacts) -> None:
    kind = health.test[0] if health.test else "NONE"
    if kind != "NONE" and not facts.can_exec:
        raise Unimplemented("Healthcheck: this version's runtime cannot run a check in a container")
    check_settings(health_check(health))


def _check_host(host: HostConfig, facts: NodeFacts) -> None:
    if host.shm_size < 0:
        raise InvalidArgument("SHM size can not be less than 0")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidArgument(
            f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    if host.runtime and host.runtime not in facts.runtimes:
        raise InvalidArgument(f"unknown or invalid runtime name: {host.runtime}")
    if host.isolation not in {"", "default"}:
        raise InvalidArgument(f'invalid isolation "{host.isolation}": this node runs Linux')
    _refuse(
        ("StorageOpt", host.storage_opt, "overlay2 gives no size to one container here"),
        ("Cgroup", host.cgroup, "use CgroupParent or CgroupnsMode"),
        ("VolumeDriver", host.volume_driver not in {"", "local"}, "only local volumes"),
    )


def _check_modes(config: Config, host: HostConfig) -> None:
    mode = host.network_mode
    if mode.startswith("container:"):
        _conflicts(
            ("hostname and the network mode", config.hostname),
            ("links and the container type network mode", host.links),
            ("dns and the network mode", host.dns),
            ("custom host-to-IP mapping and the network mode", host.extra_hosts),
            ("mac-address and the network mode", config.mac_address),
            ("port publishing and the container type network mode",
             host.port_bindings or host.publish_all_ports),
            ("port exposing and the container type network mode", config.exposed_ports),
        )  # fmt: skip
    if mode == "host" and host.links:
        raise InvalidArgument("conflicting options: host type networking can't be used with links."
                              " This would result in undefined behavior")  # fmt: skip
    if host.uts_mode == "host" and (config.hostname or config.domainname):
        raise InvalidArgument("conflicting options: hostname and the UTS mode")
    for name, given in (
        ("PID", host.pid_mode), ("UTS", host.uts_mode), ("user namespace", host.userns_mode),
    ):  # fmt: skip
        shared = name == "PID" and given.startswith("container:") and len(given) > 10
        if given not in {"", "host"} and not shared:
            raise InvalidArgument(f"invalid {name} mode: {given}")
    ipc = host.ipc_mode
    if ipc not in {"", "none", "private", "shareable", "host"} and not ipc[10:]:
        raise InvalidArgument(f"invalid IPC mode: {ipc}")
    if host.cgroupns_mode not in {"", "private", "host"}:
        raise InvalidArgument(f"invalid cgroup namespace mode: {host.cgroupns_mode}")


def _conflicts(*pairs: tuple[str, object]) -> None:
    for what, given in pairs:
        if given:
            raise InvalidArgument(f"conflicting options: {what}")


def _refuse(*wishes: tuple[str, object, str]) -> None:
    for field, wished, reason in wishes:
        if wished:
            raise Unimplemented(f"{field}: not possible on this node: {reason}")
