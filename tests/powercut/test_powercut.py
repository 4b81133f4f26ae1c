"""Power cuts of one manager and of three at once: short forms of `make test-powercut`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

TIMEOUT_S = 150
CLEAN_UP_S = 30


def power_cuts(*options: str) -> list[dict[str, Any]]:
    """What the rig found, cut by cut."""
    command = [sys.executable, "-m", "tests.powercut", "--seed", "1", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as rig:
        try:
            printed, complaint = rig.communicate(timeout=TIMEOUT_S)
        except BaseException:
            rig.terminate()  # it takes its lab and its disks down
            rig.wait(CLEAN_UP_S)
            raise
        assert rig.returncode in (0, 1), complaint
        assert printed, complaint
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.parametrize("managers", [1, 3])
def test_a_power_cut_of_all_managers_loses_nothing_acknowledged(managers):
    results = power_cuts("--managers", str(managers), "--cuts", "2")
    assert [result["lost"] for result in results] == [0, 0], results
    assert results[-1]["acknowledged"] > results[0]["acknowledged"] > 0


def test_the_rig_finds_managers_that_answer_before_their_log_is_durable():
    (result,) = power_cuts("--cuts", "1", "--no-sync")
    assert 0 < result["lost"] < result["acknowledged"], result
