"""Attaching to containers: their own streams, with and without a terminal."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from shoal.errors import FailedPrecondition, NotFound
from tests.integration.runtime.site import DEADLINE_S, Site, until
from worker.runtime import launch
from worker.runtime.interactive import Channel, TerminalSize

pytestmark = pytest.mark.root
ALL: dict[str, Any] = {"stdin": True, "stdout": True, "stderr": True}


async def _create(site: Site, script: str, **fields: Any) -> str:
    config = site.config("sh", "-c", script, **fields)
    await site.runtime.create(config)
    return config.id


async def _collect(channel: Channel) -> tuple[str, str]:
    streams = {1: b"", 2: b""}
    async for number, data in channel.output():
        streams[number] += data
    return streams[1].decode(), streams[2].decode()


async def _said(channel: Channel, text: str) -> str:
    said = ""
    async for _, data in channel.output():
        said += data.decode()
        if text in said:
            return said
    raise AssertionError(f"ended without {text!r}: {said!r}")


async def test_attached_before_the_start_nothing_is_lost(site: Site):
    container = await _create(site, "echo out; echo err >&2; printf unfinished")
    async with asyncio.timeout(2 * DEADLINE_S):
        channel = await site.runtime.attach(container, **ALL)
        await site.runtime.start(container)
        assert await _collect(channel) == ("out\nunfinished", "err\n")
        with pytest.raises(FailedPrecondition, match="standard input is not open"):
            await channel.write(b"x")
        await channel.close()
        await site.runtime.wait(container)
        again = await site.runtime.attach(container, stdin=False, stdout=False, stderr=True)
        await site.runtime.start(container)
        assert await _collect(again) == ("", "err\n")
        await again.close()
    with pytest.raises(NotFound):
        await site.runtime.attach("nosuch", **ALL)


async def test_input_that_ends_once(site: Site):
    container = await _create(site, "cat; echo end", open_stdin=True, stdin_once=True)
    async with asyncio.timeout(2 * DEADLINE_S):
        for word in ("first", "second"):
            channel = await site.runtime.attach(container, **ALL)
            await channel.write(f"{word} before\n".encode())
            await site.runtime.start(container)
            await channel.write(f"{word} after\n".encode())
            await channel.close_stdin()
            assert await _collect(channel) == (f"{word} before\n{word} after\nend\n", "")
            assert (await site.runtime.wait(container)).exit_code == 0
            await channel.close()


async def test_input_that_stays_open(site: Site):
    script = "while read line; do echo got $line; done; echo end"
    container = await _create(site, script, open_stdin=True)
    await site.runtime.start(container)
    async with asyncio.timeout(2 * DEADLINE_S):
        for word in ("one", "two"):
            channel = await site.runtime.attach(container, **ALL)
            await channel.write(f"{word}\n".encode())
            await _said(channel, f"got {word}\n")
            await channel.close_stdin()
            await channel.close()
        assert (await site.runtime.status(container)).state == "running"
    assert await site.output(container) == "got one\ngot two\n"


@pytest.mark.parametrize("victims", [("supervisor",), ("keeper",), ("keeper", "supervisor")])
async def test_input_survives_the_small_processes(site: Site, victims):
    once = victims != ("keeper", "supervisor")  # nobody is left then to hold what is to end
    script = "while read line; do echo got $line; done; echo end"
    container = await _create(site, script, open_stdin=True, stdin_once=once)
    await site.runtime.start(container)
    await _replace(site, *victims)
    async with asyncio.timeout(2 * DEADLINE_S):
        channel = await site.runtime.attach(container, **ALL)
        await channel.write(b"line\n")
        await _said(channel, "got line\n")
        await channel.close_stdin()
        if once:
            await _said(channel, "end\n")
            assert (await site.runtime.wait(container)).exit_code == 0
        await channel.close()


async def test_a_terminal(site: Site):
    script = "tty; ls -l /dev/console | cut -c1; read x; stty size; echo $TERM; exit 4"
    container = await _create(site, script, tty=True, open_stdin=True, env=("TERM=xterm",))
    async with asyncio.timeout(2 * DEADLINE_S):
        channel = await site.runtime.attach(container, **ALL)
        assert channel.tty
        await site.runtime.start(container)
        await site.runtime.resize(container, TerminalSize(height=25, width=99))
        await channel.write(b"typed\n")
        out, err = await _collect(channel)
        assert (await site.runtime.wait(container)).exit_code == 4
        await channel.close()
    assert err == ""
    assert sorted(out.split()) == sorted(["/dev/pts/0", "c", "typed", "25", "99", "xterm"])
    assert await site.output(container) == out
    with pytest.raises(FailedPrecondition, match="not running"):
        await site.runtime.resize(container, TerminalSize(height=1, width=1))
    await until(lambda: not _terminals(site))


async def test_a_terminal_that_is_interrupted(site: Site):
    container = await _create(site, "trap 'echo INT; exit 8' INT; echo ready; cat", tty=True)
    await site.runtime.start(container)
    async with asyncio.timeout(2 * DEADLINE_S):
        await until(lambda: _has(site, container, "ready"))
        channel = await site.runtime.attach(container, **ALL)
        await channel.write(b"hello\n")
        await _said(channel, "hello\r\nhello")  # typed, and said again: `cat` is there
        await channel.write(b"\x03")
        assert (await site.runtime.wait(container)).exit_code == 8
        await channel.close()
    await until(lambda: _has(site, container, "INT"))


@pytest.mark.parametrize("victims", [("supervisor",), ("keeper",), ("logger",)])
async def test_a_terminal_survives_the_small_processes(site: Site, victims):
    container = await _create(site, "while read line; do echo got $line; done", tty=True)
    await site.runtime.start(container)
    await _replace(site, *victims)
    async with asyncio.timeout(2 * DEADLINE_S):
        channel = await site.runtime.attach(container, **ALL)
        await channel.write(b"one\n")
        await _said(channel, "got one")
        await channel.close()
        await site.runtime.resize(container, TerminalSize(height=5, width=6))
        await site.runtime.stop(container, 0)
    await until(lambda: _has(site, container, "got one"))


async def test_much_output_of_a_terminal_is_whole(site: Site):
    script = "i=0; while [ $i -lt 4000 ]; do echo $i 01234567890123456789; i=$((i+1)); done"
    container = await _create(site, script, tty=True)
    async with asyncio.timeout(3 * DEADLINE_S):
        channel = await site.runtime.attach(container, **ALL)
        await site.runtime.start(container)
        out, _ = await _collect(channel)
        await channel.close()
    wanted = "".join(f"{i} 01234567890123456789\r\n" for i in range(4000))
    assert out == wanted
    await until(lambda: _has(site, container, "3999 01234567890123456789"))
    assert await site.output(container) == wanted


async def test_no_terminal_to_resize(site: Site):
    container = await site.start("sleep 1000")
    with pytest.raises(FailedPrecondition, match="has no terminal"):
        await site.runtime.resize(container, TerminalSize(height=1, width=1))


async def _replace(site: Site, *victims: str) -> None:
    """Kill them, and wait until others are in their place: with the keeper everything changes."""
    parts = ("keeper", "supervisor", "logger") if "keeper" in victims else victims
    before = {part: site.pid_of(part) for part in parts}
    site.kill_hard(*victims)
    await site.runtime.ensure_running()

    def replaced() -> bool:
        pids = {part: launch.recorded_pid(f"{site.directory}/run", part) for part in parts}
        return all(pid not in {0, before[part]} for part, pid in pids.items())

    await until(replaced)


async def _has(site: Site, container: str, text: str) -> bool:
    return text in await site.output(container)


def _terminals(site: Site) -> list[str]:
    """Masters some process of ours has open."""
    links = []
    for part in ("keeper", "supervisor"):
        for entry in os.scandir(f"/proc/{site.pid_of(part)}/fd"):
            try:
                links.append(os.readlink(entry.path))
            except FileNotFoundError:
                continue
    return [link for link in links if "ptmx" in link]
