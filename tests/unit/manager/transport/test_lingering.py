"""What goes to another manager at once, and what waits a moment for company."""

from __future__ import annotations

import asyncio

from manager.consensus.roster import Member
from manager.raft.entries import KIND_CONF_CHANGE, Entry
from manager.raft.messages import Message, MessageKind
from manager.transport.codec import message_bytes
from manager.transport.peer import Peer


class NoReceiver:
    def report_unreachable(self, raft_id: int) -> None:
        pass


def a_peer() -> Peer:
    return Peer(Member(1, "one", "a:1"), Member(2, "two", "b:1"), None, NoReceiver())


def an_append(*entries: Entry, commit: int = 0) -> Message:
    return Message(kind=MessageKind.APPEND, to=2, sender=1, entries=entries, commit=commit)


def goes_at_once(peer: Peer, message: Message) -> bool:
    peer._wake.clear()
    peer.send(message)
    return peer._wake.is_set()


async def test_word_of_a_commit_waits_but_not_for_ever():
    peer = a_peer()
    assert not goes_at_once(peer, an_append(commit=3))
    async with asyncio.timeout(20):
        await peer._wake.wait()
    assert len(peer._queue) == 1


async def test_everything_else_goes_at_once_and_takes_along_what_waits():
    peer = a_peer()
    assert not goes_at_once(peer, an_append(commit=3))
    assert goes_at_once(peer, Message(kind=MessageKind.HEARTBEAT, to=2, sender=1, commit=3))
    assert not goes_at_once(peer, an_append(commit=4))
    assert goes_at_once(peer, Message(kind=MessageKind.HEARTBEAT, to=2, sender=1, commit=4))
    assert len(peer._queue) == 4


async def test_word_of_a_commit_does_not_go_when_the_next_append_says_it():
    peer = a_peer()
    assert not goes_at_once(peer, an_append(commit=3))
    assert not goes_at_once(peer, an_append(commit=4))
    entries = an_append(Entry(4, 1, 1, b"x"), commit=5)
    assert goes_at_once(peer, entries)
    assert list(peer._queue) == [entries]
    assert peer._bytes == message_bytes(entries)


async def test_word_of_an_earlier_term_is_left_alone():
    peer = a_peer()
    assert not goes_at_once(peer, an_append(commit=3))
    later = Message(kind=MessageKind.APPEND, to=2, sender=1, term=2, commit=2)
    assert not goes_at_once(peer, later)
    assert len(peer._queue) == 2


async def test_word_of_a_changed_membership_goes_at_once():
    peer = a_peer()
    assert goes_at_once(peer, an_append(Entry(5, 1, KIND_CONF_CHANGE), Entry(6, 1, 1), commit=3))
    assert not goes_at_once(peer, an_append(commit=4))
    assert goes_at_once(peer, an_append(commit=5))
    assert not goes_at_once(peer, an_append(commit=6))
