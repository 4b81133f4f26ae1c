"""Who leads a lab's managers, and how to end that."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.integration.cluster.lab import Lab, eventually


def depose(lab: Lab, how: signal.Signals) -> None:
    """End the leader's process, or stop it until another one leads."""
    leader = eventually("somebody leads", lambda: leader_of(lab))
    pid_file = lab.base / "lab" / lab.name / leader / "run" / "manager.pid"

    def pid() -> int:
        """The process's id; 0 while there is none."""
        words = pid_file.read_text().split() if pid_file.exists() else []
        return int(words[0]) if words else 0

    before = pid()
    assert b"-m\0manager\0" in Path(f"/proc/{before}/cmdline").read_bytes()
    os.kill(before, how)
    if how is signal.SIGKILL:
        eventually("it is started again", lambda: pid() not in (0, before))
        eventually("somebody leads again", lambda: leader_of(lab))
        return
    others = [node for node in lab.addresses if node != leader and node.startswith("m")]
    try:
        eventually("another one leads", lambda: leader_of(lab, others) not in ("", leader))
    finally:
        os.kill(before, signal.SIGCONT)


def leader_of(lab: Lab, ask: Sequence[str] = ("m1", "m2", "m3")) -> str:
    """Who leads, as one of these managers says; "" when none knows."""
    form = "{{.Hostname}} {{.ManagerStatus}}"
    for node in ask:
        shown = lab.run("-H", lab.socket(node), "node", "ls", "--format", form, check=False)
        for line in shown.stdout.splitlines():
            if line.endswith(" Leader"):
                return line.split()[0]
    return ""


def managers_of(lab: Lab, node: str) -> list[str]:
    """What a node says of the managers: Leader, Reachable or Unreachable."""
    result = lab.run(
        "-H", lab.socket(node), "node", "ls", "--format", "{{.ManagerStatus}}", check=False
    )
    return result.stdout.split()
