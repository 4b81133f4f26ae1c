"""The next manager: least failures first, then by weight; unreachable ones last."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from worker.agent.remotes import Remotes

DRAWS = [number / 100 for number in range(100)]


def chosen(remotes: Remotes) -> Counter[str]:
    return Counter(remotes.choose(draw) for draw in DRAWS)


def test_weights_are_shares():
    remotes = Remotes(["a"])
    remotes.learn({"a": 8, "b": 1, "c": 1, "d": 0})
    assert chosen(remotes) == {"a": 80, "b": 10, "c": 10}


def test_one_that_failed_waits_until_the_others_did():
    remotes = Remotes(["a", "b"])
    remotes.failed("a")
    assert set(chosen(remotes)) == {"b"}
    remotes.failed("b")
    assert set(chosen(remotes)) == {"a"}
    remotes.succeeded("a")
    assert set(chosen(remotes)) == {"a"}


def test_the_one_that_failed_last_is_not_the_next_whatever_the_others_did_before():
    remotes = Remotes(["a", "b", "c"])
    for _ in range(3):
        remotes.failed("a")
        remotes.failed("b")
    remotes.succeeded("c")
    remotes.failed("c")
    assert set(chosen(remotes)) == {"a", "b"}
    remotes.failed("a")
    assert set(chosen(remotes)) == {"c"}
    alone = Remotes(["a"])
    alone.failed("a")
    assert set(chosen(alone)) == {"a"}


def test_one_without_a_weight_is_tried_in_the_end():
    remotes = Remotes(["a"])
    remotes.learn({"a": 8, "b": 0})
    for _ in range(2):
        assert set(chosen(remotes)) == {"a"}
        remotes.failed("a")
    remotes.failed("a")
    assert set(chosen(remotes)) == {"b"}


def test_managers_that_are_gone_are_forgotten_and_the_last_ones_never():
    remotes = Remotes(["a", "b"])
    remotes.failed("b")
    remotes.learn({"b": 1, "c": 1})
    assert remotes.addresses == ("b", "c")
    assert set(chosen(remotes)) == {"c"}
    remotes.learn({})
    assert remotes.addresses == ("b", "c")


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 9), min_size=1),
    st.lists(st.sampled_from("abcde"), max_size=20),
    st.floats(0, 1, exclude_max=True),
)
def test_there_is_always_one_and_everybody_gets_a_turn(weights, failures, draw):
    remotes = Remotes(["x"])
    remotes.learn(weights)
    for address in failures:
        if address in weights:
            remotes.failed(address)
    tried = set()
    for _ in range(30 * len(weights)):
        address = remotes.choose(draw)
        tried.add(address)
        remotes.failed(address)
    assert tried == set(weights)
