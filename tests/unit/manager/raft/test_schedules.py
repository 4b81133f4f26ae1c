"""Goal: five nodes keep Raft's promises under any schedule.

Method: hypothesis picks what happens next (a message arrives, twice, late or never; a tick; a
proposal; a Ready is done, or half done when the power fails) and, when something breaks, finds a
short schedule that breaks it.
"""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.raft.entries import Role
from tests.simulation.disk import Write
from tests.unit.manager.raft.conversation import Conversation

NODES = 5
ACTION = st.tuples(
    st.sampled_from(
        ["deliver"] * 20 + ["ready"] * 14 + ["tick"] * 2 + ["propose", "propose", "drop", "repeat"]
        + ["cut", "mend", "crash", "campaign"]
    ),
    st.integers(0, 1 << 16),
)  # fmt: skip


class Schedule:
    """The nodes, and everything they have shown so far."""

    def __init__(self, *, pre_vote: bool) -> None:
        self.talk = Conversation()
        self.talk.is_loud = False
        option = "pre_vote=on" if pre_vote else "pre_vote=off check_quorum=off"
        self.talk.run(f"nodes 1 2 3 4 5 message_bytes=40 {option}")
        self.cut: set[int] = set()
        self.leaders: dict[int, int] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.commits = dict.fromkeys(range(1, NODES + 1), 0)
        self.proposed = 0

    def act(self, action: str, number: int) -> None:
        talk, node = self.talk, number % NODES + 1
        if action in {"deliver", "drop", "repeat"}:
            self._message(action, number)
        elif action == "tick":
            for _ in range(number // NODES % 5 + 1):
                talk.nodes[node].tick()
        elif action == "propose":
            self.proposed += 1
            talk.run(f"propose {node} p{self.proposed}")
        elif action == "cut":
            self.cut = {node, (node + 1) % NODES + 1}
        elif action == "mend":
            self.cut = set()
        elif action == "crash":
            self._crash(node, number)
        else:
            talk.run(f"{action} {node}")
        self.check()

    def _message(self, action: str, number: int) -> None:
        wire = self.talk.wire
        if not wire:
            return
        # Mostly the oldest, sometimes any.
        place = 0 if number % 3 else number % len(wire)
        message = wire[place] if action == "repeat" else wire.pop(place)
        if action != "drop" and (message.to in self.cut) == (message.sender in self.cut):
            self.talk.nodes[message.to].step(message)

    def _crash(self, node: int, number: int) -> None:
        """Power fails in the middle of a Ready: what needs no sync has left, of the rest a part."""
        raft, disk = self.talk.nodes[node], self.talk.disks[node]
        if raft.has_ready():
            ready = raft.ready()
            self.talk.wire += ready.messages
            disk.write(Write(ready.entries, ready.hard_state))
        disk.crash(random.Random(number))
        self.commits[node] = 0
        self.talk.run(f"restart {node}")

    def check(self) -> None:
        for name, node in self.talk.nodes.items():
            node.check()
            log = node.core.log
            if node.role is Role.LEADER and self.leaders.setdefault(node.term, name) != name:
                raise AssertionError(f"two leaders in term {node.term}")
            assert log.committed >= self.commits[name], "the commit index fell"
            self.commits[name] = log.committed
            for entry in log.entries(2, log.committed + 1, 1 << 30):
                shown = (entry.term, entry.data)
                assert self.committed.setdefault(entry.index, shown) == shown, "two histories"
        self._check_leaders()
        self._check_matching()

    def _check_leaders(self) -> None:
        """Whoever leads the newest term holds all that is committed."""
        newest = max(self.leaders, default=0)
        node = self.talk.nodes[self.leaders[newest]] if newest else None
        if node is None or node.role is not Role.LEADER or node.term != newest:
            return
        for index, (term, _) in self.committed.items():
            assert node.core.log.term(index) == term, "a leader lacks a committed entry"

    def _check_matching(self) -> None:
        logs = [node.core.log for node in self.talk.nodes.values()]
        for one in logs:
            for other in logs:
                last = min(one.last_index, other.last_index)
                while last > 1 and one.term(last) != other.term(last):
                    last -= 1
                a = one.entries(2, last + 1, 1 << 30)
                assert a == other.entries(2, last + 1, 1 << 30), "logs differ before a match"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTION, min_size=30, max_size=220), st.booleans())
def test_any_schedule_is_safe(schedule: list[tuple[str, int]], pre_vote: bool) -> None:
    run = Schedule(pre_vote=pre_vote)
    run.act("campaign", 0)
    for action, number in schedule:
        run.act(action, number)


def test_long_random_schedules_commit_and_stay_safe() -> None:
    """Without hypothesis, so that runs are long enough for several leaders."""
    terms, commits = 0, 0
    names = ["deliver"] * 120 + ["ready"] * 80 + ["tick"] * 7 + ["propose"] * 16
    names += ["drop", "repeat", "cut", "mend", "mend", "crash", "campaign"]
    for seed in range(6):
        chance = random.Random(seed)
        run = Schedule(pre_vote=seed % 2 == 0)
        for _ in range(3_000):
            run.act(chance.choice(names), chance.randrange(1 << 16))
        terms += len(run.leaders)
        commits += len(run.committed)
    assert terms > 12
    assert commits > 60
