"""Who is who among a node's processes, and that a signal never hits a stranger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import msgspec
import pytest

from shoal.errors import DeadlineExceeded
from swarmctl.lab import processes
from swarmctl.lab.processes import Process

PYTHON = "/usr/bin/python3"


def a_process(pid: int, parent: int, *argv: str) -> Process:
    return Process(pid, parent, "S", 1, argv)


def by_pid(*found: Process) -> dict[int, Process]:
    return {process.pid: process for process in found}


@pytest.fixture
def sleeper():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


@pytest.mark.parametrize(
    "argv",
    [
        (PYTHON, "-S", "-P", "-m", "worker.runtime.lean", "/run", "/state", "supervisor"),
        (PYTHON, "-m", "worker.runtime.lean.keeper"),
        (PYTHON, "-P", "-m", "worker.logs.logger", "/state"),
        ("/bin/sh", "/opt/keeper"),
        (PYTHON, "/opt/keeper.py", "x"),
    ],
)
def test_helpers_are_known_by_their_command_line(argv):
    assert processes.is_helper(argv)


@pytest.mark.parametrize(
    "argv",
    [
        (),
        (PYTHON, "-P", "-m", "swarmd", "--state-dir", "/home/logger/keeper"),
        (PYTHON, "-m", "worker"),
        (PYTHON, "/home/logger/run.py"),
        ("nft", "-f", "-"),
    ],
)
def test_daemons_and_their_tools_are_no_helpers(argv):
    assert not processes.is_helper(argv)


def test_a_family_is_sorted_by_group_then_by_descent():
    swarmd = a_process(10, 1, PYTHON, "-m", "swarmd")
    worker = a_process(11, 10, PYTHON, "-m", "worker")
    keeper = a_process(12, 11, PYTHON, "-m", "worker.runtime.lean", "keeper")
    supervisor = a_process(13, 12, PYTHON, "-m", "worker.runtime.lean", "supervisor")
    newborn = a_process(14, 13, "busybox")
    child_of_newborn = a_process(15, 14, "sh")
    web = a_process(20, 13, "httpd")
    nft = a_process(16, 11, "nft", "-f", "-")

    family = processes.classify(
        # On a mixed machine the container is in `daemons` of those hierarchies it has no group in.
        by_pid(child_of_newborn, newborn, supervisor, keeper, worker, swarmd, web, nft),
        by_pid(web),
    )

    assert [p.pid for p in family.daemons] == [10, 11, 16]
    assert [p.pid for p in family.helpers] == [12, 13, 14, 15]
    assert [p.pid for p in family.containers] == [20]
    assert [p.pid for p in family.everyone] == [10, 11, 16, 12, 13, 14, 15, 20]


def test_a_process_is_read_as_proc_shows_it(sleeper):
    found = processes.read(sleeper.pid)

    assert found is not None
    assert found.parent == os.getpid()
    assert found.argv == (sys.executable, "-c", "input()")
    assert found.alive
    assert processes.still(found) is not None


def test_a_later_process_with_the_same_pid_is_not_signalled(sleeper):
    found = processes.read(sleeper.pid)
    assert found is not None
    earlier = msgspec.structs.replace(found, start_ticks=found.start_ticks - 1)

    assert not processes.send(earlier, signal.SIGKILL)
    assert processes.still(earlier) is None
    assert sleeper.poll() is None


def test_a_dead_process_is_not_signalled(sleeper):
    found = processes.read(sleeper.pid)
    sleeper.kill()
    sleeper.wait()

    assert processes.read(sleeper.pid) is None
    assert not processes.send(found, signal.SIGKILL)


def test_kill_all_goes_on_until_nothing_is_found(sleeper):
    found = processes.read(sleeper.pid)

    def find():
        return [p for p in [processes.still(found)] if p]

    assert processes.kill_all(find, what="test") == 1
    assert sleeper.wait() == -signal.SIGKILL


def test_kill_all_names_who_does_not_die():
    immortal = a_process(2**22 + 1, 1, "stuck", "in", "kernel")  # above the largest pid there is

    with pytest.raises(DeadlineExceeded, match=r"w1: still alive .* \(stuck in kernel\)"):
        processes.kill_all(lambda: [immortal], what="w1", timeout_s=0.05)
