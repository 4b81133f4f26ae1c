"""From a container's configuration to an OCI runtime-spec bundle. Pure.

The bundle gives what `docker run` gives by default; the executor adds nothing of its own. What OCI
has no field for travels in annotations `dev.shoal.*`: layers (newline-separated, topmost first),
user and groups as words (they are looked up in the container's own files), the seccomp program.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from shoal.errors import InvalidArgument, Unimplemented
from worker.runtime.api import ContainerConfig, Mount, Ulimit
from worker.runtime.lean.capabilities import BITS, NAMES

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
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_ULIMITS = frozenset(
    [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_RLIM_INFINITY = -1
CPU_PERIOD_US = 100_000
MEMORY_BYTES_MIN = 6 << 20  # Docker's floor: below it nothing starts
_NAMESPACED_SYSCTLS = ("net.", "fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm")


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


def check(config: ContainerConfig) -> None:
    """Refuse what cannot run. Raises: InvalidArgument, Unimplemented, naming the field."""
    if not _ID.fullmatch(config.id):
        raise InvalidArgument(f"id {config.id!r}: 1-64 characters of a-z, 0-9 and '-'")
    if config.init:
        raise Unimplemented("init: the native executor brings no init process yet")
    if len(config.hostname) > 64:
        raise InvalidArgument("hostname: at most 64 characters")
    if not config.args or not config.args[0]:
        raise InvalidArgument("args: no command specified")
    if not config.layers:
        raise InvalidArgument("layers: at least one directory is needed for the root")
    if any("\n" in layer for layer in config.layers):
        raise InvalidArgument("layers: a path must not contain a newline")
    if not config.cwd.startswith("/"):
        raise InvalidArgument(f"cwd {config.cwd!r} must be an absolute path")
    if any("\0" in text for text in (*config.args, *config.env)):
        raise InvalidArgument("args and env must not contain a zero byte")
    _check_limits(config)
    for mount in config.mounts:
        _check_mount(mount)
    capabilities_of(config)


def _check_limits(config: ContainerConfig) -> None:
    if 0 < config.memory_bytes < MEMORY_BYTES_MIN:
        raise InvalidArgument("memory_bytes: the minimum is 6 MiB")
    if config.log_max_files < 1 or config.log_max_size_bytes < 4096:
        raise InvalidArgument("log_max_files must be at least 1, log_max_size_bytes 4096")
    for limit in config.ulimits:
        _check_ulimit(limit)
    for key, _ in config.sysctls:
        if not key.startswith(_NAMESPACED_SYSCTLS):
            raise InvalidArgument(f"sysctls: {key} is not per container; set it on the node")


def _check_mount(mount: Mount) -> None:
    if not mount.target.startswith("/") or mount.target == "/" or ".." in mount.target.split("/"):
        raise InvalidArgument(f"mounts: target {mount.target!r} must be an absolute path below /")
    if mount.kind == "bind" and not mount.source.startswith("/"):
        raise InvalidArgument(f"mounts: source {mount.source!r} must be an absolute host path")


def _check_ulimit(limit: Ulimit) -> None:
    if limit.name not in _ULIMITS:
        raise InvalidArgument(f"ulimits: unknown limit {limit.name!r}")
    if limit.hard != _RLIM_INFINITY and not _RLIM_INFINITY < limit.soft <= limit.hard:
        raise InvalidArgument(f"ulimits: {limit.name}: soft must not exceed hard")


def capabilities_of(config: ContainerConfig) -> tuple[str, ...]:
    """Docker's default set changed by `cap_add` and `cap_drop` (`ALL` allowed), in bit order."""
    add = {_capability(name) for name in config.cap_add}
    drop = {_capability(name) for name in config.cap_drop}
    every = frozenset(BITS)
    chosen = every if "CAP_ALL" in add else CAPABILITIES_DEFAULT
    if "CAP_ALL" in drop:
        chosen = frozenset()
        add.discard("CAP_ALL")
    chosen = (chosen - drop) | (add & every)
    return tuple(f"CAP_{name}" for name in NAMES if f"CAP_{name}" in chosen)


def _capability(name: str) -> str:
    full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if full != "CAP_ALL" and full not in BITS:
        raise InvalidArgument(f"cap_add/cap_drop: unknown capability {name!r}")
    return full


def bundle_of(config: ContainerConfig, around: Surroundings) -> dict[str, Any]:
    """The `config.json` of a checked configuration."""
    capabilities = list(capabilities_of(config))
    annotations = {
        "dev.shoal.layers": "\n".join(config.layers),
        "dev.shoal.user": config.user,
        "dev.shoal.groups": ",".join(config.groups),
    }
    if config.open_stdin and not config.tty:
        annotations["dev.shoal.stdin"] = "once" if config.stdin_once else "open"
    if config.seccomp:
        annotations["dev.shoal.seccomp"] = around.seccomp_program
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": config.tty,
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": list(config.args),
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
        },
        "root": {"path": "rootfs", "readonly": config.read_only},
        "hostname": hostname_of(config),
        "mounts": _mounts(config, around),
        "annotations": annotations,
        "linux": _linux(config, around),
    }


def _linux(config: ContainerConfig, around: Surroundings) -> dict[str, Any]:
    namespaces: list[dict[str, str]] = [
        {"type": kind} for kind in ("mount", "pid", "ipc", "uts", "cgroup")
    ]
    sysctls = {}
    if config.netns_path != "host":
        path = {"path": config.netns_path} if config.netns_path else {}
        namespaces.append({"type": "network", **path})
        sysctls = {
            "net.ipv4.ip_unprivileged_port_start": "0",
            "net.ipv4.ping_group_range": "0 2147483647",
        }
    return {
        "namespaces": namespaces,
        "cgroupsPath": around.cgroup_path,
        "resources": resources_of(config, around.devices),
        "sysctl": sysctls | dict(config.sysctls),
        "devices": _devices(around.devices),
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READONLY_PATHS,
    }


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


def resources_of(config: ContainerConfig, devices: tuple[DeviceNode, ...]) -> dict[str, Any]:
    """OCI `linux.resources`: swap equals memory as in Docker, devices denied unless listed."""
    resources: dict[str, Any] = {}
    cpu: dict[str, int] = {}
    if config.nano_cpus:
        cpu["period"] = CPU_PERIOD_US
        cpu["quota"] = max(1000, config.nano_cpus * CPU_PERIOD_US // 1_000_000_000)
    if config.cpu_shares:
        cpu["shares"] = config.cpu_shares
    if cpu:
        resources["cpu"] = cpu
    memory: dict[str, int] = {}
    if config.memory_bytes:
        memory = {"limit": config.memory_bytes, "swap": 2 * config.memory_bytes}
    if config.memory_reservation_bytes:
        memory["reservation"] = config.memory_reservation_bytes
    if memory:
        resources["memory"] = memory
    if config.pids_max:
        resources["pids"] = {"limit": config.pids_max}
    rules = [*_DEVICE_RULES, *((d.kind, d.major, d.minor, d.permissions) for d in devices)]
    resources["devices"] = [
        {"allow": False, "access": "rwm"},
        *(
            {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}
            for kind, major, minor, access in rules
        ),
    ]
    return resources


def _devices(extra: tuple[DeviceNode, ...]) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = [
        {"path": f"/dev/{n}", "type": "c", "major": a, "minor": i, "fileMode": 0o666}
        for n, a, i in _DEVICES
    ]
    for device in extra:
        number = {"type": device.kind, "major": device.major, "minor": device.minor}
        owner = {"fileMode": device.mode, "uid": device.uid, "gid": device.gid}
        nodes.append({"path": device.path} | number | owner)
    return nodes


def _mounts(config: ContainerConfig, around: Surroundings) -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    shm = ["nosuid", "noexec", "nodev", "mode=1777", f"size={config.shm_size_bytes}"]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    mounts = [
        _entry("/proc", "proc", "proc", safe),
        _entry("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _entry("/dev/pts", "devpts", "devpts", terminals),
        _entry("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        _entry("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
        _entry("/dev/mqueue", "mqueue", "mqueue", safe),
        _entry("/dev/shm", "tmpfs", "shm", shm),  # noqa: S108 - the container's own
    ]
    for name in ("resolv.conf", "hostname", "hosts"):
        source = f"{around.container_dir}/{name}"
        mounts.append(_entry(f"/etc/{name}", "bind", source, ["rbind", "rprivate"]))
    ordered = sorted(config.mounts, key=lambda m: m.target.rstrip("/").count("/"))
    return mounts + [_user_mount(mount) for mount in ordered]


def _user_mount(mount: Mount) -> dict[str, Any]:
    mode = ["ro"] if mount.read_only else []
    if mount.no_exec:
        mode.append("noexec")
    if mount.kind == "bind":
        kind = "rbind" if mount.recursive else "bind"
        return _entry(mount.target, "bind", mount.source, [kind, mount.propagation, *mode])
    options = ["nosuid", "nodev", f"mode={mount.tmpfs_mode:o}", *mode]
    if mount.tmpfs_size_bytes:
        options.append(f"size={mount.tmpfs_size_bytes}")
    return _entry(mount.target, "tmpfs", "tmpfs", options)


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
