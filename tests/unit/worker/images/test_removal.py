"""What a removal takes away, and what it never does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import FailedPrecondition, NotFound
from shoal.model.reference import parse_reference
from tests.unit.worker.images.test_index import record
from worker.images.index import Index
from worker.images.model import User
from worker.images.removal import Rules, plan

DIGEST = "sha256:" + "d" * 64
FREE = Rules(users={})
RUNNING, STOPPED = User("c" * 64), User("d" * 64, running=False)


def image_id(number):
    return record(f"{number:x}").id


def an_index(names, digests=(), parents=None):
    """Images by number; `names[number]` and `digests[number]` are theirs."""
    found = Index()
    for number, own in names.items():
        one = record(f"{number:x}")
        if parents and number in parents:
            one = one.under(image_id(parents[number]))
        known_as = [parse_reference(text) for text in dict(digests).get(number, ())]
        named = [parse_reference(text) for text in own]
        found = found.with_image(one, named, images_max=100, digests=known_as)
    return found


def test_the_last_tag_of_a_repository_takes_its_digests_with_it():
    digests = {1: [f"r.example/web@{DIGEST}", f"other.example/web@{DIGEST}"]}
    found = an_index({1: ["r.example/web:1", "r.example/web:2"]}, digests)
    first = plan(found, "r.example/web:1", FREE)
    assert (first.untagged, first.images) == (("r.example/web:1",), ())
    second = plan(first.index, "r.example/web:2", FREE)
    assert second.untagged == ("r.example/web:2", f"r.example/web@{DIGEST}")
    assert second.images == ()  # another registry knows it, too
    third = plan(second.index, f"other.example/web@{DIGEST}", FREE)
    assert (third.images, third.index.images) == ((image_id(1),), {})


@pytest.mark.parametrize(
    ("names", "ref", "rules", "text"),
    [
        (["a:1"], "a:1", Rules(users={image_id(1): [STOPPED]}), 'reference "a:1" (must force)'),
        ([], image_id(1), Rules(users={image_id(1): [RUNNING]}, force=True), "cannot be forced"),
        ([], image_id(1), Rules(users={image_id(1): [STOPPED]}), "(must be forced)"),
        ([], image_id(1), Rules(users={image_id(1): [STOPPED]}, force=True), "cannot be forced"),
        (["a:1", "b:1"], image_id(1), FREE, "referenced in multiple repositories"),
        (["a:1"], image_id(1), Rules(users={}, leased=[image_id(1)]), "read or built upon"),
    ],
)
def test_conflicts(names, ref, rules, text):
    with pytest.raises(FailedPrecondition) as caught:
        plan(an_index({1: names}), ref, rules)
    assert text in caught.value.message


def test_forced_the_name_of_a_used_image_goes_and_the_image_stays():
    rules = Rules(users={image_id(1): [RUNNING]}, force=True)
    done = plan(an_index({1: ["a:1"]}), "a:1", rules)
    assert (done.untagged, done.images) == (("a:1",), ())
    assert image_id(1) in done.index.images


def test_unnamed_parents_go_as_far_as_nothing_needs_them():
    parents = {2: 1, 3: 2, 4: 1}
    found = an_index({1: [], 2: [], 3: ["c:1"], 4: ["d:1"]}, parents=parents)
    with pytest.raises(FailedPrecondition, match="dependent child images"):
        plan(found, image_id(2), FREE)
    done = plan(found, "c:1", FREE)
    assert done.images == (image_id(3), image_id(2))  # 4 still stands on 1
    assert plan(found, "c:1", Rules(users={}, prune=False)).images == (image_id(3),)
    done = plan(done.index, "d:1", FREE)
    assert done.images == (image_id(4), image_id(1))


NAMES = ["a:1", "a:2", "b:1", f"a@{DIGEST}"]


@given(
    st.dictionaries(st.integers(1, 5), st.sets(st.sampled_from(NAMES)), min_size=1),
    st.dictionaries(st.integers(2, 5), st.integers(1, 4)),
    st.sets(st.integers(1, 5)),
    st.sets(st.integers(1, 5)),
    st.booleans(),
    st.one_of(st.sampled_from(NAMES), st.integers(1, 5)),
)
def test_nothing_that_is_needed_ever_goes(names, parents, used, leased, force, target):
    tags = {number: [one for one in own if "@" not in one] for number, own in names.items()}
    digests = {number: [one for one in own if "@" in one] for number, own in names.items()}
    older = {child: parent for child, parent in parents.items() if parent < child}
    found = an_index(tags, digests, older)
    rules = Rules(
        users={image_id(number): [STOPPED] for number in used},
        leased={image_id(number) for number in leased},
        force=force,
    )
    ref = target if isinstance(target, str) else image_id(target)
    try:
        done = plan(found, ref, rules)
    except (NotFound, FailedPrecondition):
        return
    gone = set(found.images) - set(done.index.images)
    assert gone == set(done.images)
    assert not gone & {image_id(number) for number in used | leased}
    assert not any(done.index.children_of(one) for one in gone)
    assert {*done.index.names, *done.index.digests} <= {*found.names, *found.digests}
    assert not {*done.index.names.values(), *done.index.digests.values()} & gone
