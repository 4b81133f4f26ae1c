"""From what was asked of a container to the runtime's configuration: the one place for it. Pure.

Every field of `HostConfig` is honoured here, by `mounts`, or by the networks; or it is refused by
name, here or in `checks`. The table of all fields is a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.containers import defaults
from engine.containers.mounts import tmpfs_points
from engine.containers.records import MountPoint, Record
from engine.containers.requests import HostConfig, ThrottleDevice, UlimitRequest
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.row import Row
from worker.agent.container import IMAGE_ID_LABEL
from worker.logs import drivers
from worker.logs.api import LogDriver, LogSubject
from worker.runtime.api import ContainerConfig, Device, IdMap, Mount, Ulimit
from worker.runtime.interactive import ThrottledDevice

ENGINE_LABEL = "dev.shoal.engine"
"""Marks the runtime's containers that the engine has made."""
HOST_GATEWAY = "host-gateway"
NDOTS = "ndots:0"
ETC_FILES = ("hosts", "hostname", "resolv.conf")


class Ground(Row, frozen=True):
    """What a container finds on the node: known only when it starts.

    sources: host path by mount target. hosts: lines for /etc/hosts. pid_mode, ipc_mode: as in
    `ContainerConfig`, with ids.
    """

    layers: tuple[str, ...]
    network: str = "path"
    netns_path: str = ""
    gateway: str = ""
    hosts: tuple[tuple[str, str], ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    sources: Mapping[str, str] = {}
    pid_mode: str = ""
    ipc_mode: str = "private"
    link_env: tuple[str, ...] = ()
    """Variables about those it is linked to."""
    etc_from: str = ""
    """Directory of the container whose network it shares: its hosts and resolv.conf are its own."""
    userns: IdMap | None = None
    own_ids: frozenset[str] = frozenset()
    """Targets of the volumes whose files are stored with the ids of containers."""


def supposed_ground(record: Record, layers: tuple[str, ...], userns: IdMap | None = None) -> Ground:
    """What a container that is only made might find: enough to refuse what can never run."""
    return Ground(
        layers=layers,
        network="host" if record.host.network_mode == "host" else "path",
        gateway="192.0.2.1",
        sources={point.target: point.source or "/" for point in record.mounts},
        pid_mode=record.host.pid_mode,
        ipc_mode=record.host.ipc_mode,
        userns=userns,
    )


class Security(Row, frozen=True):
    """What `--security-opt` says."""

    no_new_privileges: bool = False
    seccomp_profile: str = ""
    apparmor_profile: str = ""
    selinux_labels: tuple[str, ...] = ()


def container_config(record: Record, ground: Ground) -> ContainerConfig:
    """How the container runs. Raises: InvalidArgument, Unimplemented, naming the field."""
    config, host = record.config, record.host
    security = parse_security(host.security_opt or ())
    fields: dict[str, Any] = {
        "id": record.id,
        "layers": ground.layers,
        "args": (record.path, *record.args),
        "env": _environment((*ground.link_env, *(config.env or ())), tty=config.tty),
        "cwd": config.working_dir or "/",
        "user": config.user,
        "groups": tuple(host.group_add or ()),
        "hostname": config.hostname,
        "domainname": config.domainname,
        "tty": config.tty,
        "open_stdin": config.open_stdin,
        "stdin_once": config.stdin_once,
        "init": bool(host.init),
        "labels": {ENGINE_LABEL: "1", IMAGE_ID_LABEL: record.image_id},
        "annotations": dict(host.annotations or {}),
        "runtime": host.runtime,
        "mounts": tuple(_mounts(record, ground)),
        "shm_size_bytes": host.shm_size,
        "ulimits": tuple(map(_ulimit, host.ulimits or ())),
        "cap_add": tuple(host.cap_add or ()),
        "cap_drop": tuple(host.cap_drop or ()),
        "privileged": host.privileged,
        "no_new_privileges": security.no_new_privileges,
        "seccomp_profile": security.seccomp_profile,
        "apparmor_profile": security.apparmor_profile,
        "selinux_labels": security.selinux_labels,
        "read_only": host.readonly_rootfs,
        "masked_paths": _paths(host.masked_paths),
        "read_only_paths": _paths(host.readonly_paths),
        "stop_signal": config.stop_signal or defaults.STOP_SIGNAL,
        "stop_grace_s": float(stop_timeout_s(record)),
        "oom_score_adj": host.oom_score_adj,
        "log": drivers.conf(log_driver(host), log_subject(record)),
    }
    return _supported(fields | _limits(host) | _surroundings(host, ground))


def log_driver(host: HostConfig) -> LogDriver:
    """The driver that was asked for, and its options."""
    asked = host.log_config
    return LogDriver(name=asked.type or defaults.LOG_DRIVER, options=dict(asked.config or {}))


def log_subject(record: Record) -> LogSubject:
    """The container, as log drivers name it."""
    config = record.config
    return LogSubject(
        id=record.id,
        name=record.name,
        image=record.image,
        image_id=record.image_id,
        labels=config.labels or {},
        env=tuple(config.env or ()),
    )


def stop_timeout_s(record: Record) -> int:
    """How long a container has between its stop signal and SIGKILL; negative: for ever."""
    timeout = record.config.stop_timeout
    return defaults.STOP_TIMEOUT_S if timeout is None else timeout


def parse_security(options: Iterable[str]) -> Security:
    """Both spellings, `name=value` and `name:value`. Raises: InvalidArgument."""
    found: dict[str, Any] = {}
    labels: list[str] = []
    for option in options:
        separator = "=" if "=" in option else ":"
        name, _, value = option.partition(separator)
        if name == "no-new-privileges" and value in {"", "true", "false"}:
            found["no_new_privileges"] = value != "false"
        elif name == "seccomp" and value:
            found["seccomp_profile"] = "" if value == "builtin" else value
        elif name == "apparmor" and value:
            found["apparmor_profile"] = value
        elif name == "label" and value:
            labels.append(value)
        else:
            raise InvalidArgument(f'invalid --security-opt: "{option}"')
    return Security(selinux_labels=tuple(labels), **found)


def extra_hosts(host: HostConfig, gateway: str) -> tuple[tuple[str, str], ...]:
    """The lines `--add-host` wants. Raises: InvalidArgument."""
    lines = []
    for entry in host.extra_hosts or ():
        name, separator, address = entry.partition("=" if "=" in entry else ":")
        if not separator or not name or not address:
            raise InvalidArgument(f'bad format for add-host: "{entry}"')
        if address == HOST_GATEWAY:
            if not gateway:
                raise InvalidArgument(
                    f"ExtraHosts: {entry}: the container has no network with a gateway"
                )
            address = gateway
        lines.append((address, name))
    return tuple(lines)


def _limits(host: HostConfig) -> dict[str, Any]:
    return {
        "nano_cpus": host.nano_cpus,
        "cpu_shares": host.cpu_shares,
        "cpu_period_us": host.cpu_period,
        "cpu_quota_us": host.cpu_quota,
        "cpu_rt_period_us": host.cpu_realtime_period,
        "cpu_rt_runtime_us": host.cpu_realtime_runtime,
        "cpuset_cpus": host.cpuset_cpus,
        "cpuset_mems": host.cpuset_mems,
        "memory_bytes": host.memory,
        "memory_reservation_bytes": host.memory_reservation,
        "memory_swap_bytes": host.memory_swap,
        "memory_swappiness": host.memory_swappiness,
        "oom_kill_disable": bool(host.oom_kill_disable),
        "pids_max": host.pids_limit or 0,
        "blkio_weight": host.blkio_weight,
        "throttled_devices": tuple(_throttled(host)),
        "cgroup_parent": host.cgroup_parent,
        "devices": tuple(
            Device(
                host_path=one.path_on_host,
                container_path=one.path_in_container or one.path_on_host,
                permissions=one.cgroup_permissions or "rwm",
            )
            for one in host.devices or ()
        ),
        "device_rules": tuple(host.device_cgroup_rules or ()),
    }


def _surroundings(host: HostConfig, ground: Ground) -> dict[str, Any]:
    return {
        "network": ground.network,
        "netns_path": ground.netns_path,
        "hosts": (*ground.hosts, *extra_hosts(host, ground.gateway)),
        "dns_servers": ground.dns_servers or tuple(host.dns or ()),
        "dns_search": tuple(one for one in host.dns_search or ground.dns_search if one != "."),
        "dns_options": _dns_options(tuple(host.dns_options or ()), ground.dns_options),
        "sysctls": tuple(sorted({**dict(ground.sysctls), **(host.sysctls or {})}.items())),
        "pid_mode": ground.pid_mode,
        "ipc_mode": ground.ipc_mode,
        "userns": ground.userns,
        "uts_mode": host.uts_mode or "private",
        "cgroup_mode": host.cgroupns_mode,
    }


def _dns_options(asked: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """What is asked for replaces the node's; where the networks name things, ndots is 0."""
    if not asked:
        return given
    if NDOTS in given and not any(one.startswith("ndots:") for one in asked):
        return (*asked, NDOTS)
    return asked


def _environment(given: Iterable[str], *, tty: bool) -> tuple[str, ...]:
    """Variables without `=` are those the client has not got: they are left out."""
    terminal = ("TERM=xterm",) if tty else ()
    return (*terminal, *(entry for entry in given if "=" in entry))


def _mounts(record: Record, ground: Ground) -> Iterable[Mount]:
    points = (*record.mounts, *tmpfs_points(record.host))
    own = {point.target for point in points}
    for name in ETC_FILES if ground.etc_from else ():
        if f"/etc/{name}" not in own:
            source = f"{ground.etc_from}/{name}"
            yield Mount(target=f"/etc/{name}", source=source, recursive=False, own_ids=True)
    for point in sorted(points, key=lambda one: one.target.count("/")):  # parents first
        source = ground.sources.get(point.target, point.source)
        yield _mount(point, source, own_ids=point.target in ground.own_ids)


def _mount(point: MountPoint, source: str, *, own_ids: bool) -> Mount:
    fields: dict[str, Any] = {
        "target": point.target, "read_only": point.read_only, "own_ids": own_ids,
    }  # fmt: skip
    wishes: dict[str, Any] = {}
    if point.kind == "tmpfs":
        fields |= {
            "kind": "tmpfs",
            "tmpfs_size_bytes": point.tmpfs_size_bytes,
            "tmpfs_mode": point.tmpfs_mode or 0o1777,
        }
        wishes["tmpfs_options"] = point.tmpfs_options
    else:
        fields |= {"source": source, "propagation": point.propagation or "rprivate",
                   "recursive": point.recursive}  # fmt: skip
        wishes["recursive_read_only"] = point.recursive_read_only
        fields["relabel"] = _relabel(point)
    for name, wish in wishes.items():
        if name in Mount.__struct_fields__:
            fields[name] = wish
        elif wish:
            raise Unimplemented(f"Mounts: {point.target}: {name}: not possible on this version")
    return Mount(**fields)


def _relabel(point: MountPoint) -> str:
    """What `z` and `Z` mean where containers have SELinux labels; a volume is shared unasked."""
    modes = point.mode.split(",")
    if "Z" in modes:
        return "private"
    return "shared" if "z" in modes or point.kind == "volume" else ""


def _ulimit(limit: UlimitRequest) -> Ulimit:
    return Ulimit(name=limit.name.lower(), soft=limit.soft, hard=limit.hard)


def _throttled(host: HostConfig) -> Iterable[ThrottledDevice]:
    for device in host.blkio_weight_device or ():
        yield ThrottledDevice(device.path, "weight", device.weight)
    yield from _rates("read_bps", host.blkio_device_read_bps)
    yield from _rates("write_bps", host.blkio_device_write_bps)
    yield from _rates("read_iops", host.blkio_device_read_iops)
    yield from _rates("write_iops", host.blkio_device_write_iops)


def _rates(kind: Any, devices: list[ThrottleDevice] | None) -> Iterable[ThrottledDevice]:
    for device in devices or ():
        yield ThrottledDevice(device.path, kind, device.rate)


def _paths(paths: list[str] | None) -> tuple[str, ...] | None:
    return None if paths is None else tuple(paths)


_NOTHING_ASKED: Mapping[str, Any] = {
    "domainname": "", "open_stdin": False, "stdin_once": False, "annotations": {},
    "runtime": defaults.RUNTIME, "network": "path", "pid_mode": "", "ipc_mode": "private",
    "uts_mode": "private", "cgroup_mode": "private", "privileged": False, "seccomp_profile": "",
    "apparmor_profile": "", "selinux_labels": (), "masked_paths": None, "read_only_paths": None,
    "cgroup_parent": "", "device_rules": (), "cpu_period_us": 0, "cpu_quota_us": 0,
    "cpu_rt_period_us": 0, "cpu_rt_runtime_us": 0, "cpuset_cpus": "", "cpuset_mems": "",
    "memory_swappiness": None, "oom_kill_disable": False, "blkio_weight": 0,
    "throttled_devices": (),
}  # fmt: skip


def _supported(fields: dict[str, Any]) -> ContainerConfig:
    """Refuse what this version's runtime has no field for, unless nothing was asked of it."""
    known = ContainerConfig.__struct_fields__
    if "network" not in known and fields["network"] == "host":
        fields |= {"network": "path", "netns_path": "host"}
    if "network" not in known and fields["network"] == "none":
        fields["network"] = "path"
    if "memory_swap_bytes" not in known and fields["memory_swap_bytes"] in {
        0,
        2 * fields["memory_bytes"],
    }:
        del fields["memory_swap_bytes"]
    for name in tuple(fields):
        if name in known:
            continue
        if fields[name] != _NOTHING_ASKED.get(name):
            raise Unimplemented(f"{name}: not possible with this version's runtime")
        del fields[name]
    return ContainerConfig(**fields)
