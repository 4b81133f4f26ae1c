"""Whom Raft's ear believes while this manager may lag behind the others."""

from __future__ import annotations

import pytest

from manager.consensus.driver import Leading
from manager.consensus.roster import Member, Roster
from manager.leadership.standing import MemberStanding
from shoal.aio.observed import Observed
from shoal.errors import PermissionDenied
from shoal.model.objects import Node
from tests.support.managing import a_store

LEADER, UNKNOWN = 1, 9
ROSTER = Roster({LEADER: Member(LEADER, "n1", "a:1"), 2: Member(2, "n2", "b:2")})


@pytest.fixture
def store():
    return a_store([Node(id="worker")])[0]


def a_standing(store, *, leader=LEADER, heard=True):
    return MemberStanding(store, Observed(Leading(term=3, leader=leader)), lambda _: heard)


@pytest.mark.parametrize(
    ("node_id", "why"), [("n2", "node n2 is manager 2, not 9"), ("worker", "is a worker now")]
)
def test_under_an_id_nobody_knows_a_known_node_is_refused_while_another_leads(store, node_id, why):
    with pytest.raises(PermissionDenied, match=why):
        a_standing(store).check(UNKNOWN, node_id, ROSTER)
    # Whatever is known here may be old: what leads, or may lead by now, is listened to.
    a_standing(store, leader=UNKNOWN).check(UNKNOWN, node_id, ROSTER)
    a_standing(store, leader=0).check(UNKNOWN, node_id, ROSTER)
    a_standing(store, heard=False).check(UNKNOWN, node_id, ROSTER)


def test_members_and_strangers_are_heard(store):
    a_standing(store).check(2, "n2", ROSTER)
    a_standing(store).check(UNKNOWN, "stranger", ROSTER)
