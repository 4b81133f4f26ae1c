"""Leadership goes to whom it is handed, at once; who cannot lead is named and nothing changes."""

from __future__ import annotations

import pytest

from manager.consensus.roster import Member
from shoal.errors import FailedPrecondition, NotLeader
from shoal.model.plan import create
from tests.support.managing import until
from tests.support.planning import a_service
from tests.unit.manager.consensus.test_driver import a_cluster, same_state, the_leader


async def test_the_named_node_leads_and_writes_go_on(tmp_path):
    async with a_cluster(tmp_path) as members:
        for wanted in (members[2], members[0]):
            before = the_leader(members)
            assert before.changes.begin_hand_over(wanted.me.node_id) == wanted.me.node_id
            await until(lambda w=wanted: w.leads)
            await wanted.store.commit([create(a_service(f"by-{wanted.me.node_id}"))])
            with pytest.raises(NotLeader):
                before.changes.begin_hand_over(wanted.me.node_id)
        assert the_leader(members) is members[0]
        own = members[0].me.node_id
        assert members[0].changes.begin_hand_over(own) == own  # it leads already
        await same_state(members)
        assert members[0].leads


async def test_without_a_name_another_one_leads(tmp_path):
    async with a_cluster(tmp_path) as members:
        first = the_leader(members)
        chosen = first.changes.begin_hand_over()
        assert chosen != first.me.node_id
        await until(lambda: any(m.leads and m.me.node_id == chosen for m in members))


async def test_who_cannot_lead_is_named(tmp_path):
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        changes = leader.changes
        with pytest.raises(FailedPrecondition, match="node w1 is no manager: promote it first"):
            changes.begin_hand_over("w1")
        await changes.add_learner(Member(77, "learner", "192.0.2.77:2377"))
        with pytest.raises(FailedPrecondition, match="node learner does not vote yet"):
            changes.begin_hand_over("learner")
        silent = next(member for member in members if member is not leader)
        await silent.stop()
        await until(lambda: not leader.running.is_reachable(silent.me.raft_id))
        with pytest.raises(FailedPrecondition, match="is not reachable: start it"):
            changes.begin_hand_over(silent.me.node_id)
        assert leader.leads


async def test_a_manager_that_is_alone_has_nobody_to_hand_over_to(tmp_path):
    async with a_cluster(tmp_path, count=1) as (member,):
        with pytest.raises(FailedPrecondition, match="no other voter is reachable"):
            member.changes.begin_hand_over()
