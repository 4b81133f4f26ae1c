"""Start child processes that read archives, feed them, and bring back their answers.

Bounded: at most `unpack_parallel` at once, each with a deadline. A child never outlives its job:
when the job is cancelled or fails, the child is killed and reaped before the error goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterable, Callable
from pathlib import Path

import structlog

from shoal.errors import DeadlineExceeded, Internal, InvalidArgument, NotFound
from worker.images import jobs
from worker.images.model import StoreSettings

_log = structlog.get_logger()

Source = Path | AsyncIterable[bytes]

WATCH_S = 0.2
_FEED_BYTES = 256 * 1024
_STDERR_BYTES = 64 * 1024
_ANSWER_BYTES_MAX = 64 * 1024 * 1024


class Runner:
    """Runs jobs in child processes."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.unpack_parallel)

    async def run(
        self,
        job: jobs.Job,
        source: Source | None,
        *,
        reads: Callable[[int], None] | None = None,
    ) -> jobs.Answer:
        """Run one job over `source`. The answer travels in memory: a full disk can be told.

        reads: told now and then how many bytes of a file the child has read. Raises whatever the
        job was refused with, InvalidArgument or NotFound for a bad path, DeadlineExceeded, and what
        the source's iterator raises.
        """
        async with self._slots:
            fd = await asyncio.to_thread(_open_source, source) if isinstance(source, Path) else None
            try:
                answer = await self._finished(job, source if fd is None else fd, reads)
            finally:
                if fd is not None:
                    os.close(fd)
        if isinstance(answer, jobs.Failed):
            raise answer.error()
        return answer

    async def _finished(
        self, job: jobs.Job, source: int | Source | None, reads: Callable[[int], None] | None
    ) -> jobs.Answer:
        answer_fd = os.memfd_create("unpack-answer")
        errors_fd = os.memfd_create("unpack-stderr")
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-X", "utf8", "-m", "worker.images.child",
                jobs.encode_job(job).decode(), str(os.getpid()),
                stdin=_stdin(source),
                stdout=answer_fd,
                stderr=errors_fd,
            )  # fmt: skip
            try:
                async with asyncio.timeout(self._settings.unpack_timeout_s):
                    if isinstance(source, AsyncIterable):
                        await _feed(process, source)
                    elif isinstance(source, int) and reads is not None:
                        await _watch(process, source, reads)
                    status = await process.wait()
            except TimeoutError:
                raise DeadlineExceeded(
                    f"unpacking took longer than {self._settings.unpack_timeout_s:.0f} s"
                ) from None
            finally:
                await _end(process)
            if status != 0:
                tail = os.pread(errors_fd, _STDERR_BYTES, 0).decode("utf-8", "replace")
                _log.error("image.unpack_crashed", status=status, stderr=tail)
                last = tail.strip().rpartition("\n")[2]
                raise Internal(f"the unpacking process ended with status {status}: {last}")
            return await asyncio.to_thread(_read_answer, answer_fd)
        finally:
            os.close(errors_fd)
            os.close(answer_fd)


def _stdin(source: int | Source | None) -> int:
    if source is None:
        return subprocess.DEVNULL
    return source if isinstance(source, int) else subprocess.PIPE


async def _watch(
    process: asyncio.subprocess.Process, fd: int, reads: Callable[[int], None]
) -> None:
    """Tell how far the child has come in the file: it reads through our description of it."""
    while process.returncode is None:
        reads(os.lseek(fd, 0, os.SEEK_CUR))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), WATCH_S)


async def _feed(process: asyncio.subprocess.Process, source: AsyncIterable[bytes]) -> None:
    """Copy the source to the child. A child that refuses early just stops reading."""
    stdin = process.stdin
    if stdin is None:
        raise Internal("the unpacking process has no standard input")
    try:
        async for chunk in source:
            for at in range(0, len(chunk), _FEED_BYTES):
                stdin.write(chunk[at : at + _FEED_BYTES])
                await stdin.drain()
        stdin.close()
        await stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        stdin.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the child unless it has ended, and reap it, also while being cancelled."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        process.kill()
        await process.wait()


def _open_source(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"No such file: {path}") from None
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"{path} is not a regular file")
    return fd


def _read_answer(fd: int) -> jobs.Answer:
    size = os.fstat(fd).st_size
    if size > _ANSWER_BYTES_MAX:
        raise Internal(f"the unpacking process answered {size} bytes")
    parts = []
    at = 0
    while part := os.pread(fd, 1024 * 1024, at):
        parts.append(part)
        at += len(part)
    answer: jobs.Answer = jobs.decode_answer(b"".join(parts))
    return answer
