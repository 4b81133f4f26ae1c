"""The judge sees what it is there for: names of the dead, of the unready, and what is missing."""

from __future__ import annotations

import pytest

from tests.names.facts import Answer, Asker, Kind, Place, Question, Snapshot, Trouble
from tests.names.judge import LAG_S, Timeline, judge, last_fault

ASKER = Asker("asker", "n1", "api", 1, frozenset({"back"}))
VIRTUAL = {"db": frozenset({("back", "10.0.1.2"), ("front", "10.0.2.2")})}
BACK = frozenset({"back"})


def a_look(at_s: float, version: int, *tasks: int, n1: int = 0, manager: str = "m1") -> Snapshot:
    """At that time the tasks are ready; node n1 has acknowledged a version."""
    places = frozenset(Place("back", f"10.0.1.{task}", f"{task}-is-the-task") for task in tasks)
    acknowledged = {"n1": n1} if n1 else {}
    return Snapshot(at_s, at_s + 0.1, manager, version, places, acknowledged)


def api(*looks: Snapshot) -> Timeline:
    """The asker's own service: it is there all the while."""
    own = frozenset({Place("back", "10.0.1.99", ASKER.task_id)})
    return Timeline([Snapshot(o.asked_s, o.heard_s, "m1", 1, own, {"n1": 1}) for o in looks])


def an_answer(kind: Kind, *values: str, at_s: float = 4.5, **fields: str) -> Answer:
    name = fields.pop("name", "tasks.db")
    question = Question(kind, name, "db", BACK)
    return Answer(ASKER, question, at_s, at_s + 0.1, frozenset(values), **fields)


# Task 5 leaves with version 3, which n1 acknowledges between 3 and 4 s; task 6 comes with it.
LOOKS = (
    a_look(0, 2, 5, n1=1),
    a_look(1, 2, 5, n1=2),
    a_look(2, 3, 6, n1=2),
    a_look(3, 3, 6, n1=2),
    a_look(4, 3, 6, n1=3),
    a_look(5, 3, 6, n1=3),
    a_look(6, 3, 6, n1=3),
)


def why(answer: Answer, *looks: Snapshot, troubles: tuple[Trouble, ...] = ()) -> str:
    """What is wrong; "" if nothing. Fails if the answer could not be judged."""
    looks = looks or LOOKS
    timelines = {"db": Timeline(looks), "api": api(*looks)}
    judged, wrong = judge([answer], timelines, VIRTUAL, troubles)
    assert judged == 1
    return wrong[0].why if wrong else ""


def test_the_dead_may_be_named_until_the_node_has_acknowledged_and_no_longer() -> None:
    assert why(an_answer(Kind.TASKS, "10.0.1.5", at_s=3.5)) == ""
    assert why(an_answer(Kind.TASKS, "10.0.1.6", at_s=3.5)) == ""
    assert why(an_answer(Kind.TASKS, "10.0.1.6", at_s=4.5)) == ""
    assert why(an_answer(Kind.TASKS, "10.0.1.5", "10.0.1.6")) == "not ready: ['10.0.1.5']"


def test_who_never_was_ready_is_not_named() -> None:
    for at_s in (1.5, 3.5, 4.5):
        assert "not ready" in why(an_answer(Kind.TASKS, "10.0.1.6", "10.0.1.7", at_s=at_s))
    assert "not ready" in why(an_answer(Kind.TASKS, "10.0.1.6"), *LOOKS[:2], *[
        a_look(at_s, 2, 5, n1=2) for at_s in (4, 5)
    ])  # fmt: skip


def test_whoever_is_ready_all_the_while_is_named() -> None:
    assert why(an_answer(Kind.TASKS)) == "missing: ['10.0.1.6']"
    assert "NXDOMAIN" in why(an_answer(Kind.TASKS, code="NXDOMAIN"))


def test_under_a_new_leader_a_node_is_held_to_what_it_acknowledged_to_the_one_before() -> None:
    looks: tuple[Snapshot, ...] = (
        *LOOKS[:5],
        a_look(5, 1, 6, 7, manager="m2"),
        a_look(6, 1, 6, 7, manager="m2"),
    )
    assert why(an_answer(Kind.TASKS, "10.0.1.6", at_s=5.5), *looks) == ""
    assert why(an_answer(Kind.TASKS, "10.0.1.6", "10.0.1.7", at_s=5.5), *looks) == ""
    assert "not ready" in why(an_answer(Kind.TASKS, "10.0.1.5", "10.0.1.6", at_s=5.5), *looks)
    looks = (*looks[:6], a_look(6, 1, 6, 7, n1=1, manager="m2"), a_look(9, 1, 6, 7, manager="m2"))
    assert "missing" in why(an_answer(Kind.TASKS, "10.0.1.6", at_s=6.5), *looks)


def test_virtual_addresses_strangers_and_families() -> None:
    assert why(an_answer(Kind.VIRTUAL, "10.0.1.2")) == ""
    assert why(an_answer(Kind.VIRTUAL, "10.0.1.6")) != ""
    assert why(an_answer(Kind.VIRTUAL)) != ""
    assert why(an_answer(Kind.STRANGER, code="NXDOMAIN")) == ""
    assert why(an_answer(Kind.STRANGER, "10.0.1.6")) != ""
    assert why(an_answer(Kind.NOTHING)) == ""
    assert why(an_answer(Kind.NOTHING, code="NXDOMAIN")) != ""


@pytest.mark.parametrize(
    ("address", "name", "fault"),
    [
        ("10.0.1.6", "db.1.6-is-the-task.back", ""),
        ("10.0.1.5", "db.1.5-is-the-task.back", "not ready"),
        ("10.0.1.6", "db.1.5-is-the-task.back", "not ready"),
        ("10.0.1.6", "web.1.another.back", "another name"),
        ("10.0.1.6", "", "another name"),
        ("10.0.1.5", "", ""),
    ],
)
def test_names_of_addresses(address: str, name: str, fault: str) -> None:
    values = (name,) if name else ()
    found = why(an_answer(Kind.REVERSE, *values, name=address))
    assert (fault in found) if fault else not found


def test_pages_come_from_tasks_that_are_ready_and_always_come() -> None:
    assert why(an_answer(Kind.TALK, "6-is-the-task"[:12])) == ""
    gone = an_answer(Kind.TALK, "5-is-the-task"[:12])
    assert why(gone) != ""
    lost = an_answer(Kind.TALK, error="ConnectionRefusedError")
    assert why(lost) != ""

    def trouble(services: frozenset[str], tasks: frozenset[str]) -> tuple[Trouble]:
        return (Trouble(4.0, 5.0, tasks, services),)

    nobody: frozenset[str] = frozenset()
    assert why(lost, troubles=trouble(frozenset({"db"}), nobody)) == ""
    assert why(lost, troubles=trouble(nobody, frozenset({"asker"}))) == ""
    assert why(lost, troubles=trouble(frozenset({"web"}), frozenset({"t"}))) != ""
    unheard = an_answer(Kind.TASKS, error="TimeoutError")
    assert why(unheard, troubles=trouble(frozenset({"db"}), nobody)) != ""


def test_what_a_task_that_has_ended_does_not_hear_is_not_judged() -> None:
    timelines = {"db": Timeline(LOOKS), "api": Timeline(LOOKS)}
    judged, _ = judge([an_answer(Kind.TASKS, error="ConnectionRefusedError")], timelines, VIRTUAL)
    assert judged == 0


def test_an_answer_is_behind_what_the_managers_had_said_for_a_while_whatever_its_node_knew() -> (
    None
):
    looks = tuple(a_look(number / 10, 3 if number > 20 else 2, 6) for number in range(20, 60))
    looks = (a_look(1.9, 2, 5, n1=2), *looks)  # n1 never hears of the end of task 5
    timelines = {"db": Timeline(looks), "api": api(*looks)}

    def behind(*times_s: float, from_s: float = 0.0) -> float | None:
        answers = [an_answer(Kind.TASKS, "10.0.1.5", at_s=at_s) for at_s in times_s]
        assert judge(answers, timelines, VIRTUAL)[1] == []
        last = last_fault(answers, timelines, VIRTUAL, from_s=from_s)
        return None if last is None else last.answer.asked_s

    assert behind(2.1 + LAG_S / 2) is None, "on its way"
    assert behind(3.0, 4.0, 3.5) == 4.0
    assert behind(3.0, from_s=3.5) is None
