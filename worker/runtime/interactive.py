"""Talking to running containers: attach, exec, resize, update. Data and one Protocol.

The bytes of a terminal or of plain pipes go through a `Channel`; nobody above the runtime sees a
descriptor. Attaching starts at the container's present: what was written before is in its log. A
channel that is slower than its container blocks the container, never the node; closing a channel
never ends a process, except through the end of its standard input.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

StreamNumber = Literal[1, 2]
"""1 is standard output, 2 standard error; a terminal has only 1."""


class TerminalSize(msgspec.Struct, frozen=True):
    """Rows and columns of a terminal."""

    height: int
    width: int


class ExecConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A further process in a running container; what is not said is the container's own."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    privileged: bool = False
    size: TerminalSize | None = None


class ExecStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`exit_code` is None while it runs. 126, 127: it could not be run, and `error` says why."""

    id: str
    container: str
    pid: int = 0
    exit_code: int | None = None
    error: str = ""


class ThrottledDevice(msgspec.Struct, frozen=True):
    """One `--device-read-bps` and its kin: bytes or operations per second of one block device."""

    host_path: str
    kind: Literal["read_bps", "write_bps", "read_iops", "write_iops", "weight"]
    value: int


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What `update` may change. None: leave as it is; 0: no limit, as in `ContainerConfig`."""

    nano_cpus: int | None = None
    cpu_shares: int | None = None
    cpu_period_us: int | None = None
    cpu_quota_us: int | None = None
    cpu_rt_period_us: int | None = None
    cpu_rt_runtime_us: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    memory_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    memory_swap_bytes: int | None = None
    """Memory and swap together; -1 is unlimited, 0 twice the memory."""
    pids_max: int | None = None
    blkio_weight: int | None = None


class DetailedStats(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `docker stats` shows of one container but its network. Bytes, nanoseconds."""

    read_at_ns: int
    cpu_usage_ns: int
    cpu_user_ns: int
    cpu_kernel_ns: int
    system_cpu_ns: int
    """All CPU time of the machine since its start, for the ratio clients compute."""
    online_cpus: int
    throttled_periods: int
    throttled_ns: int
    periods: int
    memory_usage_bytes: int
    memory_limit_bytes: int
    memory_stat: dict[str, int]
    """The kernel's memory.stat, v1 or v2 names as they are."""
    pids: int
    pids_limit: int
    block_io: tuple[tuple[int, int, str, int], ...]
    """Major, minor, operation (`read`, `write`), bytes."""


class Channel(Protocol):
    """Standard streams of one process, while attached. Close it; it is an async context manager."""

    @property
    def tty(self) -> bool:
        """Whether output is one raw stream of a terminal."""
        ...

    def output(self) -> AsyncIterator[tuple[StreamNumber, bytes]]:
        """What it writes from now on, as it is written; ends when no process can write any more."""
        ...

    async def write(self, data: bytes) -> None:
        """Bytes for its standard input; waits while the process does not read.

        Raises: FailedPrecondition when standard input is not open.
        """
        ...

    async def close_stdin(self) -> None:
        """End its standard input. For `stdin_once` containers and exec; otherwise only let go."""
        ...

    async def close(self) -> None:
        """Let go of the streams; the process goes on. Idempotent."""
        ...


class Attached(Channel, Protocol):
    """The streams of a container, with the place in its log where its output began."""

    @property
    def log_time_ns(self) -> int:
        """Time of the log's last entry before the output, if attached after the log; 0: none."""
        ...


class Confinement(msgspec.Struct, frozen=True):
    """What the node's security modules hold a container to; "" where they do not."""

    apparmor_profile: str = ""
    process_label: str = ""
    mount_label: str = ""


class InteractiveRuntime(Protocol):
    """What a runtime offers beyond `worker.runtime.api.Runtime`. Raises `SwarmError`s."""

    async def attach(
        self, container: str, *, stdin: bool, stdout: bool, stderr: bool, after_log: bool = False
    ) -> Attached:
        """Streams of a container; of one that does not run, those of its next run, whole.

        Output must be read, also where neither stream is wanted: it ends with the run. after_log:
        it begins exactly after the last entry of the log instead of now.
        Raises: NotFound.
        """
        ...

    async def resize(self, container: str, size: TerminalSize) -> None:
        """Change the terminal's size. Raises: FailedPrecondition without a running terminal."""
        ...

    async def exec_start(self, container: str, exec_id: str, config: ExecConfig) -> Channel:
        """Run a process in the container; returns once its program runs.

        Raises: FailedPrecondition when the container is not running or is paused; what prevents
        the program itself is in `exec_wait` (126, 127), and the channel is at its end.
        """
        ...

    async def exec_wait(self, exec_id: str) -> ExecStatus:
        """How the process ended; of each container's, the last 256 that ended are known."""
        ...

    async def exec_status(self, exec_id: str) -> ExecStatus:
        """The process as it is now. Raises: NotFound."""
        ...

    async def exec_resize(self, exec_id: str, size: TerminalSize) -> None:
        """Change the terminal's size. Raises: FailedPrecondition."""
        ...

    async def confinement(self, container: str) -> Confinement:
        """Of its last run, or its next if it has not run. Raises: NotFound."""
        ...

    async def update(self, container: str, resources: Resources) -> None:
        """Change limits, of a running container at once; all or nothing.

        Raises: InvalidArgument.
        """
        ...

    async def processes(self, container: str) -> tuple[int, ...]:
        """Host pids of all its processes, ascending. Raises: FailedPrecondition if not running."""
        ...

    async def detailed_stats(self, container: str) -> DetailedStats:
        """Counters for `docker stats`. Raises: FailedPrecondition when it is not running."""
        ...
