"""What people are told while nobody leads."""

from __future__ import annotations

import asyncio

from manager.leadership.raft import why_no_leader
from manager.leadership.router import ELECTING
from tests.support.managers import MemberRig, MemoryNetwork
from tests.support.managing import until
from tests.unit.manager.consensus.test_driver import a_cluster, the_leader


async def test_a_lost_quorum_is_told_from_an_election(tmp_path):
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        assert why_no_leader(leader.running) == ELECTING
        for member in members:
            if member is not leader:
                await member.stop()
        await until(lambda: why_no_leader(leader.running) != ELECTING)
        text = why_no_leader(leader.running).reason
        assert not why_no_leader(leader.running).is_passing
        assert text.startswith("The cluster has lost its quorum: 1 of 3 managers is reachable, 2 ")
        assert "--force-new-cluster" in text


async def test_a_member_that_has_not_joined_says_so(tmp_path):
    rig = MemberRig(MemoryNetwork(), tmp_path / "m", "m")
    await rig.start()
    try:
        await asyncio.sleep(0)  # its tasks begin
        assert "has not joined" in why_no_leader(rig.running).reason
    finally:
        await rig.stop()
