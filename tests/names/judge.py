"""Which answers were wrong: pure.

An answer is held to what the managers showed between two moments. The first is the newest version
that the asker's own node was known to have in force before the question was sent; every answer must
be at least as new. The last is the first look at the managers that began after the answer was
there. An address (a name, a page) is wrong if its task was ready in no look in between: it names a
task that was gone by the acknowledged version, or one that never was ready. An address is missing
if its task was ready in all of them.

A node acknowledges after the version is in force on it, and a task is told to stop only after all
nodes have acknowledged: so what is right here for each node never names a task that was told to
stop. Versions of two managers are not compared: until a node has acknowledged one of a new leader's
it is held to what it acknowledged to the one before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tests.names.facts import Answer, Kind, Place, Question, Snapshot, Trouble

HOST_DIGITS = 12
LAG_S = 0.5
"""In which a change reaches every node that is not cut off, on a busy machine."""


class Wrong(msgspec.Struct, frozen=True):
    """An answer and what is wrong with it."""

    answer: Answer
    why: str


class Timeline:
    """Looks at one service, in order."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self._snapshots = snapshots
        self._asked = [one.asked_s for one in snapshots]
        self._heard = [one.heard_s for one in snapshots]
        self._in_force: dict[str, tuple[list[float], list[int]]] = {}
        """By node: when it was known, and the place of the newest look it had in force."""
        for number, snapshot in enumerate(snapshots):
            self._note(number, snapshot)

    def between(self, node_id: str, asked_s: float, heard_s: float) -> Sequence[Snapshot]:
        """The looks that an answer of this node is held to; empty: nothing was known before."""
        known, places = self._in_force.get(node_id, ([], []))
        before = bisect_right(known, asked_s) - 1
        end = bisect_left(self._asked, heard_s)
        if before < 0 or end == len(self._snapshots):
            return ()
        return self._snapshots[places[before] : end + 1]

    def meanwhile(self, asked_s: float, heard_s: float) -> Sequence[Snapshot]:
        """The looks from the last one before the question to the first after the answer."""
        before = bisect_right(self._heard, asked_s) - 1
        end = bisect_left(self._asked, heard_s)
        if before < 0 or end == len(self._snapshots):
            return ()
        return self._snapshots[before : end + 1]

    def _note(self, number: int, snapshot: Snapshot) -> None:
        for node_id, version in snapshot.acknowledged.items():
            known, places = self._in_force.setdefault(node_id, ([], []))
            place = places[-1] if places else -1
            for later in range(max(place + 1, 0), number + 1):
                other = self._snapshots[later]
                if other.manager_id == snapshot.manager_id and other.version <= version:
                    place = later
            if place >= 0 and (not places or place > places[-1]):
                known.append(snapshot.heard_s)
                places.append(place)


def judge(
    answers: Iterable[Answer],
    timelines: Mapping[str, Timeline],
    virtual: Mapping[str, frozenset[tuple[str, str]]],
    troubles: Sequence[Trouble] = (),
) -> tuple[int, list[Wrong]]:
    """How many answers could be judged, and those that are wrong.

    virtual: (network, address) by service. troubles: excuse what dead tasks did not hear, and pages
    that did not come from a service of theirs.
    """
    judged, wrong = 0, []
    for answer in answers:
        looks = timelines[answer.question.service].between(
            answer.asker.node_id, answer.asked_s, answer.heard_s
        )
        if not looks or (answer.error and not _is_there(answer, timelines)):
            continue
        judged += 1
        why = _fault(answer, looks, virtual, troubles)
        if why:
            wrong.append(Wrong(answer, why))
    return judged, wrong


def last_fault(
    answers: Iterable[Answer],
    timelines: Mapping[str, Timeline],
    virtual: Mapping[str, frozenset[tuple[str, str]]],
    *,
    from_s: float,
) -> Wrong | None:
    """The last answer to a question from then on that was behind what the managers said.

    Whatever the asker's node had acknowledged, and allowing for what every change takes to reach
    the nodes. Askers that have ended are not heard any more, and are no matter.
    """
    last: Wrong | None = None
    for answer in answers:
        looks = timelines[answer.question.service].meanwhile(answer.asked_s - LAG_S, answer.heard_s)
        if (
            answer.asked_s < from_s
            or not looks
            or (answer.error and not _is_there(answer, timelines))
        ):
            continue
        why = _fault(answer, looks, virtual, ())
        if why and (last is None or answer.asked_s > last.answer.asked_s):
            last = Wrong(answer, why)
    return last


def _is_there(answer: Answer, timelines: Mapping[str, Timeline]) -> bool:
    """Whether the asker itself was ready all the while: one that has ended hears no answers."""
    asker = answer.asker
    looks = timelines[asker.service].between(asker.node_id, answer.asked_s, answer.heard_s)
    return bool(looks) and all(
        any(place.task_id == asker.task_id for place in look.ready) for look in looks
    )


def _fault(
    answer: Answer,
    looks: Sequence[Snapshot],
    virtual: Mapping[str, frozenset[tuple[str, str]]],
    troubles: Sequence[Trouble],
) -> str:
    question = answer.question
    if answer.error:
        excused = any(_excuses(trouble, answer) for trouble in troubles)
        return "" if excused else f"no answer: {answer.error}"
    match question.kind:
        case Kind.TASKS:
            return _fault_of_tasks(answer, looks)
        case Kind.VIRTUAL:
            held = virtual[question.service]
            expected = {address for network, address in held if network in question.networks}
            return "" if answer.values == expected else f"not the virtual addresses {expected}"
        case Kind.NOTHING:
            empty = answer.code == "NOERROR" and not answer.values
            return "" if empty else f"{answer.code} {set(answer.values)} instead of no record"
        case Kind.STRANGER:
            return "" if answer.code == "NXDOMAIN" else f"{answer.code}: it is not on the network"
        case Kind.REVERSE:
            return _fault_of_name(answer, looks)
        case Kind.TALK:
            hosts = {place.task_id[:HOST_DIGITS] for look in looks for place in look.ready}
            return "" if answer.values <= hosts else "the page is of a task that is not ready"


def _excuses(trouble: Trouble, answer: Answer) -> bool:
    question = answer.question
    died = question.kind is Kind.TALK and question.service in trouble.services
    meanwhile = trouble.from_s <= answer.heard_s and answer.asked_s <= trouble.until_s
    return meanwhile and (died or answer.asker.task_id in trouble.tasks)


def _fault_of_tasks(answer: Answer, looks: Sequence[Snapshot]) -> str:
    each = [_addresses(look.ready, answer.question) for look in looks]
    if answer.code != "NOERROR":
        return f"{answer.code}: the service is there"
    if surplus := answer.values - frozenset().union(*each):
        return f"not ready: {sorted(surplus)}"
    if missing := each[0].intersection(*each) - answer.values:
        return f"missing: {sorted(missing)}"
    return ""


def _addresses(ready: Iterable[Place], question: Question) -> frozenset[str]:
    return frozenset(place.address for place in ready if place.network in question.networks)


def _fault_of_name(answer: Answer, looks: Sequence[Snapshot]) -> str:
    """The name of a task is SERVICE.SLOT.ID.NETWORK; the question's name is its address."""
    address = answer.question.name
    owners = [{p.task_id for p in look.ready if p.address == address} for look in looks]
    named = {tuple(value.split(".")) for value in answer.values}
    own = {parts[2] for parts in named if parts[0] == answer.question.service}
    if dead := own - set().union(*owners):
        return f"{sorted(dead)} is not ready at {address}"
    if all(owners) and not own:
        return f"{answer.code} {sorted(answer.values)}: {address} has another name"
    return ""
