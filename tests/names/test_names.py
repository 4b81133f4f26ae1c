"""A short form of `make test-names`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.zeroloss.image import find_compiler

TIMEOUT_S = 240
CLEAN_UP_S = 60


pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not find_compiler(), reason="the server needs a compiler: tcc, libc6-dev"),
]


def run(*words: str) -> str:
    """What a suite prints last. Fails with all it said, where it fails."""
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as suite:
        try:
            printed, complaint = suite.communicate(timeout=TIMEOUT_S)
        except BaseException:
            suite.terminate()  # it takes its lab down
            suite.wait(CLEAN_UP_S)
            raise
    assert suite.returncode == 0, printed + complaint
    print(printed)
    return printed.splitlines()[-1]


def test_no_name_stands_for_a_task_that_is_not_ready() -> None:
    last = run("tests.names", "--rounds", "1")
    counted = re.fullmatch(r"answers (\d+), wrong 0", last)
    assert counted is not None, last
    assert int(counted[1]) >= 500, last


def test_a_node_that_was_cut_off_leaves_no_ghost_and_no_address_twice() -> None:
    last = run("tests.names.partition", "--cuts", "1", "--nodes", "w1")
    assert re.match(r"cuts 1, wrong 0, names right after \d+\.\d+ s", last), last
