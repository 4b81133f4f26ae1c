"""Namespaces shared with the node or with another container, and what a container is called."""

from __future__ import annotations

import os

import pytest

from shoal.errors import FailedPrecondition, InvalidArgument, Unimplemented
from tests.integration.runtime.site import Site, until
from worker.runtime.interactive import ExecConfig
from worker.runtime.lean.cgroups import read

pytestmark = pytest.mark.root


def _own(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")


async def _of(site: Site, container: str, kind: str) -> str:
    return os.readlink(f"/proc/{(await site.runtime.status(container)).pid}/ns/{kind}")


async def test_namespaces_of_the_node(site: Site):
    kinds = ("pid", "ipc", "uts", "cgroup", "net")
    _, output = await site.run(
        "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds),
        pid_mode="host", ipc_mode="host", uts_mode="host", cgroup_mode="host", network="host",
    )  # fmt: skip
    assert output.split() == [_own(kind) for kind in kinds]


async def test_what_the_node_shows_in_them(site: Site):
    _, output = await site.run(
        "hostname; stat -c %d:%i /dev/shm; ls -d /proc/$PPID; cat /proc/self/cgroup",
        pid_mode="host", ipc_mode="host", uts_mode="host", cgroup_mode="host",
    )  # fmt: skip
    name, shm, parent, *groups = output.splitlines()
    status = os.stat("/dev/shm")
    assert name == os.uname().nodename
    assert shm == f"{status.st_dev}:{status.st_ino}"
    assert parent == f"/proc/{site.pid_of('supervisor')}"
    assert any(line.endswith(f":pids:{site.cgroup_parent}/c1") for line in groups)


async def test_all_processes_end_with_the_first_one(site: Site):
    container = await site.start("sleep 1000 & sleep 1000 & wait", pid_mode="host")

    async def three() -> bool:
        return len(await site.runtime.processes(container)) == 3

    await until(three)
    pids = await site.runtime.processes(container)
    await site.runtime.stop(container, 0)
    await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    await until(lambda: not site.cgroups_left())
    await until(lambda: not os.listdir(f"{site.directory}/state/exits"))


async def test_namespaces_of_another_container(site: Site):
    donor = await site.start("echo shared >/dev/shm/file; sleep 1000", ipc_mode="shareable")
    mode = f"container:{donor}"
    script = (
        "until cat /dev/shm/file 2>/dev/null; do sleep 0.01; done; echo back >/dev/shm/answer; "
        "for kind in pid ipc uts; do readlink /proc/self/ns/$kind; done; ps -o args | grep -c 1000"
    )
    _, output = await site.run(script, pid_mode=mode, ipc_mode=mode)
    text, pids, ipc, uts, seen = output.splitlines()
    assert text == "shared"
    assert pids == await _of(site, donor, "pid")
    assert ipc == await _of(site, donor, "ipc")
    assert uts != await _of(site, donor, "uts")
    assert int(seen) >= 1
    channel = await site.runtime.exec_start(donor, "x", ExecConfig(args=("cat", "/dev/shm/answer")))
    assert [data async for _, data in channel.output()] == [b"back\n"]
    await channel.close()


async def test_a_donor_must_run_and_share(site: Site):
    private = await site.start("sleep 1000")
    for fields, reason in (
        ({"ipc_mode": f"container:{private}"}, "non-shareable IPC"),
        ({"pid_mode": "container:nosuch"}, "cannot join PID of a non running container: nosuch"),
    ):
        config = site.config("true", **fields)
        await site.runtime.create(config)
        with pytest.raises(FailedPrecondition, match=reason):
            await site.runtime.start(config.id)
    await until(lambda: [g.split("/")[-2] for g in site.cgroups_left() if "c1" not in g] == [])


async def test_no_shared_memory(site: Site):
    _, output = await site.run("grep -c /dev/shm /proc/mounts; readlink /proc/self/ns/ipc",
                               ipc_mode="none")  # fmt: skip
    count, ipc = output.split()
    assert count == "0"
    assert ipc != _own("ipc")


async def test_no_network(site: Site):
    script = "ip -o link | cut -d: -f2; ping -c1 -W2 127.0.0.1 >/dev/null && echo up"
    _, output = await site.run(script, network="none")
    assert output.split() == ["lo", "up"]


async def test_an_init_reaps_and_passes_signals_on(site: Site):
    script = (
        "trap 'exit 9' TERM; (sleep 0.1 &); echo $$; cat /proc/1/comm; while :; do sleep 0.05; done"
    )
    try:
        container = await site.start(script, init=True)
    except Unimplemented as error:
        pytest.skip(str(error))

    async def alone() -> bool:
        said = (await site.output(container)).split()
        processes = await site.runtime.processes(container)
        states = [read(f"/proc/{pid}/stat").split()[2] for pid in processes]
        return len(said) == 2 and "Z" not in states

    await until(alone)
    number, name = (await site.output(container)).split()
    assert number != "1"
    assert name == "docker-init"
    assert (await site.runtime.stop(container)).exit_code == 9
    with pytest.raises(InvalidArgument, match="not a static program"):
        await site.runtime.create(site.config("true", init=True, init_path="/etc/passwd"))


async def test_names(site: Site):
    _, output = await site.run(
        "hostname; cat /proc/sys/kernel/domainname", hostname="web", domainname="example.com"
    )
    assert output.split() == ["web", "example.com"]
