"""From a container's configuration to an OCI runtime-spec bundle. Pure.

The bundle gives what `docker run` gives by default; the executor adds nothing of its own. What OCI
has no field for travels in annotations `dev.shoal.*`: layers (newline-separated, topmost first),
user and groups as words (they are looked up in the container's own files), the seccomp program.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

import msgspec

from shoal.errors import InvalidArgument
from worker.runtime.api import ContainerConfig, IdRange, Mount
from worker.runtime.lean.capabilities import BITS, NAMES
from worker.runtime.lean.rootfs import IDMAP
from worker.runtime.resources import CPU_PERIOD_US, quota_of, swap_of
from worker.runtime.selinux import Labels

PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES_DEFAULT = frozenset(
    "CAP_" + name
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
        "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip
MASKED_PATHS = [
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
    "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
]  # fmt: skip
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9),
            ("tty", 5, 0))  # fmt: skip
_DEVICE_RULES: list[tuple[str, int | None, int | None, str]] = [
    ("c", None, None, "m"), ("b", None, None, "m"), ("c", 1, 3, "rwm"), ("c", 1, 5, "rwm"),
    ("c", 1, 7, "rwm"), ("c", 1, 8, "rwm"), ("c", 1, 9, "rwm"), ("c", 5, 0, "rwm"),
    ("c", 5, 1, "rwm"), ("c", 5, 2, "rwm"), ("c", 10, 200, "rwm"), ("c", 136, None, "rwm"),
]  # fmt: skip
_DEVICE_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")
_THROTTLES = {
    "read_bps": "throttleReadBpsDevice", "write_bps": "throttleWriteBpsDevice",
    "read_iops": "throttleReadIOPSDevice", "write_iops": "throttleWriteIOPSDevice",
    "weight": "weightDevice",
}  # fmt: skip
_OPPOSITES = {
    "rw": "ro", "exec": "noexec", "suid": "nosuid", "dev": "nodev", "async": "sync",
    "atime": "noatime", "diratime": "nodiratime",
}  # fmt: skip
INIT_TARGET = "/sbin/docker-init"
EVERY_CAPABILITY = (1 << len(NAMES)) - 1


class DeviceNode(msgspec.Struct, frozen=True):
    """A device as found on the host."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    permissions: str


class Surroundings(msgspec.Struct, frozen=True):
    """What the bundle takes from the node: found by the shell, not by this module."""

    container_dir: str
    cgroup_path: str
    seccomp_program: str
    resolv_conf: str
    devices: tuple[DeviceNode, ...] = ()
    throttled: tuple[tuple[int, int], ...] = ()
    """Numbers of the configuration's `throttled_devices`, in their order."""
    capabilities: int = EVERY_CAPABILITY
    """Those a process of this node can have."""
    init_path: str = ""
    """The init of the node, if the configuration wants one."""
    runtime_path: str = ""
    """The program of the runtime, if it is not the native one."""
    apparmor_profile: str = ""
    """What the program runs under; "" where the kernel knows no profiles."""
    labels: Labels = Labels()
    seccomp: dict[str, Any] = {}
    """The profile in OCI's words, for such a runtime."""


def capabilities_of(config: ContainerConfig, possible: int = EVERY_CAPABILITY) -> tuple[str, ...]:
    """Docker's default set changed by `cap_add` and `cap_drop` (`ALL` allowed), in bit order.

    possible: what `ALL` and `privileged` mean on this node; a name that is not in it is refused.
    """
    add = {_capability(name) for name in config.cap_add}
    drop = {_capability(name) for name in config.cap_drop}
    every = frozenset(name for name, bit in BITS.items() if possible >> bit & 1)
    if missing := sorted((add & BITS.keys()) - every):
        raise InvalidArgument(f"cap_add: {missing[0]}: this node cannot give it")
    if config.privileged:
        return _in_bit_order(every)
    chosen = every if "CAP_ALL" in add else CAPABILITIES_DEFAULT
    if "CAP_ALL" in drop:
        chosen = frozenset()
        add.discard("CAP_ALL")
    return _in_bit_order((chosen - drop) | (add & every))


def _in_bit_order(chosen: Set[str]) -> tuple[str, ...]:
    return tuple(f"CAP_{name}" for name in NAMES if f"CAP_{name}" in chosen)


def _capability(name: str) -> str:
    full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if full != "CAP_ALL" and full not in BITS:
        raise InvalidArgument(f"cap_add/cap_drop: unknown capability {name!r}")
    return full


def bundle_of(config: ContainerConfig, around: Surroundings) -> dict[str, Any]:
    """The `config.json` of a checked configuration."""
    capabilities = list(capabilities_of(config, around.capabilities))
    annotations = config.annotations | {
        "dev.shoal.layers": "\n".join(config.layers),
        "dev.shoal.user": config.user,
        "dev.shoal.groups": ",".join(config.groups),
    }
    if config.open_stdin and not config.tty:
        annotations["dev.shoal.stdin"] = "once" if config.stdin_once else "open"
    if config.ipc_mode not in ("private", "none"):
        annotations["dev.shoal.ipc"] = "shareable"
    if config.cgroup_parent:
        annotations["dev.shoal.cgroup-parent"] = "/" + config.cgroup_parent.strip("/")
    if around.runtime_path:
        annotations["dev.shoal.runtime"] = config.runtime
        annotations["dev.shoal.runtime-path"] = around.runtime_path
    if not unconfined(config):
        annotations["dev.shoal.seccomp"] = around.seccomp_program
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": config.tty,
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": [*([INIT_TARGET, "--"] if config.init else []), *config.args],
            "env": environment_of(config),
            "cwd": config.cwd,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [
                {
                    "type": f"RLIMIT_{limit.name.upper()}",
                    "soft": limit.soft,
                    "hard": limit.hard,
                }
                for limit in config.ulimits
            ],
            "noNewPrivileges": config.no_new_privileges,
            "oomScoreAdj": config.oom_score_adj,
            **({"apparmorProfile": around.apparmor_profile} if around.apparmor_profile else {}),
            **({"selinuxLabel": around.labels.process} if around.labels.process else {}),
        },
        "root": {"path": "rootfs", "readonly": config.read_only},
        **_names(config),
        "mounts": _mounts(config, around),
        "annotations": annotations,
        "linux": _linux(config, around)
        | ({"mountLabel": around.labels.mount} if around.labels.mount else {}),
    }


def _names(config: ContainerConfig) -> dict[str, str]:
    if config.uts_mode == "host":
        return {}
    domain = {"domainname": config.domainname} if config.domainname else {}
    return {"hostname": hostname_of(config)} | domain


def _linux(config: ContainerConfig, around: Surroundings) -> dict[str, Any]:
    sysctls = {}
    if network_of(config) != "host":
        sysctls = {
            "net.ipv4.ip_unprivileged_port_start": "0",
            "net.ipv4.ping_group_range": f"0 {_group_max(config)}",
        }
    masked, read_only = MASKED_PATHS, READONLY_PATHS
    if config.privileged:
        masked = read_only = []
    return {
        "namespaces": _namespaces(config),
        "cgroupsPath": around.cgroup_path,
        "resources": resources_of(config, around.devices, around.throttled),
        "sysctl": sysctls | dict(config.sysctls),
        "devices": _devices(around.devices),
        **_id_mappings(config),
        **({"seccomp": around.seccomp} if around.seccomp else {}),
        "maskedPaths": masked if config.masked_paths is None else list(config.masked_paths),
        "readonlyPaths": (
            read_only if config.read_only_paths is None else list(config.read_only_paths)
        ),
    }


def _id_mappings(config: ContainerConfig) -> dict[str, Any]:
    if config.userns is None:
        return {}
    return {
        "uidMappings": [_mapping(part) for part in config.userns.uids],
        "gidMappings": [_mapping(part) for part in config.userns.gids],
    }


def _mapping(part: IdRange) -> dict[str, int]:
    return {"containerID": part.inside, "hostID": part.outside, "size": part.size}


def _group_max(config: ContainerConfig) -> int:
    """The highest group there is: the kernel takes none that is not mapped."""
    if config.userns is None:
        return 2147483647
    first = next(part for part in config.userns.gids if part.inside == 0)
    return first.size - 1


def _namespaces(config: ContainerConfig) -> list[dict[str, str]]:
    """Those the container has apart from the node; one of another container by its id."""
    namespaces = [{"type": "mount"}]
    if config.userns is not None:
        namespaces.append({"type": "user"})
    for kind, mode in (
        ("pid", config.pid_mode), ("ipc", config.ipc_mode), ("uts", config.uts_mode),
        ("cgroup", config.cgroup_mode),
    ):  # fmt: skip
        if mode.startswith("container:"):
            namespaces.append({"type": kind, "container": mode.removeprefix("container:")})
        elif mode != "host":
            namespaces.append({"type": kind})
    if network_of(config) != "host":
        path = {"path": config.netns_path} if config.netns_path else {}
        namespaces.append({"type": "network", **path})
    return namespaces


def network_of(config: ContainerConfig) -> str:
    """`path`, `none` or `host`; the path `host` means the same."""
    return "host" if config.netns_path == "host" else config.network


def unconfined(config: ContainerConfig) -> bool:
    """Whether no system call is filtered."""
    if config.seccomp_profile:
        return config.seccomp_profile == "unconfined"
    return config.privileged or not config.seccomp


def hostname_of(config: ContainerConfig) -> str:
    """The configured name, else the first twelve characters of the id."""
    return config.hostname or config.id[:12]


def environment_of(config: ContainerConfig) -> list[str]:
    """PATH and HOSTNAME first, then the configuration's own; a later value replaces one."""
    values = {"PATH": PATH_DEFAULT, "HOSTNAME": hostname_of(config)}
    for entry in config.env:
        name, separator, value = entry.partition("=")
        if separator:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def resources_of(
    config: ContainerConfig,
    devices: tuple[DeviceNode, ...] = (),
    throttled: tuple[tuple[int, int], ...] = (),
) -> dict[str, Any]:
    """OCI `linux.resources`: swap equals memory as in Docker, devices denied unless listed."""
    resources = {
        "cpu": _cpu(config),
        "memory": _memory(config),
        "pids": {"limit": config.pids_max} if config.pids_max else {},
        "blockIO": _block_io(config, throttled),
    }
    named: dict[str, Any] = {name: values for name, values in resources.items() if values}
    rules = [*_DEVICE_RULES, *((d.kind, d.major, d.minor, d.permissions) for d in devices)]
    rules += [device_rule_of(rule) for rule in config.device_rules]
    named["devices"] = [
        {"allow": False, "access": "rwm"},
        *(
            {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}
            for kind, major, minor, access in rules
        ),
    ]
    if config.privileged:
        named["devices"] = [{"allow": True, "access": "rwm"}]
    return named


def device_rule_of(text: str) -> tuple[str, int | None, int | None, str]:
    """Kind, major, minor (None: any) and access of `c 1:3 rwm`. Raises: InvalidArgument."""
    match = _DEVICE_RULE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"device_rules: invalid device cgroup rule format: {text!r}")
    kind, major, minor, access = match.groups()
    return kind, None if major == "*" else int(major), None if minor == "*" else int(minor), access


def _cpu(config: ContainerConfig) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if config.nano_cpus:
        cpu = {"period": CPU_PERIOD_US, "quota": quota_of(config.nano_cpus, CPU_PERIOD_US)}
    for name, value in (
        ("period", config.cpu_period_us), ("quota", config.cpu_quota_us),
        ("shares", config.cpu_shares), ("realtimePeriod", config.cpu_rt_period_us),
        ("realtimeRuntime", config.cpu_rt_runtime_us), ("cpus", config.cpuset_cpus),
        ("mems", config.cpuset_mems),
    ):  # fmt: skip
        if value:
            cpu[name] = value
    return cpu


def _memory(config: ContainerConfig) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if config.memory_bytes:
        memory["limit"] = config.memory_bytes
        memory["swap"] = swap_of(config.memory_bytes, config.memory_swap_bytes)
    if config.memory_reservation_bytes:
        memory["reservation"] = config.memory_reservation_bytes
    if config.memory_swappiness is not None:
        memory["swappiness"] = config.memory_swappiness
    if config.oom_kill_disable:
        memory["disableOOMKiller"] = True
    return memory


def _block_io(config: ContainerConfig, throttled: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    block: dict[str, Any] = {"weight": config.blkio_weight} if config.blkio_weight else {}
    for device, (major, minor) in zip(config.throttled_devices, throttled, strict=False):
        value = {"weight" if device.kind == "weight" else "rate": device.value}
        entry = {"major": major, "minor": minor} | value
        block.setdefault(_THROTTLES[device.kind], []).append(entry)
    return block


def _devices(extra: tuple[DeviceNode, ...]) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = [
        {"path": f"/dev/{n}", "type": "c", "major": a, "minor": i, "fileMode": 0o666}
        for n, a, i in _DEVICES
    ]
    shown = {device.path for device in extra}
    nodes = [node for node in nodes if node["path"] not in shown]
    for device in extra:
        number = {"type": device.kind, "major": device.major, "minor": device.minor}
        owner = {"fileMode": device.mode, "uid": device.uid, "gid": device.gid}
        nodes.append({"path": device.path} | number | owner)
    return nodes


def _mounts(config: ContainerConfig, around: Surroundings) -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    read_only = [] if config.privileged else ["ro"]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    mounts = [
        _entry("/proc", "proc", "proc", safe),
        _entry("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _entry("/dev/pts", "devpts", "devpts", terminals),
        _entry("/sys", "sysfs", "sysfs", [*safe, *read_only]),
        _entry("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", *read_only]),
        *_ipc_mounts(config),
    ]
    written = ["ro"] if config.read_only else []
    for name in ("resolv.conf", "hostname", "hosts"):
        source = f"{around.container_dir}/{name}"
        mounts.append(_entry(f"/etc/{name}", "bind", source, ["rbind", "rprivate", *written]))
    if config.init:
        mounts.append(_entry(INIT_TARGET, "bind", around.init_path, ["bind", "ro"]))
    ordered = sorted(config.mounts, key=lambda m: m.target.rstrip("/").count("/"))
    taken = {mount.target.rstrip("/") for mount in ordered}
    return [m for m in mounts if m["destination"] not in taken] + [
        _user_mount(m, mapped=config.userns is not None) for m in ordered
    ]


def _ipc_mounts(config: ContainerConfig) -> list[dict[str, Any]]:
    """Message queues and shared memory, of the namespace the container is in."""
    safe = ["nosuid", "noexec", "nodev"]
    queue = _entry("/dev/mqueue", "mqueue", "mqueue", safe)
    if config.ipc_mode == "none":
        return [queue]
    if config.ipc_mode == "host":
        source = "/dev/shm"  # noqa: S108 - that of the node, as asked for
        return [queue, _entry(source, "bind", source, ["rbind", "rprivate"])]
    if config.ipc_mode.startswith("container:"):
        return [queue, _entry("/dev/shm", "shared-memory", "", [])]  # noqa: S108
    size = f"size={config.shm_size_bytes}"
    return [queue, _entry("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", size])]  # noqa: S108


def _user_mount(mount: Mount, *, mapped: bool) -> dict[str, Any]:
    mode = ["ro"] if mount.read_only else []
    if mapped and mount.own_ids:
        mode.append(IDMAP)
    if mount.no_exec:
        mode.append("noexec")
    if mount.kind == "bind":
        kind = "rbind" if mount.recursive else "bind"
        return _entry(mount.target, "bind", mount.source, [kind, mount.propagation, *mode])
    options = ["noexec", "nosuid", "nodev", f"mode={mount.tmpfs_mode:o}", *mode]
    if mount.tmpfs_size_bytes:
        options.append(f"size={mount.tmpfs_size_bytes}")
    return _entry(mount.target, "tmpfs", "tmpfs", merged([*options, *mount.tmpfs_options]))


def merged(options: list[str]) -> list[str]:
    """Mount options in which a later one takes the place of an earlier one it contradicts."""
    values: dict[str, str] = {}
    for option in options:
        name = option.partition("=")[0]
        values.pop(subject := _OPPOSITES.get(name, name), None)
        values[subject] = option
    return list(values.values())


def _entry(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def files_of(config: ContainerConfig, around: Surroundings) -> dict[str, str]:
    """The three files bound into /etc."""
    hosts = [
        "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet", "ff00::0\tip6-mcastprefix", "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters", *(f"{address}\t{name}" for address, name in config.hosts),
    ]  # fmt: skip
    resolver = around.resolv_conf
    if config.dns_servers or config.dns_search or config.dns_options:
        lines = [f"nameserver {server}" for server in config.dns_servers]
        if config.dns_search:
            lines.insert(0, f"search {' '.join(config.dns_search)}")
        if config.dns_options:
            lines.append(f"options {' '.join(config.dns_options)}")
        resolver = "\n".join(lines) + "\n"
    return {
        "hosts": "\n".join(hosts) + "\n",
        "hostname": hostname_of(config) + "\n",
        "resolv.conf": resolver,
    }
