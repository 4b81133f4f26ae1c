"""What was asked, what was answered, and what the managers knew meanwhile. Frozen values.

Times are seconds of the machine's monotonic clock, which every node of a lab shares.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class Kind(Enum):
    """What an answer must be."""

    TASKS = "the addresses of all ready tasks"
    VIRTUAL = "the virtual addresses"
    NOTHING = "no address of this family, but no NXDOMAIN"
    STRANGER = "NXDOMAIN"
    REVERSE = "the name of the task that has the address"
    TALK = "a page from a ready task"


class Question(msgspec.Struct, frozen=True):
    """What is asked. networks: those the asker shares with the service."""

    kind: Kind
    name: str
    service: str
    networks: frozenset[str] = frozenset()


class Asker(msgspec.Struct, frozen=True):
    """A task that asks."""

    task_id: str
    node_id: str
    service: str
    pid: int
    networks: frozenset[str]


class Answer(msgspec.Struct, frozen=True):
    """What came back. values: addresses, a name, or a task's host name. error: none did."""

    asker: Asker
    question: Question
    asked_s: float
    heard_s: float
    values: frozenset[str] = frozenset()
    code: str = "NOERROR"
    error: str = ""


class Place(msgspec.Struct, frozen=True):
    """Where a ready task is reached."""

    network: str
    address: str
    task_id: str


class Snapshot(msgspec.Struct, frozen=True):
    """One service as the leading manager showed it. acknowledged: version in force, by node."""

    asked_s: float
    heard_s: float
    manager_id: str
    version: int
    ready: frozenset[Place]
    acknowledged: dict[str, int]


class Trouble(msgspec.Struct, frozen=True):
    """A time in which tasks died unasked: they hear nothing, and connections to them fail."""

    from_s: float
    until_s: float
    tasks: frozenset[str]
    services: frozenset[str]
