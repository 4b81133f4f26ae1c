"""Whether what watchers saw is what happened. Pure: recorded streams in, complaints out.

A session is one unbroken watch: from the version at which it was put in place, through every
message. A watch that was resumed and accepted is still the same session; after a refusal a new one
begins, with a fresh read. The claims follow the validators of etcd's robustness tests: ordered,
unique, atomic, reliable (nothing missing), old and new consistent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from tests.linearizability.history import Item

COMPLAINTS_MAX = 20

Identity = tuple[str, str]
"""Kind and id of an object."""


class Event(msgspec.Struct, frozen=True):
    """One change. before and after are versions of the object, 0 where there is none."""

    kind: str
    object_id: str
    name: str
    action: str
    before: int
    after: int

    @property
    def identity(self) -> Identity:
        """What it is about."""
        return self.kind, self.object_id


class Message(msgspec.Struct, frozen=True):
    """The events of one commit."""

    version: int
    events: tuple[Event, ...]


class Session(msgspec.Struct, frozen=True):
    """One watch of one watcher.

    start: the version it was put in place at. read: objects read after that, by identity, with
    their versions: what changed after `start` must come as events all the same.
    """

    watcher: str
    start: int
    read: Mapping[Identity, int]
    messages: tuple[Message, ...]

    @property
    def last(self) -> int:
        """How far it has come."""
        return self.messages[-1].version if self.messages else self.start


def complaints(sessions: Sequence[Session], written: Iterable[Item]) -> list[str]:
    """What is wrong, in words; empty when all is well.

    written: what clients were told to have written; it must come in every session that was in
    place before and went on until after.
    """
    found = [text for session in sessions for text in _of_session(session)]
    found += _differences(sessions)
    found += _missing(sessions, tuple(written))
    return found[:COMPLAINTS_MAX]


def _of_session(session: Session) -> Iterator[str]:
    last = session.start
    known: dict[Identity, int] = {
        identity: version for identity, version in session.read.items() if version <= last
    }
    for message in session.messages:
        where = f"{session.watcher}: commit {message.version}"
        if message.version <= last:
            yield f"{where} came after commit {last}"
        last = max(last, message.version)
        if not message.events:
            yield f"{where} holds no event"
        if len({event.identity for event in message.events}) != len(message.events):
            yield f"{where} changes an object twice"
        for event in message.events:
            yield from _of_event(event, message, known, where=where)
            known[event.identity] = event.after
    yield from _unannounced(session)


def _of_event(
    event: Event, message: Message, known: Mapping[Identity, int], *, where: str
) -> Iterator[str]:
    about = f"{where}: {event.action} {event.kind} {event.name}"
    if event.action != "remove" and event.after != message.version:
        yield f"{about} shows version {event.after}"
    if event.action == "create" and event.before:
        yield f"{about} has an old object, of version {event.before}"
    if event.action != "create" and not 0 < event.before < message.version:
        yield f"{about} has an old object of version {event.before}"
    before = known.get(event.identity)
    if before is not None and before != event.before:
        yield f"{about} replaces version {event.before}, but the last one seen is {before}"
    if before and event.action == "create":
        yield f"{about} exists already"


def _unannounced(session: Session) -> Iterator[str]:
    """Objects a later read showed in a version that the watch should have announced."""
    announced = {
        (event.identity, event.after) for message in session.messages for event in message.events
    }
    for identity, version in session.read.items():
        expected = session.start < version <= session.last
        if expected and (identity, version) not in announced:
            yield (
                f"{session.watcher}: {identity[0]} {identity[1]} was read at version {version}, "
                f"which the watch from {session.start} to {session.last} never showed"
            )


def _differences(sessions: Sequence[Session]) -> Iterator[str]:
    """Every watcher must see the same commits, whole, wherever they watch at the same time."""
    seen: dict[int, tuple[str, tuple[Event, ...]]] = {}
    for session in sessions:
        for message in session.messages:
            who, events = seen.setdefault(message.version, (session.watcher, message.events))
            if sorted(map(repr, events)) != sorted(map(repr, message.events)):
                yield f"commit {message.version} differs between {who} and {session.watcher}"
    for session in sessions:
        has = {message.version for message in session.messages}
        for version, (who, _) in seen.items():
            if session.start < version <= session.last and version not in has:
                yield f"{session.watcher}: commit {version}, which {who} saw, is missing"


def _missing(sessions: Sequence[Session], written: Sequence[Item]) -> Iterator[str]:
    for session in sessions:
        announced = {
            (event.name, event.after) for message in session.messages for event in message.events
        }
        for item in written:
            covered = session.start < item.version <= session.last
            if covered and (item.name, item.version) not in announced:
                yield (
                    f"{session.watcher}: {item.name}={item.value} was written at {item.version}, "
                    f"which the watch from {session.start} to {session.last} never showed"
                )
