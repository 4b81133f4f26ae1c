"""Conversations between Raft nodes as text: a command, then exactly what it brings about.

A scenario is a text file: its goal in comments, then blocks of commands and, after `----`, what
they print. `python -m tests.unit.manager.raft.conversation --update` writes the outcomes anew;
read the difference before you commit it.

    nodes 1 2 3 [learner=4] [pre_vote=off] [check_quorum=off] [message_bytes=N] [inflight=N]
    join 4                    a node with nothing on its disk
    campaign 1 | tick 1 [n] | tick-election 1 | tick-lease 1 | propose 1 text | read 1 text
    transfer 1 2 | change 1 voter=4 learner=2 remove=3 [explicit|implicit] | leave 1
    ready 1                   hand out one Ready and do its duties
    send 1                    what needs no disk leaves, nothing is kept yet
    deliver [to=2] [from=1]   messages under way arrive, in order; drop: the same, lost
    stabilize [1 2]           until nothing moves among all, or among these; others' mail waits
    repeat to=2               the messages under way to 2 arrive and stay under way
    reverse                   the messages under way are overtaken by one another
    snapshot 1 [compact=N] | snapshot-done 1 2 ok|failed | unreachable 1 2
    crash 1 | restart 1       what was not synced is lost
    quiet | loud              print only what commands themselves say, or everything
    status | log 1
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager.raft.confchange import LEAVE_JOINT, ChangeKind, ConfChange, NodeChange, Transition
from manager.raft.config import Config
from manager.raft.entries import KIND_CONF_CHANGE, ConfState, Entry, HardState, Snapshot
from manager.raft.messages import Message, MessageKind
from manager.raft.node import Raft, Start, first_snapshot
from manager.raft.ready import Ready
from manager.raft.storage import NO_SNAPSHOT
from shoal.errors import SwarmError
from tests.simulation.disk import Disk, Write

SCENARIOS = Path(__file__).parents[3] / "golden" / "raft"
_CHANGES = {
    "voter": ChangeKind.ADD_VOTER,
    "learner": ChangeKind.ADD_LEARNER,
    "remove": ChangeKind.REMOVE,
}
_TRANSITIONS = {"explicit": Transition.JOINT_EXPLICIT, "implicit": Transition.JOINT_IMPLICIT}
ROUNDS_MAX = 200


class Conversation:
    """Nodes, their disks and the messages under way between them."""

    def __init__(self) -> None:
        self.nodes: dict[int, Raft] = {}
        self.disks: dict[int, Disk] = {}
        self.wire: list[Message] = []
        self.options: dict[str, Any] = {}
        self.out: list[str] = []
        self.is_loud = True

    def run(self, line: str) -> None:
        """Do one command; what it prints is added to `out`."""
        name, *arguments = line.split()
        names = [word for word in arguments if "=" not in word]
        options = dict(word.split("=", 1) for word in arguments if "=" in word)
        command: Callable[[list[str], dict[str, str]], None] = getattr(
            self, "do_" + name.replace("-", "_")
        )
        try:
            command(names, options)
        except SwarmError as error:
            self.out.append(f"refused: {error.message}")
        for node in self.nodes.values():
            node.check()

    # Making nodes.

    def do_nodes(self, names: list[str], options: dict[str, str]) -> None:
        """Begin a cluster."""
        fields = {"message_bytes": "message_bytes_max", "inflight": "inflight_messages_max"}
        learners = tuple(int(node) for node in options.pop("learner", "").split(",") if node)
        for key, text in options.items():
            value: object = text == "on" if text in {"on", "off"} else int(text)
            self.options[fields.get(key, key)] = value
        first = first_snapshot(int(name) for name in names)
        conf_state = ConfState(voters=first.conf_state.voters, learners=learners)
        for node in (*conf_state.voters, *learners):
            self._begin(node, Snapshot(first.index, first.term, conf_state))

    def do_join(self, names: list[str], _: dict[str, str]) -> None:
        for name in names:
            self._begin(int(name), NO_SNAPSHOT)

    def do_crash(self, names: list[str], _: dict[str, str]) -> None:
        for name in names:
            del self.nodes[int(name)]
            self.disks[int(name)].unsynced.clear()

    def do_restart(self, names: list[str], _: dict[str, str]) -> None:
        for name in names:
            self._start(int(name))

    # Things that happen to a node.

    def do_campaign(self, names: list[str], _: dict[str, str]) -> None:
        if not self._node(names).campaign():
            self.out.append(f"{names[0]} must not campaign")

    def do_tick(self, names: list[str], _: dict[str, str]) -> None:
        for _tick in range(int(names[1]) if len(names) > 1 else 1):
            self._node(names).tick()

    def do_tick_election(self, names: list[str], _: dict[str, str]) -> None:
        for _tick in range(self._node(names).core.election_timeout):
            self._node(names).tick()

    def do_tick_lease(self, names: list[str], _: dict[str, str]) -> None:
        for _tick in range(self._node(names).core.config.election_ticks):
            self._node(names).tick()

    def do_propose(self, names: list[str], _: dict[str, str]) -> None:
        self._node(names).propose(names[1].encode())

    def do_read(self, names: list[str], _: dict[str, str]) -> None:
        self._node(names).read_index(names[1].encode())

    def do_transfer(self, names: list[str], _: dict[str, str]) -> None:
        self._node(names).transfer_leader(int(names[1]))

    def do_change(self, names: list[str], options: dict[str, str]) -> None:
        changes = tuple(
            NodeChange(_CHANGES[kind], int(node))
            for kind, nodes in options.items()
            for node in nodes.split(",")
        )
        transition = _TRANSITIONS[names[1]] if len(names) > 1 else Transition.AUTO
        self._node(names).propose_conf_change(ConfChange(changes, transition))

    def do_leave(self, names: list[str], _: dict[str, str]) -> None:
        self._node(names).propose_conf_change(LEAVE_JOINT)

    def do_snapshot(self, names: list[str], options: dict[str, str]) -> None:
        node, disk = self._node(names), self.disks[int(names[0])]
        snapshot = node.snapshot_now()
        disk.write(Write(snapshot=snapshot))
        disk.sync()
        node.offer_snapshot(snapshot)
        self.out.append(f"{names[0]} has a snapshot of {snapshot.index}/{snapshot.term}")
        if "compact" in options:
            node.compact(int(options["compact"]))
            disk.release(int(options["compact"]))

    def do_snapshot_done(self, names: list[str], _: dict[str, str]) -> None:
        self._node(names).report_snapshot(int(names[1]), ok=names[2] == "ok")

    def do_unreachable(self, names: list[str], _: dict[str, str]) -> None:
        self._node(names).report_unreachable(int(names[1]))

    # Moving on.

    def do_ready(self, names: list[str], _: dict[str, str]) -> None:
        if not self._advance(int(names[0])):
            self.out.append(f"{names[0]} is idle")

    def do_send(self, names: list[str], _: dict[str, str]) -> None:
        self.wire += self._node(names).take_messages()

    def do_deliver(self, names: list[str], options: dict[str, str]) -> None:
        for message in self._take(options):
            self._arrive(message)

    def do_repeat(self, names: list[str], options: dict[str, str]) -> None:
        taken = self._take(options)
        self.wire = taken + self.wire
        for message in taken:
            self._arrive(message)

    def do_drop(self, names: list[str], options: dict[str, str]) -> None:
        for message in self._take(options):
            self._say(f"lost: {describe(message)}")

    def do_reverse(self, names: list[str], options: dict[str, str]) -> None:
        self.wire.reverse()

    def do_stabilize(self, names: list[str], _: dict[str, str]) -> None:
        group = {int(name) for name in names} or set(self.nodes)
        for _round in range(ROUNDS_MAX):
            moved = False
            for node in sorted(group & self.nodes.keys()):
                while self._advance(node):
                    moved = True
            mail = [message for message in self.wire if message.to in group]
            mail = [message for message in mail if message.sender in group]
            self.wire = [message for message in self.wire if message not in mail]
            for message in mail:
                moved = True
                self._arrive(message)
            if not moved:
                return
        raise AssertionError("the conversation does not end")

    # Looking.

    def do_quiet(self, names: list[str], _: dict[str, str]) -> None:
        self.is_loud = False

    def do_loud(self, names: list[str], _: dict[str, str]) -> None:
        self.is_loud = True

    def do_status(self, names: list[str], _: dict[str, str]) -> None:
        for name, node in sorted(self.nodes.items()):
            log = node.core.log
            self.out.append(
                f"{name}: {node.role.name} term {node.term} leader {node.leader}"
                f" last {log.last_index}/{log.last_term} commit {log.committed}"
                f" applied {log.applied} {describe_members(node.membership.conf_state())}"
            )
            leading = node.core.leading
            for other, progress in sorted(leading.progress.items()) if leading else ():
                paused = " paused" if progress.is_paused else ""
                self.out.append(
                    f"   {other}: {progress.state.name} match {progress.match}"
                    f" next {progress.next}{paused}"
                )

    def do_log(self, names: list[str], _: dict[str, str]) -> None:
        log = self._node(names).core.log
        entries = log.entries(log.first_index, log.last_index + 1, 1 << 30)
        before = log.first_index - 1
        self.out.append(f"{names[0]}: after {before}/{log.term(before)}: {describe_all(entries)}")

    # The driver.

    def _begin(self, node: int, snapshot: Snapshot) -> None:
        self.disks[node] = Disk(snapshot)
        self._start(node)

    def _start(self, node: int) -> None:
        disk = self.disks[node]
        self.nodes[node] = Raft(
            Config(id=node, seed=node, **self.options),
            Start(
                storage=disk.storage(),
                hard_state=disk.hard_state,
                conf_state=disk.snapshot.conf_state,
                applied=disk.snapshot.index,
            ),
        )

    def _node(self, names: list[str]) -> Raft:
        return self.nodes[int(names[0])]

    def _take(self, options: dict[str, str]) -> list[Message]:
        to, sender = options.get("to"), options.get("from")
        taken = [
            message
            for message in self.wire
            if (to is None or message.to == int(to))
            and (sender is None or message.sender == int(sender))
        ]
        self.wire = [message for message in self.wire if message not in taken]
        return taken

    def _arrive(self, message: Message) -> None:
        node = self.nodes.get(message.to)
        self._say(f"{'arrives' if node else 'nobody there'}: {describe(message)}")
        if node is not None:
            node.step(message)

    def _advance(self, name: int) -> bool:
        node, disk = self.nodes[name], self.disks[name]
        if not node.has_ready():
            return False
        ready = node.ready()
        self._report(name, ready)
        self.wire += ready.messages
        if ready.entries or ready.hard_state is not None or ready.snapshot is not None:
            replaces = ready.snapshot is not None
            disk.write(Write(ready.entries, ready.hard_state, ready.snapshot, replaces=replaces))
        if ready.must_sync:
            disk.sync()
        for entry in ready.committed_entries:
            if entry.kind == KIND_CONF_CHANGE:
                members = describe_members(node.apply_conf_change(entry.data))
                self._say(f"   members now {members}")
        self.wire += ready.messages_after_sync
        node.advance(ready)
        return True

    def _report(self, name: int, ready: Ready) -> None:
        say = self._say
        say(f"node {name}:")
        if ready.soft_state is not None:
            say(f"   is {ready.soft_state.role.name}, leader {ready.soft_state.leader}")
        for message in ready.messages:
            say(f"   sends {describe(message)}")
        for read in ready.read_states:
            self.out.append(f"   node {name} may read {read.context.decode()!r} at {read.index}")
        if ready.snapshot is not None:
            say(f"   keeps {describe_snapshot(ready.snapshot)}")
        if ready.entries:
            say(f"   keeps {describe_all(ready.entries)}")
        if ready.hard_state is not None:
            say(f"   keeps {describe_hard(ready.hard_state)}")
        if ready.must_sync:
            say("   syncs")
        for message in ready.messages_after_sync:
            say(f"   sends {describe(message)}")
        if ready.committed_entries:
            say(f"   applies {describe_all(ready.committed_entries)}")

    def _say(self, text: str) -> None:
        if self.is_loud:
            self.out.append(text)


def describe(message: Message) -> str:
    """One message in a line."""
    kind = message.kind
    words = [f"{message.sender}->{message.to} {kind.name}", f"term {message.term}"]
    if kind is MessageKind.APPEND:
        words.append(f"after {message.index}/{message.log_term} commit {message.commit}")
        words.append(describe_all(message.entries))
    elif kind in (MessageKind.VOTE, MessageKind.PRE_VOTE):
        words.append(f"last {message.index}/{message.log_term}")
    elif kind is MessageKind.APPEND_RESPONSE and message.reject:
        words.append(f"rejects {message.index}, try {message.reject_hint}/{message.log_term}")
    elif kind is MessageKind.APPEND_RESPONSE:
        words.append(f"has {message.index}")
    elif message.reject:
        words.append("rejects")
    elif kind is MessageKind.SNAPSHOT:
        words.append(describe_snapshot(message.snapshot or NO_SNAPSHOT))
    elif kind is MessageKind.HEARTBEAT:
        words.append(f"commit {message.commit}")
    elif kind is MessageKind.PROPOSE:
        words.append(describe_all(message.entries))
    if message.read_sequence:
        words.append(f"read {message.read_sequence}")
    if message.context:
        words.append(repr(message.context.decode()))
    if kind is MessageKind.READ_INDEX_RESPONSE:
        words.append(f"at {message.index}")
    if message.forced:
        words.append("forced")
    return " ".join(words)


def describe_all(entries: list[Entry] | tuple[Entry, ...]) -> str:
    """Entries in brackets: index/term and what is in them."""
    return "[" + " ".join(_describe_entry(entry) for entry in entries) + "]"


def _describe_entry(entry: Entry) -> str:
    if entry.kind == KIND_CONF_CHANGE:
        return f"{entry.index}/{entry.term} change"
    return f"{entry.index}/{entry.term} {entry.data.decode() or 'empty'}"


def describe_snapshot(snapshot: Snapshot) -> str:
    """A snapshot's place and members."""
    members = describe_members(snapshot.conf_state)
    return f"snapshot {snapshot.index}/{snapshot.term} {members}"


def describe_hard(state: HardState) -> str:
    """A hard state."""
    return f"term {state.term} vote {state.vote} commit {state.commit}"


def describe_members(state: ConfState) -> str:
    """A membership."""

    def ids(nodes: tuple[int, ...]) -> str:
        return " ".join(map(str, nodes))

    text = f"({ids(state.voters)})"
    if state.outgoing:
        text += f"&&({ids(state.outgoing)})"
    for name in ("learners", "learners_next", "former"):
        if getattr(state, name):
            text += f" {name} {ids(getattr(state, name))}"
    return text + (" autoleave" if state.auto_leave else "")


def replay(text: str) -> str:
    """Run a scenario; the same text with what its commands print now."""
    conversation = Conversation()
    blocks = []
    for block in text.rstrip().split("\n\n"):
        commands = block.split("\n----", 1)[0].splitlines()
        for line in commands:
            if not line.startswith("#"):
                conversation.run(line)
        out, conversation.out = conversation.out, []
        is_comment = all(line.startswith("#") for line in commands)
        blocks.append("\n".join(commands if is_comment else [*commands, "----", *(out or ["ok"])]))
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Write the outcomes of all scenarios anew."""
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.unit.manager.raft.conversation --update")
    for path in sorted(SCENARIOS.glob("*.txt")):
        path.write_text(replay(path.read_text()))


if __name__ == "__main__":
    main()
