"""Generic resources and devices on a real worker: what it says of the node, what tasks get."""

from __future__ import annotations

import os

import pytest

from shoal.model.enums import TaskState
from shoal.model.images import holds, mark_of
from shoal.model.types import DeviceMapping, GenericResource, Mount
from tests.integration.worker.place import Place, a_task

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
async def place():
    """A node with two named pieces of one kind and some of another."""
    place = Place(
        "worker",
        "--generic-resource=gpu=UUID1,gpu=UUID2",
        "--generic-resource=apple=5",
        "--generic-device=gpu=UUID2,/dev/loop-control:/dev/gpu0:r",
        "--generic-device=gpu=UUID1,/dev/nothing-of-that-name",
        "--generic-device=gpu,/dev/kmsg",
    )
    try:
        await place.open()
        yield place
    finally:
        await place.destroy()


async def test_a_node_says_what_it_has_and_a_task_is_told_what_it_got(place: Place) -> None:
    assert place.manager.descriptions[-1].resources.generic == (
        GenericResource(kind="gpu", named_value="UUID1"),
        GenericResource(kind="gpu", named_value="UUID2"),
        GenericResource(kind="apple", count=5),
    )
    found = place.directory / "found"
    found.mkdir()
    look = "env | grep DOCKER_RESOURCE | sort > /found/env; ls /dev > /found/dev"
    given = (
        GenericResource(kind="gpu", named_value="UUID2"),
        GenericResource(kind="apple", count=3),
    )
    task = a_task(1, look, mounts=(Mount(source=str(found), target="/found"),))
    place.manager.stream.send(task.replaced(assigned_generic_resources=given))
    await place.reach(1, TaskState.COMPLETE)
    assert (found / "env").read_text().splitlines() == [
        "DOCKER_RESOURCE_APPLE=3",
        "DOCKER_RESOURCE_GPU=UUID2",
    ]
    assert {"gpu0", "kmsg"} <= set((found / "dev").read_text().split())


async def test_a_device_may_be_used_as_far_as_it_is_permitted(place: Place) -> None:
    """The node is in the container with the numbers of the host's, and the cgroup lets it pass."""
    told = place.manager.descriptions[-1]
    assert told.devices_known
    assert {"/dev/loop-control", "/dev/kmsg"} <= set(told.devices)
    found = place.directory / "found"
    found.mkdir()
    look = (
        "cd /found; ls -l /dev/own | awk '{print $1,$5,$6}' > node;"
        " (exec 3</dev/own) && echo yes > read; (exec 3>/dev/own) && echo yes > write; touch done"
    )
    task = a_task(
        1,
        look,
        mounts=(Mount(source=str(found), target="/found"),),
        devices=(DeviceMapping("/dev/loop-control", "/dev/own", "r"),),
    )
    place.manager.stream.send(task)
    await place.until(lambda: (found / "done").exists())
    numbers = os.stat("/dev/loop-control").st_rdev
    kind, major, minor = (found / "node").read_text().split()
    assert kind[0] == "c"
    assert (int(major.rstrip(",")), int(minor)) == (os.major(numbers), os.minor(numbers))
    assert (found / "read").exists()
    assert not (found / "write").exists()


async def test_a_node_says_which_images_it_has(place: Place) -> None:
    place.kill_worker()
    await place.start_worker()
    assert holds(place.manager.descriptions[-1].images, mark_of("box:latest"))


async def test_a_device_that_is_not_there_rejects_the_task_by_its_name(place: Place) -> None:
    place.manager.stream.send(
        a_task(1, "true").replaced(
            assigned_generic_resources=(GenericResource(kind="gpu", named_value="UUID1"),)
        ),
        a_task(2, "true", devices=(DeviceMapping("/dev/loop-none"),)),
    )
    for number, path in ((1, "/dev/nothing-of-that-name"), (2, "/dev/loop-none")):
        status = await place.reach(number, TaskState.REJECTED)
        assert f"devices: {path}: No such file or directory" in status.error
