"""The checker itself: what it must accept, what it must refuse, and that it never guesses."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linearizability.checker import Undecided, check
from tests.linearizability.generate import Shape, good_history
from tests.linearizability.history import Call, Item, Kind, Operation, Outcome, Result
from tests.linearizability.model import ServiceModel, State
from tests.linearizability.narrowing import narrowed

A, B = "g-a", "g-b"


def op(
    called: int, returned: int | None, kind: Kind, *, name: str = A, value: str = "", at: int = 0,
    result: Result = Result.OK, seen: Sequence[tuple[str, str, int]] = (), client: int = 0,
) -> Operation:  # fmt: skip
    call = Call(kind, "g", "" if kind is Kind.LIST else name, value, at)
    outcome = Outcome(result, tuple(Item(*item) for item in seen))
    return Operation(client, call, called, None if returned is None else outcome, returned)


def create(called: int, returned: int | None, value: str, version: int = 0, **more) -> Operation:
    name = more.get("name", A)
    seen = [(name, value, version)] if version else []
    return op(called, returned, Kind.CREATE, value=value, seen=seen, **more)


def update(called: int, returned: int | None, value: str, at: int, version: int = 0) -> Operation:
    seen = [(A, value, version)] if version else []
    return op(called, returned, Kind.UPDATE, value=value, at=at, seen=seen)


def get(called: int, returned: int, value: str, version: int) -> Operation:
    return op(called, returned, Kind.GET, seen=[(A, value, version)])


def missing(called: int, returned: int, kind: Kind = Kind.GET, at: int = 0) -> Operation:
    return op(called, returned, kind, at=at, result=Result.MISSING)


def remove(called: int, returned: int | None) -> Operation:
    return op(called, returned, Kind.REMOVE)


BAD = {
    "stale read": [create(0, 1, "x", 5), update(2, 3, "y", 5, 6), get(4, 5, "x", 5)],
    "lost write": [create(0, 1, "x", 5), missing(2, 3)],
    "lost update": [create(0, 1, "x", 5), update(2, 3, "y", 5, 6), update(4, 5, "z", 5, 7)],
    "double create": [create(0, 3, "x", 5), create(1, 4, "y", 6)],
    "time travel": [
        create(0, 1, "x", 5),
        update(2, 9, "y", 5, 6),
        get(3, 4, "y", 6),
        get(5, 6, "x", 5),
    ],
    "read before the write began": [get(0, 1, "x", 5), create(2, 3, "x", 5)],
    "a value nobody wrote": [create(0, 1, "x", 5), get(2, 3, "q", 5)],
    "exists, but nothing does": [op(0, 1, Kind.CREATE, value="x", result=Result.EXISTS)],
    "created over what exists": [create(0, 1, "x", 5), create(2, 3, "y", 6)],
    "conflict with the newest version": [
        create(0, 1, "x", 5),
        op(2, 3, Kind.UPDATE, value="y", at=5, result=Result.CONFLICT),
    ],
    "update of what was removed": [
        create(0, 1, "x", 5),
        remove(2, 3),
        update(4, 5, "y", 5, 6),
    ],
    "removed twice": [create(0, 1, "x", 5), remove(2, 5), remove(3, 6)],
    "back after its removal": [create(0, 1, "x", 5), remove(2, 3), get(4, 5, "x", 5)],
    "version falls over a removal": [create(0, 1, "x", 5), remove(2, 3), create(4, 5, "y", 4)],
    "version falls at an update": [create(0, 1, "x", 5), update(2, 3, "y", 5, 5)],
    "two versions of one write": [create(0, None, "x"), get(1, 2, "x", 5), get(3, 4, "x", 6)],
    "an unknown write comes and goes": [
        create(0, None, "x"),
        get(1, 2, "x", 5),
        missing(3, 4),
    ],
    "half of a list": [
        create(0, 1, "x", 5),
        create(2, 3, "y", 6, name=B),
        op(4, 5, Kind.LIST, seen=[(B, "y", 6)]),
    ],
    "a list of no one moment": [
        create(0, 1, "x", 5),
        update(2, 3, "y", 5, 6),
        create(4, 5, "z", 7, name=B),
        op(0, 9, Kind.LIST, seen=[(A, "x", 5), (B, "z", 7)]),
    ],
}

GOOD = {
    "nothing": [],
    "a read during the write sees either": [
        create(0, 1, "x", 5),
        update(2, 9, "y", 5, 6),
        get(3, 4, "x", 5),
        get(5, 6, "y", 6),
        get(7, 8, "y", 6),
    ],
    "of two creates one wins": [
        create(0, 3, "x", 5),
        op(1, 4, Kind.CREATE, value="y", result=Result.EXISTS),
    ],
    "an unknown create took effect late": [
        create(0, None, "x"),
        missing(1, 2),
        get(3, 4, "x", 5),
    ],
    "an unknown create never took effect": [create(0, None, "x"), missing(1, 2), missing(3, 4)],
    "an unknown update explains a conflict": [
        create(0, 1, "x", 5),
        update(2, None, "y", 5),
        op(3, 4, Kind.UPDATE, value="z", at=5, result=Result.CONFLICT),
    ],
    "an unknown removal explains a second create": [
        create(0, 1, "x", 5),
        remove(2, None),
        create(3, 4, "y", 8),
    ],
    "equal times overlap": [create(0, 5, "x", 5), get(5, 6, "x", 5), missing(0, 0)],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_refused(name):
    verdict = check(BAD[name])
    assert not verdict.ok
    assert "no place is left" in str(verdict.violation)


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_are_accepted(name):
    assert check(GOOD[name]).ok


def test_groups_are_judged_apart_and_the_violation_names_its_group():
    other = create(0, 1, "x", 5)
    other = msgspec.structs.replace(other, call=msgspec.structs.replace(other.call, group="h"))
    verdict = check([other, *BAD["stale read"]])
    assert verdict.violation is not None
    assert verdict.violation.group == "g"
    assert verdict.violation.stuck.call.kind is Kind.GET
    assert check([other, create(0, 1, "y", 6)]).ok


def test_an_exhausted_budget_is_no_verdict():
    history = good_history(Shape(seed=1, operations=200))
    with pytest.raises(Undecided, match="no verdict after 20 steps"):
        check(history, steps_max=20)


def test_many_unknown_outcomes_do_not_make_the_search_long():
    unknown = [
        operation
        for number in range(20)
        for operation in (
            create(10 * number, None, f"c{number}"),
            remove(10 * number + 1, None),
            update(10 * number + 2, None, f"u{number}", 5),
        )
    ]
    seen = [get(1_000, 1_001, "c7", 70), create(1_002, 1_003, "x", 71), get(1_004, 1_005, "x", 71)]
    assert check([*unknown, *seen], steps_max=10_000).ok
    stale = get(1_006, 1_007, "c7", 70)
    assert not check([*unknown, *seen, stale], steps_max=100_000).ok


shapes = st.builds(
    Shape,
    seed=st.integers(0, 2**32),
    operations=st.integers(1, 120),
    clients=st.integers(1, 6),
    names=st.integers(1, 3),
    overlap=st.integers(0, 6),
    unknown_percent=st.sampled_from([0, 5, 30]),
)


@settings(max_examples=150, deadline=None)
@given(shapes)
def test_overlapped_sequential_runs_are_accepted(shape):
    verdict = check(good_history(shape))
    assert verdict.ok, verdict.violation


@settings(max_examples=100, deadline=None)
@given(shapes)
def test_one_stale_read_at_the_end_is_refused(shape):
    history = good_history(msgspec.structs.replace(shape, unknown_percent=0))
    writes = [o for o in history if o.outcome and o.call.kind in (Kind.CREATE, Kind.UPDATE)]
    versions = [(item.version, item) for o in writes if o.outcome for item in o.outcome.items]
    newest: dict[str, Item] = {item.name: item for _, item in sorted(versions, key=lambda v: v[0])}
    old = [item for _, item in versions if newest[item.name] != item]
    end = max((o.returned_ns or 0 for o in history), default=0)
    for item in old[:5]:
        read = Operation(
            0, Call(Kind.GET, "g", item.name), end + 1, Outcome(Result.OK, (item,)), end + 2
        )
        assert not check([*history, read]).ok


def naive(history: Sequence[Operation]) -> bool:
    """Try every order of every choice of unknown operations: obviously right, and slow."""
    known = [o for o in history if o.is_known]
    unknown = [o for o in history if not o.is_known]
    chosen = itertools.chain.from_iterable(
        itertools.combinations(unknown, count) for count in range(len(unknown) + 1)
    )
    return any(
        _explains(order) for extra in chosen for order in itertools.permutations([*known, *extra])
    )


def _explains(order: Sequence[Operation]) -> bool:
    model, state = ServiceModel(), ServiceModel.initial
    earliest_end = None
    for operation in reversed(order):
        if earliest_end is not None and operation.called_ns > earliest_end:
            return False
        if operation.returned_ns is not None:
            earliest_end = min(operation.returned_ns, earliest_end or operation.returned_ns)
    for operation in order:
        after: State | None = model.step(state, operation)
        if after is None:
            return False
        state = after
    return True


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 40]), st.integers(0, 3), st.integers(0, 6))
def test_it_agrees_with_trying_every_order(seed, unknown_percent, overlap, damages):
    chosen = random.Random(seed)
    shape = Shape(
        seed=seed, operations=6, clients=3, names=1, overlap=overlap,
        unknown_percent=unknown_percent,
    )  # fmt: skip
    history = good_history(shape)
    for _ in range(damages):
        history = _damaged(history, chosen)
    explained = check(history).ok
    assert explained == naive(narrowed(history))
    # Where a client names a version that nobody had read, the model takes any conflict for granted.
    if explained or _versions_were_read(history):
        assert explained == naive(history)


def _versions_were_read(history: Sequence[Operation]) -> bool:
    """Whether each version that an update names was in an answer before it was called."""
    read = [(item.version, o.returned_ns) for o in history if o.outcome for item in o.outcome.items]
    return all(
        any(
            version == o.call.version and at_ns is not None and at_ns < o.called_ns
            for version, at_ns in read
        )
        for o in history
        if o.call.kind is Kind.UPDATE
    )


def _damaged(history: list[Operation], chosen: random.Random) -> list[Operation]:
    """Swap the outcomes of two operations of a kind, or shift one in time."""
    if not history:
        return history
    history = list(history)
    index = chosen.randrange(len(history))
    one = history[index]
    same = [n for n, o in enumerate(history) if o.call.kind is one.call.kind and o.is_known]
    if one.is_known and same and chosen.randrange(2):
        other = chosen.choice(same)
        history[index] = msgspec.structs.replace(one, outcome=history[other].outcome)
    elif one.returned_ns is not None:
        by = chosen.randrange(-30_000, 30_000)
        history[index] = msgspec.structs.replace(
            one, called_ns=one.called_ns + by, returned_ns=one.returned_ns + by
        )
    return history
