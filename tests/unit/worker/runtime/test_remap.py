"""From the words of --userns-remap and four files to the ranges of a container."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from worker.runtime.api import IdMap, IdRange
from worker.runtime.remap import Accounts, mapping_of

ACCOUNTS = Accounts(
    passwd="root:x:0:0::/root:/bin/sh\ndockremap:x:998:997::/:/bin/false\nbox:x:1000:1000::/:/bin/sh\n",
    group="root:x:0:\ndockremap:x:997:\nbox:x:1000:\nmedia:x:2000:\n",
    subuid="box:300000:1000\ndockremap:100000:65536\nbox:200000:500\n",
    subgid="dockremap:110000:65536\n1000:400000:70000\nmedia:600000:1\n",
)


@pytest.mark.parametrize(
    "option", ["default", "dockremap", "998", "dockremap:dockremap", "998:997"]
)
def test_every_spelling_of_a_user(option: str):
    found = mapping_of(option, ACCOUNTS)
    assert found == IdMap(
        uids=(IdRange(0, 100000, 65536),), gids=(IdRange(0, 110000, 65536),)
    )  # fmt: skip


def test_ranges_follow_one_another_lowest_first():
    found = mapping_of("box:media", ACCOUNTS)
    assert found.uids == (IdRange(0, 200000, 500), IdRange(500, 300000, 1000))
    assert found.gids == (IdRange(0, 600000, 1),)
    assert found.owner.uid_map == "0 200000 500\n500 300000 1000\n"


@pytest.mark.parametrize(
    ("option", "accounts", "refusal"),
    [
        ("", ACCOUNTS, "must be default"),
        ("box:", ACCOUNTS, "must be default"),
        ("nobody", ACCOUNTS, "no user nobody: make one with `useradd"),
        ("default", ACCOUNTS._replace(passwd=""), "no user dockremap: make one with `useradd"),
        ("box:none", ACCOUNTS, "no group none: make one with `groupadd"),
        ("root", ACCOUNTS, "/etc/subuid has no range of root"),
        ("default", ACCOUNTS._replace(subgid=""), "/etc/subgid has no range of dockremap"),
        ("box", ACCOUNTS._replace(subuid="box:1:x\n"), "/etc/subuid:1: .* must be NAME:FIRST"),
        ("box", ACCOUNTS._replace(subuid="box:0:9\n"), "not a range above 0"),
        ("box", ACCOUNTS._replace(subuid="box:5:0\n"), "not a range above 0"),
        ("box", ACCOUNTS._replace(subuid="box:9:5\nbox:5:5\n"), "9:5 overlaps"),
        ("box", ACCOUNTS._replace(subuid="box:4294967295:2\n"), "not a range above 0"),
    ],
)
def test_what_is_refused(option: str, accounts: Accounts, refusal: str):
    with pytest.raises(InvalidArgument, match=refusal):
        mapping_of(option, accounts)


@given(st.lists(st.tuples(st.integers(0, 1 << 33), st.integers(0, 1 << 33)), max_size=6))
def test_the_nodes_root_is_never_mapped_and_no_id_twice(ranges: list[tuple[int, int]]):
    lines = "".join(f"box:{first}:{count}\n" for first, count in ranges)
    try:
        found = mapping_of("box", ACCOUNTS._replace(subuid=lines, subgid=lines))
    except InvalidArgument:
        return
    inside = end = 0
    for one in found.uids:
        assert one.inside == inside
        assert one.outside > 0
        assert one.outside >= end
        inside, end = inside + one.size, one.outside + one.size
    assert end <= 1 << 32
