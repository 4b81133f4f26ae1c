"""Which image goes when the disk is too full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.model.reference import parse_reference
from tests.unit.worker.images.test_index import record
from worker.images.index import Index
from worker.images.water import AGE_MIN_NS, Marks, check_marks, is_too_full, next_victim

NOW_NS = AGE_MIN_NS * 100


def an_index(*, tagged, pulled, parents=None):
    """Images 0, 1, ... last named at these times; those of `pulled` are known to a registry."""
    found = Index()
    for number, at_ns in enumerate(tagged):
        one = record(f"{number:x}").tagged(at_ns)
        if parents and number in parents:
            one = one.under(record(f"{parents[number]:x}").id)
        digests = [parse_reference(f"r.example/i{number}@{one.digest}")] if number in pulled else []
        found = found.with_image(one, [], images_max=100, digests=digests)
    return found


def ids(*numbers):
    return {record(f"{number:x}").id for number in numbers}


def test_the_oldest_that_a_registry_has_goes_first():
    found = an_index(tagged=[30, 10, 20], pulled={0, 2})
    assert next_victim(found, (), NOW_NS).id in ids(2)
    assert next_victim(found, ids(2), NOW_NS).id in ids(0)
    assert next_victim(found, ids(0, 2), NOW_NS) is None


def test_fresh_images_and_those_others_stand_on_stay():
    found = an_index(tagged=[1, 2, NOW_NS - 1], pulled={0, 1, 2}, parents={1: 0})
    assert next_victim(found, (), NOW_NS).id in ids(1)
    assert next_victim(found, ids(1), NOW_NS) is None


@given(
    st.lists(st.integers(0, NOW_NS), max_size=8),
    st.sets(st.integers(0, 7)),
    st.sets(st.integers(0, 7)),
)
def test_what_is_needed_or_nowhere_else_never_goes(tagged, pulled, needed):
    found = an_index(tagged=tagged, pulled=pulled)
    victim = next_victim(found, ids(*needed), NOW_NS)
    allowed = {
        number
        for number, at_ns in enumerate(tagged)
        if number in pulled - needed and at_ns <= NOW_NS - AGE_MIN_NS
    }
    assert (victim is None) == (not allowed)
    if victim is not None:
        assert victim.tagged_at_ns == min(tagged[number] for number in allowed)


def test_marks():
    marks = Marks(90, 80)
    assert [is_too_full(used, marks, collecting=False) for used in (85, 90, 90.1)] == [
        False, False, True,
    ]  # fmt: skip
    assert [is_too_full(used, marks, collecting=True) for used in (85, 80)] == [True, False]
    assert not is_too_full(99.9, Marks(100, 80), collecting=False)
    for high, low in ((80, 80), (101, 80), (90, 0)):
        with pytest.raises(InvalidArgument, match="water marks"):
            check_marks(high, low)
