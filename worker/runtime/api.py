"""What a runtime is asked for and what it answers: immutable data and one Protocol.

`NativeRuntime` (client.py) implements the Protocol through the supervisor; OCI runtimes can drive
the same bundle. Times are nanoseconds since 1970; 0 means "not yet". Sizes are bytes; 0 means no
limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

from worker.network.owners import Owner
from worker.runtime.interactive import ThrottledDevice

State = Literal["created", "running", "exited"]

LOG_SIZE_BYTES_DEFAULT = 10 << 20
LOG_FILES_DEFAULT = 3


class Mount(msgspec.Struct, frozen=True):
    """A bind of a host path, or a tmpfs; target is a path in the container."""

    target: str
    kind: Literal["bind", "tmpfs"] = "bind"
    source: str = ""
    read_only: bool = False
    propagation: Literal["rprivate", "private", "rslave", "slave", "rshared", "shared"] = "rprivate"
    recursive: bool = True
    tmpfs_size_bytes: int = 0
    tmpfs_mode: int = 0o1777
    tmpfs_options: tuple[str, ...] = ()
    """Mount options over `noexec,nosuid,nodev`; a later one wins."""
    no_exec: bool = False
    recursive_read_only: bool = False
    """Refuse to leave a mount below it writable; `read_only` means as much in this runtime."""
    relabel: Literal["", "shared", "private"] = ""
    """Where containers have SELinux labels: give what is bound one of theirs, or this one's."""
    own_ids: bool = False
    """The files are stored with the ids containers see: with `userns` they are shown so there."""


class Ulimit(msgspec.Struct, frozen=True):
    """One resource limit, by its name in lower case without prefix (`nofile`); -1 is unlimited."""

    name: str
    soft: int
    hard: int


class Device(msgspec.Struct, frozen=True):
    """A host device node, or all below a directory, to show; permissions are letters of `rwm`."""

    host_path: str
    container_path: str
    permissions: str = "rwm"


class IdRange(msgspec.Struct, frozen=True):
    """`size` ids from `inside` on are those of the node from `outside` on."""

    inside: int
    outside: int
    size: int

    @property
    def line(self) -> str:
        """As the kernel reads and shows it."""
        return f"{self.inside} {self.outside} {self.size}\n"


class IdMap(msgspec.Struct, frozen=True):
    """What the users and groups of a container are outside of it."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @property
    def root(self) -> tuple[int, int]:
        """User and group of the node that the container's root is."""
        uid, gid = (next(r.outside for r in one if r.inside == 0) for one in (self.uids, self.gids))
        return uid, gid

    @property
    def owner(self) -> Owner:
        """The owner of a network namespace for such a container."""
        return Owner("".join(one.line for one in self.uids), "".join(one.line for one in self.gids))


class ContainerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides how a container runs."""

    id: str
    layers: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    runtime: str = "native"
    """"native", or an installed one, "crun" or "runc", over the same bundle."""
    annotations: dict[str, str] = {}
    """Kept in the bundle for who reads it; they change nothing."""
    network: Literal["path", "none", "host"] = "path"
    netns_path: str = ""
    """The network namespace to join; "" is one of its own in which only loopback is."""
    pid_mode: str = ""
    """"", "host", or "container:ID"."""
    ipc_mode: str = "private"
    """"private", "shareable", "none" (private, and no /dev/shm), "host", or "container:ID"."""
    uts_mode: str = "private"
    """"private" or "host"."""
    cgroup_mode: str = "private"
    """"private" or "host"."""
    userns: IdMap | None = None
    """A user namespace of its own with these ids; None: the node's."""
    hosts: tuple[tuple[str, str], ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    shm_size_bytes: int = 64 << 20
    cgroup_parent: str = ""
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_rt_period_us: int = 0
    cpu_rt_runtime_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_bytes: int = 0
    memory_reservation_bytes: int = 0
    memory_swap_bytes: int = 0
    """Memory and swap together; -1 is unlimited, 0 twice the memory."""
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    pids_max: int = 0
    blkio_weight: int = 0
    throttled_devices: tuple[ThrottledDevice, ...] = ()
    device_rules: tuple[str, ...] = ()
    """As `c 1:3 rwm`; `*` is any number, `a` any device."""
    ulimits: tuple[Ulimit, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    """All capabilities and devices of the node, no filter, nothing masked."""
    seccomp: bool = True
    seccomp_profile: str = ""
    """"" is the default profile, "unconfined" none; otherwise the profile's JSON."""
    apparmor_profile: str = ""
    """"" is the default profile where the kernel has AppArmor, "unconfined" none."""
    selinux_labels: tuple[str, ...] = ()
    """As Docker's `label=`: `type:x_t`, `level:s0:c1,c2`, `disable`."""
    masked_paths: tuple[str, ...] | None = None
    read_only_paths: tuple[str, ...] | None = None
    no_new_privileges: bool = False
    read_only: bool = False
    stop_signal: str = "SIGTERM"
    stop_grace_s: float = 10.0
    sysctls: tuple[tuple[str, str], ...] = ()
    oom_score_adj: int = 0
    tty: bool = False
    open_stdin: bool = False
    """Keep standard input open; without it there is /dev/null. A terminal has its own."""
    stdin_once: bool = False
    """Let standard input end when the first client that is attached to it ends its own."""
    init: bool = False
    """Run the program under an init that reaps what it leaves behind and passes on signals."""
    init_path: str = ""
    """That init, a static program of the node; "" is docker-init or tini where installed."""
    labels: dict[str, str] = {}
    log_max_size_bytes: int = LOG_SIZE_BYTES_DEFAULT
    log_max_files: int = LOG_FILES_DEFAULT
    log: dict[str, Any] = {}
    """What the logger is told besides, or instead: its `log.conf`, which the runtime only keeps."""


class ContainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a container. `error` says in words why it failed to start or ended."""

    id: str
    state: State
    pid: int = 0
    created_at_ns: int = 0
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    paused: bool = False
    removed: bool = False
    error: str = ""
    labels: dict[str, str] = {}


class ContainerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of a running container; page cache that can be dropped is not counted."""

    cpu_usage_ns: int
    memory_usage_bytes: int
    memory_limit_bytes: int
    pids: int


class Runtime(Protocol):
    """Creates, runs and ends containers. Every method raises `shoal.errors.SwarmError`s."""

    async def ensure_running(self) -> None:
        """Start the processes behind the runtime, or find them running."""
        ...

    async def create(self, config: ContainerConfig) -> ContainerStatus:
        """Prepare a container; nothing runs. Raises: InvalidArgument, AlreadyExists."""
        ...

    async def configure(self, config: ContainerConfig) -> None:
        """Change how a container that does not run will run; its files stay as they are.

        For what is known only when it starts: its network namespace, names, sources of mounts.
        Labels and id are those of `create`. Raises: NotFound, InvalidArgument, FailedPrecondition.
        """
        ...

    async def start(self, container: str) -> ContainerStatus:
        """Run it; returns once its program has replaced us. Raises: FailedPrecondition."""
        ...

    async def kill(self, container: str, signal: int) -> None:
        """Send a signal to the first process."""
        ...

    async def stop(self, container: str, grace_s: float | None = None) -> ContainerStatus:
        """Stop signal, then SIGKILL after the grace period; returns the end."""
        ...

    async def wait(self, container: str) -> ContainerStatus:
        """Return when it has exited; survives restarts of everything in between."""
        ...

    async def list(self) -> list[ContainerStatus]:
        """Every container, oldest id order not guaranteed."""
        ...

    async def status(self, container: str) -> ContainerStatus:
        """One container. Raises: NotFound."""
        ...

    async def remove(self, container: str, *, force: bool = False) -> None:
        """Forget it and delete its files; `force` kills it first."""
        ...

    async def stats(self, container: str) -> ContainerStats:
        """Resource counters. Raises: FailedPrecondition when it is not running."""
        ...

    async def pause(self, container: str) -> None:
        """Freeze every process."""
        ...

    async def unpause(self, container: str) -> None:
        """Thaw every process."""
        ...

    def events(self) -> AsyncIterator[ContainerStatus]:
        """Every change; the full list first, and again after each reconnect."""
        ...

    async def shutdown(self) -> None:
        """End the processes behind the runtime; running containers go on without them."""
        ...
