"""Endpoints and stops against a model of agents, in any order of events, under several leaders.

The dispatcher is the real one; its store, its clock and the nodes' agents are the model's. Messages
arrive and are put in force whenever hypothesis likes, nodes lose their streams, are lost and come
back, leaders change. What must hold:

- versions of one leader never fall, neither the table's nor what a node has in force;
- a task is told to stop only when no data plane of a node that is not down balances to it, unless
  its drain timeout is over, which is said;
- a list that is complete leaves out nothing that runs and was not told to stop;
- once everything has arrived, every data plane balances to the ready tasks alone, and every task
  that is to stop knows it.
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manager.dispatcher.assignments import AssignmentDiff
from manager.dispatcher.driver import Dispatcher, Stream
from manager.dispatcher.overlays import EndpointRow, OverlayKey, OverlayKind, OverlayRow
from shoal.model.defaults import is_wanted
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Task
from shoal.model.types import NetworkAttachment
from tests.support.managing import HandClock
from tests.support.planning import Cell, a_node
from tests.unit.manager.dispatcher.test_endpoints import a_member, a_published
from tests.unit.manager.dispatcher.test_overlays import attached, made, on

NODES = ("n1", "n2", "n3")
TASKS_MAX = 12
ROUNDS_MAX = 30
"""Of messages and answers until nothing is left to say."""

nodes = st.sampled_from(NODES)


class Agent:
    """One node: what it was told, what its kernel balances to, which tasks it was told to stop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inbox: deque[tuple[AssignmentDiff, int, bool]] = deque()
        self.told: set[str] = set()
        self.kernel: set[tuple[str, str]] = set()
        """Port or network, and task."""
        self.stream: Stream | None = None
        self.ran: set[str] = set()
        """What ran on the node when its stream opened."""
        self.begin()

    def begin(self) -> None:
        """A new session: it is told everything anew."""
        self.inbox.clear()
        self.ports: dict[Any, tuple[str, ...]] = {}
        self.overlays: dict[OverlayKey, OverlayRow] = {}
        self.listed: set[str] | None = set()
        self.wanted: int | None = None

    def deliver(self) -> set[str] | None:
        """Take one message in. Result: the tasks of the complete list, when it is at its end."""
        diff, version, more = self.inbox.popleft()
        for row in diff.ports:
            self.ports[row.key] = tuple(member.task_id for member in row.members)
        for key in diff.removed_ports:
            self.ports.pop(key, None)
        for row in diff.overlays:
            self.overlays[_key_of(row)] = row
        for key in diff.removed_overlays:
            self.overlays.pop(key, None)
        self.told |= {task.id for task in diff.tasks if not is_wanted(task)}
        complete = None
        if self.listed is not None:
            self.listed |= {task.id for task in diff.tasks}
            complete, self.listed = (None, self.listed) if more else (self.listed, None)
        if not more:
            self.wanted = version
        return complete

    def apply(self) -> None:
        """Put what it was told in force."""
        self.kernel = {("port", task) for tasks in self.ports.values() for task in tasks}
        for row in self.overlays.values():
            if isinstance(row, EndpointRow) and row.ready:
                self.kernel.add((row.network_id, row.task_id))


def _key_of(row: OverlayRow) -> OverlayKey:
    if isinstance(row, EndpointRow):
        return OverlayKey(OverlayKind.ENDPOINT, row.network_id, row.task_id)
    if hasattr(row, "service_id"):
        return OverlayKey(OverlayKind.SERVICE, row.network_id, row.service_id)
    return OverlayKey(OverlayKind.NETWORK, row.network_id, row.network_id)


class Draining(RuleBasedStateMachine):
    """Two services, one of them on the network red; tasks have a number in their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.cell = Cell([a_published(), on("red", service_id="db"), made("red")])
        self.cell.put(*map(a_node, NODES))
        self.agents = {name: Agent(name) for name in NODES}
        self.count = 0
        self.open: dict[str, ExitStack] = {}
        self.lead()

    # -- the store -------------------------------------------------------------------------------

    @precondition(lambda self: self.count < TASKS_MAX)
    @rule(node=nodes, published=st.booleans(), networked=st.booleans())
    def start(self, node: str, published: bool, networked: bool) -> None:
        self.count += 1
        task_id, address = f"t{self.count}", f"10.0.0.{self.count}"
        if published:
            task = a_member(task_id, address=address, node_id=node)
            task = task.replaced(endpoint=a_published().endpoint)
            if networked:
                held = (NetworkAttachment("red", (f"10.0.1.{self.count + 10}/24",)),)
                task = task.replaced(networks=held)
        else:
            task = attached(task_id, "red", number=self.count + 10, node_id=node, service_id="db")
        self._put(task)

    @rule(data=st.data())
    def want_no_more(self, data: st.DataObject) -> None:
        running = [task for task in self._running() if is_wanted(task)]
        if running:
            self._put(data.draw(st.sampled_from(running)).with_desired_state(TaskState.SHUTDOWN))

    @rule(data=st.data(), crash=st.booleans())
    def end(self, data: st.DataObject, crash: bool) -> None:
        """A task ends: one that was told to, or by itself."""
        able = [t for t in self._running() if crash or t.id in self.agents[t.node_id].told]
        if able:
            task = data.draw(st.sampled_from(able))
            self._put(task.with_status(task.status.replaced(state=TaskState.SHUTDOWN)))

    # -- sessions --------------------------------------------------------------------------------

    @rule(node=nodes)
    def come(self, node: str) -> None:
        """The node opens a session, in place of one that it may have."""
        self._cut(node)
        self._state(node, NodeState.READY)
        agent = self.agents[node]
        agent.ran = {task.id for task in self._running() if task.node_id == node}
        self.open[node] = ExitStack()
        agent.stream = self.open[node].enter_context(self.leader.stream(node))

    @rule(node=nodes)
    def go_away(self, node: str) -> None:
        """The agent is away, or the way to it; its kernel balances on."""
        self._cut(node)

    @rule(node=nodes)
    def lose(self, node: str) -> None:
        self._cut(node)
        self.leader._end(node)
        self.leader._forget_acknowledgement(node)
        self._state(node, NodeState.DOWN)

    @rule()
    def lead(self) -> None:
        """Another manager leads: it knows the store, and nothing of what nodes have in force."""
        for node in NODES:
            self._cut(node)
        store: Any = SimpleNamespace(view=self.cell.tables)
        self.leader = Dispatcher(store, self.clock, manager_id="m")
        self.leader._resync()
        for node in self._there():
            self.leader.acknowledged.expect(node)
        self.newest, self.versions = 0, dict.fromkeys(NODES, 0)

    @rule(seconds=st.sampled_from([0.1, 0.7, 2.5]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # -- messages --------------------------------------------------------------------------------

    @rule(node=nodes)
    def send(self, node: str) -> None:
        agent = self.agents[node]
        more = agent.stream is not None
        while more and agent.stream is not None:
            diff, more = self.leader.take(agent.stream)
            for task in diff.tasks:
                ends = not is_wanted(task) and task.status.state is TaskState.RUNNING
                if ends and task.id not in {*diff.overdue, *agent.told}:
                    self._nobody_calls(task.id)
            agent.inbox.append((diff, self.leader.table.version, more))

    @rule(node=nodes)
    def deliver(self, node: str) -> None:
        agent = self.agents[node]
        if not agent.inbox:
            return
        complete = agent.deliver()
        if complete is not None:
            running = {task.id for task in self._running()}
            assert agent.ran & running <= complete, "what is left out is ended"

    @rule(node=nodes)
    def put_in_force(self, node: str) -> None:
        agent = self.agents[node]
        if agent.wanted is not None and agent.stream is not None:
            agent.apply()
            self.leader.acknowledged.acknowledge(node, agent.wanted, self.leader.table.version)

    @rule()
    def settle(self) -> None:
        """Everybody is there, everything arrives."""
        for node in NODES:
            if self.agents[node].stream is None:
                self.come(node)
        for _ in range(ROUNDS_MAX):
            for node in NODES:
                self.send(node)
                while self.agents[node].inbox:
                    self.deliver(node)
                self.put_in_force(node)
        for node in NODES:
            self._is_in_step(self.agents[node])

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def versions_never_fall(self) -> None:
        assert self.leader.table.version >= self.newest
        self.newest = self.leader.table.version
        for node, version in self.leader.acknowledged.versions.items():
            assert self.versions[node] <= version <= self.newest
        self.versions = {**dict.fromkeys(NODES, 0), **self.leader.acknowledged.versions}

    def _nobody_calls(self, task_id: str) -> None:
        callers = [n for n in self._there() if task_id in {t for _, t in self.agents[n].kernel}]
        assert not callers, f"{task_id} is told to stop, and {callers} balance to it"

    def _is_in_step(self, agent: Agent) -> None:
        ready = [task for task in self._running() if is_wanted(task)]
        expected = {("port", task.id) for task in ready if task.endpoint is not None}
        alive = self._running()
        if any(task.node_id == agent.name and task.networks for task in alive):
            expected |= {("red", task.id) for task in ready if task.networks}
        assert agent.kernel == expected
        mine = {task.id for task in alive if task.node_id == agent.name}
        unwanted = {task.id for task in alive if not is_wanted(task)} & mine
        assert unwanted <= agent.told, "a task that is to stop waits for nobody any more"

    # -- the world -------------------------------------------------------------------------------

    def _put(self, row: Any) -> None:
        self.cell.put(row)
        self.leader._observe(self.cell.commits[-1])

    def _state(self, node: str, state: NodeState) -> None:
        row = self.cell.tables.nodes.resolve(node)
        if row.status.state is not state:
            self._put(row.replaced(status=row.status.replaced(state=state)))

    def _cut(self, node: str) -> None:
        if node in self.open:
            self.open.pop(node).close()
        self.agents[node].stream = None
        self.agents[node].begin()  # what is under way is lost

    def _there(self) -> list[str]:
        """Nodes that are not down."""
        rows = self.cell.tables.nodes
        return [row.id for row in rows if row.status.state is not NodeState.DOWN]

    def _running(self) -> list[Task]:
        rows = self.cell.tables.tasks
        return [task for task in rows if task.status.state is TaskState.RUNNING]


Draining.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestDraining = Draining.TestCase
