"""Carrying out role plans: retries, and what a change of leader does."""

from __future__ import annotations

import asyncio

from manager.roles.loop import FAREWELL_S, RoleLoop
from shoal.errors import FailedPrecondition, NotLeader
from shoal.model.enums import NodeRole
from shoal.model.specs import NodeSpec
from tests.support.managing import HandClock, a_store, put_now, running, until
from tests.unit.manager.roles.test_plan import a_manager, a_member, a_node


class Group:
    """A consensus group that does what it is told, after so many refusals."""

    def __init__(self, *members, refusals=()):
        self.now = list(members)
        self.refusals = list(refusals)
        self.asked: list[int] = []

    def members(self):
        return tuple(self.now)

    async def remove(self, raft_id: int) -> None:
        self.asked.append(raft_id)
        if self.refusals:
            raise self.refusals.pop(0)
        self.now = [one for one in self.now if one.member.raft_id != raft_id]


def site(*rows):
    clock = HandClock()
    return clock, *a_store(rows, clock)


async def test_a_demotion_is_tried_again_until_it_works():
    clock, store, _ = site(a_node("n1", role=NodeRole.MANAGER), a_manager("n2"))
    refusals = [FailedPrecondition("no majority"), FailedPrecondition("no majority")]
    group = Group(a_member("n1"), a_member("n2", is_leader=True), refusals=refusals)
    async with running(RoleLoop(store, group, clock).run):
        await until(lambda: len(group.asked) == 1)
        assert store.view.nodes.get("n1").role is NodeRole.MANAGER
        await until(lambda: store.view.nodes.get("n1").role_message == "no majority")
        for attempts in (2, 3):
            clock.advance(10.0)
            await until(lambda wanted=attempts: len(group.asked) == wanted)
        await until(lambda: store.view.nodes.get("n1").role is NodeRole.WORKER)
        assert store.view.nodes.get("n1").role_message == ""
    assert group.asked == [1, 1, 1]


async def test_a_leader_that_handed_over_is_no_failure():
    clock, store, _ = site(a_node("n1", role=NodeRole.MANAGER), a_manager("n2"))
    group = Group(
        a_member("n1", is_leader=True), a_member("n2"), refusals=[NotLeader("handed over")]
    )
    async with running(RoleLoop(store, group, clock).run):
        await until(lambda: store.view.nodes.get("n1").role is NodeRole.WORKER)
    assert group.asked == [1, 1]


async def test_a_wish_is_seen_at_once_and_a_new_voter_too():
    clock, store, proposer = site(a_node("n1"), a_manager("n2"))
    group = Group(a_member("n2", is_leader=True))
    async with running(RoleLoop(store, group, clock).run):
        wish = store.view.nodes.get("n1")
        put_now(store, proposer, wish.replaced(spec=NodeSpec(desired_role=NodeRole.MANAGER)))
        group.now.append(a_member("n1"))
        await until(lambda: store.view.nodes.get("n1").role is NodeRole.MANAGER)
    assert group.asked == []


async def test_a_leader_that_is_to_go_first_answers_whoever_demoted_it():
    clock, store, proposer = site(a_manager("n1"), a_manager("n2"))
    group = Group(a_member("n1", is_leader=True), a_member("n2"))
    async with running(RoleLoop(store, group, clock).run):
        wish = store.view.nodes.get("n1")
        put_now(store, proposer, wish.replaced(spec=NodeSpec(desired_role=NodeRole.WORKER)))
        for _ in range(20):  # turns of the loop, in which an answer goes out
            await asyncio.sleep(0)
        assert group.asked == []
        put_now(store, proposer, wish)
        await asyncio.sleep(2 * FAREWELL_S)
        assert group.asked == [], "the wish was withdrawn"
        put_now(store, proposer, wish.replaced(spec=NodeSpec(desired_role=NodeRole.WORKER)))
        await until(lambda: group.asked == [1])
