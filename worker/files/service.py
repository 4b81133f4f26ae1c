"""Files of containers, for the engine: what is at a path, trees as tars, tars into trees, changes.

Each call is one process (`child`) that ends with it: cancelled or failed, it is killed and reaped
before the error goes on. Bounded: at most JOBS_MAX at once, each waiting only for its client, and
for that at most IDLE_S at a time. Nothing is held in memory but the piece in hand.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import structlog

from shoal.errors import DeadlineExceeded, Internal
from worker.files import jobs
from worker.files.changes import Change
from worker.files.survey import read_small

_log = structlog.get_logger()
Result = TypeVar("Result")

JOBS_MAX = 16
IDLE_S = 300.0
ANSWER_S = 600.0
"""A walk over a whole root on a busy disk takes long; nobody hears of it meanwhile."""
END_S = 10.0
PIECE_BYTES = 256 << 10
_STDERR_BYTES = 64 << 10
_ANSWER_BYTES_MAX = 16 << 20


class Reading:
    """A tree that is being read. found: what its top is."""

    def __init__(self, child: _Child, found: jobs.Found) -> None:
        self.found = found
        self._child = child

    async def pieces(self) -> AsyncIterator[bytes]:
        """The tar. Raises: SwarmError when it cannot be completed."""
        async for piece in self._child.pieces():
            yield piece


class Files:
    """One per node."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(JOBS_MAX)

    async def stat(self, place: jobs.Place, path: str) -> jobs.Found:
        """What is at a path. Raises: NotFound, InvalidArgument."""
        async with self._child(jobs.StatJob(place, path)) as child:
            found = await child.found()
            await child.finish()
            return found

    @asynccontextmanager
    async def read(
        self, place: jobs.Place, path: str, *, content_only: bool = False
    ) -> AsyncIterator[Reading]:
        """A path and all below it, as a tar; the head is known on entering.

        Raises: NotFound, InvalidArgument.
        """
        job = jobs.ReadJob(place, path, content_only)
        async with self._child(job, stdout=subprocess.PIPE) as child:
            yield Reading(child, await child.found())

    async def write(
        self,
        place: jobs.Place,
        path: str,
        tar: AsyncIterable[bytes],
        *,
        keep_kinds: bool = False,
        owner: str = "",
    ) -> None:
        """Unpack a tar into the directory at a path; see `jobs.WriteJob`.

        What was unpacked before an error stays. Raises: NotFound, InvalidArgument,
        PermissionDenied, ResourceExhausted, and what `tar` raises.
        """
        job = jobs.WriteJob(place, path, keep_kinds, owner)
        async with self._child(job, stdin=subprocess.PIPE) as child:
            await child.feed(tar)
            await child.finish()

    async def survey(
        self, place: jobs.Place, wanted: Sequence[str], *, archives: bool = False
    ) -> list[jobs.Source]:
        """What the sources of a copy are. Raises: NotFound, InvalidArgument."""
        found: list[jobs.Source] = []
        async with self._child(jobs.SurveyJob(place, tuple(wanted), archives)) as child:
            while isinstance(answer := await child.answer(), jobs.Surveyed):
                found += answer.sources
        return found

    async def copy(self, job: jobs.CopyJob) -> bool:
        """Carry out a copy of a build; result: whether there was something to do.

        What was copied before an error stays. Raises: SwarmError.
        """
        async with self._child(job) as child:
            answer = await child.answer()
            if not isinstance(answer, jobs.Copied):
                raise Internal(f"the process of a container's files answered {answer!r}")
            await child.finish()
            return answer.made

    async def content(self, place: jobs.TreePlace, path: str, most: int) -> bytes:
        """A small file of a tree nobody else writes to, a last link followed.

        Raises: NotFound, InvalidArgument, also when it is larger than `most` bytes.
        """
        return await asyncio.to_thread(read_small, place.directory, path, most)

    async def changes(self, upper: str, layers: Sequence[str]) -> list[Change]:
        """What a container has changed. Raises: SwarmError."""
        async with self._child(jobs.ChangesJob(upper, tuple(layers))) as child:
            found: list[Change] = []
            while isinstance(answer := await child.answer(), jobs.Changed):
                found += answer.changes
            return found

    @asynccontextmanager
    async def _child(
        self, job: jobs.Job, *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
    ) -> AsyncIterator[_Child]:
        place = getattr(job, "place", None)
        passed = (place.namespace_fd,) if isinstance(place, jobs.LivePlace) else ()
        async with self._slots:
            child = await _Child.start(job, passed, stdin=stdin, stdout=stdout)
            try:
                yield child
            finally:
                await child.end()


class _Child:
    """One process at work."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        answers: asyncio.StreamReader,
        transport: asyncio.ReadTransport,
        errors_fd: int,
    ) -> None:
        self._process = process
        self._answers = answers
        self._transport = transport
        self._errors_fd = errors_fd
        self._is_ending = False

    @classmethod
    async def start(
        cls, job: jobs.Job, passed: tuple[int, ...], *, stdin: int, stdout: int
    ) -> _Child:
        reading, writing = os.pipe()
        errors_fd = os.memfd_create("files-stderr")
        answers = asyncio.StreamReader(limit=_ANSWER_BYTES_MAX)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), os.fdopen(reading, "rb", 0)
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-X", "utf8", "-m", "worker.files.child",
                jobs.encode_job(job).decode(), str(os.getpid()), str(writing),
                stdin=stdin, stdout=stdout, stderr=errors_fd,
                pass_fds=(writing, *passed), limit=PIECE_BYTES,
            )  # fmt: skip
        except BaseException:
            transport.close()
            os.close(errors_fd)
            raise
        finally:
            os.close(writing)
        return cls(process, answers, transport, errors_fd)

    @property
    def output(self) -> asyncio.StreamReader:
        if self._process.stdout is None:
            raise Internal("the process of a container's files has no output")
        return self._process.stdout

    async def pieces(self) -> AsyncIterator[bytes]:
        """All it writes, until the job is done. Raises: why it is not."""
        while piece := await _in_time(self.output.read(PIECE_BYTES), IDLE_S):
            yield piece
        await self.finish()

    async def found(self) -> jobs.Found:
        answer = await self.answer()
        if not isinstance(answer, jobs.Found):
            raise Internal(f"the process of a container's files answered {answer!r}")
        return answer

    async def finish(self) -> None:
        """Wait until the job is done. Raises: why it is not."""
        answer = await self.answer()
        if not isinstance(answer, jobs.Done):
            raise Internal(f"the process of a container's files answered {answer!r}")

    async def answer(self) -> jobs.Answer:
        """The next answer. Raises: what the job was refused with."""
        line = await _in_time(self._answers.readline(), ANSWER_S)
        if not line.endswith(b"\n"):
            raise await self._crashed()
        answer: jobs.Answer = jobs.decode_answer(line)
        self._is_ending = isinstance(answer, jobs.Done | jobs.Failed)
        if isinstance(answer, jobs.Failed):
            raise answer.error()
        return answer

    async def feed(self, source: AsyncIterable[bytes]) -> None:
        """Copy a source to the process. One that refuses early just stops reading."""
        stdin = self._process.stdin
        if stdin is None:
            raise Internal("the process of a container's files has no input")
        try:
            async for piece in _idle_at_most(source):
                stdin.write(piece)
                await _in_time(stdin.drain(), IDLE_S)
            stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            stdin.close()

    async def end(self) -> None:
        """Kill it unless it has ended, and reap it, also while being cancelled."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S if self._is_ending else 0):
                await self._process.wait()
        except (TimeoutError, asyncio.CancelledError) as error:
            with suppress(ProcessLookupError):  # it ends at this very moment
                self._process.kill()
            await self._process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._transport.close()
            os.close(self._errors_fd)

    async def _crashed(self) -> Internal:
        status = await self._process.wait()
        tail = os.pread(self._errors_fd, _STDERR_BYTES, 0).decode("utf-8", "replace")
        _log.error("files.process_crashed", status=status, stderr=tail)
        last = tail.strip().rpartition("\n")[2]
        return Internal(f"the process of a container's files ended with status {status}: {last}")


async def _in_time(work: Awaitable[Result], deadline_s: float) -> Result:
    try:
        async with asyncio.timeout(deadline_s):
            return await work
    except TimeoutError:
        raise DeadlineExceeded(
            f"a container's files: nothing moved for {deadline_s:.0f} s"
        ) from None


async def _idle_at_most(source: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """A source whose next piece is waited for at most IDLE_S."""
    pieces = aiter(source)
    while True:
        try:
            yield await _in_time(anext(pieces), IDLE_S)
        except StopAsyncIteration:
            return
