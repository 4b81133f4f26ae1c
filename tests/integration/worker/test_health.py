"""Health checks of tasks, run in real containers by a worker that is killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.model.enums import TaskState as S
from shoal.model.types import HealthCheck, Mount
from tests.integration.worker.place import Place, a_task, task_id
from worker.health import files

pytestmark = pytest.mark.root

IDLE = "trap 'exit 7' TERM; while :; do sleep 0.05; done"
MS = 1_000_000


def check_of(script: str, **more: int) -> HealthCheck:
    return HealthCheck(
        test=("CMD-SHELL", script), interval_ns=100 * MS, timeout_ns=20_000 * MS, **more
    )


def hanging(word: str) -> tuple[str, ...]:
    """A shell that can be found by the word, with a child that can, too."""
    return ("CMD", "/bin/sh", "-c", 'sh -c "while :; do sleep 1; done" $0; :', word)


def processes_with(word: str) -> list[int]:
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and word.encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


async def test_running_when_healthy_over_a_killed_worker_and_failed_when_not(place: Place) -> None:
    signals = place.directory / "sig"
    signals.mkdir()
    mount = Mount(source=str(signals), target="/sig")
    check = check_of("echo seen >> /sig/runs; test -e /sig/up || { echo no; exit 3; }", retries=30)
    wanted = a_task(1, IDLE, health_check=check, mounts=(mount,))
    place.manager.stream.send(wanted)
    await place.until(lambda: (signals / "runs").exists())
    assert place.manager.statuses[task_id(1)].state is S.STARTING
    (signals / "up").touch()
    running = await place.reach(1, S.RUNNING)

    place.kill_worker()
    place.manager.statuses.clear()
    await place.start_worker()
    place.manager.stream.send(wanted)
    adopted = await place.reach(1, S.RUNNING)
    assert adopted.container.pid == running.container.pid
    runs = len((signals / "runs").read_text())
    await place.until(lambda: len((signals / "runs").read_text()) > runs)
    assert place.manager.statuses[task_id(1)].state is S.RUNNING

    (signals / "up").unlink()
    failed = await place.reach(1, S.FAILED)
    assert failed.error == "task: unhealthy container"
    assert failed.message == "failed its health check: exit 3: no"
    assert failed.container.exit_code == 7
    kept = files.load(str(place.paths.worker / "containers" / task_id(1)))
    assert kept is None or kept.health.status == "unhealthy"


async def test_checks_that_hang_are_killed_and_none_is_left(place: Place) -> None:
    word = f"hang-{os.getpid()}"
    check = HealthCheck(test=hanging(word), interval_ns=100 * MS, timeout_ns=2_000 * MS, retries=2)
    place.manager.stream.send(a_task(1, IDLE, health_check=check))
    await place.until(lambda: processes_with(word))
    failed = await place.reach(1, S.FAILED)
    assert failed.message == (
        "failed its health check: exit -1: Health check exceeded timeout (2s)"
    )
    await place.until(lambda: not processes_with(word))


async def test_a_check_that_a_killed_worker_leaves_is_ended_by_the_next(place: Place) -> None:
    word = f"left-{os.getpid()}"
    check = HealthCheck(test=hanging(word), interval_ns=100 * MS, timeout_ns=1_000_000 * MS)
    wanted = a_task(1, IDLE, health_check=check)
    place.manager.stream.send(wanted)
    await place.until(lambda: processes_with(word))
    before = processes_with(word)
    place.kill_worker()
    assert set(before) <= set(processes_with(word))
    await place.start_worker()
    place.manager.stream.send(wanted)
    await place.until(lambda: not set(before) & set(processes_with(word)))
    await place.until(lambda: processes_with(word))
    place.manager.stream.send(removed=[task_id(1)])
    await place.until(lambda: not processes_with(word))
