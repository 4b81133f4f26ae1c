"""The world of one run: the event heap, the virtual clock, machines, clients.

The same seed gives the same run to the last bit. A step is one event: a message that arrives, a
tick, a finished write, a client's wish, a disaster.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from manager.raft.entries import Entry, ReadState, Snapshot
from manager.raft.errors import ProposalDropped
from manager.raft.messages import Message
from manager.raft.node import first_snapshot
from shoal.errors import ResourceExhausted, Unavailable
from tests.simulation.checker import Checker, Violated
from tests.simulation.disasters import Disasters
from tests.simulation.member import Member
from tests.simulation.network import Network

READS_MAX = 64


class World:
    """Everything there is."""

    def __init__(self, seed: int, climate: str = "any") -> None:
        """climate: "any" draws everything from the seed; "elections" is a storm of elections among
        three nodes that send entry by entry, the air in which Raft's figure 8 grows.
        """
        self.seed = seed
        stormy = climate == "elections"
        self.chance = random.Random(seed)
        self.now = 0
        self.steps = 0
        self._heap: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._sequence = 0
        self.message_bytes_max = self.chance.choice([1] if stormy else [1, 100, 1_000, 100_000])
        self.inflight_messages_max = self.chance.choice([1] if stormy else [1, 4, 64])
        self.client_period = 10_000 if stormy else 20_000
        self.election_ticks = 3 if stormy else 10
        self.checker = Checker(self)
        self.network = Network(self)
        self.members: dict[int, Member] = {}
        self.proposals: dict[tuple[int, int], bytes] = {}
        self.reads: dict[bytes, int] = {}
        self._read_order: deque[bytes] = deque()
        self._wishes = 0
        self.story: deque[str] = deque(maxlen=40)
        voters = tuple(range(1, self.chance.choice([3] if stormy else [1, 3, 3, 3, 5]) + 1))
        for node in voters:
            self.add_member(node, first_snapshot(voters))
        self.next_id = len(voters) + 1
        self.disasters = Disasters(self, stormy=stormy)
        self.later(self.client_period, self._client, None)

    def later(self, delay: int, action: Callable[[Any], None], argument: object) -> None:
        self._sequence += 1
        heappush(self._heap, (self.now + delay, self._sequence, action, argument))

    def run(self, steps: int) -> None:
        """Let so many events happen."""
        heap = self._heap
        for _ in range(steps):
            self.now, _, action, argument = heappop(heap)
            action(argument)
        self.steps += steps

    def heal(self, steps_max: int = 60_000) -> None:
        """All trouble ends; the cluster must come to accept a write that everybody has.

        Raises: Violated when it does not within `steps_max` events.
        """
        self.disasters.end()
        self.network.heal()
        for member in self.members.values():
            member.tick_period, member.disk_delay = 100_000, 300
            member.resume()
            if not member.is_up and not member.is_retired:
                member.start()
        goal = len(self.checker.committed) + 20
        for _ in range(0, steps_max, 500):
            self.run(500)
            self.disasters.leave_joint()
            if self._is_well(goal):
                return
        raise Violated(f"no progress after healing: {[*self.members.values()]}")

    def _is_well(self, goal: int) -> bool:
        leader = self.leader()
        if leader is None or leader.raft.applied < goal or leader.membership.is_joint:
            return False
        return all(
            self.members[node].raft.applied >= goal and self.members[node].raft.leader == leader.id
            for node in leader.membership.nodes
        )

    def leader(self) -> Member | None:
        """The leader of the highest term among those that run."""
        leaders = [member for member in self.members.values() if member.leads]
        return max(leaders, key=lambda member: member.core.term, default=None)

    def add_member(self, node: int, snapshot: Snapshot) -> Member:
        member = self.members[node] = Member(self, node, snapshot)
        return member

    def note(self, text: str) -> None:
        """Remember what happened, for whoever reads a failure."""
        self.story.append(f"{self.now / 1e6:10.3f}s {text}")

    # What the network does.

    def send(self, member: Member, message: Message) -> None:
        self.checker.sends(member, message)
        if message.to in self.members:
            self.network.send(message)

    def deliver(self, message: Message) -> None:
        if (message.sender, message.to) not in self.network.cut:
            self.members[message.to].receive(message)

    def report_unreachable(self, message: Message) -> None:
        sender = self.members[message.sender]
        if sender.is_running:
            sender.raft.report_unreachable(message.to)
            sender.pump()

    def report_snapshot(self, outcome: tuple[Message, bool]) -> None:
        message, ok = outcome
        sender, receiver = self.members[message.sender], self.members[message.to]
        if not sender.is_up:
            return
        if sender.is_paused:
            self.later(100_000, self.report_snapshot, outcome)
            return
        sender.raft.report_snapshot(message.to, ok=ok and receiver.is_up)
        sender.pump()

    # What the operator does.

    def removed(self, nodes: frozenset[int]) -> None:
        """A leader works without these nodes now: they may be switched off, but not at once."""
        for node in sorted(nodes):
            self.later(int(5_000_000 * self.chance.random()), self._retire, self.members[node])

    def _retire(self, member: Member) -> None:
        member.is_retired = True
        if member.is_up:
            self.note(f"retire {member}")
            member.crash()

    # What clients do.

    def _client(self, _: object) -> None:
        chance = self.chance
        self.later(int(self.client_period * (0.2 + 1.6 * chance.random())), self._client, None)
        running = [member for member in self.members.values() if member.is_running]
        if not running:
            return
        member = running[int(chance.random() * len(running))]
        if chance.random() < 0.7:
            member = self.leader() or member
        if chance.random() < 0.2:
            self._read(member)
        else:
            self._write(member)
        member.pump()

    def _write(self, member: Member) -> None:
        for _ in range(self.chance.choice([1, 1, 1, 2, 8])):
            self._wishes += 1
            data = b"%d" % self._wishes
            try:
                index = member.raft.propose(data)
            except ProposalDropped:
                return
            if index is not None:
                self.proposals[(index, member.core.term)] = data

    def applied(self, member: Member, entry: Entry) -> None:
        """A leader that applies its proposal answers the client."""
        if not member.leads or entry.term != member.core.term:
            return
        data = self.proposals.pop((entry.index, entry.term), None)
        if data is None:
            return
        if data != entry.data:
            raise Violated(f"{member} answers {data!r} for {entry}")
        if entry.index > self.checker.answered:
            self.checker.answered = entry.index

    def _read(self, member: Member) -> None:
        self._wishes += 1
        context = b"r%d" % self._wishes
        try:
            member.raft.read_index(context)
        except (Unavailable, ResourceExhausted):
            return
        self.reads[context] = self.checker.answered
        self._read_order.append(context)
        if len(self._read_order) > READS_MAX:
            self.reads.pop(self._read_order.popleft(), None)

    def read_done(self, member: Member, read: ReadState) -> None:
        floor = self.reads.pop(read.context, None)
        if floor is not None:
            self.checker.read(member, read.index, floor)
