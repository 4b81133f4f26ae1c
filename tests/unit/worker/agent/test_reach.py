"""A silent manager is known for one soon, and so is one that is there again."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shoal.errors import Unavailable
from worker.agent import reach as module
from worker.agent.reach import Reach

LONG_S = 40.0


@contextmanager
def a_deaf_listener() -> Iterator[tuple[socket.socket, str]]:
    """Its queue is full: the kernel drops further SYNs, as a cut cable would."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with socket.create_connection(listener.getsockname()):
            yield listener, address


async def test_no_answer_and_no_listener_are_both_silence():
    with a_deaf_listener() as (_, address), pytest.raises(Unavailable, match="no connection"):
        await Reach().require(address)
    with pytest.raises(Unavailable, match="firewalls"):
        await Reach().require(address)  # closed by now


async def test_what_listens_answers_whatever_it_does_then_and_paths_always_do():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await Reach().require(f"127.0.0.1:{listener.getsockname()[1]}")
    await Reach().require("unix:/nowhere")


async def test_a_pause_ends_when_a_silent_one_answers():
    reach = Reach()
    with a_deaf_listener() as (listener, address):
        with pytest.raises(Unavailable):
            await reach.require(address)
        pausing = asyncio.create_task(reach.pause(LONG_S, (address,)))
        await asyncio.sleep(2 * module.LOOK_S)
        assert not pausing.done()
        listener.accept()[0].close()
        async with asyncio.timeout(LONG_S / 2):
            assert await pausing == address
    assert await reach.pause(0.01, (address,)) == ""  # it is not silent any more


async def test_a_pause_without_silent_ones_lasts_as_long_as_it_should():
    reach = Reach()
    with a_deaf_listener() as (_, address), pytest.raises(Unavailable):
        await reach.require(address)
    before = time.monotonic()
    assert await reach.pause(0.3, ()) == ""  # the managers do not name it any more
    assert time.monotonic() - before >= 0.3
