"""Containers on the cluster's networks: what is asked of the managers, kept, and given back."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from shoal.clock import SystemClock
from shoal.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from shoal.model.enums import TaskState
from shoal.model.objects import Network, Task
from shoal.model.specs import NetworkAttachmentSpec, NetworkSpec, TaskSpec
from shoal.model.types import Annotations
from tests.support.dispatcher import ScriptedDispatcher
from tests.support.managing import until
from worker.agent import attachments as module
from worker.agent.attachments import Attachments
from worker.agent.client import ManagerClient
from worker.agent.reporter import Reporter
from worker.network.local.api import EndpointSpec, LocalNetwork
from worker.network.overlay.api import OverlayEndpoint, OverlayNetwork, OverlayState

BOX = "b0" * 32
RED = LocalNetwork(id="red1", name="red", created_at_ns=1, driver="overlay")
BLUE = LocalNetwork(id="blue1", name="blue", created_at_ns=1, driver="overlay")
NETNS = "/run/netns/box"


class Plane:
    """A data plane that notes what it is told."""

    def __init__(self) -> None:
        self.links: dict[str, list[str]] = {}
        self.failure: Exception | None = None

    async def join(self, place) -> None:
        if self.failure is not None:
            raise self.failure
        self.links[place.task_id] = [one.interface for one in place.links]
        assert not place.named_here

    async def leave(self, place, network_id) -> None:
        self.links[place.task_id] = [one.interface for one in place.links]

    async def release(self, container) -> None:
        self.links.pop(container, None)


class Rig:
    def __init__(self, directory: Path, manager: ScriptedDispatcher) -> None:
        self.directory, self.manager = directory, manager
        self.plane, self.reporter = Plane(), Reporter()
        self.told: list[dict] = []
        self.attachments = self.another()

    def another(self) -> Attachments:
        """What the next process of the worker has."""
        made = Attachments(self.directory, SystemClock())
        made.bind(self.plane, self.reporter)
        made.tell(self._tell)
        return made

    async def _tell(self, names) -> None:
        self.told.append(dict(names))

    @asynccontextmanager
    async def session(self):
        async with grpc.aio.insecure_channel(self.manager.address) as channel:
            client = ManagerClient(channel)
            works = [
                asyncio.create_task(self.attachments.run(client)),
                asyncio.create_task(self.reporter.run(client.report)),
            ]
            await asyncio.sleep(0)
            try:
                yield
            finally:
                for work in works:
                    work.cancel()
                await asyncio.gather(*works, return_exceptions=True)

    async def join(self, network: LocalNetwork = RED, **spec):
        return await self.attachments.join(BOX, "box", NETNS, network, EndpointSpec(**spec))


@pytest.fixture
async def rig(tmp_path):
    sockets = tempfile.TemporaryDirectory(prefix="shoal-attach-")
    manager = ScriptedDispatcher(Path(sockets.name) / "m.sock")
    manager.sessions.append("")  # of a client that has not registered
    await manager.start()
    yield Rig(tmp_path, manager)
    await manager.stop()
    sockets.cleanup()


def assigned(attachment: str, container: str = BOX) -> Task:
    runtime = NetworkAttachmentSpec(container_id=container)
    return Task(id=attachment, spec=TaskSpec(runtime=runtime))


async def test_a_container_joins_two_networks_and_gives_both_back(rig):
    async with rig.session():
        first = await rig.join(aliases=("db",), ipv4_address="10.9.0.2")
        second = await rig.join(BLUE)
        assert (first.ipv4_address, first.ipv4_prefix) == ("10.9.0.2", 24)
        assert first.mac_address == "02:42:0a:09:00:02"
        assert rig.plane.links == {BOX: ["ov0", "ov1"]}
        asked = rig.manager.attached[first.id]
        assert (asked.container_id, asked.container_name) == (BOX, "box")
        assert (list(asked.config.aliases), list(asked.config.addresses)) == (["db"], ["10.9.0.2"])
        await until(lambda: rig.manager.statuses.keys() == {first.id, second.id})
        assert {one.state for one in rig.manager.statuses.values()} == {TaskState.RUNNING}
        assert [one.name for one in rig.attachments.known()] == ["blue", "red"]

        await rig.attachments.leave(BOX, "red1")
        assert rig.manager.detached == [first.id]
        assert rig.plane.links == {BOX: ["ov1"]}
        assert (await rig.join()).interface == "ov0"
        await rig.attachments.release(BOX)
        assert rig.plane.links == {}
        assert not rig.manager.attached
        assert not list(rig.directory.iterdir())
        with pytest.raises(NotFound):
            await rig.attachments.leave(BOX, "red1")


async def test_a_container_of_a_node_that_has_just_started_waits_for_a_manager(rig):
    rig.manager.node_networks = [Network(id="red1", spec=NetworkSpec(Annotations("red")))]
    knowing = asyncio.create_task(rig.attachments.refresh(patiently=True))
    joining = asyncio.create_task(rig.join())
    await rig.attachments.refresh()  # who only looks does not wait
    await asyncio.sleep(0.05)
    assert not knowing.done()
    assert not joining.done()
    async with rig.session():
        await knowing
        assert (await joining).ipv4_address == "10.9.0.2"
        assert [one.name for one in rig.attachments.known()] == ["red"]


async def test_what_fails_leaves_nothing(rig, monkeypatch):
    monkeypatch.setattr(module, "SESSION_WAIT_S", 0.05)
    with pytest.raises(Unavailable, match="no session with a manager"):
        await rig.join()
    async with rig.session():
        rig.manager.refuse_attachment = PermissionDenied("network red not manually attachable")
        with pytest.raises(PermissionDenied, match="red not manually attachable"):
            await rig.join()
        rig.manager.refuse_attachment = None
        rig.plane.failure = NotFound("network red1 is not on this node")
        with pytest.raises(NotFound, match="not on this node"):
            await rig.join()
        await until(lambda: rig.manager.detached)
        assert not rig.manager.attached
        impossible = (
            {"mac_address": "02:42:00:00:00:01"},
            {"driver_options": {"a": "b"}},
            {"links": (("c", "n"),)},
            {"link_local_addresses": ("169.254.0.9",)},
        )
        for spec in impossible:
            with pytest.raises(InvalidArgument):
                await rig.join(**spec)
    assert rig.attachments.containers() == frozenset()
    assert not list(rig.directory.glob("*.json"))


async def test_the_next_process_knows_what_is_held_and_what_is_nobody_s(rig):
    async with rig.session():
        held = await rig.join()
    rig.attachments = rig.another()
    (place,) = rig.attachments.places()
    assert (place.task_id, place.netns_path) == (BOX, NETNS)
    rig.manager.statuses.clear()
    async with rig.session():
        await until(lambda: held.id in rig.manager.statuses)
        rig.attachments.assign(assigned(held.id))
        rig.attachments.assign(assigned("stray", "gone" * 16))
        await until(lambda: rig.manager.detached == ["stray"])
        rig.attachments.keep_only({held.id})
        assert rig.attachments.endpoints(BOX)[0].id == held.id
        rig.attachments.keep_only(set())
        await until(lambda: not rig.attachments.containers())
        assert rig.plane.links[BOX] == [], "the managers may have given its address to another"


async def test_what_ends_without_a_manager_is_given_back_in_the_next_session(rig):
    async with rig.session():
        held = await rig.join()
    await rig.attachments.release(BOX)
    assert held.id in rig.manager.attached
    async with rig.session():
        await until(lambda: rig.manager.detached == [held.id])


async def test_what_an_earlier_run_of_a_container_had_is_given_back_before_it_joins_again(rig):
    rig.attachments.assign(assigned("stale"))
    async with rig.session():
        again = await rig.join()
        assert rig.manager.detached == ["stale"]
        assert again.id in rig.manager.attached


async def test_a_container_whose_interfaces_are_gone_is_given_back(rig):
    async with rig.session():
        held = await rig.join()
        rig.attachments.lose(BOX, "its interface is gone")
        await until(lambda: rig.manager.detached == [held.id])
        assert rig.attachments.containers() == frozenset()


async def test_a_damaged_record_is_removed(rig):
    rig.directory.joinpath("x.json").write_text("{")
    rig.directory.joinpath("y.json").write_text(
        '{"container":"y","name":"","netns_path":"","format":9}'
    )
    assert rig.another().places() == []
    assert not list(rig.directory.iterdir())


async def test_networks_are_known_as_the_managers_show_them(rig):
    spec = NetworkSpec(annotations=Annotations("n"), attachable=True, internal=True)
    rig.manager.node_networks = [Network(id=f"n{number}", spec=spec) for number in range(5)]
    await rig.attachments.refresh()
    assert rig.attachments.known() == ()
    async with rig.session():
        await rig.attachments.refresh()
    known = rig.attachments.known()
    assert [one.id for one in known] == [f"n{number}" for number in range(5)]
    assert (known[0].driver, known[0].attachable, known[0].internal) == ("overlay", True, True)
    rig.attachments.unbind()
    assert rig.attachments.known() == ()


async def test_names_are_told_once_a_container_asks(rig):
    network = OverlayNetwork(network_id="red1", name="red", vni=4096, subnets=("10.9.0.0/24",))
    other = OverlayEndpoint(
        network_id="red1", task_id="t" * 25, node_id="n2", addresses=("10.9.0.7",),
        names=("db",), ready=True,
    )  # fmt: skip
    state = OverlayState(networks=(network,), endpoints=(other,))
    await rig.attachments.follow(state)
    assert rig.told == []
    async with rig.session():
        await rig.join()
        assert [place.names[0] for place in rig.told[-1].values()] == ["db"]
        await rig.attachments.follow(OverlayState(networks=(network,)))
        assert rig.told[-1] == {}
