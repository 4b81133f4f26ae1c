"""What a container stands on: laid before each start, given back after each end and failure."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator

import pytest

from engine.containers import inspect
from engine.containers.requests import (
    EndpointConfig,
    HealthConfig,
    HostPort,
    MountRequest,
    NetworkingConfig,
    RestartPolicy,
    VolumeOptions,
)
from engine.http.errors import Refused
from engine.http.versions import NEWEST
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.unit.engine.containers.doubles import DEADLINE_S, IMAGE_ID, World, busy
from worker.agent.container import TASK_ID_LABEL
from worker.agent.health import HEALTH_LABEL, label_of
from worker.health import files
from worker.health.core import Check, Health, Probe
from worker.runtime.api import ContainerConfig
from worker.runtime.interactive import Confinement


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def words(world: World, ref: str) -> dict:
    ids = world.parts.grounds.network_ids()
    found = world.parts.containers.find(ref)
    return inspect.worded(found, "/dir", ids, NEWEST, Confinement())


async def test_the_runtime_gets_what_the_networks_gave(world: World):
    async with world.running() as parts:
        made = await world.start(
            port_bindings={"80/tcp": [HostPort(host_port="8081")]},
            extra_hosts=["out:host-gateway"],
        )
        config = world.runtime.configs[made]
        assert config.netns_path == f"/netns/{made[:4]}"
        assert config.hosts == (("172.30.0.2", made[:12]), ("172.30.0.1", "out"))
        shown = words(world, made)["NetworkSettings"]
        assert shown["IPAddress"] == "172.30.0.2"
        assert shown["Ports"] == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8081"}]}
        assert shown["Networks"]["bridge"]["Gateway"] == "172.30.0.1"
        await parts.lifecycle.rename("web", "shop")
        assert world.networks.names == {made: "shop"}
        await parts.lifecycle.stop("shop")
        assert world.networks.started == {}
        assert words(world, made)["NetworkSettings"]["IPAddress"] == ""
        assert words(world, made)["NetworkSettings"]["Ports"] == {}


async def test_more_networks_and_links(world: World):
    async with world.running():
        other = await world.start("db")
        made = await world.start(
            links=["db:store"],
            networking_config=NetworkingConfig(
                endpoints_config={"n1": EndpointConfig(aliases=["a"])}
            ),
        )
        (_, bridge), (_, n1) = world.networks.started[made].networks
        assert bridge.links == ((other, "store"),)
        assert n1.aliases == ("a", made[:12])
        await world.parts.lifecycle.stop("db")
        await world.create("late", links=["db"])
        with pytest.raises(
            Refused, match="Cannot link to a non running container: /db AS /late/db"
        ):
            await world.parts.lifecycle.start("late")


async def test_a_start_that_fails_gives_all_back(world: World):
    async with world.running() as parts:
        made = await world.create(binds=["v1:/data"])
        world.networks.failure = busy(8081)
        with pytest.raises(Refused, match="driver failed programming external connectivity") as e:
            await parts.lifecycle.start(made)
        assert e.value.status == 500
        world.networks.failure = None
        assert world.volumes.mounted == set()
        world.runtime.board.fail("start", FailedPrecondition("exec: no such file or directory"))
        with pytest.raises(Refused, match="no such file"):
            await parts.lifecycle.start(made)
        assert world.networks.started == {}
        assert world.volumes.mounted == set()
        state = words(world, made)["State"]
        assert (state["Status"], state["ExitCode"]) == ("created", 127)
        await parts.lifecycle.start(made)
        assert words(world, made)["State"]["Error"] == ""
        assert world.volumes.mounted == {("v1", made)}


async def test_an_end_is_settled_though_the_networks_fail(world: World):
    async with world.running() as parts:
        made = await world.start()
        world.networks.failure = busy(1)
        await parts.lifecycle.stop(made)
        assert words(world, made)["State"]["Status"] == "exited"


async def test_an_end_is_settled_though_the_disk_is_full(world: World, monkeypatch):
    async with world.running() as parts:
        made = await world.start()

        def full(*args: object, **more: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

        watch = parts.containers.watch(made)
        with monkeypatch.context() as patched:
            patched.setattr("engine.containers.records.RecordFiles.save", full)
            world.runtime.exit(made, 3)
            assert (await watch.end()).code == 3
        await parts.lifecycle.start(made)


async def test_volumes_come_and_go_with_their_container(world: World):
    async with world.running() as parts:
        mount = MountRequest(type="volume", source="v2", target="/v2",
                             volume_options=VolumeOptions(subpath="sub"))  # fmt: skip
        made = await world.start(binds=["v1:/data:ro", "/anon"], mounts=[mount])
        mounts = {
            one.target: (one.source, one.read_only) for one in world.runtime.configs[made].mounts
        }
        anonymous = next(name for name in world.volumes.known if len(name) == 64)
        assert mounts == {
            "/data": ("/vol/v1", True), "/anon": (f"/vol/{anonymous}", False),
            "/v2": ("/vol/v2/sub", False),
        }  # fmt: skip
        users = await parts.directory.volume_users()
        assert users == {name: frozenset({made}) for name in ("v1", "v2", anonymous)}
        assert await parts.directory.image_users() == {IMAGE_ID: frozenset({made})}
        second = await world.create("two", volumes_from=["web:ro"])
        assert all(one.read_only for one in parts.containers.find(second).record.mounts)
        await parts.lifecycle.remove(made, force=True, volumes=True)
        assert set(world.volumes.known) == {"v1", "v2"}
        assert world.volumes.mounted == set()


async def test_a_creation_that_fails_leaves_no_volume_and_no_name(world: World):
    async with world.running() as parts:
        world.runtime.board.fail("create", InvalidArgument("nope"))
        with pytest.raises(InvalidArgument):
            await world.create(binds=["v1:/data", "/anon"])
        assert world.volumes.known == {}
        assert parts.containers.all() == []
        assert not [*(world.base / "engine/containers").iterdir()]
        await world.create()


async def test_what_runs_is_adopted_with_its_networks(world: World):
    async with world.running():
        made = await world.start()
        ended = await world.start("job")
        await world.start("down")
        await world.parts.lifecycle.stop("down")
    world.runtime.exit(ended, 4)
    async with world.running() as parts:
        assert set(world.networks.adopted or ()) == {made}
        assert (await parts.containers.wait("job")).code == 4
        await parts.containers.find("job").until(lambda: not parts.containers.find("job").running)
        assert parts.containers.find("web").running
        assert world.actions().count("die") == 2  # of job and down, once each


async def test_what_the_runtime_lost_is_dead_and_can_be_removed(world: World):
    async with world.running():
        made = await world.start()
    world.runtime.vanish(made)
    async with world.running() as parts:
        assert parts.containers.find(made).state == "dead"
        with pytest.raises(Refused, match="has lost its files"):
            await parts.lifecycle.start(made)
        await parts.lifecycle.remove(made)
        with pytest.raises(NotFound):
            parts.containers.find(made)


async def test_a_record_that_cannot_be_read_keeps_its_container(world: World):
    async with world.running():
        made = await world.start()
    path = world.base / f"engine/containers/{made}.json"
    path.write_text('{"format": 99}')
    async with world.running() as parts:
        assert parts.containers.all() == []
        assert made in world.runtime.containers
    assert path.exists()


async def test_tasks_are_seen_and_killed_but_not_changed(world: World):
    labels = {
        "com.docker.swarm.task.id": "t" * 25,
        "com.docker.swarm.task.name": f"web.1.{'t' * 25}",
        "dev.shoal.image": "busybox:latest",
        "app": "x",
    }
    await world.runtime.create(
        ContainerConfig(id="t" * 25, layers=("/l",), args=("serve",), labels=labels)
    )
    directory = world.base / "containers" / ("t" * 25)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"process": {"args": ["serve", "-f"], "env": ["A=1"]}}')
    async with world.running() as parts:
        while not parts.directory.list():
            await asyncio.sleep(0.01)
        world.runtime.run("t" * 25)
        await parts.containers.started("t" * 25)
        view = parts.directory.resolve(f"web.1.{'t' * 25}")
        assert (view.command, view.image, view.labels["app"]) == ("serve -f", "busybox:latest", "x")
        assert not any(key.startswith("dev.shoal") for key in view.labels)
        changes = (
            parts.lifecycle.remove("ttt", force=True), parts.lifecycle.rename("ttt", "other"),
            parts.lifecycle.pause("ttt"), parts.lifecycle.restart("ttt"),
        )  # fmt: skip
        for change in changes:
            with pytest.raises(Refused, match="is a task of a service: change the service instead"):
                await change
        await parts.lifecycle.stop("ttt")
        assert parts.containers.find("ttt").state == "exited"
        world.runtime.vanish("t" * 25)
        while parts.directory.list():
            await asyncio.sleep(0.01)


async def test_health(world: World):
    async with world.running() as parts:
        world.runtime.checks = [1, 1, 0]
        check = HealthConfig(test=["CMD-SHELL", "true"], interval=1_000_000, retries=2)
        made = await world.start(healthcheck=check)
        container = parts.containers.find(made)
        await container.until(lambda: container.health and container.health.status == "healthy")
        told = [action for action in world.actions() if action.startswith("health")]
        assert told == ["health_status: unhealthy", "health_status: healthy"]
        assert world.runtime.execs[0].args == ("/bin/sh", "-c", "true")
        shown = words(world, made)["State"]["Health"]
        assert [one["ExitCode"] for one in shown["Log"]] == [1, 1, 0]
        assert shown["Log"][0]["Output"] == "said"
        await parts.lifecycle.stop(made)  # while a check hangs
        assert words(world, made)["State"]["Health"]["Status"] == "healthy"


async def test_a_check_that_hangs_has_failed(world: World):
    async with world.running() as parts:
        check = HealthConfig(test=["CMD", "x"], interval=1_000_000, timeout=1_000_000, retries=1)
        made = await world.start(healthcheck=check)
        container = parts.containers.find(made)
        await container.until(lambda: container.health and container.health.status == "unhealthy")
        probe = container.health.log[0]
        assert (probe.exit_code, probe.output) == (-1, "Health check exceeded timeout (0.001s)")


async def test_a_stop_ends_the_waiting_for_a_restart(world: World):
    async with world.running() as parts:
        made = await world.start(restart_policy=RestartPolicy(name="always"))
        container = parts.containers.find(made)
        container.pause_s = 30.0
        world.runtime.exit(made, 1)
        await container.until(lambda: container.restarting)
        watch = parts.containers.watch(made)
        await parts.lifecycle.stop(made)
        assert (await watch.end()).code == 1
        assert container.state == "exited"


@pytest.mark.parametrize("verb", ["stop", "kill"])
async def test_what_ends_a_container_waits_for_its_start(world: World, verb: str):
    """The program may have been seen to run before the runtime has said so."""
    async with world.running() as parts:
        made = await world.create()
        go = world.runtime.board.gate("start")
        starting = asyncio.create_task(parts.lifecycle.start(made))
        await asyncio.sleep(0)
        while not world.runtime.board.count("start"):
            await asyncio.sleep(0.001)
        ending = asyncio.create_task(getattr(parts.lifecycle, verb)(made))
        await asyncio.sleep(0)
        go.set()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(starting, ending)
        assert parts.containers.find(made).state == "exited"


async def test_many_changes_at_once_leave_one_outcome(world: World):
    async with world.running() as parts:
        made = await world.create()
        for _ in range(20):
            await asyncio.gather(
                *(parts.lifecycle.start(made) for _ in range(3)),
                *(parts.lifecycle.stop(made) for _ in range(3)),
                return_exceptions=True,
            )
        container = parts.containers.find(made)
        await container.until(lambda: not container.ending)
        assert (made in world.networks.started) == container.has_process
        await asyncio.gather(
            *(parts.lifecycle.remove(made, force=True) for _ in range(4)), return_exceptions=True
        )
        assert parts.containers.all() == []
        assert world.networks.started == {}
        assert world.actions().count("destroy") == 1


async def test_the_health_of_a_task_is_what_the_agent_keeps_beside_it(world: World):
    task, check = "h" * 25, Check(("true",), retries=7)
    labels = {TASK_ID_LABEL: task, HEALTH_LABEL: label_of(check)}
    await world.runtime.create(
        ContainerConfig(id=task, layers=("/l",), args=("serve",), labels=labels)
    )
    directory = world.base / "containers" / task
    directory.mkdir(parents=True)
    async with world.running() as parts:
        while not parts.directory.list():
            await asyncio.sleep(0.01)
        world.runtime.run(task)
        await parts.containers.started(task)
        container = parts.containers.find(task)
        await parts.containers.refresh_health(container)
        assert words(world, task)["State"]["Health"]["Status"] == "starting"
        kept = Health("unhealthy", 7, (Probe(1, 2, 3, "no"),))
        files.save(str(directory), files.KeptHealth(kept))
        await parts.containers.refresh_health(container)
        shown = words(world, task)
        assert shown["State"]["Health"]["Log"][0]["Output"] == "no"
        assert shown["Config"]["Healthcheck"]["Test"] == ["CMD", "true"]
        assert shown["Config"]["Healthcheck"]["Retries"] == 7
        assert parts.directory.resolve(task).status.endswith("(unhealthy)")
