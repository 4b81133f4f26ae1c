"""What a request through the mesh costs, against a routed one and against haproxy. Needs root.

    sudo .venv/bin/python -m bench.mesh [--rounds 5] [--seconds 1]

A client, a router and hosts, each in a network namespace, and the same server at the end of
every path. `direct` is forwarded by a host and by nothing else; `shoal` enters the mesh at the
task's node or at another one, which keeps the client's address; `haproxy` passes bytes on, on the
server's host or on another one, over VXLAN. Rounds are interleaved. Processor time is that of the
load generator, of the servers and of haproxy together, the kernel's work for them included: it is
the steadiest figure on a machine where all of them share two processors. Then what changes cost:
`bench.network_update` and `bench.overlay_update`, each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from bench import figures
from bench.figures import Figure
from bench.lab import require_root
from tests.integration.network.lab import Lab, Machine, tcp

LOCAL_BAR, REMOTE_BAR = 1.25, 2.1
BIG_BYTES = 1 << 20
PUBLISHED, PUBLISHED_BIG = 8080, 8081
SMALL_PORT, BIG_PORT = 8000, 8001
SERVER = "192.0.2.2"
"""The plain host's server."""
HOST, OTHER_HOST = "198.51.100.11", "198.51.100.12"
TUNNEL, OTHER_TUNNEL = "192.0.2.129", "192.0.2.130"
VXLAN_PORT = 4799
PATIENCE_S = 20.0
_REQUESTS = re.compile(r"(\d+) requests in ([\d.]+)(ms|s|m)")
_FAILED = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")


class Way(msgspec.Struct, frozen=True):
    """A path from the client to a server. address: HOST:PORT of small and of big answers."""

    name: str
    small: str
    big: str


class Sample(msgspec.Struct, frozen=True):
    """One run of the load generator."""

    requests_per_s: float
    cpu_us: float
    """Per request."""


class Cpu:
    """A control group whose members' processor time is counted; version 1 or 2."""

    def __init__(self) -> None:
        version_1 = Path("/sys/fs/cgroup/cpuacct")
        self._counts_ns = version_1.is_dir()
        root = version_1 if self._counts_ns else Path("/sys/fs/cgroup")
        self._path = root / f"shoal-bench-mesh-{os.getpid()}"

    def __enter__(self) -> Cpu:
        """Make it."""
        self._path.mkdir()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove it; its processes have ended by now, the kernel may not know yet."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._path.rmdir()
            except OSError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.05)
            else:
                return

    def inside(self, *words: str) -> tuple[str, ...]:
        """The command, as a member."""
        return ("sh", "-c", 'echo 0 >"$0" && exec "$@"', str(self._path / "cgroup.procs"), *words)

    def used_us(self) -> float:
        """Microseconds so far."""
        if self._counts_ns:
            return int((self._path / "cpuacct.usage").read_text()) / 1000
        line = (self._path / "cpu.stat").read_text().splitlines()[0]
        return float(line.split()[1])


class Site:
    """The hosts, the servers and the balancers; `with` it."""

    def __init__(self, directory: Path, cpu: Cpu) -> None:
        self.stack = contextlib.ExitStack()
        self.directory = directory
        self.cpu = cpu
        self.lab = Lab(directory)
        self.stack.callback(self.lab.close)

    def __enter__(self) -> Site:
        """Build everything. What was built is taken down also when this fails."""
        try:
            (self.directory / "big").write_bytes(bytes(BIG_BYTES))
            self._mesh()
            self._plain()
            self._wait()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Take it all down."""
        self.stack.close()

    @property
    def ways(self) -> tuple[Way, ...]:
        """All paths, the direct one first."""

        def way(name: str, host: str, small: int, big: int) -> Way:
            return Way(name, f"{host}:{small}", f"{host}:{big}")

        here, elsewhere = (node.address for node in self.lab.nodes[:2])
        return (
            way("direct", SERVER, SMALL_PORT, BIG_PORT),
            way("shoal, task's node", here, PUBLISHED, PUBLISHED_BIG),
            way("shoal, another node", elsewhere, PUBLISHED, PUBLISHED_BIG),
            way("haproxy, server's host", HOST, PUBLISHED, PUBLISHED_BIG),
            way("haproxy, another host", OTHER_HOST, PUBLISHED, PUBLISHED_BIG),
        )

    def measure(self, address: str, *words: str) -> Sample:
        """Load one path. Raises: RuntimeError when a request failed."""
        before = self.cpu.used_us()
        command = _inside(self.lab.client, "wrk", "-t1", *words, f"http://{address}/")
        done = subprocess.run(self.cpu.inside(*command), capture_output=True, text=True, check=True)
        used_us = self.cpu.used_us() - before
        found, failed = _REQUESTS.search(done.stdout), _FAILED.search(done.stdout)
        if found is None or "Non-2xx" in done.stdout or (failed and set(failed.groups()) != {"0"}):
            raise RuntimeError(f"{address}: {done.stdout}{done.stderr}")
        count, unit = int(found[1]), {"ms": 0.001, "s": 1.0, "m": 60.0}[found[3]]
        return Sample(count / (float(found[2]) * unit), used_us / max(1, count))

    def _wait(self) -> None:
        """Until every path answers: haproxy says nowhere that it listens."""
        until_s = time.monotonic() + PATIENCE_S
        for address in (one for way in self.ways for one in (way.small, way.big)):
            host, _, port = address.partition(":")
            while not self.lab.client.run(lambda h=host, p=int(port): _connects(h, p)):
                if time.monotonic() > until_s:
                    raise RuntimeError(f"{address} does not answer")
                time.sleep(0.02)

    def _mesh(self) -> None:
        lab = self.lab
        lab.open()
        task = lab.start("bench", lab.nodes[0])
        self._serve(("nsenter", f"--net={task.attachment.netns_path}"))
        lab.publish(
            msgspec.structs.replace(tcp(PUBLISHED, [task]), target_port=SMALL_PORT),
            msgspec.structs.replace(tcp(PUBLISHED_BIG, [task]), target_port=BIG_PORT),
        )

    def _plain(self) -> None:
        host, other, server = Machine(), Machine(), Machine()
        for machine in (host, other, server):
            self.stack.callback(machine.stop)
        for machine, name, address in ((host, "p11", HOST), (other, "p12", OTHER_HOST)):
            self.lab.cable(machine, name, f"{address}/24", "198.51.100.254")
            self.lab.router.shell(f"ip link set {name} master br0")
        host.shell(
            f"ip link add s0 type veth peer name eth0 netns {server.tid}",
            "ip addr add 192.0.2.1/25 dev s0",
            "ip link set s0 up",
            "sysctl -qw net.ipv4.ip_forward=1",
        )
        server.shell(
            f"ip addr add {SERVER}/25 dev eth0",
            "ip link set eth0 up",
            "ip route add default via 192.0.2.1",
        )
        self.lab.router.shell(f"ip route add 192.0.2.0/25 via {HOST}")
        _tunnel(host, HOST, OTHER_HOST, TUNNEL)
        _tunnel(other, OTHER_HOST, HOST, OTHER_TUNNEL)
        other.shell(f"ip route add 192.0.2.0/25 via {TUNNEL}")
        self._serve(_inside(server))
        self._balance(host)
        self._balance(other)

    def _serve(self, inside: Sequence[str]) -> None:
        big = self.directory / "big"
        self._haproxy(
            inside,
            "mode http",
            f"frontend small\n bind :{SMALL_PORT}\n"
            " http-request return status 200 content-type text/plain string ok",
            f"frontend big\n bind :{BIG_PORT}\n"
            f" http-request return status 200 content-type application/octet-stream file {big}",
        )

    def _balance(self, host: Machine) -> None:
        self._haproxy(
            _inside(host),
            "mode tcp",
            f"listen small\n bind :{PUBLISHED}\n server one {SERVER}:{SMALL_PORT}",
            f"listen big\n bind :{PUBLISHED_BIG}\n server one {SERVER}:{BIG_PORT}",
        )

    def _haproxy(self, inside: Sequence[str], mode: str, *parts: str) -> None:
        file = Path(tempfile.mkstemp(dir=self.directory, suffix=".cfg")[1])
        bytes_max = 2 * BIG_BYTES if "http" in mode else 16384
        times = "timeout connect 5s\n timeout client 60s\n timeout server 60s"
        head = f"global\n nbthread 1\n maxconn 2000\n tune.bufsize {bytes_max}"
        file.write_text("\n".join((head, f"defaults\n {mode}\n {times}", *parts, "")))
        words = (*inside, "haproxy", "-db", "-f", str(file))
        process = subprocess.Popen(self.cpu.inside(*words))
        self.stack.callback(_end, process)


def _tunnel(machine: Machine, here: str, there: str, address: str) -> None:
    machine.shell(
        f"ip link add vx0 type vxlan id 77 local {here} remote {there} dstport {VXLAN_PORT}",
        f"ip addr add {address}/30 dev vx0",
        "ip link set vx0 up",
    )


def _inside(machine: Machine, *words: str) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{machine.tid}/ns/net", *words)


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextlib.contextmanager
def a_site() -> Iterator[Site]:
    """Everything, for the length of the context."""
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch,
        Cpu() as cpu,
        Site(Path(scratch), cpu) as site,
    ):
        yield site


CHANGES = ("bench.network_update", "bench.overlay_update")
"""Programs that take their process into a namespace of its own."""
LOADS: dict[str, tuple[str, ...]] = {
    "requests on kept connections": ("-c32",),
    "connections of one request": ("-c16", "-H", "Connection: close"),
    "answers of 1 MiB": ("-c4",),
}


def compare(site: Site, rounds: int, seconds: int) -> list[Figure]:
    """All loads on all paths."""
    found: list[Figure] = []
    for load, words in LOADS.items():
        samples: dict[str, list[Sample]] = {way.name: [] for way in site.ways}
        for _ in range(rounds):
            for way in random.sample(site.ways, len(site.ways)):
                address = way.big if "MiB" in load else way.small
                samples[way.name].append(site.measure(address, f"-d{seconds}s", *words))
        found += _table(load, samples)
    return found


def _table(load: str, samples: dict[str, list[Sample]]) -> list[Figure]:
    cpu = {name: statistics.median(one.cpu_us for one in taken) for name, taken in samples.items()}
    rate = {name: max(one.requests_per_s for one in taken) for name, taken in samples.items()}
    print(f"\n{load}")
    for name in samples:
        print(
            f"  {name:24} {cpu[name]:9.1f} us of processor ({cpu[name] / cpu['direct']:.2f})"
            f"  {rate[name]:10,.0f} /s ({rate[name] / rate['direct']:.2f})"
        )
    bars = {} if load != next(iter(LOADS)) else {
        "shoal, task's node": LOCAL_BAR, "shoal, another node": REMOTE_BAR
    }  # fmt: skip
    bulk = [
        Figure(f"{name}: bulk", rate[name] * BIG_BYTES * 8 / 1e9, "Gbit/s") for name in samples
    ] if "MiB" in load else []  # fmt: skip
    return bulk + [
        Figure(
            f"{name}: processor time of {load}", cpu[name] / cpu["direct"], "x direct",
            bars.get(name, 0.0), "at most" if name in bars else "",
        )
        for name in samples if name != "direct"
    ]  # fmt: skip


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="bench.mesh", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1)
    options = parser.parse_args()
    require_root()
    for tool in ("wrk", "haproxy"):
        if shutil.which(tool) is None:
            raise SystemExit(f"bench.mesh: {tool} is not installed: apt-get install {tool}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with a_site() as site:
        figures.report(*compare(site, options.rounds, options.seconds))
    for name in CHANGES:
        print(f"\n{name}", flush=True)
        subprocess.run([sys.executable, "-m", name], check=True)


if __name__ == "__main__":
    main()
