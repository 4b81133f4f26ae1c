"""A member that is made the only one keeps all objects, decides alone, shuts the others out."""

from __future__ import annotations

import pytest

from manager.consensus.forcing import force_only_member
from manager.consensus.recovery import recover
from manager.storage.errors import CorruptLog
from shoal.errors import FailedPrecondition, NotFound, SwarmError
from shoal.model.plan import create
from tests.support.managers import MemberRig, MemoryNetwork, digest
from tests.support.managing import until
from tests.support.planning import a_service
from tests.unit.manager.consensus.test_driver import a_cluster, same_state, the_leader


@pytest.mark.parametrize("snapshot_interval", [5, 10_000], ids=["from a snapshot", "from the log"])
async def test_the_last_member_goes_on_alone_with_everything(tmp_path, snapshot_interval):
    async with a_cluster(tmp_path, snapshot_interval=snapshot_interval) as members:
        leader = the_leader(members)
        for number in range(12):
            await leader.store.commit([create(a_service(f"s{number}"))])
        await same_state(members)
        left = next(member for member in members if not member.leads)
        before = digest(left.store)
        for member in members:
            await member.stop()

        forced = force_only_member(left.place)
        assert forced.raft_id == left.me.raft_id
        assert force_only_member(left.place).adopted == 0  # repeating it is safe
        await left.start()
        await until(lambda: left.leads)
        assert digest(left.store) == before
        assert list(left.running.roster.members) == [left.me.raft_id]
        others = {member.me.raft_id for member in members} - {left.me.raft_id}
        assert left.running.roster.removed >= others
        await left.store.commit([create(a_service("after"))])
        with pytest.raises(FailedPrecondition, match="cannot return"):
            await left.changes.add_learner(next(m for m in members if m is not left).me)

        # It is durable, and the next start is an ordinary one.
        await left.stop()
        again = recover(left.place)
        again.opened.wal.close()
        assert again.tables.services.get("after") is not None
        assert len(again.tables.services) == 13


async def test_a_running_member_is_not_forced(tmp_path):
    async with a_cluster(tmp_path, count=1) as (member,):
        with pytest.raises(FailedPrecondition, match="process"):
            force_only_member(member.place)


def test_where_there_is_no_log_nothing_is_forced(tmp_path):
    place = MemberRig(MemoryNetwork(), tmp_path / "m", "m").place
    with pytest.raises(NotFound):
        force_only_member(place)
    assert issubclass(CorruptLog, SwarmError)  # swarmd reports it, and does not start
