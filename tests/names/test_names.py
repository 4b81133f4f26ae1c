"""A short form of `make test-names`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.zeroloss.image import find_compiler

TIMEOUT_S = 240
CLEAN_UP_S = 60


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.skipif(not find_compiler(), reason="the server needs a C compiler: tcc, libc6-dev")
def test_no_name_stands_for_a_task_that_is_not_ready() -> None:
    command = [sys.executable, "-m", "tests.names", "--rounds", "1"]
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
    counted = re.fullmatch(r"answers (\d+), wrong 0", printed.splitlines()[-1])
    assert counted is not None, printed
    assert int(counted[1]) >= 500, printed
