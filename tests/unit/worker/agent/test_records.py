"""Records over restarts: whole, damaged, of a newer version, on a full disk."""

from __future__ import annotations

import pytest

from shoal.model.enums import TaskState as S
from shoal.model.objects import Node
from shoal.wire.objects import object_to_bytes
from tests.unit.worker.agent.support import a_task, task_id
from worker.agent.records import NetworkRecord, Records

NETWORK = NetworkRecord(
    index=3, subnet="10.240.12.0/22", data_path_port=7789, managers=("a:2377", "b:2377")
)


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path)


def test_tasks_come_back_as_they_were(records, tmp_path):
    tasks = [a_task(n, state=S.RUNNING, env=(f"N={n}",)) for n in (1, 2, 3)]
    for task in tasks:
        records.save_task(task)
    records.save_task(tasks[0].replaced(slot=9))
    assert Records(tmp_path).tasks() == [tasks[0].replaced(slot=9), *tasks[1:]]
    records.forget_task(task_id(2))
    records.forget_task(task_id(2))
    assert [task.id for task in records.tasks()] == [task_id(1), task_id(3)]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xff\xff", b"not protobuf at all", object_to_bytes(Node(id="n")),
     object_to_bytes(a_task(7))],
)  # fmt: skip
def test_a_damaged_record_is_removed_and_the_others_are_kept(records, tmp_path, content):
    records.save_task(a_task(1))
    (tmp_path / "tasks" / f"{task_id(2)}.task").write_bytes(content)
    assert [task.id for task in records.tasks()] == [task_id(1)]
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == [f"{task_id(1)}.task"]


def test_every_cut_of_a_record_is_either_refused_or_shorter(records, tmp_path):
    whole = object_to_bytes(a_task(1, state=S.RUNNING))
    path = tmp_path / "tasks" / f"{task_id(1)}.task"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert all(task.id == task_id(1) for task in records.tasks())


def test_what_was_cut_short_by_a_crash_is_swept(records, tmp_path):
    (tmp_path / "tasks" / f"{task_id(1)}.tmp").write_bytes(b"half")
    (tmp_path / "tasks" / "README").write_bytes(b"not ours")
    assert records.tasks() == []
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["README"]


def test_a_failed_write_leaves_the_old_record_and_nothing_else(records, tmp_path, monkeypatch):
    records.save_task(a_task(1))

    def rename(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.rename", rename)
        with pytest.raises(OSError, match="No space"):
            records.save_task(a_task(1, state=S.RUNNING))
    assert records.tasks() == [a_task(1)]
    assert len(list((tmp_path / "tasks").iterdir())) == 1


def test_the_network_comes_back(records, tmp_path):
    assert records.network() is None
    records.save_network(NETWORK)
    assert Records(tmp_path).network() == NETWORK


@pytest.mark.parametrize("content", [b"", b"{", b'{"index": "x"}', b"[]"])
def test_a_damaged_network_record_counts_as_none(records, tmp_path, content):
    (tmp_path / "network.json").write_bytes(content)
    assert records.network() is None


def test_a_newer_network_record_counts_as_none(records, tmp_path):
    newer = NetworkRecord(index=1, subnet="", data_path_port=1, managers=(), version=2)
    records.save_network(newer)
    assert records.network() is None


def test_clear_forgets_everything(records):
    records.save_task(a_task(1))
    records.save_network(NETWORK)
    records.clear()
    assert records.tasks() == []
    assert records.network() is None
