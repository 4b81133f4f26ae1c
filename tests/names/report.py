"""What a run has seen, printed."""

from __future__ import annotations

from tests.names.judge import Wrong
from tests.names.stage import Outcome

WRONG_SHOWN = 20


def show(outcome: Outcome) -> None:
    """What was wrong, and figures."""
    for one in outcome.wrong[:WRONG_SHOWN]:
        print(f"wrong: {show_wrong(one)}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in outcome.by_kind.items())
    print(
        f"asked {outcome.asked} ({kinds}) in {outcome.seconds:.1f} s, unanswered"
        f" {outcome.unanswered}, slowest {outcome.slowest_s:.2f} s,"
        f" {outcome.changes} changes, {outcome.killed} nodes killed,"
        f" {outcome.tasks} tasks were ready",
        flush=True,
    )


def show_wrong(one: Wrong) -> str:
    """An answer, and why it is wrong, in one line."""
    answer = one.answer
    return (
        f"{one.why}: {answer.question.name} ({answer.question.kind.name.lower()}),"
        f" asked by {answer.asker.service} {answer.asker.task_id} on {answer.asker.node_id},"
        f" {answer.asked_s:.3f} to {answer.heard_s:.3f}: {answer.code} {sorted(answer.values)}"
    )
