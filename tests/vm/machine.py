"""One virtual machine: what it shows of this one, how it is started, what it hands back.

Its root is this machine's own, read-only through virtiofs, under an overlay on a disk of its own;
so whatever is installed here is installed there, at the same paths. The checkout is a copy, taken
when the machine starts. Invariant: when the context ends, no process, mount or file is left. Must
run in a private mount namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm import initramfs
from tests.vm.kernel import Kernel, Unavailable

QEMU = "qemu-system-x86_64"
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
DISK_BYTES = 16 << 30
START_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 10.0
TIMED_OUT = 124
SLOWNESS = {"kvm": 1, "tcg": 10}
"""How many times slower than this machine it is, at worst: what tests multiply deadlines by."""
_COMMAND_LINE = "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"


@dataclass(frozen=True)
class Settings:
    """How the machine is made. append: more words for its kernel's command line."""

    kernel: Kernel
    accelerator: str
    checkout: Path
    python: str
    memory_mib: int = 4096
    processors: int = 2
    append: str = ""
    revision: str = ""
    """Of the checkout; "" is what lies in it now."""
    timeout_s: float = 3600.0
    environment: Mapping[str, str] = field(default_factory=dict)
    results: Path | None = None
    """What the job leaves in /run/vm/results comes here."""


def why_not() -> str:
    """What is missing on this machine; "" when nothing is."""
    needed = {
        QEMU: "qemu-system-x86", "mke2fs": "e2fsprogs", "setpriv": "util-linux",
        "busybox": "busybox-static",
    }  # fmt: skip
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = {package for name, package in needed.items() if not shutil.which(name, path=path)}
    if not any(map(os.path.exists, VIRTIOFSD)):
        missing.add("qemu-system-common")
    if platform.machine() != "x86_64":
        return f"this rig knows x86_64 only, not {platform.machine()}"
    if os.geteuid() != 0:
        return "needs root: mounts are made"
    return f"missing: {' '.join(sorted(missing))} (Debian's names)" if missing else ""


def accelerator(wished: str, kernel: Kernel, cache: Path) -> str:
    """ "kvm" if it is there and starts a machine, else "tcg"; or what is wished.

    Some machines have the device and hang. What was found is kept until this one is restarted.
    """
    if wished != "auto":
        return wished
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    known = cache / f"accelerator.{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    if not known.exists():
        known.write_text("kvm" if _kvm_starts(kernel) else "tcg")
    return known.read_text()


def _kvm_starts(kernel: Kernel) -> bool:
    words = [
        QEMU, "-accel", "kvm", "-cpu", "host", "-m", "128", "-display", "none", "-no-reboot",
        "-nodefaults", "-kernel", str(kernel.image), "-append", "panic=-1 quiet",
    ]  # fmt: skip
    try:  # Without a root the kernel panics, which ends the machine.
        done = subprocess.run(words, timeout=PROBE_TIMEOUT_S, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def run(settings: Settings, command: Sequence[str]) -> int:
    """Run a command in a new machine: its output on ours, its exit code the result.

    Raises: Unavailable when the machine does not come up or ends without an exit code.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-vm-") as scratch, contextlib.ExitStack() as last:
        base = Path(scratch)
        share = last.enter_context(_share(base, settings))
        job = {
            "command": list(command), "directory": str(settings.checkout),
            "environment": _environment(settings),
        }  # fmt: skip
        exchange = share / "exchange"
        (exchange / "job.json").write_text(json.dumps(job))
        (exchange / "results").mkdir()
        initramfs.write(base / "initramfs", settings.kernel, settings.checkout, settings.python)
        disk = base / "disk"
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        mke2fs = ["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1"]
        subprocess.run([*mke2fs, str(disk)], check=True, env=_host_environment())
        socket = base / "virtiofs.sock"
        last.enter_context(_virtiofsd(socket, share, base / "virtiofsd.log"))
        code = _boot(settings, base, disk, socket)
        if code is None:
            return TIMED_OUT
        if settings.results is not None:
            shutil.copytree(exchange / "results", settings.results, dirs_exist_ok=True)
        told = exchange / "exit"
        if not told.exists():
            log = (base / "kernel.log").read_text(errors="replace")[-4000:]
            raise Unavailable(f"the machine ended without an exit code; its console:\n{log}")
        return int(told.read_text())


@contextlib.contextmanager
def _share(base: Path, settings: Settings) -> Iterator[Path]:
    """A directory with the host's root, kernel, checkout and what is exchanged; only the last is
    written to by the machine."""
    share = base / "share"
    for name in ("host", "kernel", "checkout", "exchange"):
        (share / name).mkdir(parents=True)
    copy_checkout(settings.checkout, share / "checkout", settings.revision)
    mounted: list[Path] = []
    try:
        for source, name in ((Path("/"), "host"), (settings.kernel.tree, "kernel")):
            _mount("--bind", str(source), str(share / name))
            mounted.append(share / name)
            _mount("-o", "remount,bind,ro", str(share / name))
        yield share
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", "--lazy", str(path)], check=False)


def copy_checkout(source: Path, target: Path, revision: str = "") -> None:
    """What git knows of the checkout and what is new in it, as it is now; or one commit."""
    (target / ".venv").mkdir(exist_ok=True)
    if revision:
        archive = target.with_name("checkout.tar")
        words = ["git", "-C", str(source), "archive", "-o", str(archive), revision]
        subprocess.run(words, check=True)
        shutil.unpack_archive(archive, target, filter="tar")
        return
    told = subprocess.run(
        ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True,
    )  # fmt: skip
    for name in set(filter(None, os.fsdecode(told.stdout).split("\0"))):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # Removed, and not yet committed so.
            shutil.copy2(source / name, place, follow_symlinks=False)


@contextlib.contextmanager
def _virtiofsd(socket: Path, share: Path, log: Path) -> Iterator[None]:
    program = next(filter(os.path.exists, VIRTIOFSD))
    options = "sandbox=chroot,cache=always"
    with log.open("wb") as file, _process(
        [program, f"--socket-path={socket}", "-o", f"source={share},{options}"], file.fileno()
    ) as server:  # fmt: skip
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise Unavailable(f"virtiofsd does not start: {log.read_text()[-1000:]}")
            time.sleep(0.02)
        yield


def _boot(settings: Settings, base: Path, disk: Path, socket: Path) -> int | None:
    """None: it took too long."""
    words = [
        QEMU, "-nodefaults", "-display", "none", "-no-reboot", *_accelerated(settings.accelerator),
        "-smp", str(settings.processors), "-m", str(settings.memory_mib),
        "-object", f"memory-backend-memfd,id=mem,size={settings.memory_mib}M,share=on",
        "-numa", "node,memdev=mem",
        "-kernel", str(settings.kernel.image), "-initrd", str(base / "initramfs"),
        "-append", f"{_COMMAND_LINE} {settings.append}".strip(),
        "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,discard=unmap",
        "-chardev", f"socket,id=share,path={socket}",
        "-device", "vhost-user-fs-pci,chardev=share,tag=share",
        "-device", "virtio-rng-pci",
        "-serial", f"file:{base / 'kernel.log'}", "-chardev", "stdio,id=out,signal=off",
        "-serial", "chardev:out",
    ]  # fmt: skip
    with _process(words, None) as machine:
        try:
            return machine.wait(settings.timeout_s)
        except subprocess.TimeoutExpired:
            print(f"vm: not done after {settings.timeout_s:.0f} s (--timeout)", flush=True)
            return None


def _accelerated(name: str) -> list[str]:
    if name == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


@contextlib.contextmanager
def _process(words: list[str], output: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the context, and with this one however that ends."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *words], stdin=subprocess.DEVNULL, stdout=output,
        stderr=None if output is None else subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _environment(settings: Settings) -> dict[str, str]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    patience = str(SLOWNESS[settings.accelerator])
    return {
        "HOME": "/root", "PATH": path, "LANG": "C.UTF-8", "SHOAL_PATIENCE": patience,
        **settings.environment,
    }  # fmt: skip


def _host_environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)
