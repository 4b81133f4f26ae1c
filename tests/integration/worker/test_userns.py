"""Tasks on a node with --userns-remap: ids, network, volumes, and a worker that comes back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from shoal.model.enums import MountType
from shoal.model.enums import TaskState as S
from shoal.model.types import Mount
from tests.integration.worker import test_overlay as overlay
from tests.integration.worker.place import Place, a_task, task_id
from tests.support.accounts import GID, UID, Accounts

pytestmark = pytest.mark.root

SCRIPT = (
    "set -e; test $(id -u) = 0; test $(stat -c %u /bin) = 0; ip addr add 192.0.2.7/32 dev lo;"
    " touch /data/made; chown 3:4 /data/made; while [ ! -e /data/go ]; do sleep 0.02; done; exit 7"
)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place("worker", "--userns-remap", "default")
    directory = place.directory / "etc"
    directory.mkdir()
    accounts = Accounts(directory)
    place.prefix = accounts.prefix
    try:
        await place.open()
        yield place
    finally:
        await place.destroy()
        accounts.close()


async def test_a_task_is_root_of_its_own_ids(place: Place) -> None:
    mount = Mount(type=MountType.VOLUME, source="data", target="/data")
    wanted = a_task(1, SCRIPT, mounts=(mount,), capability_add=("CAP_NET_ADMIN",))
    place.manager.stream.send(wanted)
    running = await place.reach(1, S.RUNNING)
    assert running.address.startswith("10.241.")
    found = os.stat(f"/proc/{running.container.pid}")
    assert (found.st_uid, found.st_gid) == (UID, GID)
    data = place.paths.volumes / "data" / "_data"
    await place.until((data / "made").exists)
    await place.until(lambda: os.stat(data / "made").st_uid == 3)

    place.kill_worker()
    place.manager.statuses.clear()
    await place.start_worker()
    place.manager.stream.send(wanted)
    adopted = await place.reach(1, S.RUNNING)
    assert adopted.container.pid == running.container.pid
    assert adopted.address == running.address
    (data / "go").touch()
    ended = await place.reach(1, S.FAILED)
    assert ended.container.exit_code == 7


async def test_tasks_with_ids_of_their_own_are_on_overlay_networks_as_well(place: Place) -> None:
    place.manager.stream.send(
        overlay.on_network(1, overlay.SERVE),
        overlay.on_network(3, overlay.REST),
        peers=[overlay.SELF],
        version=2,
        overlays=[
            overlay.change(network=overlay.NETWORK),
            overlay.change(overlay_service=overlay.SERVICE),
            overlay.endpoint(1, service="service1"),
            overlay.endpoint(3),
        ],
    )
    statuses = [await place.reach(number, S.RUNNING) for number in (1, 3)]
    asking = statuses[1].container.pid
    await place.until(lambda: place.manager.acknowledged[-1:] == [(2, {})])
    assert os.stat(f"/proc/{asking}").st_uid == UID
    await place.until(lambda: overlay.answers(asking, "10.5.0.11"))
    assert overlay.look_up(asking, "front") == ["10.5.0.2"]
    assert overlay.fetched(asking, "10.5.0.2") == task_id(1)[:12]
