"""Records over restarts: whole, damaged, of a newer version, on a full disk."""

from __future__ import annotations

import os

import pytest

from shoal.model.enums import TaskState as S
from shoal.model.objects import Node
from shoal.wire.objects import object_to_bytes
from tests.unit.worker.agent.support import a_task, task_id
from worker.agent.records import RECORD_BYTES_MAX, NetworkRecord, Records

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


def test_every_cut_of_a_record_leaves_the_state_before(records, tmp_path):
    first, second = a_task(1), a_task(1, state=S.RUNNING)
    path = tmp_path / "tasks" / f"{task_id(1)}.task"
    records.save_task(first)
    one = path.stat().st_size
    records.save_task(second)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert records.tasks() == ([first] if length >= one else [])
    path.write_bytes(whole)
    assert records.tasks() == [second]


def test_a_state_after_a_torn_one_is_found(records, tmp_path):
    records.save_task(a_task(1))
    path = tmp_path / "tasks" / f"{task_id(1)}.task"
    path.write_bytes(path.read_bytes() + b"\0\0\1\0torn")
    assert records.tasks() == [a_task(1)]
    records.save_task(a_task(1, state=S.RUNNING))
    assert records.tasks() == [a_task(1, state=S.RUNNING)]


def test_a_flipped_bit_is_not_believed(records, tmp_path):
    records.save_task(a_task(1))
    path = tmp_path / "tasks" / f"{task_id(1)}.task"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert records.tasks() == []


def test_a_file_does_not_grow_without_end(records, tmp_path):
    path = tmp_path / "tasks" / f"{task_id(1)}.task"
    for number in range(2000):
        records.save_task(a_task(1).replaced(slot=number))
        assert path.stat().st_size <= RECORD_BYTES_MAX
    assert [task.slot for task in records.tasks()] == [1999]


def test_a_state_larger_than_a_file_should_be_is_kept(records):
    for number in range(2):
        large = a_task(1, env=(f"A={number}{'x' * RECORD_BYTES_MAX}",))
        records.save_task(large)
        assert records.tasks() == [large]


def test_what_was_cut_short_by_a_crash_is_swept(records, tmp_path):
    (tmp_path / "tasks" / f"{task_id(1)}.tmp").write_bytes(b"half")
    (tmp_path / "tasks" / "README").write_bytes(b"not ours")
    assert records.tasks() == []
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["README"]


def test_a_failed_write_leaves_the_old_record_and_nothing_else(records, tmp_path, monkeypatch):
    records.save_task(a_task(1))
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr("os.write", lambda fd, data: write(fd, data[: len(data) // 2]))
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
