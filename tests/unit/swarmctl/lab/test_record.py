"""Records are replaced as a whole, and one verb at a time changes a lab."""

from __future__ import annotations

import ipaddress
import os
import threading

import pytest

from shoal.errors import FailedPrecondition, Internal, NotFound
from swarmctl.lab import record
from swarmctl.lab.plan import plan_lab


@pytest.fixture
def locks(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


def a_record(root: str) -> record.LabRecord:
    subnet = ipaddress.IPv4Network("10.89.3.0/24")
    plan = plan_lab("x", managers=1, workers=1, subnet=subnet, directory=root)
    return record.LabRecord(plan, 5, "up", "before")


def test_a_lab_is_read_back_as_it_was_written(tmp_path):
    made = a_record(str(tmp_path))
    os.mkdir(made.plan.directory)
    record.write(record.lab_file(made.plan.directory), made)
    (tmp_path / "no-lab").mkdir()

    assert record.read_lab(str(tmp_path), "x") == made
    assert record.list_labs(str(tmp_path)) == ["x"]
    assert os.listdir(made.plan.directory) == ["lab.json"]


def test_a_missing_lab_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(NotFound, match="there are: none"):
        record.read_lab(str(tmp_path), "x")
    assert record.list_labs(str(tmp_path / "absent")) == []


def test_a_broken_record_names_its_file(tmp_path):
    (tmp_path / "process.json").write_text("{")
    with pytest.raises(Internal, match=r"process\.json"):
        record.read_node(str(tmp_path / "process.json"))
    assert record.read_node(str(tmp_path / "absent.json")) is None


def test_the_lock_excludes_and_leaves_no_file(locks):
    with record.lock("x"):
        with (
            pytest.raises(FailedPrecondition, match="another swarmctl"),
            record.lock("x", timeout_s=0.0),
        ):
            pass
        with record.lock("y"):
            pass
    assert os.listdir(locks) == []


def test_waiters_take_the_lock_one_after_another(locks):
    inside = 0
    most = 0

    def one():
        nonlocal inside, most
        with record.lock("x", timeout_s=30):
            inside += 1
            most = max(most, inside)
            inside -= 1

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    assert os.listdir(locks) == []
