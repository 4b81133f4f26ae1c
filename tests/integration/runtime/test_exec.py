"""Further processes in running containers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from shoal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tests.integration.runtime.site import DEADLINE_S, Site, is_alive, until
from worker.runtime.interactive import Channel, ExecConfig, ExecStatus, TerminalSize

pytestmark = pytest.mark.root
KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")


async def run(site: Site, container: str, *args: str, stdin: bytes = b"", **fields: Any) -> Any:
    """Status, output and errors of one process."""
    exec_id = os.urandom(8).hex()
    config = ExecConfig(args=args, stdin=bool(stdin), **fields)
    async with asyncio.timeout(2 * DEADLINE_S):
        channel = await site.runtime.exec_start(container, exec_id, config)
        try:
            reading = asyncio.create_task(collect(channel))
            if stdin:
                await channel.write(stdin)
                await channel.close_stdin()
            out, err = await reading
            status = await site.runtime.exec_wait(exec_id)
        finally:
            await channel.close()
    return status, out, err


async def collect(channel: Channel) -> tuple[str, str]:
    streams = {1: b"", 2: b""}
    async for number, data in channel.output():
        streams[number] += data
    return streams[1].decode(), streams[2].decode()


async def test_output_errors_and_exit_code(site: Site):
    container = await site.start("sleep 1000")
    status, out, err = await run(site, container, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (status.exit_code, status.error, out, err) == (7, "", "out\n", "err\n")
    assert (await site.runtime.exec_status(status.id)) == status
    with pytest.raises(NotFound):
        await site.runtime.exec_status("nosuch")
    assert await site.output(container) == ""  # not the container's own output


async def test_input_reaches_it_and_ends(site: Site):
    container = await site.start("sleep 1000")
    data = os.urandom(150_000).hex().encode()
    status, out, _ = await run(site, container, "cat", stdin=data)
    assert status.exit_code == 0
    assert out.encode() == data


async def test_it_is_inside_all_of_the_container(site: Site):
    container = await site.start("sleep 1000", memory_bytes=64 << 20, cap_drop=("CHOWN",))
    script = "; ".join(
        [f"readlink /proc/self/ns/{k}" for k in KINDS]
        + ["cat /proc/self/cgroup", "grep -E '^(Cap|NoNew|Seccomp:|Umask)' /proc/self/status"]
    )
    _, inside, _ = await run(site, container, "sh", "-c", script)
    pid = (await site.runtime.status(container)).pid
    own = "".join(os.readlink(f"/proc/{pid}/ns/{kind}") + "\n" for kind in KINDS)
    assert inside.startswith(own)
    _, processes, _ = await run(site, container, "ps", "-o", "pid,args")
    assert "sleep 1000" in processes
    lines = dict(line.split(":\t", 1) for line in inside.splitlines() if ":\t" in line)
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    assert lines == {name: status[name] for name in lines}
    assert {"CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Umask"} <= set(lines)
    for line in inside.splitlines():
        if line.count(":") == 2 and ":memory:" in line:
            assert line.endswith(":/")  # the container's own group


async def test_user_groups_directory_and_environment(site: Site):
    container = await site.start("sleep 1000", env=("A=1", "B=2"), cwd="/var/data")
    script = 'id -u; id -g; grep Groups /proc/self/status; pwd; echo $A $B $C "$HOME"; echo x >&2'
    _, out, err = await run(
        site, container, "sh", "-c", script + "; echo y >/dev/stderr",
        user="app", groups=("77",), env=("B=3", "C=4"),
    )  # fmt: skip
    assert out.split() == [
        "1000", "1000", "Groups:", "77", "1000", "2000", "2001", "/var/data", "1", "3", "4",
        "/home/app",
    ]  # fmt: skip
    assert err == "x\ny\n"
    _, out, _ = await run(site, container, "pwd", cwd="/tmp")
    assert out == "/tmp\n"


async def test_privileged_has_every_capability_of_the_node(site: Site):
    container = await site.start("sleep 1000")
    _, out, _ = await run(site, container, "grep", "CapEff", "/proc/self/status", privileged=True)
    with open("/proc/self/status") as file:
        own = next(line for line in file if line.startswith("CapBnd"))
    assert out.split()[1] == own.split()[1]


CANNOT_RUN = [
        (("nosuch",), {}, 127, 'exec: "nosuch": executable file not found in $PATH'),
        (("/nosuch",), {}, 127, 'exec: "/nosuch": stat /nosuch: no such file or directory'),
        (("/bin/broken",), {}, 126, 'exec: "/bin/broken": permission denied'),
        (("/etc",), {}, 126, 'exec: "/etc": is a directory'),
        (("true",), {"user": "who"}, 126, "unable to find user who: no matching entries in"),
        (
            ("true",), {"cwd": "/nosuch"}, 127,
            'chdir to cwd ("/nosuch") set in config.json failed: no such file or directory',
        ),
]  # fmt: skip


async def test_programs_that_cannot_run(site: Site):
    container = await site.start("sleep 1000")
    for args, fields, code, reason in CANNOT_RUN:
        status, out, err = await run(site, container, *args, **fields)
        assert (status.exit_code, out, err) == (code, "", "")
        assert status.error.startswith(reason)


async def test_a_terminal(site: Site):
    container = await site.start("sleep 1000")
    size = TerminalSize(height=33, width=111)
    config = ExecConfig(args=("sh",), tty=True, stdin=True, size=size)
    channel = await site.runtime.exec_start(container, "terminal", config)
    async with asyncio.timeout(2 * DEADLINE_S):
        assert channel.tty
        await channel.write(b"tty; stty size; echo $TERM; read x; stty size; exit 3\n")
        seen = await _until_said(channel, "xterm")
        assert "/dev/pts/0" in seen
        assert "33 111" in seen
        await site.runtime.exec_resize("terminal", TerminalSize(height=20, width=50))
        await channel.write(b"\n")
        rest, _ = await collect(channel)
        assert "20 50" in rest
        assert (await site.runtime.exec_wait("terminal")).exit_code == 3
    await channel.close()
    with pytest.raises(FailedPrecondition, match="no running terminal"):
        await site.runtime.exec_resize("terminal", size)


async def _until_said(channel: Channel, text: str) -> str:
    said = ""
    async for _, data in channel.output():
        said += data.decode()
        if text in said.replace("echo $TERM", ""):
            return said
    raise AssertionError(said)


async def test_interrupt_from_the_terminal(site: Site):
    container = await site.start("sleep 1000")
    config = ExecConfig(args=("sleep", "1000"), tty=True, stdin=True)
    channel = await site.runtime.exec_start(container, "interrupted", config)
    async with asyncio.timeout(DEADLINE_S):
        await channel.write(b"\x03")
        assert (await site.runtime.exec_wait("interrupted")).exit_code == 130
    await channel.close()


async def test_letting_go_does_not_end_it(site: Site):
    container = await site.start("sleep 1000")
    script = "i=0; while [ $i -lt 3000 ]; do echo $i 0123456789012345678901234567890; i=$((i+1)); "
    for tty in (False, True):
        config = ExecConfig(args=("sh", "-c", script + "done; exit 5"), tty=tty)
        channel = await site.runtime.exec_start(container, f"left{tty}", config)
        await channel.close()
        async with asyncio.timeout(2 * DEADLINE_S):
            assert (await site.runtime.exec_wait(f"left{tty}")).exit_code == 5


async def test_closing_ends_what_waits_for_it(site: Site):
    container = await site.start("sleep 1000")
    config = ExecConfig(args=("sleep", "1000"), stdin=True)
    channel = await site.runtime.exec_start(container, "waiting", config)
    reading = asyncio.create_task(collect(channel))
    writing = asyncio.create_task(channel.write(b"x" * 200_000))  # more than the pipe takes
    await asyncio.sleep(0.05)
    assert not reading.done()
    assert not writing.done()
    await channel.close()
    async with asyncio.timeout(DEADLINE_S):
        assert await reading == ("", "")
        await writing
    assert (await site.runtime.exec_status("waiting")).exit_code is None


async def test_requests_that_make_no_sense(site: Site):
    container = await site.start("sleep 1000")
    true = ExecConfig(args=("true",))
    channel = await site.runtime.exec_start(container, "once", true)
    await channel.close()
    await site.runtime.exec_wait("once")
    with pytest.raises(AlreadyExists):
        await site.runtime.exec_start(container, "once", true)
    with pytest.raises(FailedPrecondition, match="standard input is not open"):
        await channel.write(b"x")
    with pytest.raises(InvalidArgument, match="no exec command"):
        await site.runtime.exec_start(container, "x", ExecConfig(args=()))
    with pytest.raises(InvalidArgument, match="exec id"):
        await site.runtime.exec_start(container, "../x", true)
    await site.runtime.pause(container)
    with pytest.raises(FailedPrecondition, match="paused"):
        await site.runtime.exec_start(container, "paused", true)
    await site.runtime.stop(container, 0)
    with pytest.raises(FailedPrecondition, match="not running"):
        await site.runtime.exec_start(container, "late", true)


async def test_the_end_of_the_container_ends_it(site: Site):
    container = await site.start("sleep 1000")
    channel = await site.runtime.exec_start(container, "e", ExecConfig(args=("sleep", "1000")))
    pid = (await site.runtime.exec_status("e")).pid
    assert is_alive(pid)
    await site.runtime.stop(container, 0)
    async with asyncio.timeout(DEADLINE_S):
        assert (await site.runtime.exec_wait("e")).exit_code == 137
        assert await collect(channel) == ("", "")
    await channel.close()
    await site.runtime.remove(container)
    with pytest.raises(NotFound):
        await site.runtime.exec_wait("e")


async def test_it_outlives_a_supervisor(site: Site):
    container = await site.start("sleep 1000")
    script = "read x; echo $x; exit 9"
    config = ExecConfig(args=("sh", "-c", script), stdin=True)
    channel = await site.runtime.exec_start(container, "survivor", config)
    waiting = asyncio.create_task(site.runtime.exec_wait("survivor"))
    site.kill_hard("supervisor")
    async with asyncio.timeout(2 * DEADLINE_S):
        await until(lambda: _answers(site))
        await channel.write(b"back\n")
        status: ExecStatus = await waiting
    assert (status.exit_code, status.error) == (9, "")
    assert await collect(channel) == ("back\n", "")
    await channel.close()


async def _answers(site: Site) -> bool:
    return (await site.runtime.exec_status("survivor")).exit_code is None


async def test_many_leave_nothing_behind(site: Site):
    rounds = int(os.environ.get("SHOAL_EXEC_ROUNDS", "60"))
    container = await site.start("echo up; sleep 1000")

    async def up() -> bool:
        return await site.output(container) == "up\n"

    await until(up)  # the logger has opened all it needs
    await run(site, container, "true")
    before = _resources(site)
    for number in range(rounds):
        status, out, _ = await run(site, container, "echo", "x", tty=number % 2 == 1)
        assert status.exit_code == 0
        assert out.strip() == "x"
    # Not more: what the first one held for a moment may have been counted.
    try:
        await until(lambda: all(n <= before[name] for name, n in _resources(site).items()), 10)
    except TimeoutError:
        raise AssertionError(f"{before} have become {_resources(site)}") from None
    assert await site.runtime.processes(container) == ((await site.runtime.status(container)).pid,)
    records = os.listdir(f"{site.runtime.container_dir(container)}/execs")
    assert len(records) <= 256


def _resources(site: Site) -> dict[str, int]:
    pids = {part: site.pid_of(part) for part in ("keeper", "supervisor", "logger")}
    fds = {part: len(os.listdir(f"/proc/{pid}/fd")) for part, pid in pids.items()}
    with open(f"/proc/{pids['supervisor']}/task/{pids['supervisor']}/children") as file:
        return fds | {"children": len(file.read().split()), "own": len(os.listdir("/proc/self/fd"))}
