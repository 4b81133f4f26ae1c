"""Runs the health checks of a container, each as a further process inside, and tells the result.

A check that takes too long is killed and counts as failed; one that cannot be run counts as failed,
with the reason as its output. Checks of one container never overlap, and none outlives whoever
follows the container: the id of each is told before it runs, so that also the one who takes over
from a killed process can end it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from shoal.clock import NS_PER_S, Clock
from shoal.errors import SwarmError
from worker.health.core import OUTPUT_BYTES_MAX, Check, Health, Probe, judged, pause_ns
from worker.runtime.interactive import Channel, ExecConfig, InteractiveRuntime

_END_S = 10.0


class Checked(Protocol):
    """A container, as who follows its health sees it."""

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def health(self) -> Health:
        """What the checks have said so far."""
        ...

    @property
    def lives(self) -> bool:
        """Whether its first process lives."""
        ...

    @property
    def answers(self) -> bool:
        """Whether it could answer now: a paused one cannot."""
        ...

    async def begins(self, exec_id: str) -> None:
        """A check is about to run under this id."""
        ...

    async def judged(self, health: Health) -> None:
        """One more check has ended."""
        ...

    def told(self, action: str, attributes: Mapping[str, str]) -> None:
        """What happens to the check's process, as an event of its container."""
        ...


class Probing:
    """One loop per container, for whoever owns the container."""

    def __init__(self, runtime: InteractiveRuntime, clock: Clock) -> None:
        self._runtime = runtime
        self._clock = clock

    async def follow(self, one: Checked, check: Check, started_at_ns: int) -> None:
        """Check a running container until cancelled; a check under way is then killed."""
        while True:
            age_ns = self._clock.now_ns() - started_at_ns
            await asyncio.sleep(pause_ns(check, one.health, age_ns) / NS_PER_S)
            if not one.answers:
                continue
            probe = await self._probe(one, check)
            if one.lives:
                early = check.in_start_period(probe.started_at_ns - started_at_ns)
                health = judged(one.health, probe, in_start_period=early, retries=check.retries)
                await one.judged(health)

    async def end(self, exec_id: str) -> None:
        """Kill a check's process, and what it has started, if it still runs. Never raises."""
        with suppress(SwarmError, OSError, TimeoutError):
            async with asyncio.timeout(_END_S):
                status = await self._runtime.exec_status(exec_id)
                if status.exit_code is None and status.pid > 0:
                    _kill(status.pid)
                    await self._runtime.exec_wait(exec_id)

    async def _probe(self, one: Checked, check: Check) -> Probe:
        started_ns = self._clock.now_ns()
        try:
            async with asyncio.timeout(check.timeout_ns / NS_PER_S):
                code, output = await self._run(one, check.args)
        except TimeoutError:
            timeout_s = check.timeout_ns / NS_PER_S
            code, output = -1, f"Health check exceeded timeout ({timeout_s:g}s)"
        except SwarmError as error:
            code, output = -1, str(error)
        return Probe(started_ns, self._clock.now_ns(), code, output)

    async def _run(self, one: Checked, args: tuple[str, ...]) -> tuple[int, str]:
        """Exit code and output of one check. Raises: SwarmError."""
        exec_id = secrets.token_hex(32)
        told = {"execID": exec_id}
        await one.begins(exec_id)
        one.told(f"exec_create: {' '.join(args)}", told)
        try:
            channel = await self._runtime.exec_start(one.id, exec_id, ExecConfig(args=args))
        except asyncio.CancelledError:
            await self.end(exec_id)
            raise
        one.told(f"exec_start: {' '.join(args)}", told)
        try:
            output = await _read(channel)
            status = await self._runtime.exec_wait(exec_id)
        except asyncio.CancelledError:
            await self.end(exec_id)
            raise
        finally:
            await channel.close()
        code = -1 if status.exit_code is None else status.exit_code
        one.told("exec_die", {**told, "exitCode": str(code)})
        return code, status.error or output


def _kill(pid: int) -> None:
    """The runtime gives each such process a session, and so a group, of its own."""
    if os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)


async def _read(channel: Channel) -> str:
    """What it writes, up to the limit; what is beyond is read and dropped."""
    kept = bytearray()
    async for _, data in channel.output():
        kept += data[: OUTPUT_BYTES_MAX - len(kept)]
    return kept.decode(errors="replace")
