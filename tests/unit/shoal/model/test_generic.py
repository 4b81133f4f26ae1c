"""Generic resources: how a node's are written, and the variables that tell a task of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.model.generic import PIECES_MAX, environment, parse_advertised
from shoal.model.types import GenericResource


def test_counts_and_names_also_in_one_text():
    assert parse_advertised(["gpu=UUID-1, gpu=0000:3b:00.0", "apple=5"]) == (
        GenericResource(kind="gpu", named_value="UUID-1"),
        GenericResource(kind="gpu", named_value="0000:3b:00.0"),
        GenericResource(kind="apple", count=5),
    )
    assert parse_advertised([]) == ()


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["gpu"], "'gpu': must be KIND=COUNT or KIND=NAME"),
        ([""], "must be KIND=COUNT"),
        (["=1"], "kind '' must be"),
        (["g u=1"], "kind 'g u' must be"),
        (["k" * 64 + "=1"], "must be 1 to 63"),
        (["gpu="], "the name must be"),
        (["gpu=-1"], "the name must be"),
        (["gpu=a b"], "the name must be"),
        (["gpu=0"], "the count must be from 1"),
        (["gpu=1000000001"], "the count must be from 1"),
        (["gpu=1", "gpu=2"], "gpu is there already: give one count, or names"),
        (["gpu=1", "gpu=UUID"], "gpu is there already: give one count, or names"),
        (["gpu=UUID", "gpu=UUID"], "'gpu=UUID': is there already"),
        (["gpu=UUID", "GPU=UUID2"], "differs from 'gpu' in upper and lower case alone"),
        ([f"gpu=u{n}" for n in range(PIECES_MAX + 1)], "more than 256"),
    ],
)
def test_what_is_refused(texts, reason):
    with pytest.raises(InvalidArgument, match="generic resource") as refused:
        parse_advertised(texts)
    assert reason in refused.value.message


def test_a_task_is_told_of_what_it_got():
    assigned = (
        GenericResource(kind="gpu", named_value="UUID1"),
        GenericResource(kind="gpu", named_value="UUID2"),
        GenericResource(kind="apple", count=3),
    )
    assert environment(assigned) == ("DOCKER_RESOURCE_APPLE=3", "DOCKER_RESOURCE_GPU=UUID1,UUID2")
    assert environment(()) == ()


kinds = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
names = st.from_regex(r"[A-Z][A-Z0-9:/@_.-]{0,8}", fullmatch=True)


@given(
    st.dictionaries(
        kinds, st.one_of(st.integers(1, 10**9), st.sets(names, min_size=1, max_size=5)), max_size=8
    )
)
def test_what_is_parsed_is_what_was_written(pool):
    texts = [
        f"{kind}={value}"
        for kind, have in pool.items()
        for value in ([have] if isinstance(have, int) else sorted(have))
    ]
    found = parse_advertised(texts)
    assert [f"{one.kind}={one.named_value or one.count}" for one in found] == texts
    assert len(environment(found)) == len(pool)
