"""One runtime with its directories, and the few verbs tests say often."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.support.patience import FACTOR
from worker.logs import reader
from worker.runtime import launch
from worker.runtime.api import ContainerConfig, ContainerStatus
from worker.runtime.client import NativeRuntime
from worker.runtime.lean import cgroups, files

DEADLINE_S = 60.0 * FACTOR


class Site:
    def __init__(self, directory: str, image_dir: str) -> None:
        self.directory = directory
        self.image_dir = image_dir
        self.cgroup_parent = f"/shoal-test-{os.path.basename(directory)}"
        self.runtime = self.another_client()
        self._count = 0

    def another_client(self) -> NativeRuntime:
        """What a new worker process would have."""
        return NativeRuntime(
            state_dir=f"{self.directory}/state",
            run_dir=f"{self.directory}/run",
            cgroup_parent=self.cgroup_parent,
        )

    def config(self, *args: str, **fields: Any) -> ContainerConfig:
        self._count += 1
        fields.setdefault("id", f"c{self._count}")
        return ContainerConfig(layers=(self.image_dir,), args=args, **fields)

    async def start(self, script: str, **fields: Any) -> str:
        config = self.config("sh", "-c", script, **fields)
        await self.runtime.create(config)
        await self.runtime.start(config.id)
        return config.id

    async def run(self, script: str, **fields: Any) -> tuple[ContainerStatus, str]:
        container = await self.start(script, **fields)
        async with asyncio.timeout(DEADLINE_S):
            status = await self.runtime.wait(container)
        return status, await self.output(container)

    async def output(self, container: str, **fields: Any) -> str:
        lines = reader.read(self.runtime.container_dir(container), **fields)
        return "".join([line.text async for line in lines])

    def pid_of(self, part: str) -> int:
        pid = launch.recorded_pid(f"{self.directory}/run", part)
        assert pid, f"{part} is not running"
        return pid

    def kill_hard(self, *parts: str) -> None:
        """SIGKILL, stopping all of them first so that none sees another one die."""
        pids = [self.pid_of(part) for part in parts]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)

    def runtime_log(self) -> str:
        return Path(f"{self.directory}/state/runtime.log").read_text()

    def cgroups_left(self) -> list[str]:
        found = glob.glob(f"/sys/fs/cgroup/*{self.cgroup_parent}/*/") + glob.glob(
            f"/sys/fs/cgroup{self.cgroup_parent}/*/"
        )
        return sorted(found)

    async def destroy(self) -> None:
        for record in glob.glob(f"{self.directory}/state/containers/*/state.json"):
            state = files.read_record(record) or {}
            pid = state.get("pid", 0)
            if state.get("paused"):  # the frozen do not die on version 1
                for path in glob.glob(f"/sys/fs/cgroup/freezer{self.cgroup_parent}/*/"):
                    cgroups.write(f"{path}/freezer.state", "THAWED")
            if state.get("state") == "running" and files.start_ticks(pid) == state["start_ticks"]:
                os.kill(pid, signal.SIGKILL)
        await until(self._no_processes_left)
        await self.runtime.shutdown()
        await until(self._remove_cgroups)

    def _no_processes_left(self) -> bool:
        try:
            return not any(files.read_text(f"{p}/cgroup.procs") for p in self.cgroups_left())
        except OSError:  # removed while we looked
            return False

    def _remove_cgroups(self) -> bool:
        for path in self.cgroups_left():
            try:
                os.rmdir(path)
            except OSError:
                continue
        mountinfo = files.read_text("/proc/self/mountinfo")
        cgroups.remove_parent(self.cgroup_parent, mountinfo)
        return not glob.glob(f"/sys/fs/cgroup/*{self.cgroup_parent}")


async def until(
    condition: Callable[[], bool | Awaitable[bool]], deadline_s: float = DEADLINE_S
) -> None:
    """Poll until true."""
    async with asyncio.timeout(deadline_s):
        while True:
            result = condition()
            if isinstance(result, Awaitable):
                result = await result
            if result:
                return
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """False once the process is gone or a zombie its parent is slow to reap."""
    return files.is_alive(pid, files.start_ticks(pid))


def end_keeper(run_dir: str) -> None:
    """End a keeper that no worker can ask to, with all it keeps running."""
    with contextlib.suppress(ProcessLookupError):
        if pid := launch.recorded_pid(run_dir, "keeper"):
            os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + DEADLINE_S
    while launch.keeper_is_alive(run_dir):
        assert time.monotonic() < deadline_s, "the keeper does not end"
        time.sleep(0.02)
