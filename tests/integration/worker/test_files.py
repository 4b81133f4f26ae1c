"""Secrets and configs of tasks on a real worker: what containers see, and what no disk holds."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.model.enums import MountType
from shoal.model.enums import TaskState as S
from shoal.model.objects import Config, Secret
from shoal.model.specs import ConfigSpec, SecretSpec
from shoal.model.types import Annotations, Driver, FileReference, FileRotation, Mount
from tests.integration.worker.place import Place, a_task, task_id
from tests.support.accounts import Accounts

pytestmark = pytest.mark.root

MARK = b"xyzzy-a-secret-that-no-disk-may-hold-xyzzy"
LAST = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
SECRET = Secret(id="s1", spec=SecretSpec(annotations=Annotations("db"), data=MARK))
CONFIG = Config(
    id="c1",
    spec=ConfigSpec(
        annotations=Annotations("site"),
        data=b'name={{.Service.Name}} slot={{.Task.Slot}} at={{.Node.Hostname}} a={{env "A"}}'
        b' key={{secret "db"}} raw={{"{{"}}\xff',
        templating=Driver("golang"),
    ),
)


def secret(target: str = "db", *, mode: int = 0o440, uid: str = "3", gid: str = "4"):
    return FileReference(id="s1", name="db", target=target, uid=uid, gid=gid, mode=mode)


def config(target: str) -> FileReference:
    return FileReference(id="c1", name="site", target=target, mode=0o444)


def seen(place: Place, pid: int, path: str) -> Path:
    return Path(f"/proc/{pid}/root{path}")


def on_disk(place: Place) -> list[str]:
    """Files of the node, but for those in memory, that hold the secret."""
    device, found = os.stat(place.directory).st_dev, []
    for directory, _, names in os.walk(place.directory):
        for path in (Path(directory, name) for name in names):
            status = path.lstat()
            is_ours = status.st_dev == device and path.is_file() and not path.is_symlink()
            if is_ours and MARK in path.read_bytes():
                found.append(str(path))
    return found


def in_memory(place: Place) -> list[str]:
    files = place.paths.run / "files"
    return sorted(os.listdir(files)) if files.exists() else []


def a_holder(number: int = 1, **spec):
    spec.setdefault("secrets", (secret(), secret("/etc/deep/key", mode=0o400, uid="", gid="")))
    spec.setdefault("configs", (config("site.conf"), config("/etc/other")))
    return a_task(number, LAST, env=("A=it is {{.Task.Slot}}",), **spec)


async def test_a_task_sees_its_files_and_no_disk_does(place: Place) -> None:
    task = a_holder()
    place.manager.stream.send(task, files=[SECRET, CONFIG])
    pid = (await place.reach(1, S.RUNNING)).container.pid
    shown = seen(place, pid, "/run/secrets/db")
    status = shown.stat()
    assert shown.read_bytes() == MARK
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o440, 3, 4)
    deep = seen(place, pid, "/etc/deep/key")
    assert (deep.read_bytes(), deep.stat().st_mode & 0o7777) == (MARK, 0o400)
    expanded = b"name=front slot=1 at=alpha a=it is 1 key=" + MARK + b" raw={{\xff"
    assert seen(place, pid, "/site.conf").read_bytes() == expanded
    assert seen(place, pid, "/etc/other").read_bytes() == expanded
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    (line,) = (line for line in lines if line.split()[4] == "/run/secrets/db")
    assert "tmpfs" in line.split(" - ")[1]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
    assert on_disk(place) == []

    place.kill_worker()
    assert shown.read_bytes() == MARK
    place.manager.statuses.clear()
    await place.start_worker()
    place.manager.stream.send(task, a_holder(2), files=[SECRET, CONFIG])
    assert (await place.reach(1, S.RUNNING)).container.pid == pid
    other = (await place.reach(2, S.RUNNING)).container.pid
    assert seen(place, other, "/run/secrets/db").read_bytes() == MARK
    assert shown.read_bytes() == MARK
    assert in_memory(place) == sorted([task_id(1), task_id(2)])

    place.manager.stream.send(task.with_desired_state(S.SHUTDOWN))
    await place.reach(1, S.SHUTDOWN)
    await place.until(lambda: in_memory(place) == [task_id(2)])
    place.kill_worker()
    os.kill(other, 9)
    await place.start_worker()
    place.manager.stream.send(task.with_desired_state(S.SHUTDOWN))
    await place.until(lambda: in_memory(place) == [])
    assert on_disk(place) == []


async def test_a_task_waits_for_what_has_not_arrived_and_says_so(place: Place) -> None:
    place.manager.stream.send(a_holder(configs=()))
    await place.until(
        lambda: (
            task_id(1) in place.manager.statuses
            and place.manager.statuses[task_id(1)].error
            == "secret db has not arrived from the managers yet"
        )
    )
    assert place.manager.statuses[task_id(1)].state is S.PREPARING
    place.manager.stream.send(files=[SECRET])
    await place.reach(1, S.RUNNING)
    place.manager.stream.send(removed_secrets=["s1"])
    place.manager.stream.send(a_holder(2, configs=()))
    await place.until(
        lambda: (
            task_id(2) in place.manager.statuses
            and "not arrived" in place.manager.statuses[task_id(2)].error
        )
    )
    place.manager.stream.send(removed=[task_id(1), task_id(2)])
    await place.until(lambda: in_memory(place) == [])


async def test_what_a_template_cannot_have_is_named(place: Place) -> None:
    place.manager.stream.send(a_holder(secrets=(), configs=(config("x"),)), files=[SECRET, CONFIG])
    assert (await place.reach(1, S.REJECTED)).error == "config site: secret target db not found"


async def test_no_place_for_files_is_said_and_a_node_that_leaves_keeps_none(place: Place) -> None:
    files = place.paths.run / "files"
    files.write_text("in the way")
    place.manager.stream.send(a_holder(configs=()), files=[SECRET])
    assert "NotADirectoryError" in (await place.reach(1, S.REJECTED)).error
    files.unlink()
    place.manager.stream.send(a_holder(2, configs=()))
    await place.reach(2, S.RUNNING)
    mounted = f"{files}/{task_id(2)}"
    assert mounted in Path("/proc/self/mountinfo").read_text()
    await place.call(node_pb2_grpc.WorkerControlStub, "RemoveTasks", node_pb2.RemoveTasksRequest())
    assert in_memory(place) == []
    assert mounted not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
async def remapped() -> AsyncIterator[Place]:
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


async def test_ids_are_the_containers_own_and_the_root_may_be_read_only(remapped: Place) -> None:
    place = remapped
    script = (
        "set -e; test $(stat -c %u.%g.%a /run/secrets/db) = 3.4.440; test $(id -u) = 0;"
        " test $(stat -c %u.%g.%a /etc/deep/key) = 0.0.400; grep -q xyzzy /etc/deep/key;"
        f" touch /no 2>/dev/null && exit 9; echo x 2>/dev/null > /etc/deep/key && exit 8;"
        f" trap 'exit 0' TERM; touch /run/ready; {LAST}"
    )
    task = a_task(
        1, script, read_only=True,
        secrets=(secret(), secret("/etc/deep/key", mode=0o400, uid="", gid="")),
        mounts=(Mount(type=MountType.TMPFS, target="/run"),),
    )  # fmt: skip
    place.manager.stream.send(task, files=[SECRET])
    pid = (await place.reach(1, S.RUNNING)).container.pid
    await place.until(seen(place, pid, "/run/ready").exists)
    place.manager.stream.send(task.with_desired_state(S.SHUTDOWN))
    assert (await place.reach(1, S.SHUTDOWN)).container.exit_code == 0
    foreign = a_task(2, LAST, secrets=(secret(uid="70000"),))
    place.manager.stream.send(foreign)
    error = (await place.reach(2, S.REJECTED)).error
    assert error == "secret db: uid 70000 is none that containers of this node have"


def live_holder(number: int = 1, *, content: str, signal: str = "", script: str = LAST):
    reference = FileReference(id=content, name="db", target="deep/db", mode=0o440, uid="3", gid="4")
    beside = FileReference(id="c1", name="site", target="/run/configs/site.conf", mode=0o444)
    return a_task(
        number,
        script,
        env=("A=x",),
        secrets=(reference,),
        configs=(beside,),
        file_rotation=FileRotation(signal),
    )


def content(name: str, data: bytes) -> Secret:
    return Secret(id=name, spec=SecretSpec(annotations=Annotations("db"), data=data))


async def test_contents_are_swapped_below_a_running_program_that_is_told(place: Place) -> None:
    site = CONFIG.replaced(spec=CONFIG.spec.replaced(data=b"site"))
    first, second, large = (
        content("s1", MARK), content("s2", b"second"), content("s3", MARK * 9000)
    )  # fmt: skip
    told = f"trap 'echo told >> /tmp/told' HUP; {LAST}"
    task = live_holder(content="s1", signal="SIGHUP", script=told)
    place.manager.stream.send(task, files=[first, site])
    pid = (await place.reach(1, S.RUNNING)).container.pid
    shown = seen(place, pid, "/run/secrets/deep/db")
    heard = seen(place, pid, "/tmp/told")
    await place.until(lambda: place.manager.statuses[task_id(1)].file_ids == ("s1", "c1"))
    assert shown.read_bytes() == MARK
    assert not heard.exists()
    held = shown.open("rb")

    place.manager.stream.send(
        live_holder(content="s2", signal="SIGHUP", script=told), files=[second]
    )
    await place.until(lambda: place.manager.statuses[task_id(1)].file_ids == ("s2", "c1"))
    assert shown.read_bytes() == b"second"
    status = shown.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o440, 3, 4)
    with held:
        assert held.read() == MARK, "who had it open reads on what was there"
    await place.until(lambda: heard.exists() and heard.read_text() == "told\n")
    assert place.manager.statuses[task_id(1)].container.pid == pid

    place.kill_worker()
    assert shown.read_bytes() == b"second"
    place.manager.statuses.clear()
    await place.start_worker()
    place.manager.stream.send(
        live_holder(content="s3", signal="SIGHUP", script=told), files=[large, site]
    )
    await place.until(
        lambda: (
            task_id(1) in place.manager.statuses
            and place.manager.statuses[task_id(1)].file_ids == ("s3", "c1")
        )
    )
    assert shown.read_bytes() == MARK * 9000, "the file system has grown with it"
    assert seen(place, pid, "/run/configs/site.conf").read_bytes() == b"site"
    assert not os.access(shown, os.W_OK) or _is_read_only(pid, "/run/secrets")
    assert on_disk(place) == []


def _is_read_only(pid: int, directory: str) -> bool:
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    (line,) = (line for line in lines if line.split()[4] == directory)
    return "ro" in line.split()[5].split(",")


async def test_a_content_that_cannot_be_shown_leaves_the_task_with_what_it_has(
    place: Place,
) -> None:
    site = CONFIG.replaced(spec=CONFIG.spec.replaced(data=b"site"))
    place.manager.stream.send(live_holder(content="s1"), files=[content("s1", MARK), site])
    pid = (await place.reach(1, S.RUNNING)).container.pid
    bad = content("s2", b'{{secret "nowhere"}}')
    bad = bad.replaced(spec=bad.spec.replaced(templating=Driver("golang")))
    place.manager.stream.send(live_holder(content="s2"), files=[bad])
    await place.until(lambda: "stay as they were" in place.manager.statuses[task_id(1)].error)
    assert seen(place, pid, "/run/secrets/deep/db").read_bytes() == MARK
    assert place.manager.statuses[task_id(1)].state is S.RUNNING
