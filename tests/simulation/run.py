"""Run a seed and say what came of it; and the bugs that the simulation must be able to find."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from manager.raft import commit, leader, readindex
from manager.raft.core import Core, Leadership, PendingRead
from manager.raft.entries import ReadState
from manager.raft.replication import committed_by_quorum
from tests.simulation.member import Member
from tests.simulation.world import World


class Outcome(NamedTuple):
    """`failure` is empty when all went well."""

    seed: int
    steps: int
    virtual_s: float
    committed: int
    answered: int
    terms: int
    members: int
    failure: str
    story: tuple[str, ...]


def run_seed(seed: int, steps: int, climate: str = "any") -> Outcome:
    """One run: trouble for so many steps, then healing."""
    world = World(seed, climate)
    failure = ""
    try:
        world.run(steps)
        world.heal()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        world.note("".join(traceback.format_tb(error.__traceback__, -3)))
    checker = world.checker
    return Outcome(
        seed=seed,
        steps=world.steps,
        virtual_s=world.now / 1e6,
        committed=len(checker.committed) - 1,
        answered=checker.answered,
        terms=max(checker.leaders, default=0),
        members=len(world.members),
        failure=failure,
        story=tuple(world.story),
    )


@contextlib.contextmanager
def missing_fsync() -> Iterator[None]:
    """The driver forgets four syncs of five."""
    kept = Member.sync

    def sync(self: Member) -> None:
        if self.world.chance.random() < 0.2:
            kept(self)

    Member.sync = sync  # type: ignore[method-assign]
    try:
        yield
    finally:
        Member.sync = kept  # type: ignore[method-assign]


@contextlib.contextmanager
def commit_old_term() -> Iterator[None]:
    """A leader counts copies of entries of earlier terms (Raft paper, figure 8)."""
    kept = commit.maybe_commit

    def maybe_commit(core: Core, leading: Leadership) -> bool:
        index = committed_by_quorum(core, {id_: p.match for id_, p in leading.progress.items()})
        return core.log.commit_to(index)

    commit.maybe_commit = maybe_commit
    try:
        yield
    finally:
        commit.maybe_commit = kept


@contextlib.contextmanager
def ex_leader_acts() -> Iterator[None]:
    """Whoever believes to lead answers reads without asking anybody."""
    kept = leader.add_read, readindex.add_read

    def add_read(core: Core, leading: Leadership, read: PendingRead) -> None:
        if read.reader == core.id:
            core.read_states.append(ReadState(core.log.committed, read.context))
        else:
            kept[1](core, leading, read)

    from manager.raft import node

    node_kept = node.add_read
    leader.add_read = node.add_read = add_read
    try:
        yield
    finally:
        leader.add_read, node.add_read = kept[0], node_kept


BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "missing-fsync": missing_fsync,
    "commit-old-term": commit_old_term,
    "ex-leader-acts": ex_leader_acts,
}
