"""Secrets and configs on a stream: a node has what its live tasks need, and nothing else."""

from __future__ import annotations

import random

import pytest

from manager.dispatcher.assignments import NodeAssignments
from manager.dispatcher.endpoints import EndpointTable
from manager.dispatcher.file_sending import BYTES_PER_TURN_MAX, FileKey, key_of
from manager.dispatcher.messages import MessageWriter
from shoal.model.enums import TaskState
from shoal.model.files import CONFIG_BYTES_MAX, FileRow
from shoal.model.objects import Config, Secret, Task
from shoal.model.specs import ConfigSpec, ContainerSpec, SecretSpec, TaskSpec
from shoal.model.types import Annotations, FileReference, TaskStatus
from tests.support.planning import Cell, a_service, a_task

S = TaskState


def a_secret(name: str) -> Secret:
    return Secret(id=name, spec=SecretSpec(annotations=Annotations(name), data=name.encode()))


def a_config(name: str, data: bytes = b"") -> Config:
    spec = ConfigSpec(annotations=Annotations(name), data=data or name.encode())
    return Config(id=name, spec=spec)


def refs(*names: str) -> tuple[FileReference, ...]:
    return tuple(FileReference(id=name, name=name, target=name) for name in names)


def needing(
    task_id: str, *secrets: str, configs: tuple[str, ...] = (), node_id: str = "n1"
) -> Task:
    container = ContainerSpec(image="a", secrets=refs(*secrets), configs=refs(*configs))
    task = a_task(task_id).replaced(spec=TaskSpec(runtime=container), node_id=node_id)
    return task.replaced(status=TaskStatus(state=S.ASSIGNED), desired_state=S.RUNNING)


class Rig:
    """The stream of node n1, and what the node makes of its messages."""

    def __init__(self, *rows: FileRow) -> None:
        self.cell = Cell([a_service("web"), *rows])
        self.table = EndpointTable()
        self.begin()

    def begin(self) -> None:
        self.stream = NodeAssignments("n1")
        self.writer = MessageWriter()
        self.files: dict[FileKey, FileRow] = {}
        self.sizes: list[int] = []
        self.stream.mark_all(self.cell.tables, self.table)

    def put(self, *tasks: Task) -> None:
        self.cell.put(*tasks)
        self.stream.mark(tasks=[task.id for task in tasks])

    def drain(self) -> None:
        more = True
        while more:
            diff = self.stream.take(self.cell.tables, self.table, None, 0.0)
            more = self.stream.is_dirty
            for row in diff.files:
                assert key_of(row) not in self.files, "sent twice"
                self.files[key_of(row)] = row
            for task in diff.tasks:
                if task.desired_state is S.RUNNING and task.status.state <= S.RUNNING:
                    assert needs(task) <= self.files.keys(), "a task came before its files"
            for key in diff.removed_files:
                del self.files[key]
            messages = self.writer.messages(diff, version=1, more=more)
            self.sizes += [message.ByteSize() for message in messages]


def needs(task: Task) -> set[FileKey]:
    wanted = {FileKey("secret", one.id) for one in task.container.secrets}
    return wanted | {FileKey("config", one.id) for one in task.container.configs}


def names(rig: Rig) -> list[str]:
    return sorted(rig.files[key].id for key in rig.files)


def test_a_node_gets_what_its_own_live_tasks_refer_to() -> None:
    rig = Rig(a_secret("a"), a_secret("b"), a_secret("c"), a_config("a"))
    rig.put(needing("t1", "a", configs=("a",)), needing("t2", "b", node_id="n2"))
    rig.drain()
    assert names(rig) == ["a", "a"]
    rig.put(needing("t3", "a", "b"))
    rig.drain()
    assert names(rig) == ["a", "a", "b"]
    rig.put(needing("t3", "a", "b").with_status(TaskStatus(state=S.FAILED)))
    rig.drain()
    assert names(rig) == ["a", "a"]
    rig.put(needing("t1", "a", configs=("a",)).with_desired_state(S.SHUTDOWN))
    rig.drain()
    assert names(rig) == []


def test_a_new_stream_tells_all_again_and_a_removed_task_needs_nothing() -> None:
    rig = Rig(a_secret("a"))
    task = needing("t1", "a").with_status(TaskStatus(state=S.RUNNING))
    rig.put(task)
    rig.drain()
    rig.begin()
    rig.drain()
    assert names(rig) == ["a"]
    rig.cell.remove(task)
    rig.stream.mark(tasks=["t1"])
    rig.drain()
    assert names(rig) == []


def test_what_is_missing_in_the_store_is_not_sent() -> None:
    rig = Rig(a_secret("a"))
    task = needing("t1", "a", "gone")
    rig.cell.put(task)
    rig.stream.mark(tasks=["t1"])
    diff = rig.stream.take(rig.cell.tables, rig.table, None, 0.0)
    assert ([row.id for row in diff.files], [t.id for t in diff.tasks]) == (["a"], ["t1"])


def test_large_contents_come_in_turns_and_in_messages_that_grpc_takes() -> None:
    count = 3 * BYTES_PER_TURN_MAX // CONFIG_BYTES_MAX
    rows = [a_config(f"c{n}", b"x" * (CONFIG_BYTES_MAX - 1)) for n in range(count)]
    rig = Rig(*rows)
    rig.put(*(needing(f"t{n}", configs=(f"c{n}",)) for n in range(count)))
    rig.drain()
    assert len(rig.files) == count
    assert max(rig.sizes) < 4 << 20
    assert len(rig.sizes) >= count // 4


@pytest.mark.parametrize("seed", range(20))
def test_any_history_ends_with_what_the_live_tasks_need(seed: int) -> None:
    chance = random.Random(seed)
    rig = Rig(*(a_secret(f"s{n}") for n in range(5)), *(a_config(f"c{n}") for n in range(5)))
    tasks: dict[str, Task] = {}
    for number in range(60):
        roll = chance.random()
        if roll < 0.5 or not tasks:
            secrets = chance.sample([f"s{n}" for n in range(5)], chance.randrange(3))
            configs = tuple(chance.sample([f"c{n}" for n in range(5)], chance.randrange(3)))
            node_id = chance.choice(["n1", "n1", "n2"])
            tasks[f"t{number}"] = needing(f"t{number}", *secrets, configs=configs, node_id=node_id)
            rig.put(tasks[f"t{number}"])
        else:
            task_id = chance.choice(sorted(tasks))
            task = tasks[task_id]
            if roll < 0.7:
                state = chance.choice([S.RUNNING, S.FAILED, S.COMPLETE])
                tasks[task_id] = task.replaced(
                    status=TaskStatus(state=max(task.status.state, state))
                )
                rig.put(tasks[task_id])
            elif roll < 0.9:
                tasks[task_id] = task.replaced(desired_state=S.SHUTDOWN)
                rig.put(tasks[task_id])
            else:
                rig.cell.remove(tasks.pop(task_id))
                rig.stream.mark(tasks=[task_id])
        if chance.random() < 0.3:
            rig.drain()
    rig.drain()
    live = [
        task for task in tasks.values()
        if task.node_id == "n1" and task.status.state <= S.RUNNING
        and task.desired_state <= S.COMPLETE
    ]  # fmt: skip
    assert rig.files.keys() == set().union(*map(needs, live))
