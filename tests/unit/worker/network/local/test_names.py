"""The worker's conversation with the resolver: an answer belongs to its question, come what may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from worker.network.local.names import Names
from worker.network.local.naming import Client, Reply, Request, read_message, write_message


class SlowResolver:
    """Answers once it may, with a port that is the number of the client."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked = asyncio.Event()
        self.requests: list[Request] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_message(reader, Request)
                self.requests.append(request)
                self.asked.set()
                await self.may_answer.wait()
                ports = {one.container: (int(one.container), 1) for one in request.clients}
                await write_message(writer, Reply(ports=ports))
        except (EOFError, OSError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def talking(path: Path) -> AsyncIterator[tuple[SlowResolver, Names]]:
    resolver = SlowResolver()
    names = Names(path, lambda container, ports: None)
    server = await asyncio.start_unix_server(resolver.serve, str(path))
    try:
        yield resolver, names
    finally:
        resolver.may_answer.set()
        await names.close(end=False)
        server.close()
        await server.wait_closed()


async def test_a_question_that_is_given_up_does_not_leave_its_answer_to_the_next(tmp_path: Path):
    async with talking(tmp_path / "r.sock") as (resolver, names):
        resolver.may_answer.set()
        assert await names.put(Client(container="1", netns_path="/x", places=())) == (1, 1)
        resolver.may_answer.clear()
        resolver.asked.clear()
        given_up = asyncio.create_task(names.put(Client(container="2", netns_path="/x", places=())))
        await resolver.asked.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        resolver.may_answer.set()
        for number in ("3", "4"):
            client = Client(container=number, netns_path="/x", places=())
            assert await names.put(client) == (int(number), 1)
    again = next(one for one in resolver.requests[2:] if one.whole)
    assert {one.container for one in again.clients} == {"1"}, "whoever gave up is not there"
