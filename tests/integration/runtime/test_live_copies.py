"""Live copies of real containers' output: from before the start, in the middle, past a crash."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import pytest

from tests.integration.runtime.site import Site, until
from worker.logs.live import LiveCopy, follow

pytestmark = pytest.mark.root
DEADLINE_S = 40.0


async def _all(copy: LiveCopy) -> dict[int, bytes]:
    seen = {1: b"", 2: b""}
    async with asyncio.timeout(DEADLINE_S):
        async for number, data in copy.chunks():
            seen[number] += data
    return seen


async def _created(site: Site, script: str) -> str:
    config = site.config("sh", "-c", script)
    await site.runtime.create(config)
    return config.id


async def test_copy_from_before_the_start_is_whole_and_byte_for_byte(site: Site):
    container = await _created(
        site, "printf 'no newline \\377\\000'; echo err >&2; seq 1 50000; printf '$ '"
    )
    async with follow(f"{site.directory}/run", container) as copy:
        await site.runtime.start(container)
        seen = await _all(copy)
    numbers = "".join(f"{n}\n" for n in range(1, 50001)).encode()
    assert seen == {1: b"no newline \xff\0" + numbers + b"$ ", 2: b"err\n"}


async def test_unfinished_line_is_shown_at_once_and_only_once(site: Site):
    container = await _created(site, "printf 'login: '; sleep 0.2; printf 'a'; sleep 1; echo b")
    chunks: list[bytes] = []
    async with follow(f"{site.directory}/run", container) as copy:
        await site.runtime.start(container)
        async for _, data in copy.chunks():
            chunks.append(data)
            if b"".join(chunks) == b"login: a":
                assert (await site.runtime.status(container)).state == "running"
    assert b"".join(chunks) == b"login: ab\n"
    assert len(chunks) >= 2


async def test_copy_of_a_running_container_begins_now_or_after_its_log(site: Site):
    container = await site.start("echo old; printf half; read x </dev/full; sleep 600")
    run_dir = f"{site.directory}/run"

    async def logged() -> bool:
        return await site.output(container) == "old\n"

    await until(logged, DEADLINE_S)
    async with AsyncExitStack() as stack:
        after = await stack.enter_async_context(follow(run_dir, container, after_log=True))
        assert after.log_time_ns > 0
        async with asyncio.timeout(DEADLINE_S):
            assert await anext(after.chunks()) == (1, b"half")
        now = await stack.enter_async_context(follow(run_dir, container))
        again = await stack.enter_async_context(follow(run_dir, container, after_log=True))
        await site.runtime.stop(container, 0)
        assert (await _all(now))[1] == b""
        assert (await _all(again))[1] == b"half"


async def test_slow_client_holds_the_container_and_nobody_else(site: Site):
    slow_one = await _created(site, "yes | head -c 1000000; echo done >/tmp/done; sleep 600")
    run_dir = f"{site.directory}/run"
    async with follow(run_dir, slow_one) as copy:
        await site.runtime.start(slow_one)
        done = f"{site.runtime.container_dir(slow_one)}/upper/tmp/done"
        _, output = await site.run("seq 1 20000")
        assert output.endswith("20000\n")
        assert not os.path.exists(done)
        reading = asyncio.create_task(_all(copy))
        await until(lambda: os.path.exists(done), DEADLINE_S)
        await site.runtime.stop(slow_one, 0)
        assert (await reading)[1] == b"y\n" * 500_000


async def test_client_that_never_reads_is_cut_after_the_end(site: Site):
    container = await _created(site, "yes | head -c 1000000")
    async with follow(f"{site.directory}/run", container):
        await site.runtime.start(container)
        await site.runtime.stop(container, 1)
        end = f"{site.runtime.container_dir(container)}/log.end"
        await until(lambda: os.path.exists(end), DEADLINE_S)


async def test_client_that_goes_away_lets_the_container_run_on(site: Site):
    container = await _created(site, "yes | head -c 1000000; exit 5")
    async with follow(f"{site.directory}/run", container):
        await site.runtime.start(container)
        await asyncio.sleep(0.3)
    async with asyncio.timeout(DEADLINE_S):
        assert (await site.runtime.wait(container)).exit_code == 5


async def test_each_run_ends_its_copies_and_the_next_has_its_own(site: Site):
    container = await _created(site, "echo run; printf x")
    for _ in range(3):
        async with follow(f"{site.directory}/run", container) as copy:
            await site.runtime.start(container)
            assert (await _all(copy))[1] == b"run\nx"
            await site.runtime.wait(container)
    async with follow(f"{site.directory}/run", container) as copy:
        waiting = asyncio.create_task(_all(copy))
        await site.runtime.remove(container)
        assert (await waiting) == {1: b"", 2: b""}
    async with follow(f"{site.directory}/run", container) as copy:
        assert (await _all(copy)) == {1: b"", 2: b""}


async def test_restarted_logger_repeats_nothing(site: Site):
    container = await _created(site, "printf start; for i in 1 2 3; do sleep 0.7; printf $i; done")
    seen = b""
    async with follow(f"{site.directory}/run", container) as copy:
        await site.runtime.start(container)
        async with asyncio.timeout(DEADLINE_S):
            async for _, data in copy.chunks():
                seen += data
                if seen in (b"start", b"start12"):
                    site.kill_hard("logger")
    assert seen == b"start123"
    assert await site.output(container) == "start123"
