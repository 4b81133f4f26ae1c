"""What the docker command line says of volumes that the tasks of a cluster use."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator

import pytest

from shoal.model.enums import MountType
from shoal.model.enums import TaskState as S
from shoal.model.types import Mount
from tests.integration.engine.daemon import DEADLINE_S, DOCKER
from tests.integration.worker.place import Place, a_task, task_id

pytestmark = pytest.mark.root
LAST = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
MOUNTS = (
    Mount(type=MountType.VOLUME, source="ledger", target="/etc"),
    Mount(type=MountType.VOLUME, target="/scratch"),
)


@pytest.fixture
async def engine_place() -> AsyncIterator[Place]:
    made = Place("engine")
    try:
        await made.open()
        yield made
    finally:
        await made.destroy()


async def docker(place: Place, *arguments: str) -> str:
    assert DOCKER is not None
    done = await asyncio.to_thread(
        subprocess.run,
        [DOCKER, "-H", f"unix://{place.paths.docker_socket}", *arguments],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return str(done.stdout).strip()


async def volumes(place: Place, *filters: str) -> set[str]:
    options = [word for one in filters for word in ("--filter", one)]
    return set((await docker(place, "volume", "ls", "-q", *options)).split())


async def references(place: Place) -> dict[str, int]:
    """How many containers use each volume, as `system df -v` counts them."""
    told = json.loads(await docker(place, "system", "df", "-v", "--format", "{{json .Volumes}}"))
    return {one["Name"]: int(one["Links"]) for one in told}


async def test_a_task_s_volumes_are_in_use_until_it_is_gone(engine_place: Place) -> None:
    place = engine_place
    await docker(place, "volume", "create", "spare")
    task = a_task(1, LAST, mounts=MOUNTS)
    place.manager.stream.send(task)
    await place.reach(1, S.RUNNING)
    used = await volumes(place, "dangling=false")
    assert "ledger" in used
    assert len(used) == 2
    assert await volumes(place, "dangling=true") == {"spare"}
    assert await references(place) == dict.fromkeys(used, 1) | {"spare": 0}

    place.manager.stream.send(task.with_desired_state(S.SHUTDOWN))
    await place.reach(1, S.SHUTDOWN)
    assert await volumes(place, "dangling=false") == used, "the container is still there"
    pruned = await docker(place, "volume", "prune", "-af")
    assert "spare" in pruned
    assert "ledger" not in pruned
    assert await volumes(place) == used

    place.manager.stream.send(removed=[task_id(1)])
    async with asyncio.timeout(DEADLINE_S):
        while await volumes(place) != {"ledger"}:
            await asyncio.sleep(0.05)
    assert await volumes(place, "dangling=true") == {"ledger"}
    assert await references(place) == {"ledger": 0}
