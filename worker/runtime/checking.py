"""What a configuration may not ask for, refused by the name of its field. Pure."""

from __future__ import annotations

import re

from shoal.errors import InvalidArgument, Unimplemented
from worker.runtime.api import ContainerConfig, IdRange, Mount, Ulimit
from worker.runtime.bundle import capabilities_of, device_rule_of, network_of, unconfined
from worker.runtime.resources import MEMORY_BYTES_MIN

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_CPUS = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")
_ULIMITS = frozenset((
    "as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
    "rtprio", "rttime", "sigpending", "stack",
))  # fmt: skip
_RLIM_INFINITY = -1
_IPC_SYSCTLS = ("fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm")
_IPC_MODES = frozenset(("private", "shareable", "none", "host"))
_TMPFS_FLAGS = frozenset((
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync",
    "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime",
    "nostrictatime", "private", "rprivate", "shared", "rshared", "slave", "rslave",
    "unbindable", "runbindable", "bind", "rbind", "remount",
))  # fmt: skip
_TMPFS_VALUES = frozenset(("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge"))
_PROC_FILES = frozenset(
    f"/proc/{name}" for name in (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo",
        "net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
)  # fmt: skip


def check(config: ContainerConfig) -> None:
    """Refuse what cannot run. Raises: InvalidArgument, Unimplemented, naming the field."""
    if not _ID.fullmatch(config.id):
        raise InvalidArgument(f"id {config.id!r}: 1-64 characters of a-z, 0-9 and '-'")
    for name in ("hostname", "domainname"):
        if len(getattr(config, name)) > 64:
            raise InvalidArgument(f"{name}: at most 64 characters")
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
    if config.runtime != "native":
        _check_foreign(config)
    _check_limits(config)
    _check_modes(config)
    if config.userns is not None:
        _check_userns(config)
    _check_sysctls(config)
    for mount in config.mounts:
        _check_mount(mount)
    for rule in config.device_rules:
        device_rule_of(rule)
    capabilities_of(config)


def _check_foreign(config: ContainerConfig) -> None:
    """What installed runtimes of an age worth supporting do not all know."""
    if config.domainname:
        raise Unimplemented(f"domainname: not possible with the runtime {config.runtime}")
    if config.ipc_mode.startswith("container:"):
        raise Unimplemented(f"ipc_mode: {config.ipc_mode}: not possible with the runtime "
                            f"{config.runtime}")  # fmt: skip


def _check_limits(config: ContainerConfig) -> None:
    if 0 < config.memory_bytes < MEMORY_BYTES_MIN:
        raise InvalidArgument("memory_bytes: the minimum is 6 MiB")
    if 0 < config.memory_swap_bytes < config.memory_bytes:
        raise InvalidArgument("memory_swap_bytes: memory and swap together, so not below memory")
    if config.log_max_files < 1 or config.log_max_size_bytes < 4096:
        raise InvalidArgument("log_max_files must be at least 1, log_max_size_bytes 4096")
    for name in ("cpuset_cpus", "cpuset_mems"):
        given = getattr(config, name)
        if given and not _CPUS.fullmatch(given):
            raise InvalidArgument(f"{name} {given!r}: numbers and ranges as 0-2,4")
    if ".." in config.cgroup_parent.split("/") or "\0" in config.cgroup_parent:
        raise InvalidArgument("cgroup_parent: a path of control groups, without '..'")
    for limit in config.ulimits:
        _check_ulimit(limit)


def _check_modes(config: ContainerConfig) -> None:
    for name, known in (
        ("pid_mode", frozenset(("", "host"))), ("ipc_mode", _IPC_MODES),
        ("uts_mode", frozenset(("", "private", "host"))),
        ("cgroup_mode", frozenset(("private", "host"))),
    ):  # fmt: skip
        mode = getattr(config, name)
        joined = name in ("pid_mode", "ipc_mode") and mode.startswith("container:")
        if mode not in known and not (joined and _ID.fullmatch(mode[len("container:") :])):
            raise InvalidArgument(f"{name}: there is no mode {mode!r}")
    if not config.seccomp and not unconfined(config):
        raise InvalidArgument("seccomp_profile: a profile is given, and seccomp is switched off")


def _check_userns(config: ContainerConfig) -> None:
    """What needs the node's own ids. Source: moby daemon/daemon_unix.go for the first three."""
    assert config.userns is not None
    if config.privileged:
        raise InvalidArgument(
            "privileged mode is incompatible with user namespaces.  You must run the container in "
            "the host namespace when running privileged mode"
        )
    if network_of(config) == "host":
        raise InvalidArgument(
            "cannot share the host's network namespace when user namespaces are enabled"
        )
    if config.pid_mode == "host":
        raise InvalidArgument(
            "cannot share the host PID namespace when user namespaces are enabled"
        )
    if config.ipc_mode == "host":
        raise InvalidArgument(
            "cannot share the host IPC namespace when user namespaces are enabled"
        )
    if config.runtime != "native":
        raise Unimplemented(
            f"userns: not possible with the runtime {config.runtime}: use the native one, or "
            "--userns host"
        )
    _check_ids("uids", config.userns.uids)
    _check_ids("gids", config.userns.gids)


def _check_ids(name: str, ranges: tuple[IdRange, ...]) -> None:
    if not any(one.inside == 0 for one in ranges):
        raise InvalidArgument(f"userns: {name}: 0 must be mapped")
    for one in ranges:
        if one.size < 1 or min(one.inside, one.outside) < 0:
            raise InvalidArgument(f"userns: {name}: not a range: {one.inside} {one.outside}")
        if one.outside == 0:
            raise InvalidArgument(f"userns: {name}: 0 of the node must not be mapped")


def _check_sysctls(config: ContainerConfig) -> None:
    for key, _ in config.sysctls:
        if key.startswith("net."):
            if network_of(config) == "host":
                raise InvalidArgument(f"sysctls: {key} is the node's with the network mode host")
        elif key.startswith(_IPC_SYSCTLS):
            if config.ipc_mode == "host":
                raise InvalidArgument(f"sysctls: {key} is the node's with the IPC mode host")
        elif key == "kernel.domainname":
            if config.uts_mode == "host":
                raise InvalidArgument(f"sysctls: {key} is the node's with the UTS mode host")
        else:
            raise InvalidArgument(f"sysctls: {key} is not per container; set it on the node")


def _check_mount(mount: Mount) -> None:
    if not mount.target.startswith("/") or mount.target == "/" or ".." in mount.target.split("/"):
        raise InvalidArgument(f"mounts: target {mount.target!r} must be an absolute path below /")
    if f"{mount.target.rstrip('/')}/".startswith("/proc/") and mount.target not in _PROC_FILES:
        raise InvalidArgument(f"mounts: target {mount.target!r} is inside /proc")
    if mount.kind == "bind" and not mount.source.startswith("/"):
        raise InvalidArgument(f"mounts: source {mount.source!r} must be an absolute host path")
    for option in mount.tmpfs_options:
        name, separator, _ = option.partition("=")
        if name not in (_TMPFS_VALUES if separator else _TMPFS_FLAGS):
            raise InvalidArgument(f"tmpfs_options: {mount.target}: invalid option {option!r}")


def _check_ulimit(limit: Ulimit) -> None:
    if limit.name not in _ULIMITS:
        raise InvalidArgument(f"ulimits: unknown limit {limit.name!r}")
    if limit.hard != _RLIM_INFINITY and not _RLIM_INFINITY < limit.soft <= limit.hard:
        raise InvalidArgument(f"ulimits: {limit.name}: soft must not exceed hard")
