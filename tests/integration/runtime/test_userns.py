"""Containers whose root is not the node's: ids, files, mounts, devices, exec, sharing, failures.

Goal: inside nothing differs but the maps; outside, no process, file handle or name of theirs is the
node's root, and what they store is stored with the ids they see.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import FailedPrecondition, InvalidArgument, Unimplemented
from tests.integration.runtime.site import Site, until
from worker.runtime.api import ContainerStatus, IdMap, IdRange, Mount, Ulimit
from worker.runtime.interactive import ExecConfig

pytestmark = pytest.mark.root

UID, GID = 700_000, 800_000
IDS = IdMap(uids=(IdRange(0, UID, 65536),), gids=(IdRange(0, GID, 65536),))


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory of the node's root, with a secret and something everybody may read."""
    with tempfile.TemporaryDirectory(prefix="shoal-userns-", dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "secret").write_text("secret")
        (directory / "secret").chmod(0o600)
        (directory / "public").write_text("public")
        yield directory


async def _run(site: Site, script: str, **fields: object) -> tuple[ContainerStatus, str]:
    fields.setdefault("userns", IDS)
    return await site.run(script, **fields)


async def test_root_inside_is_nobody_of_the_node(site: Site):
    container = await site.start("echo up; exec sleep 1000", userns=IDS)
    status = await site.runtime.status(container)
    found = os.stat(f"/proc/{status.pid}")
    assert (found.st_uid, found.st_gid) == (UID, GID)
    for kind in ("user", "mnt", "pid", "ipc", "uts", "net", "cgroup"):
        place = f"/proc/{status.pid}/ns/{kind}"
        assert os.stat(place).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino, kind
    assert Path(f"/proc/{status.pid}/uid_map").read_text().split() == ["0", str(UID), "65536"]
    assert Path(f"/proc/{status.pid}/gid_map").read_text().split() == ["0", str(GID), "65536"]
    groups = Path(f"/proc/{status.pid}/status").read_text()
    assert f"Groups:\t{GID}" in groups or "Groups:\t \n" in groups


async def test_two_containers_share_no_user_namespace(site: Site):
    pids = []
    for _ in range(2):
        container = await site.start("sleep 1000", userns=IDS)
        pids.append((await site.runtime.status(container)).pid)
    first, second = (os.stat(f"/proc/{pid}/ns/user").st_ino for pid in pids)
    assert first != second


async def test_files_are_stored_with_the_ids_of_the_container(site: Site):
    script = (
        "stat -c '%u %g' /bin /etc/hosts /dev/pts /dev/shm;"
        "mkdir /made; chown 1000:2000 /made; rm /bin/broken; echo x > /etc/hosts;"
        "stat -c '%u %g' /made"
    )
    status, text = await _run(site, script)
    assert (status.exit_code, text) == (0, "0 0\n" * 4 + "1000 2000\n")
    upper = site.runtime.upper_dir(status.id)
    made = os.stat(f"{upper}/made")
    assert (made.st_uid, made.st_gid) == (1000, 2000)
    assert os.stat(f"{upper}/bin").st_uid == 0
    again, text = await _run(site, "stat -c %u /made", userns=None)
    assert again.exit_code == 1  # another container: nothing of it is shared


async def test_the_same_container_runs_with_and_without_a_mapping(site: Site):
    script = "stat -c %u /made 2>/dev/null; touch /made; cat /proc/self/uid_map"
    config = site.config("sh", "-c", script, userns=IDS)
    await site.runtime.create(config)
    for ids, lines in ((IDS, [f"0 {UID} 65536"]), (None, ["0", "0 0 4294967295"]), (IDS, None)):
        fields = {name: getattr(config, name) for name in config.__struct_fields__}
        await site.runtime.configure(type(config)(**(fields | {"userns": ids})))
        await site.runtime.start(config.id)
        await site.runtime.wait(config.id)
        text = await site.output(config.id)
        if lines is not None:
            assert [" ".join(one.split()) for one in text.splitlines()][-len(lines) :] == lines
    assert text.splitlines()[-2] == "0"


async def test_binds_keep_the_nodes_ids_and_volumes_the_containers(site: Site, outside: Path):
    mounts = (
        Mount("/bind", source=str(outside)),
        Mount("/volume", source=str(outside), own_ids=True),
    )
    script = (
        "cat /bind/public; stat -c ' %u' /bind/secret; cat /bind/secret 2>&-; touch /bind/new 2>&-;"
        "cat /volume/secret; stat -c ' %u' /volume/secret; echo yes > /volume/made"
    )
    status, text = await _run(site, script, mounts=mounts)
    assert (status.exit_code, text.splitlines()[:2]) == (0, ["public 65534", "secret 0"]), text
    assert not (outside / "new").exists()
    assert (outside / "made").stat().st_uid == 0


async def test_devices_work_and_none_can_be_made(site: Site):
    script = (
        "echo x > /dev/null && head -c 4 /dev/urandom | wc -c;"
        "mknod /made c 1 3 2>&- || echo no; mknod /dev/made b 8 0 2>&- || echo no"
    )
    _, text = await _run(site, script, cap_add=("MKNOD",))
    assert text.split() == ["4", "no", "no"]


async def test_a_program_that_is_not_root(site: Site):
    script = "id -u; id -G; echo again > /dev/stdout; touch /no 2>&- || echo no"
    status, text = await _run(site, script, user="app")
    assert (status.exit_code, text) == (0, "1000\n1000 2000 2001\nagain\nno\n")


async def test_an_id_beyond_the_mapping_is_refused_by_name(site: Site):
    with pytest.raises(FailedPrecondition, match=r"70000.*is not mapped.*subuid"):
        await _run(site, "true", user="70000")


async def test_limits_and_sysctls(site: Site):
    script = (
        "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ping_group_range"
    )
    limits = (Ulimit("nofile", 90, 100),)
    _, text = await _run(site, script, ulimits=limits, oom_score_adj=77, pids_max=4)
    assert text.split() == ["90", "100", "77", "0", "65535"]


async def test_a_program_in_a_running_container(site: Site):
    container = await site.start("sleep 1000", userns=IDS)
    config = ExecConfig(args=("sh", "-c", "id -u; cat /proc/self/uid_map; touch /made"))
    channel = await site.runtime.exec_start(container, "one", config)
    try:
        pieces = [piece async for _, piece in channel.output()]
    finally:
        await channel.close()
    assert b"".join(pieces).split() == [b"0", b"0", str(UID).encode(), b"65536"]
    assert os.stat(f"{site.runtime.upper_dir(container)}/made").st_uid == 0


async def test_a_terminal(site: Site):
    status, text = await _run(site, "tty; stat -c %u /dev/console; test -t 0 && echo yes", tty=True)
    assert (status.exit_code, text.split()) == (0, ["/dev/pts/0", "0", "yes"])


async def test_programs_are_not_found_as_everywhere(site: Site):
    for args, code in ((("nothing",), 127), (("/bin/broken",), 126)):
        config = site.config(*args, userns=IDS)
        await site.runtime.create(config)
        with pytest.raises(FailedPrecondition, match="exec"):
            await site.runtime.start(config.id)
        assert (await site.runtime.status(config.id)).exit_code == code


async def test_namespaces_are_shared_within_one_user_namespace(site: Site):
    donor = await site.start("sleep 1000", userns=IDS, ipc_mode="shareable")
    pid = (await site.runtime.status(donor)).pid
    shared = {"pid_mode": f"container:{donor}", "ipc_mode": f"container:{donor}"}
    _, text = await _run(
        site, "ps | grep -c 'sleep 100[0]'; stat -Lc %i /proc/self/ns/user /proc/1/ns/user",
        netns_path=f"/proc/{pid}/ns/net", **shared,
    )  # fmt: skip
    count, first, second = text.split()
    assert (count, first) == ("1", second)


async def test_what_belongs_to_the_node_is_not_shared(site: Site):
    donor = await site.start("sleep 1000")
    pid = (await site.runtime.status(donor)).pid
    for fields in ({"pid_mode": f"container:{donor}"}, {"netns_path": f"/proc/{pid}/ns/net"}):
        with pytest.raises(FailedPrecondition, match=r"belongs to the node.*--userns host"):
            await _run(site, "true", **fields)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"privileged": True}, "privileged mode is incompatible with user namespaces"),
        ({"network": "host"}, "cannot share the host's network namespace"),
        ({"pid_mode": "host"}, "cannot share the host PID namespace"),
        ({"ipc_mode": "host"}, "cannot share the host IPC namespace"),
        ({"userns": IdMap(uids=(IdRange(0, 0, 9),), gids=IDS.gids)}, "must not be mapped"),
        ({"userns": IdMap(uids=(IdRange(1, 9, 9),), gids=IDS.gids)}, "0 must be mapped"),
    ],
)
async def test_what_needs_the_nodes_ids_is_refused(site: Site, fields: dict, refusal: str):
    with pytest.raises(InvalidArgument, match=refusal):
        await site.runtime.create(site.config("true", **({"userns": IDS} | fields)))


async def test_other_runtimes_are_refused_by_name(site: Site):
    with pytest.raises(Unimplemented, match="runtime crun"):
        await site.runtime.create(site.config("true", userns=IDS, runtime="crun"))


async def test_nothing_is_left_when_the_supervisor_dies_in_between(site: Site):
    """Killed again and again while containers start: each runs, or has ended with a reason."""
    for round_ in range(4):
        config = site.config("sleep", "1000", userns=IDS)
        await site.runtime.create(config)
        starting = asyncio.ensure_future(site.runtime.start(config.id))
        await asyncio.sleep(0.002 * round_)
        site.kill_hard("supervisor")
        await asyncio.gather(starting, return_exceptions=True)
        status = await site.runtime.status(config.id)
        if status.state == "running":
            assert os.stat(f"/proc/{status.pid}").st_uid == UID
            await site.runtime.kill(config.id, 9)
            await site.runtime.wait(config.id)
    text = Path("/proc/self/mountinfo").read_text()
    assert site.directory not in text

    def ended() -> bool:
        found = [p for p in os.listdir("/proc") if p.isdigit() and _uid_of(p) == UID]
        return not found

    await until(ended)


def _uid_of(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def test_a_kernel_without_user_namespaces_is_refused_at_the_start():
    """The sysctl is each user namespace's own, so none of the machine's is touched."""
    program = "from worker.runtime import remap; remap.read('nobody-here')"
    reasons = {0: "this kernel makes no user namespaces: set the sysctl", 9: "no user nobody-here"}
    for count, reason in reasons.items():
        script = f'echo {count} > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
        command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, sys.executable]
        ran = subprocess.run(
            [*command, program], capture_output=True, text=True, check=False, timeout=60
        )
        assert reason in ran.stderr
