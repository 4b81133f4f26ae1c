"""One manager's consensus on a real disk: killed at any moment, and full."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from shoal.errors import ResourceExhausted
from shoal.model.plan import create
from tests.support.alone import alone, rows_after_restart
from tests.support.managing import until
from tests.support.planning import a_service

WRITER = """
import asyncio, os, sys
from pathlib import Path
from shoal.model.plan import create
from tests.support.planning import a_task
from tests.support.alone import alone

async def main():
    async with alone(Path(sys.argv[1]), snapshot_interval=50) as (store, _):
        async def propose(number):
            turn = 0
            while True:
                task_id = f"{sys.argv[2]}-{number}-{turn}"
                await store.commit([create(a_task(task_id))])
                os.write(1, f"ack {task_id}\\n".encode())
                turn += 1
        await asyncio.gather(*(propose(number) for number in range(8)))

asyncio.run(main())
"""


@pytest.mark.timeout(180)
def test_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path):
    acknowledged: set[str] = set()
    for kill in range(20):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            try:
                assert writer.stdout is not None
                for _ in range(1 + 13 * kill):
                    line = writer.stdout.readline()
                    assert line, "the writer failed"
                    acknowledged.update(acknowledgements(line))
            finally:
                writer.kill()
            acknowledged.update(acknowledgements(writer.stdout.read()))
        held = asyncio.run(rows_after_restart(tmp_path))
        assert acknowledged <= set(held), f"kill {kill}"
    assert len(acknowledged) > 2000


def acknowledgements(text: str) -> list[str]:
    """Task ids of the whole lines."""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [line.removeprefix("ack ") for line in lines if line.startswith("ack ")]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=4m", "shoal-test", str(disk)]
    subprocess.run(["mount", *options], check=True, timeout=30)
    yield disk
    subprocess.run(["umount", str(disk)], check=True, timeout=30)


@pytest.mark.root
async def test_a_full_disk_refuses_writes_and_takes_them_again_when_there_is_space(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    acknowledged: set[str] = set()
    async with alone(small_disk / "raft", snapshot_interval=10) as (store, driver):

        async def write(name: str) -> None:
            annotations = a_service(name).spec.annotations.replaced(labels={"big": "x" * 40_000})
            service = a_service(name)
            service = service.replaced(spec=service.spec.replaced(annotations=annotations))
            await store.commit([create(service)])
            acknowledged.add(name)

        async def until_full() -> None:
            for number in range(1_000):
                await write(f"s{number}")

        with pytest.raises(ResourceExhausted, match=r"No space left on device.*free space"):
            await until_full()
        for attempt in range(3):
            with pytest.raises(ResourceExhausted):
                await asyncio.gather(*(write(f"full{attempt}{n}") for n in range(3)))
        assert len(acknowledged) > 10
        ballast.unlink()
        await until(lambda: not driver.disk_full)
        await asyncio.gather(*(write(f"after{n}") for n in range(5)))
        expected = {row.id: row for row in store.rows()}
    assert await rows_after_restart(small_disk / "raft") == expected
    assert set(expected) >= acknowledged >= {"after0", "after4"}
