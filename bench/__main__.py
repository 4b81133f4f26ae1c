"""Run the measurements one after another and hold their figures to the bars.

    sudo make bench                      # all
    sudo .venv/bin/python -m bench NAME  # some; --list names them

A missed bar is no error: the table says so, and the exit status is 0. A program that fails is.
Peers that are not installed are skipped by each program, with a line that says so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import figures, priority

PROGRAMS = {
    "start": "bare container start against crun and runc; memory against containerd-shims",
    "engine": "docker run, exec, pull and build against dockerd",
    "create_to_running": "one replica, created until RUNNING, against Docker Swarm",
    "scale_up": "0 to 100 replicas with a published port, against Docker Swarm",
    "failover_worker": "a worker's power is cut: time until its task runs elsewhere",
    "failover_leader": "the leading manager is killed: time until the next write is accepted",
    "detection": "dead, frozen, restarted and busy workers: known when, and false alarms",
    "service_api": "services created per second over the API",
    "mesh": "requests through the mesh against routed ones and haproxy; what changes of it cost",
    "dns": "names a second, against dnsmasq and a server that only echoes",
    "raft": "writes of one and three members, and failover, against etcd",
    "store": "100,000 tasks: memory, snapshot, replay, against etcd",
    "wal": "records made durable per second against SQLite",
    "scale": "one manager, 100 and 1,000 simulated agents, up to 30,000 tasks",
    "plan": "the planners alone",
}

LONG = {
    "raft": ("--rounds", "7", "--seconds", "3", "--kills", "30"),
    "store": ("--rounds", "7"),
    "engine": ("--rounds", "31", "--idle", "1000"),
    "failover_leader": ("--rounds", "30"),
}
"""What `--long` adds: more samples where the figures are a tail or a ratio of small numbers."""


def main() -> None:
    """Run what was asked for, then print the table."""
    options = _options()
    if options.list:
        for name, what in PROGRAMS.items():
            print(f"{name:18} {what}")
        return
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch:
        table: list[str] = []
        for name in options.names or PROGRAMS:
            print(f"\n== {name}: {PROGRAMS[name]}", flush=True)
            written = Path(scratch) / name
            if not run(name, written, LONG.get(name, ()) if options.long else ()):
                failed.append(name)
            found = figures.read(written)
            table += [f"{name}:", figures.table(found)] if found else []
    load = os.getloadavg()
    print(f"\n== {os.cpu_count()} CPUs, load {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}")
    print("\n".join(table))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str, written: Path, more: tuple[str, ...]) -> bool:
    """Run one program, with `more` options; whether it went well. Its figures go to `written`."""
    environment = {**os.environ, figures.FILE_VARIABLE: str(written)}
    words = [sys.executable, "-m", f"bench.{name}", *more]
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(words, check=False, cwd=root, env=environment).returncode == 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to run (default: all)")
    parser.add_argument("--list", action="store_true", help="list the programs")
    parser.add_argument("--long", action="store_true", help="more rounds: about 30 minutes")
    parser.add_argument(
        "--urgent", action="store_true", help="take precedence over all else on a busy machine"
    )
    options = parser.parse_args()
    if options.urgent:
        os.environ[priority.VARIABLE] = "1"
    if unknown := [name for name in options.names if name not in PROGRAMS]:
        parser.error(f"no program called {', '.join(unknown)}; --list names them")
    return options


if __name__ == "__main__":
    main()
