"""How a session between a client and a process begins, goes on and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.containers import attach
from engine.containers.attach import Manner, converse
from engine.containers.detach import DEFAULT, DetachWatch, parse_keys
from shoal.errors import FailedPrecondition

DEADLINE_S = 40.0


class Client:
    """A client that types `typed`, ends its side if asked to, and takes `slowness_s` per piece."""

    def __init__(self, *typed: bytes, ends: bool = False, slowness_s: float = 0.0) -> None:
        self.typed = typed
        self.ends = ends
        self.slowness_s = slowness_s
        self.seen: list[tuple[int, bytes]] = []
        self.gone = asyncio.Event()

    async def input(self) -> AsyncIterator[bytes]:
        for data in self.typed:
            yield data
        if not self.ends:
            await asyncio.sleep(DEADLINE_S)

    async def output(self, stream: int, data: bytes) -> None:
        await asyncio.sleep(self.slowness_s)
        if self.gone.is_set():
            raise ConnectionResetError
        self.seen.append((stream, data))

    async def wait_gone(self) -> None:
        await self.gone.wait()


class Process:
    """A process that writes `said`, then what it reads; it ends with its standard input."""

    def __init__(self, *said: tuple[int, bytes], deaf: bool = False) -> None:
        self.said = said
        self.deaf = deaf
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.all_heard = b""
        self.closed_stdin = False
        self.ended = asyncio.Event()
        self.tty = False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        for piece in self.said:
            yield piece
        while data := await self.heard.get():
            yield 1, data

    async def write(self, data: bytes) -> None:
        if self.deaf:
            raise FailedPrecondition("standard input is not open")
        self.all_heard += data
        if data:
            self.heard.put_nowait(data)

    async def close_stdin(self) -> None:
        self.closed_stdin = True
        self.heard.put_nowait(b"")

    async def close(self) -> None: ...


class GoesOn(Process):
    """A process that lives on when its standard input has ended."""

    async def close_stdin(self) -> None:
        self.closed_stdin = True


async def session(client: Client, process: Process, manner: Manner) -> str:
    ended: Callable[[], Awaitable[object]] = process.ended.wait
    async with asyncio.timeout(DEADLINE_S):
        return await converse(client, process, manner, ended)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _short_last_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attach, "LAST_WORDS_S", 0.05)


async def test_the_end_of_input_is_passed_on_and_output_goes_on():
    client, process = Client(b"a", b"b", ends=True), Process((1, b"o"), (2, b"e"))
    assert await session(client, process, Manner(stdin=True, ends_stdin=True)) == "written"
    assert client.seen == [(1, b"o"), (2, b"e"), (1, b"a"), (1, b"b")]
    assert process.closed_stdin


async def test_an_end_of_input_that_cannot_be_passed_on_ends_the_session():
    client, process = Client(b"a", ends=True), Process()
    assert await session(client, process, Manner(stdin=True)) == "let go"
    assert not process.closed_stdin
    assert process.all_heard == b"a"


async def test_a_half_close_means_nothing_without_standard_input():
    client, process = Client(ends=True), Process((1, b"o"))
    process.heard.put_nowait(b"later")
    process.heard.put_nowait(b"")
    assert await session(client, process, Manner()) == "written"
    assert client.seen == [(1, b"o"), (1, b"later")]


async def test_only_wished_streams_are_sent():
    client, process = Client(), Process((1, b"o"), (2, b"e"))
    process.heard.put_nowait(b"")
    assert await session(client, process, Manner(stdout=False)) == "written"
    assert client.seen == [(2, b"e")]


async def test_detach_keys_are_not_passed_on():
    client, process = Client(b"ls\x10", b"\x11rest"), Process()
    keys = parse_keys(DEFAULT)
    assert await session(client, process, Manner(stdin=True, detach_keys=keys)) == "detached"
    assert process.all_heard == b"ls"
    assert not process.closed_stdin


async def test_a_client_that_is_gone_ends_the_session():
    client, process = Client(), Process()
    asyncio.get_running_loop().call_later(0.05, client.gone.set)
    assert await session(client, process, Manner(stdin=True)) == "gone"


async def test_streams_held_by_others_do_not_keep_it_open():
    client, process = Client(), Process((1, b"o"))
    process.ended.set()
    assert await session(client, process, Manner()) == "written"
    assert client.seen == [(1, b"o")]


async def test_late_pieces_are_waited_for_where_nobody_holds_the_streams():
    """The logger of a busy node may be late by more than others are waited for."""
    client, process = Client(), Process((1, b"o"))
    process.ended.set()
    loop = asyncio.get_running_loop()
    loop.call_later(10 * attach.LAST_WORDS_S, process.heard.put_nowait, b"late")
    loop.call_later(11 * attach.LAST_WORDS_S, process.heard.put_nowait, b"")
    assert await session(client, process, Manner(alone=True)) == "written"
    assert client.seen == [(1, b"o"), (1, b"late")]


async def test_a_slow_client_gets_everything_after_the_end():
    client = Client(slowness_s=0.2)
    process = Process(*[(1, bytes([number])) for number in range(5)])
    process.ended.set()
    process.heard.put_nowait(b"")
    assert await session(client, process, Manner()) == "written"
    assert len(client.seen) == 5


async def test_input_alone_ends_with_the_process():
    client, process = Client(b"x"), Process()
    asyncio.get_running_loop().call_later(0.05, process.ended.set)
    manner = Manner(stdin=True, stdout=False, stderr=False)
    assert await session(client, process, manner) == "written"
    assert process.all_heard == b"x"
    assert not client.seen


async def test_nothing_attached_waits_for_the_end():
    client, process = Client(), Process()
    process.heard.put_nowait(b"")  # it has nothing to write to
    asyncio.get_running_loop().call_later(0.2, process.ended.set)
    assert await session(client, process, Manner(stdout=False, stderr=False)) == "written"
    assert process.ended.is_set()


async def test_input_alone_is_over_with_the_client_s():
    client, process = Client(b"x", ends=True), GoesOn((1, b"o"))
    manner = Manner(stdin=True, stdout=False, stderr=False, ends_stdin=True)
    assert await session(client, process, manner) == "let go"
    assert (process.all_heard, process.closed_stdin) == (b"x", True)


async def test_a_process_that_reads_no_more_is_no_error():
    client, process = Client(b"x"), Process((1, b"o"), deaf=True)
    process.heard.put_nowait(b"")
    assert await session(client, process, Manner(stdin=True)) == "written"
    assert client.seen == [(1, b"o")]


@given(st.lists(st.binary(max_size=6).map(lambda data: data.replace(b"x", b"\x10")), max_size=8))
def test_no_key_is_lost_or_made_up(pieces: list[bytes]):
    watch, keys = DetachWatch(parse_keys(DEFAULT)), parse_keys(DEFAULT)
    passed = b""
    for piece in pieces:
        more, detached = watch.feed(piece)
        passed += more
        if detached:
            break
    whole = b"".join(pieces)
    before, found, _ = whole.partition(keys)
    if found:
        assert passed == before
    else:
        assert whole.startswith(passed)
        assert len(whole) - len(passed) < len(keys)
