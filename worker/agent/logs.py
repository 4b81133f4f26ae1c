"""Publishes the logs of this node's tasks to whoever asks at a manager.

Bounded: a slow reader stops the reading of files, through the queues and gRPC's flow control.
Without `follow` the lines of all tasks are merged by time, as the manager merges nodes; with it
they are passed on as they come, and a task whose container is still to be made is waited for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing

import structlog

from shoal.api.v1 import logs_pb2 as pb
from shoal.errors import NotFound, SwarmError, Unimplemented
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from worker.agent.client import ManagerClient
from worker.logs.model import LogLine
from worker.logs.reader import STREAMS_ALL, read
from worker.logs.service import check_kept, details_of

LINES_PER_MESSAGE = 256
BYTES_PER_MESSAGE = 1 << 20
LINES_AHEAD = 64
"""Lines read ahead of each task."""
LINE_BYTES_MAX = 256 << 10
"""A line that goes on beyond is passed on in pieces."""
PUBLICATIONS_MAX = 256
CONTAINER_POLL_S = 0.1
UNKNOWN_TASK_WAIT_S = 10.0
"""How long a task may be asked for before it is assigned here."""

_STREAM_NUMBER = {"stdout": 1, "stderr": 2}
_STREAM_NAME = {number: name for name, number in _STREAM_NUMBER.items()}

Line = tuple[str, LogLine]
"""Task id and line."""
FindTask = Callable[[str], Task | None]

_log = structlog.get_logger()


class LogPublisher:
    """Serves the subscriptions of one session."""

    def __init__(
        self, client: ManagerClient, container_dir: Callable[[str], str], find_task: FindTask
    ) -> None:
        self._client = client
        self._container_dir = container_dir
        self._find_task = find_task
        self._publications: dict[str, Publication] = {}
        self._works: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow what is asked, for as long as the session lasts."""
        try:
            async with aclosing(self._client.log_subscriptions()) as asks:
                async for ask in asks:
                    self._take(ask)
        finally:
            works = list(self._works.values())
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    def _take(self, ask: pb.SubscriptionMessage) -> None:
        if ask.close:
            work = self._works.get(ask.id)
            if work is not None:
                work.cancel()
        elif ask.id in self._publications:
            self._publications[ask.id].add(ask.task_ids)
        elif len(self._works) >= PUBLICATIONS_MAX:
            _log.warning("logs.refused", reason=f"{PUBLICATIONS_MAX} readers are served already")
        else:
            publication = Publication(ask, self._container_dir, self._find_task)
            self._publications[ask.id] = publication
            self._works[ask.id] = asyncio.create_task(
                self._publish(ask.id, publication), name=f"logs {ask.id}"
            )

    async def _publish(self, subscription_id: str, publication: Publication) -> None:
        try:
            async with aclosing(publication.messages()) as messages:
                await self._client.publish_logs(messages)
        except NotFound:
            pass  # the reader has left
        except SwarmError as error:
            _log.info("logs.publication_ended", reason=error.message)
        except Exception as error:  # noqa: BLE001 - one reader must not end the node's session
            _log.error("logs.publication_failed", exc_info=error)
        finally:
            del self._publications[subscription_id], self._works[subscription_id]
            await publication.close()


class Publication:
    """The lines of some tasks, for one reader."""

    def __init__(
        self,
        ask: pb.SubscriptionMessage,
        container_dir: Callable[[str], str],
        find_task: FindTask,
    ) -> None:
        self._id = ask.id
        self._options = ask.options
        self._container_dir = container_dir
        self._find_task = find_task
        self._queues: list[asyncio.Queue[Line | None]] = []
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._errors: set[str] = set()
        self._details: dict[str, str] = {}
        self._live: asyncio.Queue[Line | None] = asyncio.Queue(LINES_AHEAD)
        self.add(ask.task_ids)

    def add(self, task_ids: Iterable[str]) -> None:
        """Read these tasks as well; those that are read to their end already are not read again."""
        if not self._options.follow and self._readers:
            return  # the merge is under way: without `follow` the manager asks once
        for task_id in task_ids:
            if task_id in self._readers:
                continue
            queue = self._live
            if not self._options.follow:
                queue = asyncio.Queue(LINES_AHEAD)
                self._queues.append(queue)
            self._readers[task_id] = asyncio.create_task(
                self._read(task_id, queue), name=f"log of {task_id}"
            )

    async def close(self) -> None:
        """End every reader."""
        for reader in self._readers.values():
            reader.cancel()
        await asyncio.gather(*self._readers.values(), return_exceptions=True)

    async def messages(self) -> AsyncGenerator[pb.PublishLogsMessage, None]:
        """What is sent, until every task's log is read (never, when followed)."""
        yield pb.PublishLogsMessage(subscription_id=self._id)
        batches = self._followed() if self._options.follow else self._merged()
        async with aclosing(batches):
            async for batch in batches:
                yield self._message(batch)
        yield pb.PublishLogsMessage(
            subscription_id=self._id, close=True, error="; ".join(sorted(self._errors))
        )

    async def _followed(self) -> AsyncGenerator[list[Line], None]:
        while True:
            batch = _Batch()
            batch.add(await self._live.get())
            while not batch.is_full and not self._live.empty():
                batch.add(self._live.get_nowait())
            if batch.lines:
                yield batch.lines

    async def _merged(self) -> AsyncGenerator[list[Line], None]:
        """The lines of all tasks in order of time; each task's are in order already."""
        heads: dict[int, Line] = {}
        for number, queue in enumerate(self._queues):
            await _refill(heads, number, queue)
        batch = _Batch()
        while heads:
            number = min(heads, key=lambda one: (heads[one][1].time_ns, one))
            batch.add(heads.pop(number))
            if batch.is_full or (self._queues[number].empty() and batch.lines):
                yield batch.lines
                batch = _Batch()
            await _refill(heads, number, self._queues[number])
        if batch.lines:
            yield batch.lines

    def _message(self, batch: list[Line]) -> pb.PublishLogsMessage:
        message = pb.PublishLogsMessage(subscription_id=self._id)
        for task_id, line in batch:
            message.messages.add(
                context=pb.LogContext(task_id=task_id),
                timestamp_ns=line.time_ns,
                stream=pb.LogStream.ValueType(_STREAM_NUMBER[line.stream]),
                data=line.text.encode("utf-8", "surrogatepass"),
                details=self._details.get(task_id, ""),
            )
        return message

    async def _read(self, task_id: str, queue: asyncio.Queue[Line | None]) -> None:
        try:
            if self._options.follow:
                await self._await_container(task_id)
            await asyncio.to_thread(check_kept, self._container_dir(task_id))
            if self._options.details:
                self._details[task_id] = await asyncio.to_thread(
                    details_of, self._container_dir(task_id)
                )
            async with aclosing(self._lines(task_id)) as lines:
                async for line in whole_lines(lines):
                    await queue.put((task_id, line))
        except Unimplemented as error:
            self._errors.add(f"task {task_id}: {error.message}")
        except NotFound:
            pass  # the task never had a container, or it is gone
        except Exception as error:  # noqa: BLE001 - one log must not hold up the others
            _log.error("logs.not_read", task_id=task_id, exc_info=error)
            self._errors.add(f"the log of task {task_id} cannot be read: {error}")
        if not self._options.follow:
            await queue.put(None)

    async def _lines(self, task_id: str) -> AsyncGenerator[LogLine, None]:
        options = self._options
        wanted = {_STREAM_NAME[stream] for stream in options.streams if stream in _STREAM_NAME}
        async for line in read(
            self._container_dir(task_id),
            follow=options.follow,
            tail=options.tail if options.HasField("tail") and options.tail >= 0 else None,
            since_ns=options.since_ns,
            streams=wanted or STREAMS_ALL,
        ):
            if options.until_ns and line.time_ns > options.until_ns:
                return
            yield line

    async def _await_container(self, task_id: str) -> None:
        """Wait while the task's container may still be made; its log then begins."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + UNKNOWN_TASK_WAIT_S
        directory = self._container_dir(task_id)
        while not await asyncio.to_thread(os.path.isdir, directory):
            task = self._find_task(task_id)
            is_known = task is not None
            if loop.time() > deadline_s and not is_known:
                return
            if task is not None and task.status.state > TaskState.RUNNING:
                return
            await asyncio.sleep(CONTAINER_POLL_S)


class _Batch:
    """Lines of one message, bounded in number and bytes."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self.lines) >= LINES_PER_MESSAGE or self._bytes >= BYTES_PER_MESSAGE

    def add(self, line: Line | None) -> None:
        if line is not None:
            self.lines.append(line)
            self._bytes += len(line[1].text)


async def _refill(heads: dict[int, Line], number: int, queue: asyncio.Queue[Line | None]) -> None:
    line = await queue.get()
    if line is not None:
        heads[number] = line


async def whole_lines(lines: AsyncIterator[LogLine]) -> AsyncIterator[LogLine]:
    """Lines put together from the pieces that long ones are kept in, each stream by itself.

    A line has the time of its last piece, so times rise and one is a cursor. What goes on beyond
    LINE_BYTES_MAX is passed on as it is, and an unfinished last line at the end.
    """
    pieces: dict[str, list[LogLine]] = {}
    async for line in lines:
        held = pieces.setdefault(line.stream, [])
        held.append(line)
        if not line.partial or sum(len(piece.text) for piece in held) >= LINE_BYTES_MAX:
            yield _joined(pieces.pop(line.stream))
    for held in sorted(pieces.values(), key=lambda some: some[-1].time_ns):
        yield _joined(held)


def _joined(pieces: list[LogLine]) -> LogLine:
    if len(pieces) == 1:
        return pieces[0]
    text = "".join(piece.text for piece in pieces)
    return LogLine(time_ns=pieces[-1].time_ns, stream=pieces[-1].stream, text=text)
