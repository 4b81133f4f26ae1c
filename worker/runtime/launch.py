"""Starting the small processes from the worker, and the seccomp program they load.

They are started with `-I -S`: no environment, no site-packages, a third of the memory. Nothing
here keeps a handle on them: they are found again through their socket.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import json
import os
import py_compile
import sys
from pathlib import Path
from typing import Any

import worker
from shoal.errors import FailedPrecondition, InvalidArgument, Unavailable
from worker.runtime import profiles
from worker.runtime.lean import files, seccomp_build

BOOT = "import sys;sys.path.insert(0,sys.argv[1]);from worker.runtime.lean.{} import main;main()"
_LEAN_FLAGS = ("-I", "-S", "-X", "utf8")  # no environment, no site-packages
_SPAWN_DEADLINE_S = 10.0
_LOG_BYTES_MAX = 1 << 20
_PROFILE = Path(__file__).with_name("seccomp_default.json")


def root_dir() -> str:
    """The directory that holds the `worker` package."""
    return str(Path(worker.__file__).resolve().parent.parent)


def make_directories(run_dir: str, state_dir: str) -> None:
    """Everything the small processes expect to find."""
    for path in (
        run_dir, state_dir, *(f"{state_dir}/{name}" for name in
        ("containers", "exits", "trash", "seccomp")),
    ):  # fmt: skip
        os.makedirs(path, mode=0o711, exist_ok=True)


def keeper_is_alive(run_dir: str) -> bool:
    """True while some keeper holds the node's lock."""
    fd = os.open(f"{run_dir}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def is_recorded_alive(run_dir: str, part: str) -> bool:
    """True while the process in `<run>/<part>.pid` is the one that was recorded."""
    return recorded_pid(run_dir, part) > 0


def recorded_pid(run_dir: str, part: str) -> int:
    """The pid in `<run>/<part>.pid`, or 0 when that process is gone."""
    try:
        pid, ticks = (int(word) for word in files.read_text(f"{run_dir}/{part}.pid").split())
    except (OSError, ValueError):
        return 0
    return pid if files.is_alive(pid, ticks) else 0


async def spawn_keeper(run_dir: str, state_dir: str, cgroup_parent: str) -> None:
    """Start a keeper that is nobody's child and outlives us. Raises: Unavailable."""
    log_path = f"{state_dir}/runtime.log"
    log = await asyncio.to_thread(_open_log, log_path)
    await asyncio.to_thread(_compile_modules)
    arguments = (root_dir(), run_dir, state_dir, cgroup_parent, "spawn")
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *_LEAN_FLAGS, "-c", BOOT.format("entry"), *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )  # fmt: skip
        code = await asyncio.wait_for(process.wait(), _SPAWN_DEADLINE_S)
    finally:
        os.close(log)
    if code:
        raise Unavailable(f"the keeper did not start (exit code {code}); see {log_path}")


def _compile_modules() -> None:
    """Write bytecode first: a process that compiles its own modules keeps 1 MiB more for good."""
    root = Path(root_dir())
    sources = [*(root / "worker/runtime/lean").glob("*.py"), *(root / "worker/logs").glob("*.py")]
    for source in sources:
        compiled = Path(importlib.util.cache_from_source(str(source)))
        try:
            if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
                py_compile.compile(str(source), doraise=False, quiet=2)
        except OSError:
            return  # an installation we may not write to: only dearer


def _open_log(path: str) -> int:
    if os.path.exists(path) and os.path.getsize(path) > _LOG_BYTES_MAX:
        os.replace(path, f"{path}.1")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


async def seccomp_program(
    state_dir: str, capabilities: tuple[str, ...], *, profile: str = ""
) -> str:
    """Path of the compiled profile for this capability set; compiled when missing.

    profile: its JSON; the default one without. Raises: FailedPrecondition when libseccomp is not
    installed, InvalidArgument for a profile that is none.
    """
    text = profile.encode() or await asyncio.to_thread(_PROFILE.read_bytes)
    digest = hashlib.sha256(text)
    digest.update("\0".join((*capabilities, *os.uname()[2:])).encode())
    path = f"{state_dir}/seccomp/{digest.hexdigest()[:32]}.bpf"
    if await asyncio.to_thread(os.path.exists, path):
        return path
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", BOOT.format("seccomp_build"),
        root_dir(), path, *capabilities,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, complaint = await asyncio.wait_for(process.communicate(text), _SPAWN_DEADLINE_S)
    if process.returncode == seccomp_build.MISSING_LIBRARY:
        raise FailedPrecondition("libseccomp.so.2 is not installed; install libseccomp2")
    if process.returncode:
        words = complaint.decode(errors="replace").strip()
        raise (InvalidArgument if profile else FailedPrecondition)(f"seccomp_profile: {words}")
    return path


async def oci_profile(capabilities: tuple[str, ...], profile: str = "") -> dict[str, Any]:
    """The profile for a runtime that compiles its own. Raises: InvalidArgument."""
    text = profile.encode() or await asyncio.to_thread(_PROFILE.read_bytes)
    major, minor = os.uname().release.split(".")[:2]
    try:
        return profiles.resolved(
            json.loads(text), capabilities, os.uname().machine, (int(major), int(minor))
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgument(
            f"seccomp_profile: Decoding seccomp profile failed: {error}"
        ) from None
