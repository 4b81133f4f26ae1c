"""The same configuration under installed OCI runtimes."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import Any

import pytest

from shoal.errors import FailedPrecondition, InvalidArgument, Unimplemented
from tests.integration.runtime.site import DEADLINE_S, Site, until
from tests.support.groups import V1
from worker.runtime import hosting
from worker.runtime.api import Mount
from worker.runtime.interactive import ExecConfig, TerminalSize

pytestmark = pytest.mark.root
NAMES = ("crun", "runc")


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if request.param not in hosting.runtimes():
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


def _remains(site: Site) -> list[str]:
    """What a runtime keeps of containers, and groups in hierarchies only it has joined."""
    kept = [f"{site.directory}/run/{name}" for name in NAMES]
    return [*site.cgroups_left(), *(n for place in kept if os.path.isdir(place)
                                    for n in os.listdir(place))]  # fmt: skip


async def test_a_life(site: Site, runtime):
    status, output = await _life(site, runtime)
    assert (status.exit_code, status.error, status.oom_killed) == (42, "", False)
    zero = "0000000000000000"
    assert output.splitlines()[:11] == [
        zero, "00000000a80425fb", "0", "2", "1000", "web", "/home", "/home/app", "33", "content",
        "touch: /x: Read-only file system",
    ]  # fmt: skip
    assert output.endswith("err\n")
    await until(lambda: not _remains(site))
    await site.runtime.remove(status.id)
    assert site.cgroup_parent.strip("/") not in _below_the_unified_hierarchy()


def _below_the_unified_hierarchy() -> list[str]:
    """What lies in the directory that hierarchy is mounted on, where a runtime may not see it."""
    if not os.path.ismount("/sys/fs/cgroup/unified"):
        return []
    script = "umount -l /sys/fs/cgroup/unified && ls /sys/fs/cgroup/unified"
    seen = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], check=True, capture_output=True, text=True
    )
    return seen.stdout.split()


async def _life(site: Site, runtime: str) -> tuple[Any, str]:
    with open(f"{site.directory}/file", "w") as file:
        file.write("content\n")
    return await site.run(
        "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | cut -f2; id -u; "
        "hostname; pwd; echo $HOME; cat /sys/fs/cgroup/"
        f"{'pids/' if V1 else ''}pids.max /data/file; touch /x 2>&1; "
        "echo err >&2; exit 42",
        runtime=runtime, user="app", hostname="web", cwd="/home", pids_max=33, read_only=True,
        mounts=(Mount(target="/data/file", source=f"{site.directory}/file", read_only=True),),
    )  # fmt: skip


async def test_signals_exec_limits_and_pause(site: Site, runtime):
    container = await site.start(
        "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done",
        runtime=runtime, memory_bytes=64 << 20,
    )  # fmt: skip
    status = await site.runtime.status(container)
    assert os.readlink(f"/proc/{status.pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    channel = await site.runtime.exec_start(
        container, "e", ExecConfig(args=("sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; exit 3"))
    )
    said = b"".join([data async for _, data in channel.output()])
    assert said.startswith(b"sh -c trap")
    assert (await site.runtime.exec_wait("e")).exit_code == 3
    await channel.close()
    assert (await site.runtime.stats(container)).memory_limit_bytes == 64 << 20
    await site.runtime.pause(container)
    await site.runtime.unpause(container)
    with pytest.raises(FailedPrecondition, match="already running"):
        await site.runtime.start(container)
    assert (await site.runtime.stop(container)).exit_code == 7
    await until(lambda: not _remains(site))
    await site.runtime.start(container)
    assert (await site.runtime.stop(container, 0)).exit_code == 137


async def test_what_cannot_run(site: Site, runtime):
    config = site.config("nosuch", runtime=runtime)
    await site.runtime.create(config)
    with pytest.raises(FailedPrecondition, match=r"(?i)not found"):
        await site.runtime.start(config.id)
    status = await site.runtime.status(config.id)
    assert (status.state, status.exit_code) == ("exited", 127)
    await until(lambda: not _remains(site))
    with pytest.raises(Unimplemented, match=f"domainname.*{runtime}"):
        await site.runtime.create(site.config("true", runtime=runtime, domainname="x"))


async def test_a_terminal_and_input(site: Site, runtime):
    config = site.config("sh", "-c", "tty; read x; stty size; exit 4", tty=True, runtime=runtime)
    await site.runtime.create(config)
    async with asyncio.timeout(2 * DEADLINE_S):
        channel = await site.runtime.attach(config.id, stdin=True, stdout=True, stderr=True)
        await site.runtime.start(config.id)
        await site.runtime.resize(config.id, TerminalSize(height=25, width=99))
        await channel.write(b"typed\n")
        said = b"".join([data async for _, data in channel.output()])
        assert (await site.runtime.wait(config.id)).exit_code == 4
        await channel.close()
    assert b"/dev/pts/0" in said
    assert b"25 99" in said


async def test_it_outlives_the_supervisor(site: Site, runtime):
    container = await site.start("sleep 0.5; echo done; exit 5", runtime=runtime)
    site.kill_hard("supervisor")
    async with asyncio.timeout(2 * DEADLINE_S):
        assert (await site.runtime.wait(container)).exit_code == 5
    await until(lambda: not _remains(site))


async def test_an_unknown_one_is_refused(site: Site):
    with pytest.raises(InvalidArgument, match="unknown or invalid runtime name: kata"):
        await site.runtime.create(site.config("true", runtime="kata"))
