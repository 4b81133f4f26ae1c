"""The HTTP core over real sockets: errors, streams, hijacked connections, TLS."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import msgspec
import pytest

from engine.http.call import Call, empty, json_answer, taken
from engine.http.errors import Refused
from engine.http.hijack import HELD_BACK_S, INPUT_BYTES_MAX
from engine.http.routing import Route
from shoal.errors import InvariantViolation, NotFound, violated
from tests.integration.engine.core import (
    DEADLINE_S,
    TlsClient,
    dechunk,
    frames,
    read_head,
    request,
    serving,
    write_certificates,
)

pytestmark = pytest.mark.root
JSON = {"Content_Type": "application/json"}
UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}


class Box(msgspec.Struct, rename="pascal"):
    name: str
    count: int = 1


class Probe:
    """Handlers that tell what became of them."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.wires = 0

    def routes(self):
        return [
            Route("POST", "/box", self.box),
            Route("POST", "/optional", self.optional),
            Route("GET", "/bug", self.bug),
            Route("GET", "/broken", self.broken),
            Route("GET", "/missing/{name:path}/json", self.missing),
            Route("GET", "/nothing", self.nothing),
            Route("POST", "/change", self.change),
            Route("GET", "/follow", self.follow, follows_client=True),
            Route("POST", "/progress", self.progress, follows_client=True),
            Route("POST", "/upload", self.upload, follows_client=True),
            Route("POST", "/echo", self.echo, follows_client=True),
            Route("POST", "/flood", self.flood, follows_client=True),
        ]

    async def box(self, call: Call):
        box = await call.body(Box)
        return json_answer({"Name": box.name, "Count": box.count, "V": str(call.version)}, 201)

    async def optional(self, call: Call):
        return json_answer(await call.body(dict, optional=True))

    async def bug(self, call: Call):
        raise ZeroDivisionError(call)

    async def broken(self, call: Call):
        violated("a test breaks it", call=call)

    async def missing(self, call: Call):
        raise NotFound(f"No such image: {call.path['name']}")

    async def nothing(self, call: Call):
        raise Refused(304)

    async def change(self, call: Call):
        self.begun.set()
        await self.go.wait()
        self.changed.set()
        return empty(204)

    async def follow(self, call: Call):
        try:
            async with call.stream("text/plain") as out:
                self.begun.set()
                await self.go.wait()
                await out.write(b"first")
                if call.query.flag("fail"):
                    raise NotFound("too late for a status")
            return out.answer
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def progress(self, call: Call):
        async with call.progress() as out:
            if call.query.text("fail") == "before":
                raise NotFound("manifest unknown")
            for number in range(2):
                await out.put({"status": f"step {number}"})
            if call.query.text("fail") == "after":
                raise NotFound("layer gone", code=7)
            if call.query.text("fail") == "bug":
                raise ZeroDivisionError
        return out.answer

    async def upload(self, call: Call):
        size = 0
        async for chunk in call.chunks():
            size += len(chunk)
        return json_answer(size)

    async def echo(self, call: Call):
        """Upper case on 1 until the client's end, then its length on 2."""
        tty, size = call.query.flag("tty"), 0
        if call.has_body:
            await call.body(dict)
        async with call.hijack(tty=tty) as wire:
            self.wires += 1
            try:
                async for data in wire.input():
                    size += len(data)
                    await wire.output(1, data.upper())
                await self.go.wait()
                await wire.output(2, str(size).encode())
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            finally:
                self.wires -= 1
        return taken()

    async def flood(self, call: Call):
        """Reads nothing until told, then counts."""
        async with call.hijack(tty=True) as wire:
            await self.go.wait()
            size = 0
            async for data in wire.input():
                size += len(data)
            await wire.output(1, str(size).encode())
        return taken()


async def until(event: asyncio.Event) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await event.wait()


async def test_the_socket_is_for_root_and_its_group():
    async with serving(Probe().routes()) as served:
        found = os.stat(served.path)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_uid == 0


async def test_answers_carry_dockers_headers_with_and_without_version():
    async with serving(Probe().routes()) as served:
        for prefix, version in (("", "1.45"), ("/v1.24", "1.24"), ("/v1.45", "1.45")):
            status, headers, body = await served.ask(
                "POST", f"{prefix}/box", b'{"name": "x", "COUNT": 2}', **JSON
            )
            assert (status, json.loads(body)) == (201, {"Name": "x", "Count": 2, "V": version})
            assert headers["api-version"] == "1.45"
            assert headers["ostype"] == "linux"
            assert headers["docker-experimental"] == "false"
            assert headers["server"] == "Shoal/test (linux)"
            assert headers["content-type"] == "application/json"


async def test_errors_in_dockers_words():
    async with serving(Probe().routes()) as served:
        ask = served.message
        assert await ask("GET", "/nosuch") == (404, "page not found")
        assert await ask("PUT", "/v1.41/box") == (404, "page not found")
        assert await ask("GET", "/v1.99/nosuch") == (404, "page not found")
        assert await ask("GET", "/v1.99/bug") == (
            400, "client version 1.99 is too new. Maximum supported API version is 1.45",
        )  # fmt: skip
        assert await ask("GET", "/missing/127.0.0.1:5000/lib/bb:v1/json") == (
            404, "No such image: 127.0.0.1:5000/lib/bb:v1",
        )  # fmt: skip
        status, headers, body = await served.ask("GET", "/v1.5/bug")
        assert (status, headers["content-type"]) == (400, "text/plain; charset=utf-8")
        assert body.decode() == (
            "client version 1.5 is too old. Minimum supported API version is 1.24,"
            " please upgrade your client to a newer version\n"
        )
        status, headers, body = await served.ask("GET", "/nothing")
        assert (status, body) == (304, b"")
        status, headers, body = await served.ask("OPTIONS", "/box")
        assert (status, headers["content-length"]) == (200, "0")
        status, headers, body = await served.ask("GET", "//missing//a/json?x=%2F")
        assert (status, headers["location"]) == (301, "/missing/a/json?x=%2F")
        status, headers, _ = await served.ask("HEAD", "/bug")
        assert (status, headers["content-length"]) == (404, "29")


async def test_bodies_that_are_wrong():
    async with serving(Probe().routes()) as served:

        async def post(body: bytes, kind: str = "application/json"):
            headers = {"Content_Type": kind} if kind else {}
            return await served.message("POST", "/box", body, **headers)

        assert await post(b"{bad") == (
            500, "invalid character 'b' looking for beginning of object key string",
        )  # fmt: skip
        wrong = "Content-Type specified ({}) must be 'application/json'"
        assert await post(b"{}", "text/plain") == (400, wrong.format("text/plain"))
        assert await post(b"{}", "") == (400, wrong.format(""))
        assert await post(b"", "") == (500, "EOF")
        assert (await post(b'{"Count": 1}'))[0] == 400
        assert (await post(b'"' + b"x" * (9 << 20) + b'"'))[0] == 413
        status, _, body = await served.ask("POST", "/optional", Content_Type="text/plain")
        assert (status, body) == (200, b"{}\n")


async def test_a_bug_fails_one_call_and_a_broken_invariant_is_told():
    async with serving(Probe().routes()) as served:
        status, message = await served.message("GET", "/bug")
        assert status == 500
        assert message.startswith("internal error")
        status, _ = await served.message("GET", "/broken")
        assert status == 500
        with pytest.raises(InvariantViolation):
            async with asyncio.timeout(DEADLINE_S):
                await served.dispatcher.wait_broken()


async def test_a_change_outlives_its_client():
    probe = Probe()
    async with serving(probe.routes()) as served:
        _, writer = await served.connect()
        writer.write(request("POST", "/change"))
        await until(probe.begun)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)
        probe.go.set()
        await until(probe.changed)


async def test_a_change_ends_before_the_core_does():
    probe = Probe()
    async with serving(probe.routes()) as served:
        _, writer = await served.connect()
        writer.write(request("POST", "/change"))
        await until(probe.begun)
        asyncio.get_running_loop().call_later(0.2, probe.go.set)
    assert probe.changed.is_set()
    writer.close()


async def test_a_stream_sends_its_head_at_once_and_ends_with_its_client():
    probe = Probe()
    async with serving(probe.routes()) as served:
        reader, writer = await served.connect()
        writer.write(request("GET", "/follow"))
        status, headers = await read_head(reader)  # before anything is written
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        writer.close()
        await until(probe.cancelled)


async def test_a_stream_that_fails_is_cut_so_that_the_client_knows():
    probe = Probe()
    probe.go.set()
    async with serving(probe.routes()) as served:
        status, _, body = await served.ask("GET", "/follow")
        assert (status, body) == (200, b"first")
        reader, writer = await served.connect()
        writer.write(request("GET", "/follow?fail=1"))
        await read_head(reader)
        rest = await _rest(reader)
        assert not rest.endswith(b"0\r\n\r\n")
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    content = b""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while data := await reader.read(65536):
                content += data
    except ConnectionResetError:
        pass
    return content


async def test_progress_has_one_object_a_chunk_and_errors_inside():
    async with serving(Probe().routes()) as served:
        reader, writer = await served.connect()
        writer.write(request("POST", "/progress?fail=after", Connection="close"))
        status, headers = await read_head(reader)
        assert (status, headers["content-type"]) == (200, "application/json")
        chunks = dechunk(await _rest(reader))
        assert chunks == [
            b'{"status":"step 0"}\r\n',
            b'{"status":"step 1"}\r\n',
            b'{"errorDetail":{"code":7,"message":"layer gone"},"error":"layer gone"}\r\n',
        ]
        writer.close()
        assert await served.message("POST", "/progress?fail=before") == (404, "manifest unknown")
        _, _, body = await served.ask("POST", "/progress?fail=bug")
        assert json.loads(body.splitlines()[-1])["error"].startswith("internal error")


async def test_chunked_uploads():
    async with serving(Probe().routes()) as served:
        reader, writer = await served.connect()
        head = request("POST", "/upload", Transfer_Encoding="chunked", Connection="close")
        writer.write(head + b"5\r\nhello\r\n" + b"3\r\n!!!\r\n0\r\n\r\n")
        await read_head(reader)
        assert await _rest(reader) == b"8\n"
        writer.close()


@pytest.mark.parametrize(
    ("prefix", "tty", "kind"),
    [
        ("", False, "multiplexed"),
        ("/v1.42", False, "multiplexed"),
        ("/v1.41", False, "raw"),
        ("", True, "raw"),
    ],
)
async def test_a_hijacked_connection_goes_on_after_a_half_close(prefix, tty, kind):
    probe = Probe()
    async with serving(probe.routes()) as served:
        reader, writer = await served.connect()
        writer.write(request("POST", f"{prefix}/echo?tty={int(tty)}", b"{}", **UPGRADE, **JSON))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head == (
            "HTTP/1.1 101 UPGRADED\r\n"
            f"Content-Type: application/vnd.docker.{kind}-stream\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        writer.write(b"abc")
        first = b"ABC" if tty else b"\x01\0\0\0\0\0\0\x03ABC"
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.readexactly(len(first)) == first
        writer.write_eof()
        await asyncio.sleep(0.1)
        assert probe.wires == 1  # still there
        probe.go.set()
        rest = await _rest(reader)
        assert rest == b"3" if tty else frames(rest) == [(2, b"3")]
        writer.close()


async def test_without_upgrade_the_answer_is_200_and_raw_until_the_end():
    probe = Probe()
    probe.go.set()
    async with serving(probe.routes()) as served:
        reader, writer = await served.connect()
        writer.write(request("POST", "/echo"))
        status, headers = await read_head(reader)
        assert status == 200
        assert headers == {"content-type": "application/vnd.docker.multiplexed-stream"}
        writer.write_eof()
        assert frames(await _rest(reader)) == [(2, b"0")]
        writer.close()


@pytest.mark.parametrize("half_closed", [True, False])
async def test_a_client_that_is_gone_ends_the_hijacked_call(half_closed):
    probe = Probe()
    async with serving(probe.routes()) as served:
        reader, writer = await served.connect()
        writer.write(request("POST", "/echo", **UPGRADE))
        await read_head(reader)
        if half_closed:
            writer.write_eof()
            await asyncio.sleep(0.05)
        writer.close()
        await until(probe.cancelled)
        assert probe.wires == 0


async def test_input_that_nobody_reads_is_bounded_and_complete():
    probe = Probe()
    size = 16 * INPUT_BYTES_MAX
    async with serving(probe.routes()) as served:
        reader, writer = await served.connect()
        writer.write(request("POST", "/flood", **UPGRADE))
        await read_head(reader)
        writer.write(bytes(size))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await writer.drain()
        probe.go.set()
        async with asyncio.timeout(DEADLINE_S):
            await writer.drain()
        writer.write_eof()
        assert await _rest(reader) == str(size).encode()
        writer.close()


async def test_clients_that_lose_early_bytes_get_them_later():
    probe = Probe()
    probe.go.set()
    loop = asyncio.get_running_loop()
    async with serving(probe.routes()) as served:
        reader, writer = await served.connect()
        agent = {"User_Agent": "docker-sdk-python/7.2.0"}
        writer.write(request("POST", "/echo?tty=1", **UPGRADE, **agent))
        await read_head(reader)
        head_at_s = loop.time()
        writer.write(b"x")
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.readexactly(1) == b"X"
        assert loop.time() - head_at_s > HELD_BACK_S / 2
        writer.close()


async def test_keep_alive_serves_many_calls_on_one_connection():
    async with serving(Probe().routes()) as served:
        reader, writer = await served.connect()
        for number in range(5):
            writer.write(request("POST", "/box", b'{"Name":"%d"}' % number, **JSON))
            status, headers = await read_head(reader)
            body = await reader.readexactly(int(headers["content-length"]))
            assert (status, json.loads(body)["Name"]) == (201, str(number))
        writer.close()


async def test_what_is_no_http_is_refused_and_the_core_goes_on():
    async with serving(Probe().routes()) as served:
        reader, writer = await served.connect()
        writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
        status, _ = await read_head(reader)
        assert status == 400
        writer.close()
        assert (await served.ask("POST", "/optional"))[0] == 200


async def test_tls_wants_a_certificate_and_keeps_the_half_close(tmp_path: Path):
    probe = Probe()
    write_certificates(tmp_path / "good")
    write_certificates(tmp_path / "other", authority="another ca")
    async with serving(probe.routes(), tls=tmp_path / "good") as served:
        client = TlsClient(tmp_path / "good", as_=tmp_path / "good")
        await client.connect(served.port)
        await client.write(request("POST", "/echo?tty=1", **UPGRADE))
        assert (await client.read()).startswith(b"HTTP/1.1 101 UPGRADED\r\n")
        await client.write(b"abc")
        assert await client.read() == b"ABC"
        await client.close_write()
        await asyncio.sleep(0.1)
        assert probe.wires == 1
        probe.go.set()
        assert await client.read() == b"3"
        assert await client.read() == b""
        client.close()
        assert not await _is_answered(TlsClient(tmp_path / "good", as_=None), served.port)
        stranger = TlsClient(tmp_path / "good", as_=tmp_path / "other")
        assert not await _is_answered(stranger, served.port)
        friend = TlsClient(tmp_path / "good", as_=tmp_path / "good")
        assert await _is_answered(friend, served.port)


async def _is_answered(client: TlsClient, port: int) -> bool:
    """TLS 1.3 tells a refused certificate only with the first answer."""
    try:
        await client.connect(port)
        await client.write(request("GET", "/nothing"))
        return bool(await client.read())
    except OSError:
        return False
    finally:
        client.close()


async def test_a_tls_client_that_vanishes_ends_its_call(tmp_path: Path):
    probe = Probe()
    write_certificates(tmp_path)
    async with serving(probe.routes(), tls=tmp_path) as served:
        client = TlsClient(tmp_path, as_=tmp_path)
        await client.connect(served.port)
        await client.write(request("GET", "/follow"))
        await until(probe.begun)
        client.close()
        await until(probe.cancelled)
