"""kill -9 at any moment: what was acknowledged over the pipe is in the log."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from manager.storage.wal import Wal
from tests.unit.manager.storage.support import IDENTITY, entries

WRITER = """
import os, sys
from pathlib import Path
from manager.storage.entries import HardState
from manager.storage.wal import Wal
from tests.unit.manager.storage.support import IDENTITY, entries
directory = Path(sys.argv[1])
wal, recovered = Wal.open(directory, IDENTITY, segment_bytes=16384)
last = recovered.last_index
while True:
    wal.append(entries(last + 1, last + 1 + last % 7, size=10 + last % 500), HardState(1, 1, last))
    last += 1 + last % 7
    os.write(1, b"%d\\n" % last)
"""


def start(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_every_acknowledged_entry_survives_kill(tmp_path):
    directory = tmp_path / "raft"
    Wal.create(directory, IDENTITY, segment_bytes=16384).close()
    chosen = random.Random(11)
    acknowledged = 0
    for _ in range(8):
        with start(directory) as writer:
            try:
                assert writer.stdout is not None
                for _ in range(chosen.randrange(1, 150)):
                    acknowledged = int(writer.stdout.readline())
            finally:
                writer.kill()
            rest = writer.stdout.read().split("\n")[:-1]
            acknowledged = int(rest[-1]) if rest else acknowledged
        wal, recovered = Wal.open(directory, IDENTITY, segment_bytes=16384)
        wal.close()
        assert recovered.last_index >= acknowledged
        expected, index = [], 0
        while index < recovered.last_index:
            step = 1 + index % 7
            expected += entries(index + 1, index + step, size=10 + index % 500)
            index += step
        assert recovered.entries == tuple(expected)
    assert acknowledged > 200
