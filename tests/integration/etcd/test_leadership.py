"""Leader-only work over etcd: it sees terms and addresses as it does over Raft."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from manager.leadership.etcd import EtcdLeadership
from manager.leadership.interfaces import Consensus
from manager.leadership.work import TermProposer
from shoal.errors import NotLeader
from shoal.model.plan import create
from tests.support.etcd import Etcd, etcd_store, needs_etcd
from tests.support.planning import a_task

pytestmark = [pytest.mark.etcd, needs_etcd]


async def test_a_term_is_over_when_another_manager_leads_or_this_one_again(
    server: Etcd, prefix: str
):
    url = server.url(prefix, "lease_ttl_s=3")
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        one, first = await stack.enter_async_context(etcd_store(url, address="one:1"))
        opened = etcd_store(url, address="two:1", lead=False)
        two, second = await stack.enter_async_context(opened)
        mine: Consensus = stack.enter_context(EtcdLeadership(first).followed())
        theirs: Consensus = stack.enter_context(EtcdLeadership(second).followed())
        now = mine.leadership.value
        assert (now.here, now.address) == (True, "")
        await theirs.leadership.until(lambda seen: seen.address == "one:1")
        assert theirs.leadership.value.term == now.term
        early = one.through(TermProposer(mine, now.term))
        await early.commit([create(a_task("t1"))])
        await theirs.read_barrier()
        assert len(two.view.tasks) == 1

        await first.resign()
        assert not mine.leadership.value.here
        with pytest.raises(NotLeader):
            await early.commit([create(a_task("t2"))])
        later = await theirs.leadership.until(lambda seen: seen.here)
        assert later.term > now.term
        await mine.leadership.until(lambda seen: seen.address == "two:1")
        await second.resign()
        again = await mine.leadership.until(lambda seen: seen.here)
        assert again.term > later.term
        with pytest.raises(NotLeader, match="a leader of an earlier term"):
            await early.commit([create(a_task("t2"))])
        await one.through(TermProposer(mine, again.term)).commit([create(a_task("t2"))])
