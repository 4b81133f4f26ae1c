"""The part of the native runtime that talks to running containers: `InteractiveRuntime`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Set
from typing import Any

import msgspec
from typing_extensions import override

from shoal.errors import NotFound, Unavailable
from worker.logs.copies import AFTER_LOG, NOW
from worker.logs.live import LiveCopy
from worker.runtime import further
from worker.runtime.channels import (
    AttachedChannel,
    Input,
    Output,
    PipeChannel,
    PipeInput,
    TerminalInput,
)
from worker.runtime.interactive import (
    Attached,
    Channel,
    Confinement,
    DetailedStats,
    ExecConfig,
    ExecStatus,
    InteractiveRuntime,
    Resources,
    StreamNumber,
    TerminalSize,
)
from worker.runtime.lean.files import BUNDLE_FILE, INPUT, read_text
from worker.runtime.link import RECONNECT_S, SupervisorLink
from worker.runtime.resources import changes_of

EXEC_DEADLINE_S = 60.0
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_CPU_COLUMNS = slice(1, 9)  # guest time is part of user time


class Talking(InteractiveRuntime):
    """Everything goes through the supervisor, but no byte of a stream does."""

    def __init__(self, link: SupervisorLink, run_dir: str) -> None:
        self._link = link
        self.run_dir = run_dir

    def container_dir(self, container: str) -> str:
        """Where a container keeps its record, bundle and logs."""
        raise NotImplementedError

    async def _bundle(self, container: str) -> Any:
        path = f"{self.container_dir(container)}/{BUNDLE_FILE}"
        try:
            return msgspec.json.decode(await asyncio.to_thread(read_text, path))
        except FileNotFoundError:
            raise NotFound(f"container {container} does not exist") from None

    @override
    async def attach(
        self, container: str, *, stdin: bool, stdout: bool, stderr: bool, after_log: bool = False
    ) -> Attached:
        bundle = await self._bundle(container)
        tty = bool(bundle["process"]["terminal"])
        wanted: dict[StreamNumber, bool] = {1: stdout, 2: stderr}
        source = self._input(container, bundle) if stdin else None
        copy = LiveCopy(self.run_dir, container, AFTER_LOG if after_log else NOW)
        try:
            await copy.connect()
        except BaseException:
            if source is not None:
                await source.close()
            raise
        output = _Wanted(copy, {number for number, wish in wanted.items() if wish})
        return AttachedChannel(output, source, tty=tty, log_time_ns=copy.log_time_ns)

    def _input(self, container: str, bundle: Any) -> Input | None:
        if bundle["process"]["terminal"]:
            return TerminalInput(lambda: self._link.passing("terminal", {"id": container}, None))
        kind = bundle["annotations"].get("dev.shoal.stdin")
        if kind is None:
            return None

        async def on_end() -> None:
            if kind == "once":
                await self._link.request("end-input", {"id": container})

        return PipeInput(f"{self.container_dir(container)}/{INPUT}", on_end)

    @override
    async def resize(self, container: str, size: TerminalSize) -> None:
        fields = {"id": container, "height": size.height, "width": size.width}
        await self._link.request("resize", fields)

    @override
    async def exec_start(self, container: str, exec_id: str, config: ExecConfig) -> Channel:
        further.check(exec_id, config)
        bundle = await self._bundle(container)
        possible = await asyncio.to_thread(own_capabilities)
        size = config.size
        fields = {
            "id": container,
            "exec": exec_id,
            "process": further.process_of(config, bundle["process"], possible),
            "annotations": further.annotations_of(config),
            "tty": config.tty,
            "size": None if size is None else (size.height, size.width),
            "stdin": config.stdin,
            "stdout": config.stdout,
            "stderr": config.stderr,
        }
        passed = await self._link.passing("exec", fields, EXEC_DEADLINE_S)
        if passed.result["exit_code"] is not None:  # the program could not be run
            return PipeChannel(passed, -1, {}, tty=config.tty)
        if config.tty:
            (master,) = passed.fds
            return PipeChannel(passed, master, {master: 1}, tty=True)
        rest = list(passed.fds)
        stdin = rest.pop(0) if config.stdin else -1
        wanted: list[StreamNumber] = [1] if config.stdout else []
        wanted += [2] if config.stderr else []
        return PipeChannel(passed, stdin, dict(zip(rest, wanted, strict=True)), tty=False)

    @override
    async def exec_wait(self, exec_id: str) -> ExecStatus:
        while True:
            try:
                return _exec_status(await self._link.request("exec-wait", {"exec": exec_id}, None))
            except Unavailable:
                await asyncio.sleep(RECONNECT_S)

    @override
    async def exec_status(self, exec_id: str) -> ExecStatus:
        return _exec_status(await self._link.request("exec-status", {"exec": exec_id}))

    @override
    async def exec_resize(self, exec_id: str, size: TerminalSize) -> None:
        fields = {"exec": exec_id, "height": size.height, "width": size.width}
        await self._link.request("exec-resize", fields)

    @override
    async def confinement(self, container: str) -> Confinement:
        bundle = await self._bundle(container)
        process = bundle["process"]
        return Confinement(
            apparmor_profile=process.get("apparmorProfile", ""),
            process_label=process.get("selinuxLabel", ""),
            mount_label=bundle["linux"].get("mountLabel", ""),
        )

    @override
    async def update(self, container: str, resources: Resources) -> None:
        changes = changes_of(resources)
        await self._link.request("update", {"id": container, "resources": changes})

    @override
    async def processes(self, container: str) -> tuple[int, ...]:
        return tuple(await self._link.request("processes", {"id": container}))

    @override
    async def detailed_stats(self, container: str) -> DetailedStats:
        counters = await self._link.request("counters", {"id": container})
        system_ns, cpus = _machine_cpu(await asyncio.to_thread(read_text, "/proc/stat"))
        counters |= {
            "read_at_ns": time.time_ns(), "system_cpu_ns": system_ns, "online_cpus": cpus
        }  # fmt: skip
        return msgspec.convert(counters, DetailedStats)


class _Wanted(Output):
    """The streams of a live copy that were asked for; the others are read and dropped."""

    def __init__(self, copy: LiveCopy, wanted: Set[StreamNumber]) -> None:
        self._copy = copy
        self._wanted = wanted

    @override
    async def chunks(self) -> AsyncIterator[tuple[StreamNumber, bytes]]:
        async for number, data in self._copy.chunks():
            if number in self._wanted:
                yield number, data

    @override
    async def close(self) -> None:
        await self._copy.close()


def own_capabilities() -> int:
    """The capabilities a process of this node can have at most, as a mask."""
    for line in read_text("/proc/self/status").splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    return 0


def _machine_cpu(stat: str) -> tuple[int, int]:
    """All CPU time since the start of the machine, and how many processors it has."""
    lines = stat.splitlines()
    total = sum(int(word) for word in lines[0].split()[_CPU_COLUMNS])
    return total * _TICK_NS, sum(line.startswith("cpu") for line in lines) - 1


def _exec_status(record: dict[str, Any]) -> ExecStatus:
    return msgspec.convert(record, ExecStatus)
