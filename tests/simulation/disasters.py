"""What goes wrong: the seed decides what and when.

At most a minority of machines is down at once for long, but partitions, pauses and crashes meet as
they please; all of it ends with `end`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manager.raft.confchange import (
    LEAVE_JOINT,
    ChangeKind,
    ConfChange,
    NodeChange,
    Transition,
    add_learner,
    add_voter,
    remove,
)
from manager.raft.errors import ProposalDropped
from manager.raft.storage import NO_SNAPSHOT
from shoal.errors import FailedPrecondition

if TYPE_CHECKING:
    from tests.simulation.member import Member
    from tests.simulation.world import World

PERIOD = 400_000
MEMBERS_MAX = 7


class Disasters:
    """One disaster follows another until `end`."""

    def __init__(self, world: World, *, stormy: bool) -> None:
        self.world = world
        self.chance = world.chance
        self.is_on = True
        # Each run has its own weather; some have none of a kind.
        weights = [
            (self.crash, 6), (self.partition, 5), (self.reunite, 6), (self.weather, 2),
            (self.pause, 3), (self.slow_disk, 2), (self.drift, 1), (self.transfer, 2),
            (self.change_members, 4), (self.power_cut, 1), (self.kill_leader, 2),
        ]  # fmt: skip
        self._actions = [action for action, _ in weights]
        self._weights = [weight * self.chance.choice([0, 1, 1, 2]) for _, weight in weights]
        if not any(self._weights):
            self._weights = [1] * len(weights)
        # What is cut is mended some day, or little else could happen.
        self._weights[self._actions.index(self.reunite)] = 6
        if stormy:
            self._actions, self._weights = [self.crash, self.reunite], [1, 3]
        self.pace = self.chance.choice([0.3, 1.0, 3.0])
        world.later(PERIOD, self._next, None)
        self.hasty = 0.95 if stormy else self.chance.choice([0.0, 0.0, 0.5, 0.9])
        """How often a leader is cut off or dies right after its election."""
        self.weather()

    def elected(self, member: Member) -> None:
        """A node has become leader: the moment of which Raft's figure 8 is made."""
        if not self.is_on or self.chance.random() >= self.hasty:
            return
        random = self.chance.random
        if random() < 0.9:
            for other in self.world.members:
                if other != member.id and random() < 0.7:
                    self.world.network.cut |= {(member.id, other), (other, member.id)}
            self.world.later(int(2_500_000 * random()), self._reach, member)
        if random() < 0.9:
            self.world.later(int(100_000 * random()), self._crash, member)

    def _reach(self, member: Member) -> None:
        cut = self.world.network.cut
        self.world.network.cut = {link for link in cut if member.id not in link}

    def end(self) -> None:
        self.is_on = False

    def _next(self, _: object) -> None:
        if not self.is_on:
            return
        self.world.later(
            int(PERIOD * self.pace * (0.1 + 1.8 * self.chance.random())), self._next, None
        )
        self.chance.choices(self._actions, self._weights)[0]()

    # Machines.

    def crash(self) -> None:
        self._crash(self._any())

    def kill_leader(self) -> None:
        leader = self.world.leader()
        if leader is not None:
            self._crash(leader)

    def power_cut(self) -> None:
        """Everybody at once."""
        for member in list(self.world.members.values()):
            self._crash(member)

    def pause(self) -> None:
        member = self._any()
        if member.is_running:
            self.world.note(f"pause {member}")
            member.is_paused = True
            self.world.later(self._while(3_000_000), self._resume, member)

    def slow_disk(self) -> None:
        member = self._any()
        member.disk_delay = self.chance.choice([100, 300, 5_000, 60_000, 400_000])

    def drift(self) -> None:
        """Clocks that run apart: a tick of 100 ms takes 60 to 150."""
        self._any().tick_period = 60_000 + int(self.chance.random() * 90_000)

    # The network.

    def partition(self) -> None:
        members = list(self.world.members)
        self.chance.shuffle(members)
        split = self.chance.randint(1, len(members))
        one_way = self.chance.random() < 0.3
        for a in members[:split]:
            for b in members[split:]:
                self.world.network.cut.add((a, b))
                if not one_way:
                    self.world.network.cut.add((b, a))
        self.world.note(f"partition {members[:split]} | {members[split:]} one_way={one_way}")

    def reunite(self) -> None:
        self.world.network.cut.clear()

    def weather(self) -> None:
        network, choice = self.world.network, self.chance.choice
        network.drop = choice([0.0, 0.0, 0.02, 0.1, 0.3])
        network.repeat = choice([0.0, 0.02, 0.2])
        network.late = choice([0.0, 0.0, 0.02, 0.2])

    # The operator.

    def transfer(self) -> None:
        leader = self.world.leader()
        if leader is None:
            return
        try:
            leader.raft.transfer_leader(self.chance.choice(sorted(leader.membership.nodes)))
        except FailedPrecondition:
            return
        leader.pump()

    def change_members(self) -> None:
        leader = self.world.leader()
        if leader is None:
            return
        change = self._change(leader)
        try:
            leader.raft.propose_conf_change(change)
        except (FailedPrecondition, ProposalDropped):
            return
        self.world.note(f"{leader} proposes {change}")
        leader.pump()

    def leave_joint(self) -> None:
        """What the operator owes whoever began a change that is left explicitly."""
        leader = self.world.leader()
        if leader is None or not leader.membership.is_joint:
            return
        try:
            leader.raft.propose_conf_change(LEAVE_JOINT)
        except (FailedPrecondition, ProposalDropped):
            return
        leader.pump()

    def _change(self, leader: Member) -> ConfChange:
        membership, chance = leader.membership, self.chance
        if membership.is_joint:
            return LEAVE_JOINT
        voters, learners = sorted(membership.voters), sorted(membership.learners)
        options: list[ConfChange] = [add_voter(node) for node in learners]
        options += [remove(node) for node in learners]
        if len(voters) > 1:
            options += [remove(chance.choice(voters)), add_learner(chance.choice(voters))]
        if len(membership.nodes) < MEMBERS_MAX:
            options += [add_learner(self._new_member())] * 2
        if learners and len(voters) > 1:
            swap = (
                NodeChange(ChangeKind.ADD_VOTER, chance.choice(learners)),
                NodeChange(chance.choice(list(ChangeKind)[1:]), chance.choice(voters)),
            )
            options.append(ConfChange(swap, chance.choice(list(Transition))))
        return chance.choice(options)

    def _new_member(self) -> int:
        node = self.world.next_id
        self.world.next_id += 1
        self.world.add_member(node, NO_SNAPSHOT)
        return node

    # How things end by themselves.

    def _crash(self, member: Member) -> None:
        if member.is_up and self.is_on:
            self.world.note(f"crash {member}")
            member.crash()
            self.world.later(self._while(4_000_000), self._restart, member)

    def _restart(self, member: Member) -> None:
        if not member.is_up and not member.is_retired:
            self.world.note(f"start {member}")
            member.start()

    def _resume(self, member: Member) -> None:
        member.resume()

    def _while(self, longest: int) -> int:
        return 10_000 + int(longest * self.chance.random() ** 3)

    def _any(self) -> Member:
        return self.chance.choice(list(self.world.members.values()))
