"""Containers start, write and end while our processes are killed at random moments."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from shoal.errors import FailedPrecondition
from tests.integration.runtime.site import DEADLINE_S, Site

pytestmark = pytest.mark.root
VICTIMS = [
    ("supervisor",), ("logger",), ("keeper",), ("supervisor", "logger"), ("keeper", "logger"),
]  # fmt: skip
SCRIPT = "i=0; while [ $i -lt {lines} ]; do echo $i; i=$((i+1)); done; exit {code}"


async def test_random_kills_lose_neither_output_nor_exit_codes(site: Site):
    chance = random.Random(20260131)
    finished = asyncio.Event()
    reasons: list[str] = []

    async def kill() -> None:
        while not finished.is_set():
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            # A victim may still be on its way back from the last time.
            with contextlib.suppress(AssertionError, ProcessLookupError):
                site.kill_hard(*chance.choice(VICTIMS))
            await site.runtime.ensure_running()

    async def work() -> int:
        whole = 0
        for _ in range(15):
            lines, code = chance.choice([0, 1, 40, 1500]), chance.randrange(1, 100)
            config = site.config("sh", "-c", SCRIPT.format(lines=lines, code=code))
            await site.runtime.create(config)
            try:
                await site.runtime.start(config.id)
            except FailedPrecondition:
                reasons.append((await site.runtime.status(config.id)).error)
                continue
            status = await site.runtime.wait(config.id)
            if "the supervisor died" in status.error:
                continue
            if status.exit_code == 255:
                # Keeper, then supervisor, killed within milliseconds: nobody of ours was left.
                assert "exit status lost" in status.error
                continue
            assert status.exit_code == code
            assert await site.output(config.id) == "".join(f"{i}\n" for i in range(lines))
            whole += 1
        return whole

    async with asyncio.timeout(2 * DEADLINE_S), asyncio.TaskGroup() as group:
        killer = group.create_task(kill())
        counts = await asyncio.gather(*(work() for _ in range(3)))
        finished.set()
        await killer
    assert all("the supervisor died" in reason for reason in reasons)
    assert sum(counts) > 30
