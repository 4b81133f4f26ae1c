"""Answers of a watch become whole revisions, or the watch is not followed."""

from __future__ import annotations

import pytest

from manager.etcd.errors import Compacted
from manager.etcd.watching import EVENTS_MAX, Assembler, WatchBroken
from shoal.etcd.v1 import rpc_pb2 as pb


def an_event(revision: int, key: bytes = b"k") -> pb.Event:
    return pb.Event(kv=pb.KeyValue(key=key, mod_revision=revision))


def an_answer(*events: pb.Event, revision: int = 99, **fields) -> pb.WatchResponse:
    header = pb.ResponseHeader(revision=revision)
    return pb.WatchResponse(header=header, events=events, **fields)


def taken(assembler: Assembler, *answers: pb.WatchResponse) -> list[tuple[int, list[bytes]]]:
    return [
        (one.revision, [event.kv.key for event in one.events])
        for answer in answers
        for one in assembler.take(answer)
    ]


def test_one_answer_may_hold_several_revisions():
    answer = an_answer(an_event(5, b"a"), an_event(5, b"b"), an_event(7, b"a"))
    assert taken(Assembler(5), answer) == [(5, [b"a", b"b"]), (7, [b"a"])]


def test_a_revision_may_come_in_several_answers():
    assembler = Assembler(5)
    assert taken(assembler, an_answer(an_event(5, b"a"), fragment=True)) == []
    assert taken(assembler, an_answer(an_event(5, b"b"), fragment=True)) == []
    last = an_answer(an_event(5, b"c"), an_event(6, b"a"))
    assert taken(assembler, last) == [(5, [b"a", b"b", b"c"]), (6, [b"a"])]


def test_progress_is_a_revision_without_events():
    assembler = Assembler(5)
    assert taken(assembler, an_answer(created=True)) == []
    assert taken(assembler, an_answer(revision=8)) == [(8, [])]
    assert taken(assembler, an_answer(an_event(8))) == [(8, [b"k"])], "progress may overtake"


@pytest.mark.parametrize("revisions", [(4,), (5, 5), (6, 5), (5, 6, 5)])
def test_what_comes_twice_or_too_late_ends_the_watch(revisions: tuple[int, ...]):
    assembler = Assembler(5)
    for revision in revisions[:-1]:
        assembler.take(an_answer(an_event(revision)))
    with pytest.raises(WatchBroken, match="after"):
        assembler.take(an_answer(an_event(revisions[-1])))


def test_a_revision_that_is_torn_apart_ends_the_watch():
    with pytest.raises(WatchBroken):
        Assembler(5).take(an_answer(an_event(5), an_event(6), an_event(5)))


def test_why_the_server_ended_it():
    with pytest.raises(Compacted, match="from revision 5: compacted up to 9"):
        Assembler(5).take(an_answer(canceled=True, compact_revision=9))
    with pytest.raises(WatchBroken, match="ended: no leader"):
        Assembler(5).take(an_answer(canceled=True, cancel_reason="no leader"))


def test_an_answer_without_end_is_refused():
    assembler = Assembler(1)
    many = an_answer(*(an_event(1) for _ in range(EVENTS_MAX // 2)), fragment=True)
    assembler.take(many)
    assembler.take(many)
    with pytest.raises(WatchBroken, match=f"more than {EVENTS_MAX} events"):
        assembler.take(an_answer(an_event(1), fragment=True))
