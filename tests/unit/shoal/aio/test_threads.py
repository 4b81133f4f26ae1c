"""Steps in threads, waited for to their end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shoal.aio.threads import in_thread


async def test_the_result_and_the_error_are_the_steps_own():
    assert await in_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


@pytest.mark.parametrize("divisor", [1, 0])
async def test_a_cancelled_wait_ends_after_the_thread(divisor):
    began, go, ended = threading.Event(), threading.Event(), []

    def step() -> int:
        began.set()
        go.wait(40)
        ended.append(1)
        return 1 // divisor

    work = asyncio.create_task(in_thread(step))
    await asyncio.to_thread(began.wait, 40)
    work.cancel()
    await asyncio.sleep(0.02)
    assert not work.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert ended == [1]
