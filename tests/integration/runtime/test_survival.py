"""Every process of ours may die: containers run on, exit codes and output are not lost."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from shoal.errors import Unavailable
from tests.integration.runtime.site import DEADLINE_S, Site, is_alive, until
from worker.runtime.lean import files

pytestmark = pytest.mark.root
COUNT = "i=0; while [ $i -lt {last} ]; do echo $i; i=$((i+1)); {pause} done; exit 5"


def _expected(last: int) -> str:
    return "".join(f"{i}\n" for i in range(last))


async def _wait_for(site: Site, container: str) -> int:
    async with asyncio.timeout(DEADLINE_S):
        return (await site.runtime.wait(container)).exit_code


async def test_a_new_worker_finds_the_containers(site: Site):
    container = await site.start("sleep 60", labels={"task": "t1"})
    before = await site.runtime.status(container)
    keeper = site.pid_of("keeper")
    newcomer = site.another_client()
    await newcomer.ensure_running()
    assert await newcomer.list() == [before]
    assert before.labels == {"task": "t1"}
    assert site.pid_of("keeper") == keeper
    await newcomer.close()


async def test_supervisor_killed_containers_run_on(site: Site):
    container = await site.start(COUNT.format(last=200, pause="sleep 0.005;"))
    pid = (await site.runtime.status(container)).pid
    waiting = asyncio.ensure_future(_wait_for(site, container))
    old = site.pid_of("supervisor")
    site.kill_hard("supervisor")
    await until(lambda: _replaced(site, "supervisor", old))
    status = await site.runtime.status(container)
    assert (status.state, status.pid) == ("running", pid)
    assert await waiting == 5
    assert await site.output(container) == _expected(200)
    await until(lambda: not os.listdir(f"{site.directory}/state/exits"))
    await until(lambda: not site.cgroups_left())


async def test_exit_while_the_supervisor_is_dead(site: Site):
    container = await site.start("read x < /go; exit 42", mounts=_gate(site))
    keeper = site.pid_of("keeper")
    # The keeper restarts a supervisor at once: keep it busy long enough for the exit.
    site.kill_hard("supervisor")
    _open_gate(site)
    assert await _wait_for(site, container) == 42
    assert site.pid_of("keeper") == keeper


async def test_exit_while_supervisor_and_logger_are_dead(site: Site):
    container = await site.start("read x < /go; echo last words; exit 43", mounts=_gate(site))
    pid = (await site.runtime.status(container)).pid
    keeper = site.pid_of("keeper")
    await until(lambda: _holds(keeper, f"{site.runtime.container_dir(container)}/stdout"))
    os.kill(keeper, signal.SIGSTOP)
    try:
        site.kill_hard("supervisor", "logger")
        _open_gate(site)
        await until(lambda: not is_alive(pid))
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert await _wait_for(site, container) == 43
    assert await site.output(container) == "last words\n"


@pytest.mark.parametrize("pause", ["", "sleep 0.002;"])
async def test_logger_killed_again_and_again_leaves_no_gap(site: Site, pause):
    last = 30_000 if not pause else 400
    container = await site.start(COUNT.format(last=last, pause=pause))
    for _ in range(6):
        old = site.pid_of("logger")
        site.kill_hard("logger")
        await until(lambda old=old: _replaced(site, "logger", old))
        await asyncio.sleep(0.02)
    assert await _wait_for(site, container) == 5
    assert await site.output(container) == _expected(last)


async def test_unfinished_line_survives_the_logger(site: Site):
    container = await site.start(
        "printf begin; read x < /go; echo -end; exit 0", mounts=_gate(site)
    )
    old = site.pid_of("logger")
    site.kill_hard("logger")
    await until(lambda: _replaced(site, "logger", old))
    _open_gate(site)
    assert await _wait_for(site, container) == 0
    assert await site.output(container) == "begin-end\n"


async def test_keeper_killed_heals_by_itself(site: Site):
    container = await site.start("read x < /go; echo done; exit 44", mounts=_gate(site))
    old = site.pid_of("keeper")
    heir = site.pid_of("supervisor")
    site.kill_hard("keeper")
    await until(lambda: _replaced(site, "keeper", old))
    assert site.pid_of("keeper") == heir
    await site.runtime.ensure_running()
    assert (await site.runtime.status(container)).state == "running"
    _open_gate(site)
    assert await _wait_for(site, container) == 44
    assert await site.output(container) == "done\n"


async def test_all_of_ours_killed_containers_run_on(site: Site):
    container = await site.start(COUNT.format(last=150, pause="sleep 0.01;"))
    pid = (await site.runtime.status(container)).pid
    site.kill_hard("keeper", "supervisor", "logger")
    newcomer = site.another_client()
    await newcomer.ensure_running()
    status = await newcomer.status(container)
    assert (status.state, status.pid) == ("running", pid)
    async with asyncio.timeout(DEADLINE_S):
        assert (await newcomer.wait(container)).exit_code == 5
    await newcomer.close()
    assert await site.output(container) == _expected(150)


async def test_exit_while_all_of_ours_are_dead_is_never_guessed(site: Site):
    container = await site.start("read x < /go; exit 45", mounts=_gate(site))
    pid = (await site.runtime.status(container)).pid
    site.kill_hard("keeper", "supervisor", "logger")
    _open_gate(site)
    await until(lambda: not is_alive(pid))
    await site.runtime.ensure_running()
    async with asyncio.timeout(DEADLINE_S):
        status = await site.runtime.wait(container)
    # Who inherits it decides: the code is known while it is a zombie, and lost afterwards.
    if status.exit_code != 45:
        assert status.exit_code == 255
        assert "exit status lost" in status.error
    assert await site.output(container) == ""


async def test_exit_long_before_anybody_looks_is_reported_as_lost(site: Site):
    container = await site.start("read x < /go; exit 45", mounts=_gate(site))
    pid = (await site.runtime.status(container)).pid
    site.kill_hard("keeper", "supervisor", "logger")
    _open_gate(site)
    await until(lambda: not files.start_ticks(pid))
    await site.runtime.ensure_running()
    status = await site.runtime.status(container)
    assert (status.state, status.exit_code) == ("exited", 255)
    assert "exit status lost" in status.error


async def test_shutdown_leaves_running_containers_alone(site: Site):
    container = await site.start(COUNT.format(last=100, pause="sleep 0.01;"))
    await site.runtime.shutdown()
    assert site.cgroups_left()
    assert not os.path.exists(f"{site.directory}/run/keeper.pid")
    await site.runtime.ensure_running()
    assert await _wait_for(site, container) == 5
    assert await site.output(container) == _expected(100)


def _replaced(site: Site, part: str, old: int) -> bool:
    try:
        text = files.read_text(f"{site.directory}/run/{part}.pid")
    except OSError:
        return False
    pid, ticks = (int(word) for word in text.split())
    return pid != old and files.start_ticks(pid) == ticks


def _holds(pid: int, path: str) -> bool:
    return path in [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]


def _gate(site: Site):
    from worker.runtime.api import Mount

    path = f"{site.directory}/gate"
    os.mkfifo(path)
    return (Mount(target="/go", source=path),)


def _open_gate(site: Site) -> None:
    fd = os.open(f"{site.directory}/gate", os.O_RDWR)
    os.write(fd, b"go\n")
    # Closed by the end of the test process at the latest; the reader has its own end open.
    asyncio.get_running_loop().call_later(1, os.close, fd)


async def test_events_go_on_after_the_supervisor_restarted(site: Site):
    first = await site.start("sleep 60")
    seen: list[tuple[str, str]] = []

    async def collect() -> None:
        async for status in site.runtime.events():
            seen.append((status.id, status.state))
            if status.state == "exited":
                return

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(collect())
        await until(lambda: bool(seen))
        site.kill_hard("supervisor")
        await until(lambda: len(seen) > 1)
        await site.runtime.stop(first, 0)
    assert seen == [(first, "running"), (first, "running"), (first, "exited")]


async def test_starts_while_the_supervisor_is_killed_are_whole_or_refused(site: Site):
    names = []
    for index in range(12):
        config = site.config("sh", "-c", "sleep 60")
        try:
            await site.runtime.create(config)
            if index % 3 == 1:
                old = site.pid_of("supervisor")
                os.kill(old, signal.SIGKILL)
            await site.runtime.start(config.id)
            names.append(config.id)
        except Unavailable:
            await site.runtime.ensure_running()
    running = [s for s in await site.runtime.list() if s.state == "running"]
    assert {s.id for s in running} == set(names)
    assert all(is_alive(s.pid) for s in running)
    for name in names:
        assert (await site.runtime.stop(name, 0)).exit_code == 137
    await until(lambda: not site.cgroups_left())
