"""Stacks, their revisions and their changes, as rows and lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from shoal.docker.values import Record
from shoal.docker.words import timestamp
from shoal.model.objects import Stack
from swarmctl.render.rows import Columns
from swarmctl.render.times import distance

if TYPE_CHECKING:
    from shoal.api.v1.stacks_pb2 import DeployStackResponse, StackChange, StackSummary

STACK_COLUMNS: Columns = {"Name": "NAME", "Services": "SERVICES", "Revision": "REVISION"}
REVISION_COLUMNS: Columns = {"Revision": "REVISION", "DeployedAt": "DEPLOYED", "Note": "NOTE"}

_VERBS: Mapping[int, str] = {1: "Creating", 2: "Updating", 3: "Rotating", 4: "Removing"}


def stack_row(summary: StackSummary) -> Record:
    """One in a list; without a revision a client made it."""
    return Record(
        {
            "Name": summary.name,
            "Services": str(summary.services),
            "Revision": str(summary.revision or "-"),
            "Networks": str(summary.networks),
            "Secrets": str(summary.secrets),
            "Configs": str(summary.configs),
        }
    )


def revision_row(stack: Stack, now_ns: int, *, newest: int) -> Record:
    """One of the revisions of a stack."""
    notes = ["current"] if stack.revision == newest else []
    if stack.rolled_back_to:
        notes.append(f"rolled back to {stack.rolled_back_to}")
    return Record(
        {
            "Revision": str(stack.revision),
            "DeployedAt": f"{distance(now_ns - stack.meta.created_at_ns)} ago",
            "Note": ", ".join(notes),
            "Timestamp": timestamp(stack.meta.created_at_ns),
        }
    )


def change_lines(changes: Iterable[StackChange]) -> Iterator[str]:
    """A line for each object, as docker writes them."""
    for one in changes:
        known = f" (id: {one.id})" if _VERBS[one.action] == "Updating" else ""
        yield f"{_VERBS[one.action]} {one.kind} {one.name}{known}"


def changes_json(deployment: DeployStackResponse) -> Record:
    """For programs."""
    return Record(
        {
            "Stack": deployment.stack,
            "Revision": deployment.revision,
            "Warnings": list(deployment.warnings),
            "Changes": [
                Record(
                    {
                        "Kind": one.kind,
                        "Name": one.name,
                        "ID": one.id,
                        "Action": _VERBS[one.action].lower().replace("ing", "e"),
                    }
                )
                for one in deployment.changes
            ],
        }
    )
