"""What must be true of the cluster after every step, whatever went wrong before.

Each rule is checked where it can first be broken, against what all nodes have ever shown, so a
check costs the same however long the run is:

 - Election Safety: a term has one leader.
 - Log Matching: whoever keeps an entry (index, term) has the same data and the same term before it.
 - Leader Completeness: a new leader holds everything that was ever committed.
 - State Machine Safety: an index is committed with one term, and the state after it is one.
 - Commit and term never fall in a running node; the term and vote not even over a crash.
 - What is committed is durable with a quorum; what is promised is durable before it is said.
 - A read sees every write that was answered before it began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manager.raft.core import Core
from manager.raft.entries import Entry, Role
from manager.raft.messages import Message, MessageKind
from manager.raft.quorum import VoteResult, majority_vote

if TYPE_CHECKING:
    from tests.simulation.member import Member
    from tests.simulation.world import World


class Violated(AssertionError):
    """A rule was broken: the run has found a bug."""


class Checker:
    """The memory of all that was shown."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.kept: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        self.committed: list[int] = [0, 1]
        """Term of each committed entry, by index; a cluster begins with a snapshot of entry 1."""
        self.commits_by_term: list[tuple[int, int]] = [(1, 0)]
        """The last entry committed in each term in which something was, ascending."""
        self.states: list[int] = [0, 0]
        """State after each applied entry, by index."""
        self.answered = 0
        """The highest index a client was told about."""
        self.checked = 0

    def after_step(self, member: Member) -> None:
        """A node has done something."""
        core = member.core
        if core.term != member.seen_term:
            if core.term < member.seen_term:
                raise Violated(f"{member} went back to term {core.term}")
            member.seen_term = core.term
        self.commits(member)
        if core.role is Role.LEADER and member.led_term != core.term:
            member.led_term = core.term
            self._elected(member, core)
            self.world.disasters.elected(member)
        self.checked += 1
        if self.checked & 15 == 0:
            member.raft.check()

    def commits(self, member: Member) -> None:
        """A node may have raised its commit index."""
        commit = member.core.log.committed
        if commit != member.seen_commit:
            self._commit(member, member.core, commit)

    def keeps(self, member: Member, entries: tuple[Entry, ...]) -> None:
        """A node writes entries to its disk."""
        before = member.core.log.term(entries[0].index - 1)
        for entry in entries:
            shown = (before or 0, entry.kind, entry.data)
            known = self.kept.setdefault((entry.index, entry.term), shown)
            # The term before is not known right after a compaction.
            if known is not shown and known[1:] != shown[1:]:
                raise Violated(f"{member} has other data in ({entry.index}, {entry.term})")
            if known is not shown and before is not None and known[0] != before:
                raise Violated(f"{member} has another log before ({entry.index}, {entry.term})")
            before = entry.term

    def sends(self, member: Member, message: Message) -> None:
        """A node says something; a promise must be durable by now."""
        if message.reject:
            return
        if message.kind is MessageKind.VOTE_RESPONSE:
            voted = self.votes.setdefault((member.id, message.term), message.to)
            if voted != message.to:
                raise Violated(f"{member} votes for {voted} and {message.to} in {message.term}")
            hard = member.disk.hard_state
            if (hard.term, hard.vote) < (message.term, 0) or (
                hard.term == message.term and hard.vote != message.to
            ):
                raise Violated(f"{member} promises a vote that is not durable: {hard}")
        elif message.kind is MessageKind.APPEND_RESPONSE and message.index:
            # Entries replaced meanwhile are another term's; then the durable term has risen.
            held = member.disk.before + len(member.disk.entries)
            durable = max(held, member.disk.snapshot.index) >= message.index
            if not durable and member.disk.hard_state.term == message.term:
                raise Violated(f"{member} acknowledges {message.index}, which is not durable")

    def applied(self, member: Member, index: int, state: int) -> None:
        """A node's state after an entry or a snapshot."""
        if index == len(self.states):
            self.states.append(state)
        elif self.states[index] != state:
            raise Violated(f"{member} has another state after entry {index}")

    def read(self, member: Member, index: int, floor: int) -> None:
        """A read that began when `floor` was answered may be served from `index`."""
        if index < floor:
            raise Violated(f"{member} reads at {index}, but {floor} was answered before")

    def _commit(self, member: Member, core: Core, commit: int) -> None:
        if commit < member.seen_commit:
            raise Violated(f"{member} takes back commits {commit + 1} to {member.seen_commit}")
        known = len(self.committed) - 1
        for index in range(member.seen_commit + 1, commit + 1):
            term = core.log.term(index)
            if term is None:
                continue  # in a snapshot, whose last entry is checked
            if index <= known:
                if self.committed[index] != term:
                    raise Violated(
                        f"{member} commits ({index}, {term}), another has committed term"
                        f" {self.committed[index]} there"
                    )
            else:
                self.committed.append(term)
        member.seen_commit = commit
        if commit > known:
            if self.commits_by_term[-1][1] == core.term:
                self.commits_by_term.pop()
            self.commits_by_term.append((commit, core.term))
            self._is_durable(member, core, commit)

    def _is_durable(self, member: Member, core: Core, index: int) -> None:
        term = core.log.term(index)
        held = {
            other.id: True
            for other in self.world.members.values()
            if other.disk.snapshot.index > index or other.disk.term(index) == term
        }
        membership = core.membership
        for half in (membership.voters, membership.outgoing):
            votes = {node: held.get(node, False) for node in half}
            if majority_vote(half, votes) is not VoteResult.WON:
                raise Violated(
                    f"{member} commits {index}, durable only with {sorted(held)} of {sorted(half)}"
                )

    def _elected(self, member: Member, core: Core) -> None:
        if self.leaders.setdefault(core.term, member.id) != member.id:
            raise Violated(f"{member} and node {self.leaders[core.term]} lead term {core.term}")
        # Of an earlier term: a slow candidate may win a term that is over already. By Log Matching,
        # whoever has the last of those has them all.
        last = next(index for index, term in reversed(self.commits_by_term) if term < core.term)
        if core.log.term(last) != self.committed[last] and core.log.storage.snapshot.index < last:
            raise Violated(f"{member} leads term {core.term} without committed entry {last}")
