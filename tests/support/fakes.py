"""Hand-written stand-ins for what surrounds the agent: runtime, network, images, clock.

Each may be blocked (`gate`) or made to fail (`fail`) at one operation, and keeps what was asked.
"""

from __future__ import annotations

import asyncio
import signal as signals
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable

import msgspec
from typing_extensions import override

from shoal.errors import AlreadyExists, FailedPrecondition, NotFound
from shoal.model.objects import Task
from shoal.model.types import PortConfig
from worker.images.model import Image, ImageConfig
from worker.network.api import Attachment
from worker.runtime.api import ContainerConfig, ContainerStats, ContainerStatus, Runtime
from worker.runtime.interactive import ExecConfig, ExecStatus

DEADLINE_S = 10.0
_SIGTERM_EXIT = 143
_SIGKILL_EXIT = 137


class FakeClock:
    """Time that stands still until it is moved."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic_s(self) -> float:
        return self._now_ns / 1e9

    def advance(self, seconds: float) -> None:
        self._now_ns += int(seconds * 1e9)


class Switchboard:
    """Blocks and failures by operation, and a list of the operations that began."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._gates: dict[str, asyncio.Event] = {}
        self._failures: defaultdict[str, list[Exception]] = defaultdict(list)

    def gate(self, operation: str) -> asyncio.Event:
        """The operation waits, once it has begun, until the event is set."""
        return self._gates.setdefault(operation, asyncio.Event())

    def fail(self, operation: str, error: Exception, times: int = 1) -> None:
        """The next calls of the operation raise."""
        self._failures[operation] += [error] * times

    async def enter(self, operation: str, subject: str) -> None:
        self.calls.append((operation, subject))
        if operation in self._gates:
            await self._gates[operation].wait()
        if self._failures[operation]:
            raise self._failures[operation].pop(0)

    def count(self, operation: str) -> int:
        return sum(call[0] == operation for call in self.calls)


class FakeChannel:
    """The output of a process that has ended."""

    def __init__(self, output: bytes) -> None:
        self._output = output

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        yield 1, self._output

    async def close(self) -> None:
        pass


class FakeRuntime(Runtime):
    """Containers that are only written down. Exits come from the test (`exit`)."""

    def __init__(self) -> None:
        self.board = Switchboard()
        self.containers: dict[str, ContainerStatus] = {}
        self.configs: dict[str, ContainerConfig] = {}
        self.ignore_sigterm: set[str] = set()
        self.exit_at_once: dict[str, int] = {}
        self.hold_events = False
        self.checks: list[int] = [0]
        """Exit codes of the next health checks; the last one stays."""
        self._subscribers: list[asyncio.Queue[ContainerStatus]] = []
        self._ended: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._tick = 1_000

    def exit(self, container: str, code: int = 0, *, oom: bool = False, error: str = "") -> None:
        """The container's program ends."""
        self._put(
            container,
            state="exited",
            exit_code=code,
            oom_killed=oom,
            error=error,
            finished_at_ns=self._next(),
        )
        self._ended[container].set()

    def vanish(self, container: str) -> None:
        """Somebody else removes the container."""
        del self.containers[container]
        self._publish(ContainerStatus(id=container, state="exited", removed=True))

    def publish_all(self) -> None:
        """As after a reconnect: every container once more."""
        for status in list(self.containers.values()):
            self._publish(status, always=True)

    @override
    async def ensure_running(self) -> None:
        await self.board.enter("ensure_running", "")

    @override
    async def create(self, config: ContainerConfig) -> ContainerStatus:
        await self.board.enter("create", config.id)
        if config.id in self.containers:
            raise AlreadyExists(f"container {config.id} already exists")
        self.configs[config.id] = config
        self._ended.pop(config.id, None)
        self.containers[config.id] = ContainerStatus(
            id=config.id, state="created", created_at_ns=self._next(), labels=config.labels
        )
        self._publish(self.containers[config.id])
        return self.containers[config.id]

    @override
    async def start(self, container: str) -> ContainerStatus:
        if self.require(container).state == "running":
            raise FailedPrecondition(f"container {container} is already running")
        await self.board.enter("start", container)
        status = self.run(container)
        if container in self.exit_at_once:
            self.exit(container, self.exit_at_once[container])
        return status

    def run(self, container: str) -> ContainerStatus:
        """The program starts."""
        self._put(container, state="running", pid=4_711, started_at_ns=self._next())
        return self.containers[container]

    @override
    async def kill(self, container: str, signal: int) -> None:
        await self.board.enter("kill", container)
        if self.require(container).state != "running":
            raise FailedPrecondition(f"container {container} is not running")
        if signal == signals.SIGKILL:
            self.exit(container, _SIGKILL_EXIT)
        elif container not in self.ignore_sigterm:
            self.exit(container, _SIGTERM_EXIT)

    @override
    async def stop(self, container: str, grace_s: float | None = None) -> ContainerStatus:
        await self.board.enter("stop", container)
        self.board.calls.append((f"grace {grace_s:g}", container))
        if self.require(container).state == "running":
            ignored = container in self.ignore_sigterm
            self.exit(container, _SIGKILL_EXIT if ignored else _SIGTERM_EXIT)
        return self.containers[container]

    @override
    async def wait(self, container: str) -> ContainerStatus:
        if self.require(container).state != "exited":
            await self._ended[container].wait()
        return self.containers[container]

    @override
    async def list(self) -> list[ContainerStatus]:
        await self.board.enter("list", "")
        return [*self.containers.values()]

    @override
    async def status(self, container: str) -> ContainerStatus:
        await self.board.enter("status", container)
        return self.require(container)

    @override
    async def remove(self, container: str, *, force: bool = False) -> None:
        await self.board.enter("remove", container)
        if self.require(container).state == "running" and not force:
            raise FailedPrecondition(f"container {container} is running")
        self.vanish(container)

    @override
    async def stats(self, container: str) -> ContainerStats:
        await self.board.enter("stats", container)
        self.require(container)
        return ContainerStats(
            cpu_usage_ns=1_500_000_000, memory_usage_bytes=4096, memory_limit_bytes=0, pids=2
        )

    @override
    async def pause(self, container: str) -> None:
        raise NotImplementedError

    @override
    async def unpause(self, container: str) -> None:
        raise NotImplementedError

    @override
    async def shutdown(self) -> None:
        raise NotImplementedError

    @override
    async def events(self) -> AsyncIterator[ContainerStatus]:
        queue: asyncio.Queue[ContainerStatus] = asyncio.Queue()
        for status in self.containers.values():
            queue.put_nowait(status)
        self._subscribers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._subscribers.remove(queue)

    async def exec_start(self, container: str, exec_id: str, config: ExecConfig) -> FakeChannel:
        await self.board.enter("exec_start", exec_id)
        self.require(container)
        return FakeChannel(" ".join(config.args).encode())

    async def exec_wait(self, exec_id: str) -> ExecStatus:
        code = self.checks.pop(0) if len(self.checks) > 1 else self.checks[0]
        return ExecStatus(id=exec_id, container="", exit_code=code)

    async def exec_status(self, exec_id: str) -> ExecStatus:
        await self.board.enter("exec_status", exec_id)
        raise NotFound(f"exec {exec_id} does not exist")

    def require(self, container: str) -> ContainerStatus:
        if container not in self.containers:
            raise NotFound(f"container {container} does not exist")
        return self.containers[container]

    def _put(self, container: str, **fields: object) -> None:
        self.containers[container] = msgspec.structs.replace(self.require(container), **fields)
        self._publish(self.containers[container])

    def _publish(self, status: ContainerStatus, *, always: bool = False) -> None:
        if always or not self.hold_events:
            for queue in self._subscribers:
                queue.put_nowait(status)

    def _next(self) -> int:
        self._tick += 1
        return self._tick


class FakeNetworks:
    """Addresses without a kernel."""

    def __init__(self) -> None:
        self.board = Switchboard()
        self.attached: dict[str, str] = {}
        self.taken: dict[tuple[str, int], str] = {}
        self.silent: frozenset[tuple[str, int]] = frozenset()

    async def attach(self, task: Task) -> Attachment:
        task_id = task.id
        await self.board.enter("attach", task_id)
        address = self.attached.setdefault(task_id, f"10.1.0.{len(self.attached) + 2}")
        return Attachment(task_id, f"/run/netns/{task_id}", address, "10.1.0.1", "eth0")

    async def detach(self, task_id: str) -> None:
        await self.board.enter("detach", task_id)
        self.attached.pop(task_id, None)

    async def find_taken(self, ports: Iterable[PortConfig]) -> str:
        await self.board.enter("find_taken", "")
        keys = [(port.protocol.name.lower(), port.published_port) for port in ports]
        return next((self.taken[key] for key in keys if key in self.taken), "")

    async def await_listeners(
        self, task_id: str, ports: frozenset[tuple[str, int]], timeout_s: float
    ) -> frozenset[tuple[str, int]]:
        await self.board.enter("await_listeners", task_id)
        return ports & self.silent


class FakeImages:
    """Images by name; each has one layer."""

    def __init__(self, **configs: ImageConfig) -> None:
        self.configs = configs or {"web": ImageConfig(cmd=("serve",))}
        self.ids: dict[str, str] = {}
        self.fetched: list[tuple[str, str]] = []

    def resolve(self, ref: str) -> Image:
        if ref not in self.configs:
            raise NotFound(f"No such image: {ref}:latest")
        return an_image(self.configs[ref], image_id=self.ids.get(ref, f"sha256:{ref}"))

    async def fetch(self, ref: str, registry_auth: str = "") -> Image:
        self.fetched.append((ref, registry_auth))
        return self.resolve(ref)

    def layers(self, image: Image) -> tuple[str, ...]:
        return (f"/layers/{image.id}",)


def an_image(config: ImageConfig, image_id: str = "sha256:1") -> Image:
    return Image(
        id=image_id,
        digest="sha256:2",
        names=(),
        repo_tags=(),
        created="",
        size_bytes=1,
        architecture="amd64",
        os="linux",
        variant="",
        layers=(),
        config=config,
    )
