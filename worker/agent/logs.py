"""Publishes the logs of this node's tasks to whoever asks at a manager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog

from shoal.api.v1 import logs_pb2 as pb
from shoal.errors import NotFound, SwarmError
from worker.agent.client import ManagerClient
from worker.logs.model import LogLine
from worker.logs.reader import STREAMS_ALL, read

QUEUE_MAX = 512
LINES_PER_MESSAGE = 256
PUBLICATIONS_MAX = 256

_STREAM_NUMBER = {"stdout": 1, "stderr": 2}
_STREAM_NAME = {number: name for name, number in _STREAM_NUMBER.items()}

_log = structlog.get_logger()


class LogPublisher:
    """Serves the subscriptions of one session."""

    def __init__(self, client: ManagerClient, container_dir: Callable[[str], str]) -> None:
        self._client = client
        self._container_dir = container_dir
        self._publications: dict[str, Publication] = {}

    async def run(self) -> None:
        """Follow what is asked, for as long as the session lasts."""
        try:
            async for ask in self._client.log_subscriptions():
                if ask.close:
                    self._end(ask.id)
                elif ask.id in self._publications:
                    self._publications[ask.id].add(ask.task_ids)
                elif len(self._publications) < PUBLICATIONS_MAX:
                    self._begin(ask)
        finally:
            works = [publication.work for publication in self._publications.values()]
            for subscription_id in list(self._publications):
                self._end(subscription_id)
            await asyncio.gather(*works, return_exceptions=True)

    def _begin(self, ask: pb.SubscriptionMessage) -> None:
        publication = Publication(ask, self._container_dir)
        publication.work = asyncio.create_task(
            self._publish(ask.id, publication), name=f"logs {ask.id}"
        )
        self._publications[ask.id] = publication

    async def _publish(self, subscription_id: str, publication: Publication) -> None:
        try:
            await self._client.publish_logs(publication.messages())
        except NotFound:
            pass  # the reader has left
        except SwarmError as error:
            _log.info("logs.publication_ended", reason=error.message)
        finally:
            publication.stop()
            self._publications.pop(subscription_id, None)

    def _end(self, subscription_id: str) -> None:
        publication = self._publications.pop(subscription_id, None)
        if publication is not None:
            publication.work.cancel()


class Publication:
    """The lines of some tasks, for one reader: merged by time unless they are followed."""

    work: asyncio.Task[None]

    def __init__(self, ask: pb.SubscriptionMessage, container_dir: Callable[[str], str]) -> None:
        self._id = ask.id
        self._options = ask.options
        self._container_dir = container_dir
        self._queue: asyncio.Queue[tuple[str, LogLine] | None] = asyncio.Queue(QUEUE_MAX)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self.add(ask.task_ids)

    def add(self, task_ids: object) -> None:
        """Read these tasks as well."""
        for task_id in task_ids:  # type: ignore[attr-defined]
            if task_id not in self._readers:
                self._readers[task_id] = asyncio.create_task(self._read(task_id))

    def stop(self) -> None:
        """End every reader."""
        for reader in self._readers.values():
            reader.cancel()

    async def messages(self) -> AsyncIterator[pb.PublishLogsMessage]:
        """What is sent, until every task's log is read (never, when followed)."""
        yield pb.PublishLogsMessage(subscription_id=self._id)
        finisher = asyncio.create_task(self._finish())
        try:
            while True:
                first = await self._queue.get()
                if first is None:
                    break
                batch, ended = self._more(first)
                yield self._message(batch)
                if ended:
                    break
        finally:
            finisher.cancel()
        yield pb.PublishLogsMessage(subscription_id=self._id, close=True)

    def _more(self, first: tuple[str, LogLine]) -> tuple[list[tuple[str, LogLine]], bool]:
        batch = [first]
        while len(batch) < LINES_PER_MESSAGE and not self._queue.empty():
            item = self._queue.get_nowait()
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False

    def _message(self, batch: list[tuple[str, LogLine]]) -> pb.PublishLogsMessage:
        message = pb.PublishLogsMessage(subscription_id=self._id)
        for task_id, line in batch:
            message.messages.add(
                context=pb.LogContext(task_id=task_id),
                timestamp_ns=line.time_ns,
                stream=pb.LogStream.ValueType(_STREAM_NUMBER[line.stream]),
                data=line.text.encode("utf-8", "surrogateescape"),
            )
        return message

    async def _read(self, task_id: str) -> None:
        options = self._options
        wanted = {_STREAM_NAME[stream] for stream in options.streams if stream in _STREAM_NAME}
        try:
            async for line in read(
                self._container_dir(task_id),
                follow=options.follow,
                tail=options.tail if options.HasField("tail") else None,
                since_ns=options.since_ns,
                streams=wanted or STREAMS_ALL,
            ):
                if options.until_ns and line.time_ns > options.until_ns:
                    return
                await self._queue.put((task_id, line))
        except NotFound:
            return  # the task never had a container, or it is gone

    async def _finish(self) -> None:
        """Say when all readers are done; with `follow` more tasks may still come."""
        if self._options.follow:
            return
        await asyncio.gather(*self._readers.values(), return_exceptions=True)
        await self._queue.put(None)
