"""What counts as in force on a node, whoever was told what."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from manager.dispatcher.acknowledged import Acknowledged

NODES = st.sampled_from(["n1", "n2", "n3"])
STEPS = st.sampled_from(["begin", "end", "forget", "change", "same", "ack"])
SMALL = st.integers(0, 3)


def test_nobody_holds_back_until_a_node_is_known_and_then_all_do():
    acks = Acknowledged()
    assert acks.by_all() is None
    acks.expect("n1")
    acks.begin("n2", 5)
    assert acks.by_all() == 0
    assert not acks.acknowledge("n2", 5, 5), "n1 still has nothing"
    assert not acks.acknowledge("n1", 5, 5), "it has no stream"
    assert acks.forget("n1")
    assert acks.by_all() == 5
    assert not acks.forget("n1")


def test_a_version_that_is_the_same_for_a_node_is_in_force_with_the_one_before():
    acks = Acknowledged()
    acks.begin("n1", 5)
    acks.change("n1", 6, concerned=False)
    assert acks.versions == {"n1": 0}, "it has not even the one before"
    assert acks.acknowledge("n1", 5, 6)
    assert acks.versions == {"n1": 6}
    acks.change("n1", 7, concerned=False)
    assert acks.versions == {"n1": 7}
    acks.change("n1", 8, concerned=True)
    acks.change("n1", 9, concerned=False)
    assert acks.versions == {"n1": 7}
    acks.acknowledge("n1", 7, 9)
    assert acks.versions == {"n1": 7}
    acks.acknowledge("n1", 8, 9)
    assert acks.versions == {"n1": 9}


def test_what_happened_while_a_node_was_away_is_not_in_force_when_it_comes_back():
    acks = Acknowledged()
    acks.begin("n1", 5)
    acks.acknowledge("n1", 5, 5)
    acks.end("n1")
    acks.begin("n1", 7)
    acks.change("n1", 8, concerned=False)
    assert acks.versions == {"n1": 5}
    acks.acknowledge("n1", 7, 8)
    assert acks.versions == {"n1": 8}


def test_a_version_never_falls_and_is_never_newer_than_the_newest():
    acks = Acknowledged()
    acks.begin("n1", 5)
    acks.acknowledge("n1", 99, 5)
    assert acks.versions == {"n1": 5}
    acks.change("n1", 6, concerned=True)
    acks.acknowledge("n1", 3, 6)
    assert acks.versions == {"n1": 5}


@settings(max_examples=200)
@given(st.lists(st.tuples(STEPS, NODES, SMALL)))
def test_the_version_of_all_is_the_least_of_each(steps):
    acks, newest, streaming = Acknowledged(), 1, set()
    for step, node_id, number in steps:
        if step == "begin":
            acks.begin(node_id, newest)
            streaming.add(node_id)
        elif step in ("end", "forget"):
            getattr(acks, step)(node_id)
            streaming.discard(node_id)
        elif step == "ack":
            acks.acknowledge(node_id, max(newest - number, 0), newest)
        else:
            newest += 1
            for known in streaming:
                acks.change(known, newest, concerned=step == "change" and known == node_id)
        assert acks.by_all() == min(acks.versions.values(), default=None)
