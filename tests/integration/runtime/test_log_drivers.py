"""Log drivers under real containers: compressed files, syslog servers, the journal, nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.integration.runtime.site import Site, until
from worker.logs import drivers, reader
from worker.logs.api import LogDriver, LogSubject
from worker.logs.live import follow
from worker.runtime.api import Mount

pytestmark = pytest.mark.root
DEADLINE_S = 40.0


async def create(site: Site, script: str, name: str, **options: str) -> str:
    """A container with that driver, not started yet."""
    mounts = (Mount(target="/shared", source=site.directory),)
    config = site.config("sh", "-c", script, mounts=mounts)
    await site.runtime.create(config)
    given = {key.replace("_", "-"): value for key, value in options.items()}
    subject = LogSubject(id=config.id * 32, name="web", labels={"tier": "front"})
    write_conf(site, config.id, drivers.conf(LogDriver(name=name, options=given), subject))
    return config.id


def write_conf(site: Site, container: str, conf: dict[str, Any]) -> None:
    with open(f"{site.runtime.container_dir(container)}/log.conf", "w") as file:
        json.dump(conf, file)


async def run(site: Site, container: str) -> None:
    await site.runtime.start(container)
    async with asyncio.timeout(DEADLINE_S):
        await site.runtime.wait(container)
    end = f"{site.runtime.container_dir(container)}/log.end"
    await until(lambda: os.path.exists(end), DEADLINE_S)


async def numbers(site: Site, container: str, **fields: Any) -> list[int]:
    lines = reader.read(site.runtime.container_dir(container), **fields)
    return [int(line.text) async for line in lines]


class Server:
    """Keeps what it is sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.messages: list[bytes] = []
        self.stream = b""

    def receive(self) -> None:
        while True:
            try:
                data = self.sock.recv(1 << 18)
            except OSError:
                return
            if not data:
                return
            self.messages.append(data)

    def accept(self) -> None:
        try:
            connection, _ = self.sock.accept()
            with connection:
                while data := connection.recv(1 << 18):
                    self.stream += data
        except OSError:
            return


@contextmanager
def server(family: int, kind: int, address: Any) -> Iterator[Server]:
    sock = socket.socket(family, kind)
    sock.bind(address)
    made = Server(sock)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    serve = made.accept if kind == socket.SOCK_STREAM else made.receive
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        if kind == socket.SOCK_DGRAM:
            with suppress(OSError):  # of one without a peer it says so, and wakes the thread
                sock.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_S)
        sock.close()


async def test_old_files_are_compressed_and_read_as_before(site: Site):
    container = await create(
        site, "seq 1 20000", "json-file", max_size="64k", max_file="100", compress="true"
    )
    followed = asyncio.create_task(numbers(site, container, follow=True))
    await run(site, container)
    directory = f"{site.runtime.container_dir(container)}/logs"

    def compressed() -> bool:
        names = sorted(os.listdir(directory))
        return len(names) > 5 and all(name.endswith(".gz") for name in names[:-2])

    await until(compressed, DEADLINE_S)
    expected = list(range(1, 20001))
    assert await asyncio.wait_for(followed, DEADLINE_S) == expected
    assert await numbers(site, container) == expected
    assert await numbers(site, container, tail=9000) == expected[-9000:]


async def test_files_of_the_past_go_compressed_or_not(site: Site):
    container = await create(
        site, "seq 1 20000", "json-file", max_size="64k", max_file="3", compress="true"
    )
    await run(site, container)
    directory = f"{site.runtime.container_dir(container)}/logs"
    await until(lambda: len([n for n in os.listdir(directory) if n[0] != "."]) == 3, DEADLINE_S)
    found = await numbers(site, container)
    assert found == list(range(found[0], 20001))


async def test_attributes_stand_in_each_entry(site: Site):
    container = await create(site, "echo a", "json-file", labels="tier", tag="{{.Name}}")
    await run(site, container)
    path = f"{site.runtime.container_dir(container)}/logs/000001.json"
    with open(path) as file:
        entry = json.loads(file.read())
    assert list(entry) == ["log", "stream", "attrs", "time"]
    assert entry["attrs"] == {"tier": "front", "tag": "web"}
    assert await site.output(container) == "a\n"


async def test_none_keeps_nothing_but_can_be_followed(site: Site):
    container = await create(site, "echo a; echo b >&2; exit 3", "none")
    seen = []
    async with follow(f"{site.directory}/run", container) as copy:
        await run(site, container)
        seen = [chunk async for chunk in copy.chunks()]
    assert sorted(seen) == [(1, b"a\n"), (2, b"b\n")]
    directory = f"{site.runtime.container_dir(container)}/logs"
    assert sum(os.path.getsize(f"{directory}/{name}") for name in os.listdir(directory)) == 0


async def test_until(site: Site):
    container = await create(site, "seq 1 10; sleep 600", "json-file")
    await site.runtime.start(container)

    async def ready() -> bool:
        return len(await numbers(site, container)) == 10

    await until(ready, DEADLINE_S)
    lines = [x async for x in reader.read(site.runtime.container_dir(container))]
    until_ns = lines[6].time_ns
    assert await numbers(site, container, until_ns=until_ns) == list(range(1, 8))
    assert await numbers(site, container, until_ns=until_ns, follow=True) == list(range(1, 8))
    assert await numbers(site, container, until_ns=until_ns, tail=2) == [6, 7]
    soon_ns = lines[-1].time_ns + 10**9
    async with asyncio.timeout(DEADLINE_S):
        assert await numbers(site, container, until_ns=soon_ns, follow=True, tail=1) == [10]


@pytest.mark.parametrize(
    ("style", "pattern"),
    [
        ("", rb"<30>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d tag\[\d+\]: out \xff\n"),
        ("rfc3164", rb"<30>[A-Z][a-z]{2} [ \d]\d [\d:]{8} \S+ tag\[\d+\]: out \xff\n"),
        ("rfc5424", rb"<30>1 [\d-]{10}T[\d:]{8}Z \S+ tag \d+ tag - out \xff\n"),
        ("rfc5424micro", rb"<30>1 [\d-]{10}T[\d:]{8}\.\d{6}Z \S+ tag \d+ tag - out \xff\n"),
    ],
)
async def test_syslog_over_udp(site: Site, style: str, pattern: bytes):
    with server(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)) as there:
        port = there.sock.getsockname()[1]
        container = await create(
            site, "printf 'out \\377\\n'; echo err >&2", "syslog", tag="tag", syslog_format=style,
            syslog_address=f"udp://127.0.0.1:{port}",
        )  # fmt: skip
        await run(site, container)
        await until(lambda: len(there.messages) == 2, DEADLINE_S)
    out, err = sorted(there.messages, key=lambda one: one.endswith(b"err\n"))
    assert re.fullmatch(pattern, out), out
    assert err.startswith(b"<27>")
    assert sorted((await site.output(container)).splitlines()) == [
        "err",
        "out \N{REPLACEMENT CHARACTER}",
    ]


@pytest.mark.parametrize("network", ["tcp", "unix"])
async def test_syslog_over_streams_is_whole_and_in_order(site: Site, network: str):
    path = f"{site.directory}/syslog"
    family, where = (
        (socket.AF_INET, ("127.0.0.1", 0)) if network == "tcp" else (socket.AF_UNIX, path)
    )
    with server(family, socket.SOCK_STREAM, where) as there:
        address = f"unix://{path}"
        if network == "tcp":
            address = f"tcp://127.0.0.1:{there.sock.getsockname()[1]}"
        container = await create(
            site, "seq 1 30000", "syslog", syslog_address=address, cache_disabled="true"
        )
        await run(site, container)
        await until(lambda: there.stream.count(b"\n") == 30000, DEADLINE_S)
    assert [int(line.rpartition(b" ")[2]) for line in there.stream.splitlines()] == list(
        range(1, 30001)
    )


async def test_journal(site: Site):
    path = f"{site.directory}/journal"
    with server(socket.AF_UNIX, socket.SOCK_DGRAM, path) as there:
        container = await create(site, "echo out; printf err >&2", "journald", labels="tier")
        conf = drivers.conf(
            LogDriver(name="journald", options={"labels": "tier"}),
            LogSubject(id="a" * 64, name="web", labels={"tier": "front\nline"}),
        )
        conf["sink"]["address"] = path
        write_conf(site, container, conf)
        await run(site, container)
        await until(lambda: len(there.messages) == 2, DEADLINE_S)
    out, err = sorted(there.messages, key=lambda one: one.endswith(b"err\n"))
    assert b"CONTAINER_NAME=web\n" in out
    assert b"TIER\n" + (10).to_bytes(8, "little") + b"front\nline\n" in out
    assert out.endswith(b"PRIORITY=6\nMESSAGE=out\n")
    assert err.endswith(b"PRIORITY=3\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE=err\n")


async def test_server_that_takes_nothing_stops_nobody(site: Site):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{site.directory}/silent")
        silent.listen()
        address = f"unix://{site.directory}/silent"
        slow = await create(
            site, "seq 1 50000", "syslog", syslog_address=address, cache_max_size="100m"
        )
        await site.runtime.start(slow)
        _, output = await site.run("seq 1 2000")
        assert output.endswith("2000\n")
        async with asyncio.timeout(DEADLINE_S):
            await site.runtime.wait(slow)
    await until(lambda: "lines dropped: its server takes nothing" in site.runtime_log(), DEADLINE_S)
    assert await numbers(site, slow, tail=1) == [50000]


async def test_server_that_is_not_there_is_said_and_found_later(site: Site):
    path = f"{site.directory}/late"
    container = await create(
        site, "echo lost; while [ ! -e /shared/go ]; do sleep 0.1; done; sleep 1.2; echo kept",
        "syslog", syslog_address=f"unixgram://{path}",
    )  # fmt: skip
    await site.runtime.start(container)
    await until(lambda: "lines dropped: No such file" in site.runtime_log(), DEADLINE_S)
    with server(socket.AF_UNIX, socket.SOCK_DGRAM, path) as there:
        os.close(os.open(f"{site.directory}/go", os.O_CREAT | os.O_WRONLY))
        site.kill_hard("logger")
        await until(lambda: len(there.messages) == 1, DEADLINE_S)
    assert there.messages[0].endswith(b": kept\n")
    await site.runtime.wait(container)
    assert await site.output(container) == "lost\nkept\n"
