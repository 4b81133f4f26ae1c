"""Watches over real managers: resumed when a leader dies, without a gap and without a repeat."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.raft.processes import some_managers
from tests.integration.raft.test_processes import Writers, until
from tests.linearizability.watcher import Watcher
from tests.linearizability.watching import complaints

pytestmark = pytest.mark.timeout(240)
KILLS = 3


async def test_watches_go_on_where_they_were_when_leaders_die(tmp_path):
    with some_managers(tmp_path, 3) as managers:
        await managers.start()
        writers = Writers(managers)
        watchers = [Watcher(one.node_id, str(one.paths.manager_socket)) for one in managers.all]
        tasks = [asyncio.create_task(one.run(lambda: False)) for one in watchers]
        try:
            await until(lambda: all(one.sessions() for one in watchers))
            writing = [asyncio.create_task(writers.write(number)) for number in range(2)]
            tasks += writing
            for _ in range(KILLS):
                count = len(writers.spans)
                await until(lambda count=count: len(writers.spans) > count + 10)
                resumed = [one.resumed for one in watchers]
                leader = await managers.leader()
                leader.kill()
                leader.start()
                await managers.until_members(3)
                await until(
                    lambda resumed=resumed: all(
                        one.resumed > before for one, before in zip(watchers, resumed, strict=True)
                    )
                )
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)
            await until(lambda: all(writers.acknowledged <= created(one) for one in watchers))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    sessions = [session for one in watchers for session in one.sessions()]
    print(f"{len(writers.acknowledged)} writes, {[one.resumed for one in watchers]} resumed")
    assert len(sessions) == len(watchers), "no watch had to begin anew"
    assert complaints(sessions, ()) == []


def created(watcher: Watcher) -> set[str]:
    """Names of the services whose creation was seen."""
    return {
        event.name
        for session in watcher.sessions()
        for message in session.messages
        for event in message.events
        if event.kind == "service" and event.action == "create"
    }
