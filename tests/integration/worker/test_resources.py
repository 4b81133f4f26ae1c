"""Generic resources and devices on a real worker: what it says of the node, what tasks get."""

from __future__ import annotations

import pytest

from shoal.model.enums import TaskState
from shoal.model.types import GenericResource, Mount
from tests.integration.worker.place import Place, a_task

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
async def place():
    """A node with two named pieces of one kind and some of another."""
    place = Place("worker", "--generic-resource=gpu=UUID1,gpu=UUID2", "--generic-resource=apple=5")
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
    look = "env | grep DOCKER_RESOURCE | sort > /found/env; touch /found/done"
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
