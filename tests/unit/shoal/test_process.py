"""A child asks to die with its parent, and notices when that is gone already."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys
from shoal.settings.process import die_with_parent
die_with_parent(int(sys.argv[1]))
print("lives")
"""


def test_with_its_parent_it_lives():
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(os.getpid())], capture_output=True, check=True
    )
    assert done.stdout == b"lives\n"


def test_with_another_parent_it_exits_with_1():
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(os.getppid())], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
