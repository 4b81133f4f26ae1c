"""The order of services that depend on each other."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.model.dependencies import in_order

NAMES = st.sampled_from("abcdefgh")
GRAPHS = st.dictionaries(NAMES, st.frozensets(NAMES, max_size=3), max_size=8)


@given(GRAPHS)
def test_each_comes_after_what_it_depends_on_or_a_cycle_is_shown(graph):
    try:
        order = in_order(graph)
    except InvalidArgument as error:
        cycle = error.message.removeprefix("depends_on: ").removesuffix(" is a cycle").split(" -> ")
        assert cycle[0] == cycle[-1]
        for name, need in itertools.pairwise(cycle):
            assert need in graph[name]
        return
    assert sorted(order) == sorted(graph)
    place = {name: index for index, name in enumerate(order)}
    for name, needs in graph.items():
        assert all(place[need] < place[name] for need in needs if need in place)


def test_a_long_chain_needs_no_deep_stack():
    graph = {f"{n:05}": {f"{n + 1:05}"} for n in range(20_000)}
    assert in_order(graph)[0] == "19999"


def test_a_service_that_depends_on_itself_is_a_cycle():
    with pytest.raises(InvalidArgument, match="a -> a is a cycle"):
        in_order({"a": {"a"}})
