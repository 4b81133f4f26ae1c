"""Which proposals enter the log at once, and which wait for company."""

from __future__ import annotations

import asyncio

import pytest

from manager.consensus.waiting import GATHER_BYTES, Proposal, Proposals
from shoal.errors import Unavailable
from shoal.model.objects import StoreEntry


def a_proposal(size_bytes: int = 100) -> Proposal:
    done = asyncio.get_running_loop().create_future()
    return Proposal(StoreEntry(), bytes(size_bytes), None, 0.0, done)


async def test_a_first_one_goes_at_once():
    proposals = Proposals()
    assert not proposals.should_go(0)
    proposals.queue(a_proposal())
    assert proposals.should_go(0)


async def test_those_that_come_while_others_are_under_way_go_together():
    proposals = Proposals()
    proposals.logged([a_proposal(), a_proposal()], first_index=7, term=1)
    late = [a_proposal(), a_proposal()]
    for proposal in late:
        proposals.queue(proposal)
        assert not proposals.should_go(7)
    assert proposals.should_go(8)
    assert proposals.take_queued(1 << 20) == late
    assert not proposals.should_go(8)


async def test_many_bytes_wait_for_nobody():
    proposals = Proposals()
    proposals.logged([a_proposal()], first_index=7, term=1)
    proposals.queue(a_proposal(GATHER_BYTES - 1))
    assert not proposals.should_go(6)
    proposals.queue(a_proposal(1))
    assert proposals.should_go(6)
    proposals.take_queued(1 << 20)
    proposals.queue(a_proposal())
    assert not proposals.should_go(6)


async def test_a_group_is_bounded_and_holds_at_least_one():
    proposals = Proposals()
    for _ in range(3):
        proposals.queue(a_proposal(100))
    assert len(proposals.take_queued(1)) == 1
    assert len(proposals.take_queued(150)) == 2
    assert len(proposals) == 0


async def test_lost_ones_are_not_waited_for():
    proposals = Proposals()
    under_way, late = a_proposal(), a_proposal()
    proposals.logged([under_way], first_index=7, term=1)
    proposals.queue(late)
    proposals.lose(Unavailable("gone"))
    assert proposals.should_go(0)
    proposals.refuse_queued(Unavailable("gone"))
    assert not proposals.should_go(0)
    for proposal in (under_way, late):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(proposal.done, 1)
