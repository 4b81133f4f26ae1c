"""Goal: each known way to get Raft wrong, tried on the real core."""

from __future__ import annotations

import pytest

from manager.raft.confchange import add_learner, add_voter, encode_change, remove
from manager.raft.config import Config
from manager.raft.entries import (
    KIND_CONF_CHANGE,
    ConfState,
    Entry,
    HardState,
    Role,
    Snapshot,
)
from manager.raft.errors import ProposalDropped
from manager.raft.messages import Message, MessageKind
from manager.raft.node import Raft, Start, first_snapshot
from manager.raft.storage import MemoryStorage
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvariantViolation,
    NotLeader,
    ResourceExhausted,
    Unavailable,
)
from tests.unit.manager.raft.conversation import Conversation


def talk(*lines: str) -> Conversation:
    conversation = Conversation()
    conversation.is_loud = False
    for line in lines:
        conversation.run(line)
    return conversation


def a_node(*entries: Entry, term: int = 1, **config: object) -> Raft:
    """Node 1 of (1 2 3), as after a restart."""
    snapshot = first_snapshot((1, 2, 3))
    return Raft(
        Config(id=1, seed=1, **config),  # type: ignore[arg-type]
        Start(
            storage=MemoryStorage(snapshot, entries),
            hard_state=HardState(term, 0, 1),
            conf_state=snapshot.conf_state,
            applied=1,
        ),
    )


def settle(node: Raft) -> list[Message]:
    """Do a node's duties; everything it said."""
    said: list[Message] = []
    while node.has_ready():
        ready = node.ready()
        said += [*ready.messages, *ready.messages_after_sync]
        for entry in ready.committed_entries:
            if entry.kind == KIND_CONF_CHANGE:
                node.apply_conf_change(entry.data)
        node.advance(ready)
        node.check()
    return said


def vote(sender: int, term: int, index: int = 1, log_term: int = 1) -> Message:
    return Message(
        kind=MessageKind.VOTE, to=1, sender=sender, term=term, index=index, log_term=log_term
    )


def ack(sender: int, term: int, index: int) -> Message:
    return Message(kind=MessageKind.APPEND_RESPONSE, to=1, sender=sender, term=term, index=index)


def a_leader(**config: object) -> Raft:
    """Node 1 leads term 2 of (1 2 3); its own disk has its entry, nobody else."""
    node = a_node(pre_vote=False, **config)
    node.campaign()
    settle(node)
    node.step(Message(kind=MessageKind.VOTE_RESPONSE, to=1, sender=2, term=2))
    settle(node)
    assert node.role is Role.LEADER
    return node


def test_a_vote_is_given_again_to_the_same_candidate_only() -> None:
    node = a_node()
    node.step(vote(2, 5))
    node.step(vote(3, 5))
    node.step(vote(2, 5))
    answers = [(message.to, message.reject) for message in settle(node)]
    assert answers == [(2, False), (3, True), (2, False)]


def test_a_vote_is_refused_to_a_shorter_log() -> None:
    node = a_node(Entry(2, 1), Entry(3, 4), term=4)
    node.step(vote(2, 5, index=9, log_term=3))
    node.step(vote(3, 6, index=2, log_term=4))
    assert [message.reject for message in settle(node)] == [True, True]


def test_the_vote_leaves_only_after_the_sync() -> None:
    node = a_node()
    node.step(vote(2, 5))
    ready = node.ready()
    assert ready.must_sync
    assert ready.hard_state == HardState(5, 2, 1)
    assert not ready.messages
    assert [message.kind for message in ready.messages_after_sync] == [MessageKind.VOTE_RESPONSE]


def test_acknowledgements_of_an_earlier_term_do_not_count() -> None:
    node = a_leader()
    node.step(ack(2, 1, 2))
    assert node.committed == 1
    node.step(ack(2, 2, 2))
    assert node.committed == 2


def test_the_leader_counts_its_own_log_only_when_it_is_durable() -> None:
    node = a_leader()
    node.step(ack(2, 2, 2))
    settle(node)
    node.propose(b"x")
    ready = node.ready()
    node.step(ack(2, 2, 3))
    assert node.committed == 2, "the follower has it, the leader's disk does not"
    node.advance(ready)
    assert node.committed == 3


def test_match_and_commit_never_fall() -> None:
    node = a_leader()
    node.propose(b"x")
    settle(node)
    node.step(ack(2, 2, 3))
    node.step(ack(2, 2, 2))
    leading = node.core.leading
    assert leading is not None
    assert leading.progress[2].match == 3
    assert node.committed == 3


def test_a_new_leader_takes_no_change_before_an_entry_of_its_term_is_applied() -> None:
    """Ongaro 2015: else changes of two leaders could lead to two disjoint majorities."""
    node = a_leader()
    pending = node.core.leading
    assert pending is not None
    pending_before = a_node(Entry(2, 1, KIND_CONF_CHANGE, encode_change(remove(3))), pre_vote=False)
    pending_before.campaign()
    settle(pending_before)
    pending_before.step(Message(kind=MessageKind.VOTE_RESPONSE, to=1, sender=2, term=2))
    settle(pending_before)
    with pytest.raises(FailedPrecondition, match="may be under way"):
        pending_before.propose_conf_change(add_voter(4))
    pending_before.step(ack(2, 2, 3))
    settle(pending_before)
    assert pending_before.membership.voters == {1, 2}
    assert pending_before.propose_conf_change(add_voter(4)) == 4


def test_one_change_at_a_time() -> None:
    node = a_leader()
    node.propose_conf_change(add_learner(4))
    with pytest.raises(FailedPrecondition, match="may be under way"):
        node.propose_conf_change(add_learner(5))


def test_a_change_passed_on_by_a_follower_is_dropped() -> None:
    node = a_leader()
    last = node.last_index
    change = Entry(0, 0, KIND_CONF_CHANGE, encode_change(remove(3)))
    node.step(Message(kind=MessageKind.PROPOSE, to=1, sender=2, entries=(change,)))
    assert node.last_index == last


def test_only_the_leader_takes_changes() -> None:
    with pytest.raises(NotLeader):
        a_node().propose_conf_change(remove(3))


def test_answers_of_the_removed_are_ignored() -> None:
    node = a_leader()
    node.propose(b"x")
    settle(node)
    node.step(ack(9, 2, 3))
    assert node.committed == 1
    node.step(ack(9, 7, 3))
    assert (node.term, node.role) == (2, Role.LEADER)


def test_the_removed_cannot_depose_a_leader_that_is_heard() -> None:
    conversation = talk(
        "nodes 1 2 3", "campaign 1", "stabilize", "crash 3", "change 1 remove=3",
        "stabilize", "drop", "restart 3", "tick 1", "stabilize 1 2",
        "tick-election 3", "stabilize",
    )  # fmt: skip
    assert conversation.nodes[1].role is Role.LEADER
    assert {node.term for node in conversation.nodes.values()} == {2}


def test_votes_of_learners_do_not_count() -> None:
    snapshot = Snapshot(1, 1, ConfState(voters=(1, 2, 3), learners=(4, 5)))
    node = Raft(
        Config(id=1, seed=1, pre_vote=False),
        Start(
            storage=MemoryStorage(snapshot),
            hard_state=HardState(1, 0, 1),
            conf_state=snapshot.conf_state,
            applied=1,
        ),
    )
    node.campaign()
    settle(node)
    for learner in (4, 5):
        node.step(Message(kind=MessageKind.VOTE_RESPONSE, to=1, sender=learner, term=2))
    assert node.role is Role.CANDIDATE


def test_two_votes_of_one_node_are_one() -> None:
    node = Raft(
        Config(id=1, seed=1, pre_vote=False),
        Start(
            storage=MemoryStorage(first_snapshot(range(1, 6))),
            hard_state=HardState(1, 0, 1),
            conf_state=first_snapshot(range(1, 6)).conf_state,
            applied=1,
        ),
    )
    node.campaign()
    settle(node)
    for _ in range(2):
        node.step(Message(kind=MessageKind.VOTE_RESPONSE, to=1, sender=2, term=2))
    assert node.role is Role.CANDIDATE


def test_reads_wait_for_the_first_commit_also_in_a_cluster_of_one() -> None:
    """The commit index is not synced: after a restart it may be behind what was answered."""
    snapshot = first_snapshot((1,))
    node = Raft(
        Config(id=1, seed=1),
        Start(
            storage=MemoryStorage(snapshot, [Entry(2, 1, 1, b"answered")]),
            hard_state=HardState(1, 0, 1),
            conf_state=snapshot.conf_state,
            applied=1,
        ),
    )
    node.campaign()
    for _ in range(2):
        node.advance(node.ready())
    assert node.role is Role.LEADER
    node.read_index(b"r")
    indexes = []
    while node.has_ready():
        ready = node.ready()
        indexes += [read.index for read in ready.read_states]
        node.advance(ready)
    assert indexes == [3]


def test_reads_are_bounded() -> None:
    node = a_leader(pending_reads_max=2)
    node.read_index(b"a")
    node.read_index(b"b")
    with pytest.raises(ResourceExhausted, match="2 wait"):
        node.read_index(b"c")


def test_proposals_are_bounded_and_room_returns() -> None:
    node = a_leader(uncommitted_bytes_max=10)
    node.propose(b"x" * 50)
    with pytest.raises(ProposalDropped, match="50 bytes"):
        node.propose(b"y")
    settle(node)
    node.step(ack(2, 2, 3))
    settle(node)
    assert node.propose(b"y") == 4


def test_the_window_bounds_what_is_under_way() -> None:
    node = a_leader(inflight_messages_max=3)
    node.step(ack(2, 2, 2))
    settle(node)
    for _ in range(10):
        node.propose(b"x")
    sent = [message for message in settle(node) if message.to == 2 and message.entries]
    assert len(sent) == 3
    node.step(ack(2, 2, 3))
    more = [message for message in settle(node) if message.to == 2 and message.entries]
    assert sum(len(message.entries) for message in more) == 7


def test_without_a_leader_nothing_is_taken() -> None:
    node = a_node()
    with pytest.raises(ProposalDropped, match="no leader"):
        node.propose(b"x")
    with pytest.raises(Unavailable, match="no leader"):
        node.read_index(b"r")
    with pytest.raises(NotLeader):
        node.transfer_leader(2)


@pytest.mark.parametrize("kind", [0, 255, -1, 300])
def test_reserved_kinds_cannot_be_proposed(kind: int) -> None:
    with pytest.raises(InvalidArgument, match="between 1 and 254"):
        a_leader().propose(b"x", kind)


@pytest.mark.parametrize(
    "message",
    [
        Message(kind=MessageKind.HEARTBEAT, to=2, sender=3, term=1),
        Message(kind=MessageKind.HEARTBEAT, to=1, sender=1, term=1),
        Message(kind=MessageKind.HEARTBEAT, to=1, sender=2),
        Message(kind=MessageKind.PROPOSE, to=1, sender=2, term=4),
        Message(kind=MessageKind.SNAPSHOT, to=1, sender=2, term=4),
        Message(kind=MessageKind.APPEND, to=1, sender=2, term=4, index=1, log_term=1,
                entries=(Entry(3, 1),)),
        Message(kind=MessageKind.APPEND, to=1, sender=2, term=4, index=1, log_term=1,
                entries=(Entry(2, 5),)),
    ],
)  # fmt: skip
def test_messages_that_make_no_sense_are_refused(message: Message) -> None:
    node = a_node()
    with pytest.raises(InvalidArgument):
        node.step(message)
    assert not node.has_ready()


def test_only_the_ready_given_out_can_be_advanced() -> None:
    node = a_leader()
    node.propose(b"x")
    first = node.ready()
    with pytest.raises(InvariantViolation):
        node.ready()
    node.advance(first)
    with pytest.raises(InvariantViolation):
        node.advance(first)


def test_a_committed_change_must_be_applied_and_is_durable_first() -> None:
    node = a_leader()
    node.step(ack(2, 2, 2))
    settle(node)
    node.propose_conf_change(add_learner(4))
    node.advance(node.ready())
    node.step(ack(2, 2, 3))
    ready = node.ready()
    assert ready.must_sync
    assert ready.hard_state == HardState(2, 1, 3)
    assert not ready.committed_entries
    node.advance(ready)
    ready = node.ready()
    assert [entry.index for entry in ready.committed_entries] == [3]
    with pytest.raises(InvariantViolation, match="not applied"):
        node.advance(ready)


def test_a_commit_alone_needs_no_sync() -> None:
    node = a_leader()
    node.step(ack(2, 2, 2))
    ready = node.ready()
    assert ready.hard_state == HardState(2, 1, 2)
    assert not ready.must_sync


def test_what_needs_no_disk_leaves_while_a_ready_is_out() -> None:
    node = a_leader()
    node.propose(b"x")
    ready = node.ready()
    node.tick()
    node.step(vote(3, 1))
    kinds = {message.kind for message in node.take_messages()}
    assert kinds == {MessageKind.HEARTBEAT}
    node.advance(ready)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (Start(storage=MemoryStorage(), conf_state=ConfState(voters=(1,))), "first_snapshot"),
        (Start(storage=MemoryStorage(), applied=3), "outside of the log"),
        (Start(storage=MemoryStorage(), hard_state=HardState(1, 0, 7)), "are lost"),
        (Start(storage=MemoryStorage(first_snapshot((1,))), applied=1), "term"),
    ],
)
def test_a_start_that_cannot_be_is_refused(start: Start, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Raft(Config(id=1, seed=1), start)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 0}, {"heartbeat_ticks": 0}, {"election_ticks": 1}, {"message_bytes_max": 0},
        {"inflight_bytes_max": 10}, {"pending_reads_max": 0},
    ],
)  # fmt: skip
def test_a_config_that_cannot_work_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(fields)).removesuffix("_bytes_max")):
        Config(**({"id": 1, "seed": 1} | fields)).validate()  # type: ignore[arg-type]


def test_compaction_needs_a_snapshot() -> None:
    node = a_leader()
    node.step(ack(2, 2, 2))
    settle(node)
    with pytest.raises(FailedPrecondition, match="no snapshot"):
        node.compact(2)
    node.offer_snapshot(node.snapshot_now(b"state"))
    node.compact(2)
    assert node.core.log.first_index == 3


def test_election_timeouts_differ_by_seed_and_stay_in_range() -> None:
    timeouts = {a_node(election_ticks=10).core.election_timeout for _ in range(3)}
    assert len(timeouts) == 1
    drawn = set()
    for seed in range(40):
        node = Raft(Config(id=1, seed=seed), Start(storage=MemoryStorage(), conf_state=ConfState()))
        drawn.add(node.core.election_timeout)
    assert drawn <= set(range(10, 20))
    assert len(drawn) > 5


def test_a_follower_commits_only_what_it_knows_to_match() -> None:
    """A tail of an old term may lie beyond what an append has compared."""
    node = a_node(Entry(2, 1), Entry(3, 1), Entry(4, 1))
    node.step(
        Message(kind=MessageKind.APPEND, to=1, sender=2, term=2, index=2, log_term=1, commit=4)
    )
    assert node.committed == 2


def test_a_former_voter_that_leads_takes_nothing() -> None:
    conversation = talk(
        "nodes 1 2", "campaign 1", "stabilize", "change 1 learner=2", "ready 1", "deliver to=2",
        "ready 2", "propose 1 tail", "deliver to=1", "send 1", "deliver to=2", "stabilize 2",
        "crash 1", "drop", "restart 1", "campaign 2", "ready 2", "deliver", "ready 1", "deliver",
        "ready 2", "deliver", "ready 1", "deliver",
    )  # fmt: skip
    leader = conversation.nodes[2]
    assert leader.role is Role.LEADER
    with pytest.raises(ProposalDropped, match="leaving"):
        leader.propose(b"x")
    with pytest.raises(ProposalDropped, match="leaving"):
        leader.propose_conf_change(add_voter(3))
