"""One operating system process: started, watched through a pidfd, ended.

A pid alone names nothing for long; every signal here goes to a process this object started and
has not reaped yet, or to one whose start time was compared first (`end_leftover`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from shoal.errors import invariant, violated

PIPE_BYTES = 4096
"""The least that a pipe holds without anybody reading (pipe(7))."""
STOP_TIMEOUT_S = 8.0
_KILL_TIMEOUT_S = 5.0


class ChildProcess:
    """A running child. `wait` it, and `end` it before dropping it. Needs a running event loop."""

    def __init__(self, command: Sequence[str], stdin: bytes = b"") -> None:
        """Start it in a session of its own. Raises OSError.

        stdin: all it will read from there; short enough for a pipe, so that nothing waits.
        No preexec_fn: gRPC's threads exist already. The child asks for the parent-death signal
        itself (`shoal.settings.process`).
        """
        invariant(len(stdin) <= PIPE_BYTES, "more than a pipe holds", size=len(stdin))
        self._loop = asyncio.get_running_loop()
        self._popen = subprocess.Popen(  # start_new_session: a terminal's ^C is swarmd's to pass on
            command, stdin=subprocess.PIPE, start_new_session=True
        )
        _give(self._popen.stdin, stdin)
        self.pid = self._popen.pid
        self.started_s = self._loop.time()
        self._exited = asyncio.Event()
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._exited.is_set()

    async def wait(self) -> int:
        """Wait for its end. Result: exit code, or minus the number of the signal that ended it."""
        await self._exited.wait()
        return self._popen.returncode

    async def end(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """SIGTERM, `timeout_s` of patience, SIGKILL. Also when cancelled it is not left running."""
        if not self.running:
            return
        self._popen.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        except TimeoutError:
            self._popen.kill()
            await self._exited.wait()
        except asyncio.CancelledError:
            self._popen.kill()
            raise

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._popen.wait()  # returns at once: the pidfd is readable
        self._exited.set()


def _give(pipe: IO[bytes] | None, content: bytes) -> None:
    if pipe is None:
        violated("a process without a standard input")
    with contextlib.suppress(BrokenPipeError):  # it has ended already, which `wait` will tell
        os.write(pipe.fileno(), content)
    pipe.close()


def describe_exit(status: int) -> str:
    """How a process ended, for people."""
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def write_pid_file(path: Path, pid: int) -> None:
    """Remember a child for the next swarmd, in case this one is killed."""
    ticks = start_ticks(pid)
    if ticks is not None:
        path.write_text(f"{pid} {ticks}\n", encoding="ascii")


async def end_leftover(path: Path, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
    """End what an earlier, killed swarmd left running. Result: its pid, None if there was nothing.

    It must be gone before its successor starts: closing its socket would remove the new one.
    """
    leftover = _open_leftover(path)
    if leftover is None:
        return None
    pid, pidfd = leftover
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not await _gone(pidfd, timeout_s):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await _gone(pidfd, _KILL_TIMEOUT_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
    return pid


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _open_leftover(path: Path) -> tuple[int, int] | None:
    try:
        pid, ticks = map(int, path.read_text(encoding="ascii").split())
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    if start_ticks(pid) != ticks:
        os.close(pidfd)
        return None
    return pid, pidfd


async def _gone(pidfd: int, timeout_s: float) -> bool:
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        async with asyncio.timeout(timeout_s):
            await gone.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True
