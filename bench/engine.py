"""The Docker API of a node against dockerd, turn by turn: run, exec, many at once, pull, build.

    sudo .venv/bin/python -m bench.engine [--rounds 15] [--pulls 5] [--many 100] [--idle 0]

Both answer the same docker command line and the same requests, each in a network namespace of its
own, with busybox imported; containers have no network. Pulled is an image of four layers, 100 MB as
a registry keeps it, from Debian's docker-registry over loopback; skopeo, which does not unpack,
copies it for comparison. Built is a Dockerfile of ten steps, without a cache. --idle N: as many
containers on our node alone, for the memory and the idle processor time of its processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import figures
from bench.docker import docker as a_dockerd
from bench.docker import why_not
from bench.figures import Figure
from bench.lab import require_root
from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import UnixConnection, seeded_node
from tests.support.registry import REGISTRY, SKOPEO, a_registry

RUN_BAR = 1 / 4
PULL_BAR = 1.0
NAME = "bench/big:1"
_STEPS = """FROM {image}
ENV A=1
COPY f0 /f0
RUN true
LABEL l=1
COPY f1 /f1
RUN echo x > /x
WORKDIR /w
COPY f2 .
CMD ["true"]
"""


class Side:
    """One of the two. path: of its socket. registry: its address as this side reaches it."""

    def __init__(self, name: str, path: str, image: str, registry: str) -> None:
        self.name = name
        self.path = path
        self.image = image
        self.registry = registry

    def command(self, *words: str, given: bytes = b"") -> None:
        """Run the docker command line. Raises: CalledProcessError."""
        subprocess.run(
            ["docker", "-H", f"unix://{self.path}", *words],
            input=given, check=True, capture_output=True,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )  # fmt: skip

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the last object of the answer. Raises: RuntimeError."""
        connection = UnixConnection(self.path)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 400 or b'"errorDetail"' in data:
            raise RuntimeError(f"{self.name}: {method} {path}: {answer.status} {data[-500:]!r}")
        lines = data.splitlines()
        return json.loads(lines[-1]) if lines else None

    def start(self, *command: str) -> str:
        """A container that runs; its id."""
        wish = {"Image": self.image, "Cmd": list(command), "StopSignal": "SIGKILL",
                "HostConfig": {"NetworkMode": "none"}}  # fmt: skip
        container = self.ask("POST", "/v1.41/containers/create", wish)["Id"]
        self.ask("POST", f"/v1.41/containers/{container}/start")
        return str(container)

    def remove(self, container: str) -> None:
        """Remove it, running or not."""
        self.ask("DELETE", f"/v1.41/containers/{container}?force=1")


def measured(work: Callable[[], object]) -> float:
    """Seconds."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def in_turns(
    sides: Sequence[Side], rounds: int, work: Callable[[Side], float]
) -> dict[str, list[float]]:
    """Samples by side; who begins changes each round."""
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 else list(reversed(sides)):
            taken[side.name].append(work(side))
    return taken


def run_by_command(side: Side) -> float:
    """`docker run --rm`."""
    return measured(lambda: side.command("run", "--rm", "--network", "none", side.image, "true"))


def run_by_api(side: Side) -> float:
    """Create, start, wait, remove."""

    def work() -> None:
        container = side.start("true")
        side.ask("POST", f"/v1.41/containers/{container}/wait")
        side.remove(container)

    return measured(work)


def exec_by_api(side: Side, container: str) -> float:
    """One more process, to its end."""

    def work() -> None:
        asked = {"Cmd": ["true"], "AttachStdout": True}
        run = side.ask("POST", f"/v1.41/containers/{container}/exec", asked)["Id"]
        connection = UnixConnection(side.path)
        try:
            body = json.dumps({"Detach": False})
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/v1.41/exec/{run}/start", body, headers)
            connection.getresponse().read()
        finally:
            connection.close()

    return measured(work)


def start_many(side: Side, count: int) -> float:
    """Containers started at once by eight clients; they are removed afterwards."""
    started: list[str] = []
    left = iter(range(count))

    def client() -> None:
        started.extend(side.start("sleep", "1000") for _ in left)

    def work() -> None:
        clients = [threading.Thread(target=client) for _ in range(8)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()

    taken_s = measured(work)
    if len(started) != count:
        raise RuntimeError(f"{side.name}: {len(started)} of {count} containers started")
    for container in started:
        side.remove(container)
    return taken_s


def pull(side: Side) -> float:
    """Pull and unpack an image that is not there; it is removed afterwards."""
    name = f"{side.registry}/{NAME}"
    taken_s = measured(lambda: side.ask("POST", f"/v1.41/images/create?fromImage={name}"))
    side.command("rmi", name)
    return taken_s


def build(side: Side, context: Path) -> float:
    """Ten steps without a cache."""
    (context / "Dockerfile").write_text(_STEPS.format(image=side.image))
    words = ("build", "--no-cache", "--network", "none", "-t", "built", str(context))
    taken_s = measured(lambda: side.command(*words))
    side.command("rmi", "-f", "built")
    return taken_s


def make_files(directory: Path) -> None:
    """Four files of 25 MB that hardly compress, and three small ones."""
    for number in range(4):
        (directory / f"big{number}").write_bytes(random.Random(number).randbytes(25_000_000))
    for number in range(3):
        (directory / f"f{number}").write_bytes(random.Random(number).randbytes(100_000))


def compare(options: argparse.Namespace, sides: Sequence[Side], scratch: Path) -> list[Figure]:
    """Everything in turns; ours first in each ratio."""
    found: list[Figure] = []

    def told(what: str, samples: dict[str, list[float]], bar: float = 0.0) -> None:
        print(f"\n{what}")
        for name, values in samples.items():
            print(figures.spread(name, [value * 1000 for value in values], "ms"))
        ours, theirs = (statistics.median(samples[side.name]) for side in sides)
        sense: figures.Sense = "at most" if bar else ""
        found.append(Figure(f"{what}, of dockerd's", ours / theirs, "x", bar, sense))
        found.append(Figure(f"{what}", ours * 1000, "ms"))

    told("docker run --rm", in_turns(sides, options.rounds, run_by_command), RUN_BAR)
    told("run over the API", in_turns(sides, options.rounds, run_by_api), RUN_BAR)
    holders = {side.name: side.start("sleep", "1000") for side in sides}
    told("exec", in_turns(sides, options.rounds, lambda s: exec_by_api(s, holders[s.name])))
    for side in sides:
        side.remove(holders[side.name])
    many = in_turns(sides, 2, lambda side: start_many(side, options.many))
    told(f"{options.many} started at once", many)
    told("build of ten steps", in_turns(sides, 3, lambda side: build(side, scratch)))
    pulls = in_turns(sides, options.pulls, pull)
    told("pull of 100 MB", pulls)
    ours, theirs = (statistics.median(pulls[side.name]) for side in sides)
    found.append(Figure("rate of a pull, of dockerd's", theirs / ours, "x", PULL_BAR, "at least"))
    if SKOPEO:
        copies = [copy_by_skopeo(sides[0], scratch) for _ in range(options.pulls)]
        print(figures.spread("skopeo copy", [value * 1000 for value in copies], "ms"))
    return found


def copy_by_skopeo(side: Side, scratch: Path) -> float:
    """To a directory, without unpacking, inside our node's network."""
    target = scratch / "copied"
    words = [*INSIDE, str(SKOPEO), "copy", "-q", "--src-tls-verify=false",
             f"docker://{side.registry}/{NAME}", f"dir:{target}"]  # fmt: skip
    taken_s = measured(lambda: subprocess.run(words, check=True, capture_output=True))
    shutil.rmtree(target)
    return taken_s


INSIDE: list[str] = []


def idle(node: EngineNode, side: Side, count: int) -> list[Figure]:
    """Memory and processor time of our processes beside many containers that sleep."""
    print(f"\n{count} containers on one node")
    taken_s = measured(lambda: [side.start("sleep", "100000") for _ in range(count)])
    pids = list(_processes(node))
    before = sum(_cpu_s(pid) for pid in pids)
    time.sleep(30)
    used = (sum(_cpu_s(pid) for pid in pids) - before) / 30 * 100
    memory = sum(_pss_kib(pid) for pid in pids) / 1024
    return [
        Figure(f"{count} started one by one", taken_s / count * 1000, "ms each"),
        Figure(f"memory of the node's processes at {count}", memory, "MiB"),
        Figure(f"idle processor time at {count}", used, "% of one"),
    ]


def _processes(node: EngineNode) -> Iterator[int]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if str(node.base).encode() in words:
            yield int(name)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@contextmanager
def our_node() -> Iterator[EngineNode]:
    """A node that answers."""
    node = seeded_node()
    try:
        node.start()
        yield node
    finally:
        node.close()


def against_dockerd(options: argparse.Namespace) -> list[Figure]:
    """Both sides side by side."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        make_files(scratch)
        node = stack.enter_context(our_node())
        INSIDE[:] = node.prefix
        kept = scratch / "registry"
        ours = stack.enter_context(a_registry(kept, inside=node.prefix))
        mine = Side("shoal", str(node.socket), "busybox", ours)
        text = f"FROM {mine.image}\n" + "".join(f"COPY big{n} /big{n}\n" for n in range(4))
        (scratch / "Dockerfile").write_text(text)
        mine.command("build", "-t", f"{ours}/{NAME}", str(scratch))
        mine.command("push", f"{ours}/{NAME}")
        mine.command("rmi", f"{ours}/{NAME}")
        mine.command("image", "prune", "-f")
        return asyncio.run(_beside(options, stack, mine, scratch, node.base / "busybox.tar"))


async def _beside(
    options: argparse.Namespace, stack: ExitStack, mine: Side, scratch: Path, rootfs: Path
) -> list[Figure]:
    async with a_dockerd(swarm=False) as daemon:
        there = scratch / "theirs"
        there.mkdir()
        (there / "data").symlink_to(scratch / "registry" / "data")
        inside = ("nsenter", f"--net=/proc/{daemon.pid}/ns/net")
        registry = stack.enter_context(a_registry(there, inside=inside))
        daemon.call("POST", "/images/create?fromSrc=-&repo=busybox", rootfs.read_bytes())
        theirs = Side("dockerd", daemon.path, mine.image, registry)
        return await asyncio.to_thread(compare, options, [mine, theirs], scratch)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="bench.engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pulls", type=int, default=5)
    parser.add_argument("--many", type=int, default=100)
    parser.add_argument("--idle", type=int, default=0, help="containers on our node alone")
    options = parser.parse_args()
    require_root()
    missing = why_not() or ("" if REGISTRY else "docker-registry not installed: apt-get install it")
    if missing:
        print(f"  dockerd: {missing}")
    else:
        figures.report(*against_dockerd(options))
    if options.idle:
        with our_node() as node:
            side = Side("shoal", str(node.socket), "busybox", "")
            figures.report(*idle(node, side, options.idle))


if __name__ == "__main__":
    main()
