"""Names a second: the resolver of the tasks against dnsmasq and a server that only echoes.

All in a network namespace of this process alone, in the same run, interleaved: one client keeps so
many questions under way with one server after the other. Counted are answers, and the processor
time of the server for each; the echo, in Python like the resolver, is what a datagram costs.
Forwarded questions go to the echo, the server outside then. Needs root; dnsmasq is left out
where it is not installed.

    sudo .venv/bin/python -m bench.dns [--rounds 5] [--seconds 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import structlog

from bench import figures
from worker.network.local.names import Names
from worker.network.local.naming import Client, Place
from worker.network.netns import CLONE_NEWNET

WINDOW = 32
"""Questions under way."""
TASKS = 8
ECHO_PORT, DNSMASQ_PORT = 53, 5301
REPLY_BIT = 0x80
START_S = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


class Target:
    """A server: where it listens, whose processor time counts, and what it is asked."""

    def __init__(self, what: str, address: tuple[str, int], pid: int, name: str) -> None:
        self.what, self.address, self.pid = what, address, pid
        self.query = dns.message.make_query(name, "A").to_wire()
        self.rates: list[float] = []
        self.costs: list[float] = []

    def measure(self, seconds: float) -> None:
        """One round."""
        before = _used_s(self.pid)
        answers, took_s = ask(self.address, self.query, seconds)
        self.rates.append(answers / took_s)
        self.costs.append((_used_s(self.pid) - before) * 1e6 / max(answers, 1))


def main() -> None:
    if sys.argv[1:2] == ["echo"]:
        asyncio.run(echo())
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round and server")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise SystemExit("needs root: run with sudo")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="shoal-dns-") as scratch:
        asyncio.run(measure(Path(scratch), rounds=options.rounds, seconds=options.seconds))


async def measure(scratch: Path, *, rounds: int, seconds: float) -> None:
    names = Names(scratch / "resolver.sock", lambda container, ports: None)
    with contextlib.ExitStack() as stack:
        try:
            targets = [*await ours(names, scratch), stack.enter_context(echoing())]
            peer = shutil.which("dnsmasq", path=os.environ["PATH"] + ":/usr/sbin")
            if peer:
                targets += stack.enter_context(dnsmasq(peer, scratch))
            else:
                print("dnsmasq is not installed: left out")
            for _ in range(rounds):
                for target in targets:
                    target.measure(seconds)
        finally:
            await names.close(end=True)
    report(targets)


async def ours(names: Names, scratch: Path) -> list[Target]:
    """The resolver with a service of one virtual address and eight tasks."""
    service = Place(network="n", network_name="net", names=("web",), ipv4="10.0.0.2")
    tasks = {
        f"t{number}": Place(
            network="n", network_name="net", names=(f"t{number}", "tasks.web"),
            ipv4=f"10.0.1.{number}",
        )
        for number in range(TASKS)
    }  # fmt: skip
    await names.tell({"web": service, **tasks})
    asking = Client(
        container="c", netns_path=f"/proc/{os.getpid()}/ns/net", servers=("127.0.0.1",),
        places=(Place(network="n", network_name="net", names=()),),
    )  # fmt: skip
    port, _ = await names.put(asking)
    pid = int((scratch / "resolver.pid").read_text())
    questions = {"web": "one address", "tasks.web": "eight", "outside.example": "forwarded"}
    address = ("127.0.0.11", port)
    return [Target(f"resolver, {what}", address, pid, name) for name, what in questions.items()]


@contextlib.contextmanager
def echoing() -> Iterator[Target]:
    """The echo, as a server and as the one outside."""
    command = [sys.executable, "-m", "bench.dns", "echo"]
    with running(command, ("127.0.0.1", ECHO_PORT)) as pid:
        yield Target("echo", ("127.0.0.1", ECHO_PORT), pid, "web")


@contextlib.contextmanager
def dnsmasq(program: str, scratch: Path) -> Iterator[list[Target]]:
    """Debian's, with the same names."""
    hosts = scratch / "hosts"
    hosts.write_text("".join(f"10.0.1.{number} tasks.web\n" for number in range(TASKS)))
    address = ("127.0.0.1", DNSMASQ_PORT)
    command = [
        program, "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
        "--user=root", "--pid-file=", "--bind-interfaces", f"--listen-address={address[0]}",
        f"--port={address[1]}", "--local-ttl=1", "--host-record=web,10.0.0.2",
        f"--addn-hosts={hosts}",
    ]  # fmt: skip
    with running(command, address) as pid:
        questions = {"web": "one address", "tasks.web": "eight"}
        yield [Target(f"dnsmasq, {what}", address, pid, name) for name, what in questions.items()]


@contextlib.contextmanager
def running(command: list[str], address: tuple[str, int]) -> Iterator[int]:
    """A server that answers by now."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + START_S
            while not ask(address, dns.message.make_query("web", "A").to_wire(), 0.05)[0]:
                if time.monotonic() > end or server.poll() is not None:
                    raise SystemExit(f"{command[0]} does not start")
            yield server.pid
        finally:
            server.terminate()


def ask(address: tuple[str, int], query: bytes, seconds: float) -> tuple[int, float]:
    """Keep questions under way for so long. Result: answers, and how long it took."""
    answers, began_s = 0, time.monotonic()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        sock.connect(address)
        while (now_s := time.monotonic()) < began_s + seconds:
            try:
                for number in range(WINDOW):  # also after a loss
                    sock.send(number.to_bytes(2, "big") + query[2:])
                while time.monotonic() < began_s + seconds:
                    reply = sock.recv(4096)
                    answers += reply[2] >= REPLY_BIT
                    sock.send(reply[:2] + query[2:])
            except OSError:  # refused: it has not started; or a timeout
                time.sleep(0.001)
    return answers, max(now_s - began_s, seconds)


async def echo() -> None:
    """Send back what comes, marked as an answer, in the way that the resolver reads."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", ECHO_PORT))

    def hear() -> None:
        for _ in range(16):
            try:
                data, sender = sock.recvfrom(4096)
            except OSError:
                return
            sock.sendto(data[:2] + bytes([data[2] | REPLY_BIT]) + data[3:], sender)

    asyncio.get_running_loop().add_reader(sock, hear)
    await asyncio.Event().wait()


def report(targets: list[Target]) -> None:
    """Medians over the rounds."""
    rate = {one.what: statistics.median(one.rates) for one in targets}
    cost = {one.what: statistics.median(one.costs) for one in targets}
    own = "resolver, one address"
    found = [figures.Figure(f"{what}: answers/s", value, "/s") for what, value in rate.items()]
    found += [
        figures.Figure(f"{what}: processor time", value, "us") for what, value in cost.items()
    ]
    for peer in ("echo", "dnsmasq, one address"):
        if peer in rate:
            what = f"answers/s, resolver : {peer.partition(',')[0]}"
            found.append(figures.Figure(what, rate[own] / rate[peer]))
    figures.report(*found)


def _used_s(pid: int) -> float:
    """Processor time of a process, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    main()
