"""Runs the health checks of containers, each as a further process inside, and tells the result.

A check that takes too long is killed and counts as failed; one that cannot be run counts as failed,
with the reason as its output. Checks of one container never overlap.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from contextlib import suppress

from engine.containers.chores import Chores
from engine.containers.container import Container
from engine.containers.health import OUTPUT_BYTES_MAX, Health, Probe, judged
from engine.containers.requests import HealthConfig
from engine.containers.service import Containers
from shoal.clock import NS_PER_S, Clock
from shoal.errors import SwarmError
from worker.runtime.interactive import Channel, ExecConfig, InteractiveRuntime

INTERVAL_NS = TIMEOUT_NS = 30 * NS_PER_S
START_INTERVAL_NS = 5 * NS_PER_S
RETRIES = 3
_SHELL = ("/bin/sh", "-c")
_END_S = 10.0


class Prober:
    """One loop per running container that has a check."""

    def __init__(
        self, containers: Containers, runtime: InteractiveRuntime, chores: Chores, clock: Clock
    ) -> None:
        self._containers = containers
        self._runtime = runtime
        self._chores = chores
        self._clock = clock
        self._loops: dict[str, asyncio.Task[None]] = {}

    def begin(self, container: Container) -> None:
        """The container runs: check it from now on."""
        check = container.record.config.healthcheck
        if check is None or not check.test or check.test[0] == "NONE":
            container.health = None
            return
        container.health = Health()
        work = self._chores.begin(f"health of {container.id}", self._check(container, check))
        self._loops[container.id] = work

    async def end(self, container: Container) -> None:
        """The container has ended: its last health stays to be seen."""
        loop = self._loops.pop(container.id, None)
        if loop is not None:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    async def _check(self, container: Container, check: HealthConfig) -> None:
        started_ns = container.status.started_at_ns if container.status else 0
        while True:
            in_start_period = self._clock.now_ns() - started_ns < check.start_period
            pause_ns = check.interval or INTERVAL_NS
            if in_start_period and container.health and container.health.status == "starting":
                pause_ns = min(pause_ns, check.start_interval or START_INTERVAL_NS)
            await asyncio.sleep(pause_ns / NS_PER_S)
            if container.state != "running":
                continue  # a paused one cannot answer
            probe = await self._probe(container, check)
            if container.has_process:
                self._judge(container, check, probe, started_ns)

    def _judge(
        self, container: Container, check: HealthConfig, probe: Probe, started_ns: int
    ) -> None:
        before = container.health or Health()
        container.health = judged(
            before,
            probe,
            in_start_period=probe.started_at_ns - started_ns < check.start_period,
            retries=check.retries or RETRIES,
        )
        if container.health.status != before.status:
            self._containers.publish(container, f"health_status: {container.health.status}")
        container.wake()

    async def _probe(self, container: Container, check: HealthConfig) -> Probe:
        started_ns = self._clock.now_ns()
        timeout_ns = check.timeout or TIMEOUT_NS
        try:
            async with asyncio.timeout(timeout_ns / NS_PER_S):
                code, output = await self._run(container, check)
        except TimeoutError:
            code, output = -1, f"Health check exceeded timeout ({timeout_ns / NS_PER_S:g}s)"
        except SwarmError as error:
            code, output = -1, str(error)
        return Probe(started_ns, self._clock.now_ns(), code, output)

    async def _run(self, container: Container, check: HealthConfig) -> tuple[int, str]:
        """Exit code and output of one check. Raises: SwarmError."""
        exec_id = secrets.token_hex(32)
        args = _command(check, container.record.config.shell)
        told = {"execID": exec_id}
        self._containers.publish(container, f"exec_create: {' '.join(args)}", told)
        channel = await self._runtime.exec_start(container.id, exec_id, ExecConfig(args=args))
        self._containers.publish(container, f"exec_start: {' '.join(args)}", told)
        try:
            output = await _read(channel)
            status = await self._runtime.exec_wait(exec_id)
        except asyncio.CancelledError:
            await self._kill(exec_id)
            raise
        finally:
            await channel.close()
        code = -1 if status.exit_code is None else status.exit_code
        self._containers.publish(container, "exec_die", {**told, "exitCode": str(code)})
        return code, status.error or output

    async def _kill(self, exec_id: str) -> None:
        with suppress(SwarmError, OSError, TimeoutError):
            async with asyncio.timeout(_END_S):
                status = await self._runtime.exec_status(exec_id)
                if status.exit_code is None and status.pid > 0:
                    os.kill(status.pid, signal.SIGKILL)
                    await self._runtime.exec_wait(exec_id)


def _command(check: HealthConfig, shell: list[str] | None) -> tuple[str, ...]:
    kind, *words = check.test or ["NONE"]
    return tuple(words) if kind == "CMD" else (*(shell or _SHELL), *words)


async def _read(channel: Channel) -> str:
    """What it writes, up to the limit; what is beyond is read and dropped."""
    kept = bytearray()
    async for _, data in channel.output():
        kept += data[: OUTPUT_BYTES_MAX - len(kept)]
    return kept.decode(errors="replace")
