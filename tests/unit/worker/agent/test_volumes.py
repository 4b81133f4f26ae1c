"""Volumes of tasks: which are made, filled, in use, and gone with their tasks."""

from __future__ import annotations

import pytest

from shoal.errors import FailedPrecondition, NotFound
from shoal.model.enums import MountType
from shoal.model.enums import TaskState as S
from shoal.model.types import Driver, Mount
from tests.unit.worker.agent.support import FakeNode, a_task, task_id, until

NAMED = Mount(
    type=MountType.VOLUME, source="v-{{.Task.Slot}}", target="/data", volume_labels={"a": "b"}
)
UNNAMED = Mount(type=MountType.VOLUME, target="/scratch", read_only=True)


@pytest.fixture
async def node(tmp_path):
    async with FakeNode(tmp_path / "node") as node:
        yield node


def names(node):
    return [volume.name for volume in node.volumes.list()]


async def test_a_task_uses_its_volumes_until_it_is_gone(node, tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "image/file").write_text("x")
    node.contents.places = {"/data": str(tmp_path / "image")}
    node.tasks.assign(a_task(mounts=(NAMED, UNNAMED)))
    await node.reach(S.RUNNING)
    named = node.volumes.get("v-1")
    unnamed = next(volume for volume in node.volumes.list() if volume.anonymous)
    assert named.labels == {"a": "b"}
    assert (tmp_path / "node/volumes/v-1/_data/file").read_text() == "x"
    first, second = node.runtime.configs[task_id()].mounts
    assert (first.kind, first.source, first.read_only) == ("bind", named.mountpoint, False)
    assert (second.source, second.target, second.read_only) == (
        unnamed.mountpoint, "/scratch", True,
    )  # fmt: skip
    for name in ("v-1", unnamed.name):
        with pytest.raises(FailedPrecondition, match=f"in use - .{task_id()}"):
            await node.volumes.remove(name)
    node.tasks.unassign(task_id())
    await until(lambda: names(node) == ["v-1"])
    await node.volumes.remove("v-1")


async def test_nothing_goes_before_everybody_who_uses_volumes_is_known(node):
    node.tasks.assign(a_task(mounts=(UNNAMED,)))
    await node.reach(S.RUNNING)
    node.users_known.clear()
    node.tasks.unassign(task_id())
    await until(lambda: not node.runtime.containers)
    assert len(names(node)) == 1
    node.users_known.set()
    await until(lambda: not names(node))


async def test_another_driver_rejects(node):
    mount = UNNAMED.replaced(source="far", volume_driver=Driver(name="ceph"))
    node.tasks.assign(a_task(mounts=(mount,)))
    assert 'plugin "ceph" not found' in (await node.reach(S.REJECTED)).error


async def test_a_volume_removed_before_its_container_was_made_rejects(node):
    gate = node.runtime.board.gate("create")
    node.tasks.assign(a_task(mounts=(NAMED,)))
    await until(lambda: node.runtime.board.count("create"))
    await node.volumes.remove("v-1")
    gate.set()
    assert "no such volume" in (await node.reach(S.REJECTED)).error
    with pytest.raises(NotFound):
        node.volumes.get("v-1")
