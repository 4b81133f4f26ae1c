"""Create, start, end: exit codes, reasons, signals, waiting, listing, removal, leaks."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest

from shoal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from tests.integration.runtime.site import DEADLINE_S, Site, is_alive, until
from worker.runtime.api import Mount

pytestmark = pytest.mark.root


async def test_exit_code_output_and_times(site: Site):
    status, output = await site.run("echo out; echo err >&2; exit 42")
    assert (status.state, status.exit_code, status.error) == ("exited", 42, "")
    assert output == "out\nerr\n" or output == "err\nout\n"
    assert status.created_at_ns <= status.started_at_ns <= status.finished_at_ns
    assert not status.oom_killed


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (("nosuch",), 127, 'exec: "nosuch": executable file not found in $PATH'),
        (("/bin/nosuch",), 127, 'exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory'),
        (("/bin/broken",), 126, 'exec: "/bin/broken": permission denied'),
        (("/etc",), 126, 'exec: "/etc": is a directory'),
    ],
)
async def test_program_that_cannot_run(site: Site, args, code, reason):
    config = site.config(*args)
    await site.runtime.create(config)
    with pytest.raises(FailedPrecondition) as caught:
        await site.runtime.start(config.id)
    assert str(caught.value) == reason
    status = await site.runtime.status(config.id)
    assert (status.state, status.exit_code, status.error) == ("exited", code, reason)
    await until(lambda: not site.cgroups_left())


async def test_setup_failure_names_the_step_and_leaves_nothing(site: Site):
    missing = Mount(target="/data", source="/nonexistent-source")
    config = site.config("true", mounts=(missing,))
    await site.runtime.create(config)
    with pytest.raises(FailedPrecondition, match="/nonexistent-source: No such file"):
        await site.runtime.start(config.id)
    assert (await site.runtime.status(config.id)).exit_code == 128
    await until(lambda: not site.cgroups_left())


async def test_configured_anew_it_keeps_its_files_and_finds_the_new_ones(site: Site):
    config = site.config("sh", "-c", "echo kept >/file")
    await site.runtime.create(config)
    await site.runtime.start(config.id)
    await site.runtime.wait(config.id)
    await site.runtime.configure(msgspec.structs.replace(config, args=("sleep", "100")))
    await site.runtime.start(config.id)
    with pytest.raises(FailedPrecondition, match="is running"):
        await site.runtime.configure(config)
    await site.runtime.stop(config.id, 0)
    again = msgspec.structs.replace(
        config,
        args=("sh", "-c", "grep -q 10.0.0.7.friend /etc/hosts && grep -q kept /file && exit 7"),
        hosts=(("10.0.0.7", "friend"),),
    )
    await site.runtime.configure(again)
    await site.runtime.start(config.id)
    assert (await site.runtime.wait(config.id)).exit_code == 7


async def test_unknown_network_namespace_is_refused(site: Site):
    config = site.config("true", netns_path="/run/netns/nosuch-namespace")
    await site.runtime.create(config)
    with pytest.raises(FailedPrecondition, match="nosuch-namespace"):
        await site.runtime.start(config.id)
    await until(lambda: not site.cgroups_left())


async def test_stop_uses_the_stop_signal(site: Site):
    container = await site.start(
        "trap 'exit 7' USR1; echo ready; while :; do sleep 0.1; done", stop_signal="USR1"
    )
    await _until_output(site, container, "ready\n")
    status = await site.runtime.stop(container)
    assert status.exit_code == 7


async def test_stop_kills_after_the_grace_period(site: Site):
    container = await site.start("trap '' TERM; echo ready; while :; do sleep 1; done")
    await _until_output(site, container, "ready\n")
    status = await site.runtime.stop(container, 0.2)
    assert status.exit_code == 137
    assert not status.oom_killed
    assert await site.runtime.stop(container, 0.2) == status


async def test_requests_that_make_no_sense(site: Site):
    with pytest.raises(NotFound):
        await site.runtime.start("nosuch")
    container = await site.start("sleep 60")
    with pytest.raises(FailedPrecondition, match="already running"):
        await site.runtime.start(container)
    with pytest.raises(FailedPrecondition, match="is running"):
        await site.runtime.remove(container)
    with pytest.raises(AlreadyExists):
        await site.runtime.create(site.config("true", id=container))
    with pytest.raises(InvalidArgument, match="no command"):
        await site.runtime.create(site.config())
    with pytest.raises(InvalidArgument, match="unknown signal 'SIGNOPE'"):
        await site.runtime.create(site.config("true", stop_signal="SIGNOPE"))
    with pytest.raises(Unimplemented, match="selinux_labels"):
        await site.runtime.create(site.config("true", selinux_labels=("type:x",)))
    await site.runtime.remove(container, force=True)
    with pytest.raises(NotFound):
        await site.runtime.status(container)


async def test_a_container_starts_again(site: Site):
    container = await site.start("echo run >> /var/count; wc -l < /var/count; exit 1")
    await site.runtime.wait(container)
    await site.runtime.start(container)
    status = await site.runtime.wait(container)
    assert status.exit_code == 1
    assert await site.output(container) == "1\n2\n"


async def test_pause_and_stats(site: Site):
    container = await site.start("while :; do :; done", memory_bytes=64 << 20)
    await site.runtime.pause(container)
    assert (await site.runtime.status(container)).paused
    first = await site.runtime.stats(container)
    await asyncio.sleep(0.05)
    assert (await site.runtime.stats(container)).cpu_usage_ns == first.cpu_usage_ns
    assert first.pids == 1
    assert first.memory_limit_bytes == 64 << 20
    assert 0 < first.memory_usage_bytes < 64 << 20
    await site.runtime.unpause(container)
    await until(lambda: _cpu_grows(site, container, first.cpu_usage_ns))
    await site.runtime.pause(container)
    status = await site.runtime.stop(container, 0)  # the frozen must die as well
    assert status.exit_code == 137


async def _cpu_grows(site: Site, container: str, before: int) -> bool:
    return (await site.runtime.stats(container)).cpu_usage_ns > before


async def test_events_tell_every_change(site: Site):
    seen = []

    async def collect() -> None:
        async for status in site.runtime.events():
            seen.append((status.id, status.removed or status.state))
            if status.removed:
                return

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        old = await site.start("exit 0")
        await site.runtime.wait(old)
        group.create_task(collect())
        await until(lambda: bool(seen))
        new = await site.start("exit 0")
        await site.runtime.wait(new)
        await site.runtime.remove(new)
    assert seen[0] == (old, "exited")
    assert seen[1:] == [(new, "created"), (new, "running"), (new, "exited"), (new, True)]


async def test_thirty_starts_leave_nothing_behind(site: Site):
    await site.run("true")
    await until(lambda: not _held(site))
    before = _resources(site)
    for _ in range(30):
        status, _ = await site.run("echo x")
        await site.runtime.remove(status.id)
    await until(lambda: _resources(site) == before)
    assert not site.cgroups_left()
    assert not os.listdir(f"{site.directory}/state/trash")
    assert [s.id for s in await site.runtime.list()] == ["c1"]


def _held(site: Site) -> list[str]:
    """Pipes of containers that some process of ours has open."""
    links = []
    for part in ("keeper", "supervisor", "logger"):
        for entry in os.scandir(f"/proc/{site.pid_of(part)}/fd"):
            try:
                links.append(os.readlink(entry.path))
            except FileNotFoundError:
                continue
    return [link for link in links if "/containers/" in link]


def _resources(site: Site) -> dict[str, object]:
    with open("/proc/self/mounts") as file:
        mounts = [line for line in file if site.directory in line]
    pids = {part: site.pid_of(part) for part in ("keeper", "supervisor", "logger")}
    fds = {part: len(os.listdir(f"/proc/{pid}/fd")) for part, pid in pids.items()}
    with open(f"/proc/{pids['supervisor']}/task/{pids['supervisor']}/children") as file:
        children = file.read().split()
    return {"mounts": mounts, "fds": fds, "children": children}


async def test_kill_sends_any_signal(site: Site):
    container = await site.start("sleep 60")
    await site.runtime.kill(container, signal.SIGKILL)
    assert (await site.runtime.wait(container)).exit_code == 137
    with pytest.raises(FailedPrecondition, match="not running"):
        await site.runtime.kill(container, signal.SIGKILL)


async def _until_output(site: Site, container: str, text: str) -> None:
    async def said() -> bool:
        return text in await site.output(container)

    await until(said)


async def test_shutdown_leaves_no_process_and_no_group(site: Site):
    status, _ = await site.run("true")
    await site.runtime.remove(status.id)
    pids = [site.pid_of(part) for part in ("keeper", "supervisor", "logger")]
    await site.runtime.shutdown()
    await until(lambda: not any(is_alive(pid) for pid in pids))
    for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory"):
        assert not os.path.exists(f"{top}{site.cgroup_parent}")
    assert sorted(os.listdir(f"{site.directory}/run")) == ["keeper.lock"]


async def test_two_workers_start_one_keeper(site: Site):
    await site.runtime.shutdown()
    clients = [site.another_client() for _ in range(4)]
    await asyncio.gather(*(client.ensure_running() for client in clients))
    for client in clients:
        assert await client.list() == []
        await client.close()
    await until(lambda: len(_keepers(site)) == 1)


def _keepers(site: Site) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if f"{site.directory}/run".encode() in words and b"keeper" in words:
            found.append(int(name))
    return found


async def test_long_run_directory_is_refused(site: Site):
    client = site.another_client()
    client.run_dir = "/" + "x" * 100
    with pytest.raises(InvalidArgument, match="socket paths"):
        await client.ensure_running()
