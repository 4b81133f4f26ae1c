"""Output of real containers in rotating files, read while and after they run."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.integration.runtime.site import DEADLINE_S, Site, until
from worker.logs import reader

pytestmark = pytest.mark.root


async def test_rotation_is_bounded_and_keeps_the_newest(site: Site):
    status, output = await site.run("seq 1 20000", log_max_size_bytes=64 << 10, log_max_files=3)
    directory = f"{site.runtime.container_dir(status.id)}/logs"
    sizes = [os.path.getsize(f"{directory}/{name}") for name in os.listdir(directory)]
    assert len(sizes) == 3
    assert max(sizes) <= 64 << 10
    lines = [int(line) for line in output.splitlines()]
    assert lines == list(range(lines[0], 20001))
    assert 1 < lines[0] < 20000


async def test_follower_survives_rotation_and_logger_restart(site: Site):
    container = await site.start(
        "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); "
        "[ $((i % 100)) = 0 ] && sleep 0.02; done; exit 0",
        log_max_size_bytes=16 << 10,
        log_max_files=200,
    )
    seen = []

    async def follow() -> None:
        async for line in reader.read(site.runtime.container_dir(container), follow=True):
            seen.append(line)  # noqa: PERF401 - watched while it grows

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(follow())
        await until(lambda: len(seen) > 500)
        site.kill_hard("logger")
    assert [line.text for line in seen] == [f"{i}\n" for i in range(3000)]
    times = [line.time_ns for line in seen]
    assert times == sorted(set(times))


async def test_tail_since_and_streams(site: Site):
    container = await site.start("for i in 1 2 3 4 5; do echo o$i; echo e$i >&2; done")
    await site.runtime.wait(container)
    directory = site.runtime.container_dir(container)
    everything = [line async for line in reader.read(directory)]
    assert sorted(line.text for line in everything) == sorted(
        f"{stream}{i}\n" for stream in "oe" for i in range(1, 6)
    )
    assert await site.output(container, tail=3) == "".join(x.text for x in everything[-3:])
    assert await site.output(container, tail=0) == ""
    assert await site.output(container, streams=("stderr",)) == "e1\ne2\ne3\ne4\ne5\n"
    cursor = everything[4].time_ns
    assert [x async for x in reader.read(directory, since_ns=cursor)] == everything[5:]


async def test_long_lines_binary_bytes_and_no_final_newline(site: Site):
    status, output = await site.run(
        "head -c 100000 /dev/zero | tr '\\0' x; echo; printf '\\377\\n'; printf end"
    )
    assert output == "x" * 100_000 + "\n" + "\N{REPLACEMENT CHARACTER}\nend"
    lines = [x async for x in reader.read(site.runtime.container_dir(status.id))]
    assert lines[0].partial
    assert len(lines[0].text) == 16384
    assert lines[-1].partial


async def test_follow_ends_with_the_container(site: Site):
    container = await site.start("echo one; sleep 0.2; echo two")
    async with asyncio.timeout(DEADLINE_S):
        assert await site.output(container, follow=True, tail=10) == "one\ntwo\n"


async def test_fifty_writers_at_once(site: Site):
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(site.run(f"seq {i} {i + 500}")) for i in range(50)]
    for index, task in enumerate(runs):
        _, output = task.result()
        assert output == "".join(f"{n}\n" for n in range(index, index + 501))
