"""Bare container start: our executor against crun and runc, in one interleaved run.

    sudo .venv/bin/python -m bench.start [--rounds 31] [--containers 50]

Measured: request sent -> first byte the program printed is read. Everyone mounts the same overlay
of the same busybox root, with the same capabilities, seccomp profile, limits and a new network
namespace with loopback. The OCI runtimes get the bundle our runtime writes, with `linux.seccomp`
in JSON (crun) as Docker passes it, and once more with our compiled program (crun+bpf). Then the
memory of our three processes is taken at 0 and at N running containers, and that of the
containerd-shims of a private dockerd with as many (no network). The bar for the start is against
crun as it comes; where crun is missing, nothing is held against anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import figures
from bench.docker import docker, why_not
from bench.figures import Figure
from bench.lab import require_root
from worker.runtime import bundle, launch
from worker.runtime.api import ContainerConfig
from worker.runtime.client import NativeRuntime
from worker.runtime.lean import seccomp_build

BUSYBOX = "/bin/busybox"
OCI_PARENT = f"/shoal-bench-oci-{os.getpid()}"
START_BAR = 1 / 2
MEMORY_BAR = 1 / 8
LIMITS: dict[str, Any] = {"memory_bytes": 64 << 20, "nano_cpus": 500_000_000, "pids_max": 100}


def make_image(directory: str) -> None:
    """A root with busybox and two of its names."""
    os.makedirs(f"{directory}/bin")
    shutil.copy(BUSYBOX, f"{directory}/bin/busybox")
    for name in ("sh", "echo", "sleep"):
        os.symlink("busybox", f"{directory}/bin/{name}")


class Native:
    """Our executor, until our logger has written the first line to the log file."""

    name = "native"

    def __init__(self, runtime: NativeRuntime, image: str) -> None:
        self._runtime = runtime
        self._image = image
        self._count = 0

    async def start(self) -> float:
        """Seconds from create to the first logged line; tidies up after the clock has stopped."""
        self._count += 1
        name = f"bench-{self._count}"
        config = ContainerConfig(id=name, layers=(self._image,), args=("/bin/echo", "hi"), **LIMITS)
        began = time.perf_counter()
        await self._runtime.create(config)
        await self._runtime.start(name)
        log = f"{self._runtime.container_dir(name)}/logs/000001.json"
        while not (os.path.exists(log) and os.path.getsize(log)):
            await asyncio.sleep(0.0002)
        took = time.perf_counter() - began
        await self._runtime.wait(name)
        await self._runtime.remove(name)
        return took


class Oci:
    """`crun run` or `runc run` in a private mount namespace without the empty v2 hierarchy."""

    def __init__(self, name: str, program: str, directory: str, image: str, bpf: str) -> None:
        self.name = name
        self._program = program
        self._directory = directory
        self._image = image
        self._bpf = bpf
        self._count = 0

    async def start(self) -> float:
        """Seconds from making the bundle to the first byte read."""
        self._count += 1
        name = f"shoal-bench-{os.getpid()}-{self.name.replace('+', '-')}-{self._count}"
        home = f"{self._directory}/{name}"
        began = time.perf_counter()
        config = ContainerConfig(
            id=name[-60:].strip("-"), layers=(self._image,), args=("/bin/echo", "hi"), **LIMITS
        )
        self._prepare(home, name, config)
        process = subprocess.Popen(
            [self._program, "--root", f"{self._directory}/root", "run", "--bundle", home, name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        first = process.stdout.read(1)
        took = time.perf_counter() - began
        _, complaint = process.communicate()
        subprocess.run(["umount", "-l", f"{home}/rootfs"], check=True)
        shutil.rmtree(home)
        if first != b"h":
            raise RuntimeError(f"{self.name}: {complaint.decode(errors='replace')}")
        return took

    def _prepare(self, home: str, name: str, config: ContainerConfig) -> None:
        around = bundle.Surroundings(
            container_dir=home, cgroup_path=f"{OCI_PARENT}/{name}", seccomp_program="",
            resolv_conf="",
        )  # fmt: skip
        content = bundle.bundle_of(config, around)
        for part in ("rootfs", "upper", "work"):
            os.makedirs(f"{home}/{part}")
        for file, text in bundle.files_of(config, around).items():
            Path(f"{home}/{file}").write_text(text)
        content["annotations"] = {}
        if self._bpf:
            content["annotations"]["run.oci.seccomp_bpf_data"] = self._bpf
        content["linux"]["seccomp"] = OCI_SECCOMP
        del content["linux"]["devices"]
        Path(f"{home}/config.json").write_text(json.dumps(content))
        options = f"lowerdir={self._image},upperdir={home}/upper,workdir={home}/work"
        libc_mount("overlay", f"{home}/rootfs", options)


def libc_mount(kind: str, target: str, options: str) -> None:
    """Mount in-process: the peers must not pay for a mount(8)."""
    from worker.runtime.lean import linux

    linux.mount(kind, target, kind, 0, options)


def oci_seccomp() -> dict[str, Any]:
    """The default profile as dockerd hands it to its runtime."""
    profile = json.loads(Path(launch.__file__).with_name("seccomp_default.json").read_text())
    caps = set(bundle.CAPABILITIES_DEFAULT)
    machine = os.uname().machine
    rules = [
        {key: rule[key] for key in ("names", "action", "args", "errnoRet") if key in rule}
        for rule in profile["syscalls"]
        if seccomp_build.applies(rule, caps, machine, (6, 1))
    ]
    arches = {"x86_64": ["X86_64", "X86", "X32"], "aarch64": ["AARCH64", "ARM"]}[machine]
    return {
        "defaultAction": profile["defaultAction"],
        "architectures": [f"SCMP_ARCH_{arch}" for arch in arches],
        "syscalls": rules,
    }


OCI_SECCOMP = oci_seccomp()


async def measure(contenders: list[Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per contender, order shuffled in every round."""
    taken: dict[str, list[float]] = {c.name: [] for c in contenders}
    for index in range(rounds + 2):
        for contender in random.sample(contenders, len(contenders)):
            took = await contender.start()
            if index >= 2:
                taken[contender.name].append(took * 1000)
    return taken


def report(taken: dict[str, list[float]]) -> None:
    """Print min, median, p90 and the ratio to native."""
    base = statistics.median(taken["native"])
    print(f"{'':12}{'min':>8}{'median':>8}{'p90':>8}{'native/x':>10}")
    for name, values in taken.items():
        ordered = sorted(values)
        median = statistics.median(ordered)
        p90 = ordered[int(len(ordered) * 0.9)]
        print(f"{name:12}{ordered[0]:8.2f}{median:8.2f}{p90:8.2f}{base / median:10.2f}")
    if "crun" in taken:
        ratio = base / statistics.median(taken["crun"])
        figures.report(Figure("native start", ratio, "x crun's time", START_BAR, "at most"))
    figures.report(Figure("native start, milliseconds", base, "ms"))


def memory_kib(run_dir: str) -> dict[str, int]:
    """PSS of each small process, KiB."""
    found = {}
    for part in ("keeper", "supervisor", "logger"):
        found[part] = pss_kib(launch.recorded_pid(run_dir, part))
    return found


def pss_kib(pid: int) -> int:
    """The process's share of memory, shared pages divided among who maps them."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(x.split()[1]) for x in rollup.splitlines() if x[:4] == "Pss:")


async def measure_shims(count: int) -> int:
    """PSS of the containerd-shims of `count` containers, KiB."""
    async with docker(swarm=False) as theirs:
        for _ in range(count):
            await asyncio.to_thread(theirs.run)
        shims = theirs.shims()
        if len(shims) != count:
            raise RuntimeError(f"{count} containers, but {len(shims)} shims")
        return sum(map(pss_kib, shims))


async def measure_memory(runtime: NativeRuntime, image: str, count: int) -> int:
    """PSS with nothing running and with `count` containers; the latter, KiB."""
    print("PSS KiB, 0 containers:", _summed(memory_kib(runtime.run_dir)))
    names = [f"many-{index}" for index in range(count)]
    began = time.perf_counter()
    for name in names:
        await runtime.create(
            ContainerConfig(id=name, layers=(image,), args=("/bin/sleep", "1000"), **LIMITS)
        )
        await runtime.start(name)
    print(f"{count} containers one after another: {count / (time.perf_counter() - began):.0f}/s")
    found = memory_kib(runtime.run_dir)
    print(f"PSS KiB, {count} containers:", _summed(found))
    for name in names:
        await runtime.kill(name, signal.SIGKILL)
        await runtime.wait(name)
        await runtime.remove(name)
    return sum(found.values())


def _summed(parts: dict[str, int]) -> str:
    return f"{sum(parts.values())} = {parts}"


async def main(rounds: int, containers: int) -> None:
    """Run both measurements."""
    directory = tempfile.mkdtemp(prefix="shoal-bench-", dir="/var/tmp")
    image = f"{directory}/image"
    make_image(image)
    parent = f"/shoal-bench-{os.getpid()}"
    runtime = NativeRuntime(
        state_dir=f"{directory}/state", run_dir=f"{directory}/run", cgroup_parent=parent
    )
    await runtime.ensure_running()
    try:
        contenders: list[Any] = [Native(runtime, image)]
        program = await launch.seccomp_program(
            runtime.state_dir, tuple(sorted(bundle.CAPABILITIES_DEFAULT))
        )
        import base64

        encoded = base64.b64encode(Path(program).read_bytes()).decode()
        for name, bpf in (("crun", ""), ("crun+bpf", encoded), ("runc", "")):
            path = shutil.which(name.split("+")[0], path=f"{os.environ['PATH']}:/usr/sbin")
            if path is None:
                print(f"  {name} skipped: not installed, run `make bench-peers`")
            else:
                contenders.append(Oci(name, path, f"{directory}/{name}", image, bpf))
        report(await measure(contenders, rounds))
        ours_kib = await measure_memory(runtime, image, containers)
    finally:
        await runtime.shutdown()
        shutil.rmtree(directory)
        for cgroup in Path("/sys/fs/cgroup").glob(f"*{OCI_PARENT}"):  # the OCI runtimes' parent
            if not os.path.ismount(cgroup.parent):  # crun wrote below the hidden hierarchy
                shutil.rmtree(cgroup)
                continue
            for place, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(place)
    await report_memory(ours_kib, containers)


async def report_memory(ours_kib: int, containers: int) -> None:
    """Our helpers against the shims."""
    figures.report(Figure(f"helpers at {containers} containers", ours_kib / 1024, "MiB"))
    if reason := why_not():
        print(f"  containerd-shims skipped: {reason}")
        return
    theirs_kib = await measure_shims(containers)
    ratio = ours_kib / theirs_kib
    figures.report(
        Figure(f"helpers at {containers} containers", ratio, "x shims'", MEMORY_BAR, "at most"),
        Figure(f"shims at {containers} containers", theirs_kib / 1024, "MiB"),
    )


def enter_private_namespace() -> None:
    """Crun 1.8 refuses a machine whose v2 hierarchy still has a controller: hide it from it."""
    from worker.runtime.lean import linux

    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    if os.path.ismount("/sys/fs/cgroup/unified"):
        linux.umount("/sys/fs/cgroup/unified")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--containers", type=int, default=50)
    options = parser.parse_args()
    require_root()
    enter_private_namespace()
    asyncio.run(main(options.rounds, options.containers))
