"""The dispatcher follows the store's networks, also after a start, lost commits and lost nodes."""

from __future__ import annotations

from manager.dispatcher.overlays import OverlayKey, OverlayKind
from shoal.model.enums import TaskState
from shoal.model.plan import remove
from tests.support.managing import running, until
from tests.support.planning import a_node
from tests.unit.manager.dispatcher.test_driver import Rig
from tests.unit.manager.dispatcher.test_overlays import attached, kind_of, made, on

ENDPOINT = OverlayKey(OverlayKind.ENDPOINT, "red", "t1")


def said(rig: Rig, stream) -> list[str]:
    """Take all there is. Result: `+id` and `-id` of overlay rows."""
    found, more = [], True
    while more:
        diff, more = rig.dispatcher.take(stream)
        found += [f"+{kind_of(row)[1]}" for row in diff.overlays]
        found += [f"-{key.id}" for key in diff.removed_overlays]
    return found


async def test_nodes_hear_of_networks_as_tasks_come_and_go():
    rig = Rig(a_node("n1"), a_node("n2"), made("red"), attached("t1", "red"))
    dispatcher = rig.dispatcher
    async with running(dispatcher.run):
        for node in ("n1", "n2"):
            await rig.register(node)
        with dispatcher.stream("n1") as own, dispatcher.stream("n2") as other:
            assert said(rig, own) == ["+red", "+t1"]
            assert said(rig, other) == []
            before = dispatcher.table.version
            rig.put(attached("t2", "red", number=10, node_id="n2"))
            await until(lambda: dispatcher.table.version > before)
            assert said(rig, own) == ["+t2"]
            assert said(rig, other) == ["+red", "+t1", "+t2"]

            rig.put(on("red"))
            await until(lambda: dispatcher.table.overlays.service_ids)
            assert said(rig, other) == ["+web"]
            await rig.store.commit([remove(rig.store.view.tasks.resolve("t2"))])
            await until(lambda: "t2" not in dispatcher.table.overlays.task_ids)
            assert said(rig, own) == ["+web", "-t2"]
            assert sorted(said(rig, other)) == ["-red", "-t1", "-t2", "-web"]


async def test_a_task_on_networks_alone_is_held_until_all_have_acknowledged():
    other = attached("t2", "red", number=10, node_id="n2")
    rig = Rig(a_node("n1"), a_node("n2"), made("red"), attached("t1", "red"), other)
    dispatcher = rig.dispatcher
    async with running(dispatcher.run):
        for node in ("n1", "n2"):
            await rig.register(node)
        with dispatcher.stream("n1") as own, dispatcher.stream("n2"):
            said(rig, own)
            for node in ("n1", "n2"):
                await dispatcher.acknowledge(node, dispatcher.table.version, [])
            before = dispatcher.table.version
            rig.put(rig.store.view.tasks.resolve("t1").with_desired_state(TaskState.SHUTDOWN))
            await until(lambda: dispatcher.table.version > before)
            diff, _ = dispatcher.take(own)
            assert [row.ready for row in diff.overlays] == [False]
            assert diff.tasks == ()
            await dispatcher.acknowledge("n1", dispatcher.table.version, [])
            assert dispatcher.take(own)[0].tasks == ()
            await dispatcher.acknowledge("n2", dispatcher.table.version, [])
            assert [task.id for task in dispatcher.take(own)[0].tasks] == ["t1"]


async def test_a_node_that_a_change_does_not_concern_has_nothing_to_acknowledge():
    """A node without a task on the network is told nothing of it, and holds nobody back."""
    rig = Rig(a_node("n1"), a_node("n2"), made("red"), attached("t1", "red"))
    dispatcher = rig.dispatcher
    async with running(dispatcher.run):
        for node in ("n1", "n2"):
            await rig.register(node)
        with dispatcher.stream("n1") as own, dispatcher.stream("n2"):
            said(rig, own)
            first = dispatcher.table.version
            await dispatcher.acknowledge("n1", first, [])
            rig.put(attached("t2", "red", number=10))
            await until(lambda: dispatcher.table.version > first)
            assert dispatcher.acknowledged.versions == {"n1": first, "n2": 0}, (
                "n2 has to say where it is"
            )
            await dispatcher.acknowledge("n2", first, [])
            assert dispatcher.acknowledged.versions == {"n1": first, "n2": dispatcher.table.version}

            before = dispatcher.table.version
            rig.put(rig.store.view.tasks.resolve("t1").with_desired_state(TaskState.SHUTDOWN))
            await until(lambda: dispatcher.table.version > before)
            assert dispatcher.acknowledged.versions == {"n1": first, "n2": dispatcher.table.version}
            assert said(rig, own) == ["+t1", "+t2"]
            assert dispatcher.take(own)[0].tasks == (), "its own node has not acknowledged"
            await dispatcher.acknowledge("n1", dispatcher.table.version, [])
            assert [task.id for task in dispatcher.take(own)[0].tasks] == ["t1"]


async def test_endpoints_of_a_lost_node_take_no_connections_until_it_is_back():
    rig = Rig(a_node("n1"), made("red"), attached("t1", "red"))
    dispatcher = rig.dispatcher

    def ready() -> bool:
        return dispatcher.table.overlays.is_ready("t1")

    async with running(dispatcher.run):
        await rig.register()
        await until(ready)
        await rig.wait(60)
        await until(lambda: not ready())
        assert ENDPOINT in dispatcher.table.overlays.rows
        await rig.register()
        await until(ready)


async def test_what_went_while_nobody_followed_is_forgotten():
    rig = Rig(a_node("n1"), made("red"), on("red"), attached("t1", "red"))
    dispatcher = rig.dispatcher
    await rig.register()
    with dispatcher.stream("n1") as own:
        async with running(dispatcher.run):
            await until(lambda: dispatcher.table.overlays.rows)
            assert len(said(rig, own)) == 3
        for row in (
            rig.store.view.tasks.resolve("t1"),
            rig.store.view.services.resolve("web"),
            rig.store.view.networks.resolve("red"),
        ):
            await rig.store.commit([remove(row)])
        async with running(dispatcher.run):
            await until(lambda: not dispatcher.table.overlays.rows)
            assert said(rig, own) == ["-t1", "-web", "-red"]
