"""The validators of watches: a good set of streams, and each way one can be wrong."""

from __future__ import annotations

import msgspec
import pytest

from tests.linearizability.history import Item
from tests.linearizability.watching import Event, Message, Session, complaints

WEB, API = ("service", "id-web"), ("service", "id-api")


def event(name: str, action: str, before: int, after: int) -> Event:
    return Event("service", f"id-{name}", name, action, before, after)


COMMITS = (
    Message(11, (event("web", "create", 0, 11),)),
    Message(12, (event("web", "update", 11, 12), event("api", "create", 0, 12))),
    Message(15, (event("api", "remove", 12, 0),)),
    Message(18, (event("api", "create", 0, 18),)),
)
WRITTEN = [Item("web", "a", 11), Item("web", "b", 12), Item("api", "c", 18)]
FULL = Session("m1", 10, {}, COMMITS)
LATE = Session("m2", 12, {WEB: 12, API: 18}, COMMITS[2:])


def replaced(session: Session, *messages: Message, **fields) -> Session:
    return msgspec.structs.replace(session, messages=messages, **fields)


def first(action: str, before: int) -> Session:
    return replaced(FULL, Message(11, (event("web", action, before, 11),)))


def test_what_happened_is_accepted():
    assert complaints([FULL, LATE], WRITTEN) == []
    assert complaints([replaced(FULL)], WRITTEN) == []  # ended before it saw anything


BAD = {
    "came after commit 15": replaced(FULL, *COMMITS[:3], COMMITS[1]),
    "came after commit 12": replaced(FULL, *COMMITS[:2], *COMMITS[1:]),
    "commit 12, which m2 saw, is missing": replaced(FULL, COMMITS[0], *COMMITS[2:]),
    "commit 12 differs between": replaced(
        FULL, COMMITS[0], Message(12, COMMITS[1].events[:1]), *COMMITS[2:]
    ),
    "holds no event": replaced(FULL, COMMITS[0], Message(12, ()), *COMMITS[2:]),
    "changes an object twice": replaced(FULL, Message(11, COMMITS[0].events * 2), *COMMITS[1:]),
    "shows version 10": replaced(FULL, Message(11, (event("web", "create", 0, 10),))),
    "has an old object, of version 9": first("create", 9),
    "has an old object of version 0": first("update", 0),
    "but the last one seen is 11": replaced(
        FULL, COMMITS[0], Message(12, (event("web", "update", 10, 12),))
    ),
    "exists already": replaced(
        FULL, COMMITS[0], Message(12, (event("web", "create", 0, 12),))
    ),
    "was written at 11": replaced(FULL, *COMMITS[1:]),
    "was read at version 13": replaced(FULL, *COMMITS, read={WEB: 13}),
}  # fmt: skip


@pytest.mark.parametrize("words", BAD)
def test_each_fault_is_named(words):
    other = msgspec.structs.replace(FULL, watcher="m2")
    found = complaints([other, BAD[words]], WRITTEN)
    assert any(words in complaint for complaint in found), found


def test_complaints_are_bounded():
    assert len(complaints([replaced(FULL, *COMMITS[:1] * 100)], WRITTEN)) == 20
