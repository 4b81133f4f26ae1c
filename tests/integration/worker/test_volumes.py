"""Volumes of tasks on a real worker: data that outlives tasks, a killed worker, and what goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.model.enums import MountType
from shoal.model.enums import TaskState as S
from shoal.model.types import Driver, Mount
from tests.integration.worker.place import Place, a_task, task_id

pytestmark = pytest.mark.root

NAMED = Mount(
    type=MountType.VOLUME, source="data-{{.Service.Name}}", target="/etc", volume_labels={"a": "b"}
)
UNNAMED = Mount(type=MountType.VOLUME, target="/scratch")
LAST = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
WRITE = f"echo first >> /etc/notes; touch /scratch/mine; {LAST}"
READ = f"echo second >> /etc/notes; [ -e /scratch/mine ] && exit 3; {LAST}"


def volumes(place: Place) -> list[str]:
    return sorted(os.listdir(place.paths.volumes))


async def test_data_is_there_for_the_next_task_after_a_killed_worker(place: Place) -> None:
    notes = place.paths.volumes / "data-front/_data/notes"
    first = a_task(1, WRITE, mounts=(NAMED, UNNAMED))
    place.manager.stream.send(first)
    await place.reach(1, S.RUNNING)
    await place.until(lambda: notes.exists() and notes.read_text() == "first\n")
    assert (notes.parent / "passwd").read_text().startswith("root:"), "what the image has"
    assert len(volumes(place)) == 2

    place.kill_worker()
    place.manager.statuses.clear()
    await place.start_worker()
    place.manager.stream.send(first)
    await place.reach(1, S.RUNNING)
    assert len(volumes(place)) == 2
    second = a_task(2, READ, mounts=(NAMED, UNNAMED))
    place.manager.stream.send(first.with_desired_state(S.SHUTDOWN), second)
    await place.reach(1, S.SHUTDOWN)
    await place.reach(2, S.RUNNING)
    await place.until(lambda: notes.read_text() == "first\nsecond\n")
    assert len(volumes(place)) == 3

    place.manager.stream.send(removed=[task_id(1), task_id(2)])
    await place.until(lambda: volumes(place) == ["data-front"])
    assert notes.read_text() == "first\nsecond\n"


async def test_a_volume_with_options_is_mounted_while_a_task_runs(place: Place) -> None:
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    mount = Mount(
        type=MountType.VOLUME, source="fast", target="/fast", read_only=True,
        volume_driver=Driver(name="local", options=options), volume_nocopy=True,
    )  # fmt: skip
    data = place.paths.volumes / "fast/_data"
    script = f"echo x > /fast/x && exit 5; {LAST}"
    task = a_task(1, script, mounts=(mount,))
    place.manager.stream.send(task)
    await place.reach(1, S.RUNNING)
    assert data.is_mount()
    place.kill_worker()
    await place.start_worker()
    place.manager.stream.send(task)
    await place.until(lambda: str(data) in Path("/proc/self/mountinfo").read_text())
    place.manager.stream.send(task.with_desired_state(S.SHUTDOWN))
    assert (await place.reach(1, S.SHUTDOWN)).container.exit_code == 0
    await place.until(lambda: not data.is_mount())


async def test_another_driver_is_refused_by_its_name(place: Place) -> None:
    mount = Mount(
        type=MountType.VOLUME, source="far", target="/far", volume_driver=Driver(name="ceph")
    )
    place.manager.stream.send(a_task(1, "sleep 9", mounts=(mount,)))
    assert 'plugin "ceph" not found' in (await place.reach(1, S.REJECTED)).error
    assert volumes(place) == []
