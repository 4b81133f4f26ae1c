"""The Logs service for readers, and the LogBroker service for agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from typing_extensions import override

from manager.logbroker.broker import LogBroker, Selector
from manager.logbroker.subscription import Ask, LogLine, LogOptions, Publisher, Subscription
from shoal.api.v1 import logs_pb2 as pb
from shoal.api.v1.logs_pb2_grpc import LogBrokerServicer, LogsServicer
from shoal.errors import InvalidArgument
from shoal.security.peer import current_peer

MESSAGES_PER_REPLY = 256
REPLY_BYTES_MAX = 1 << 20
"""A reply holds no more lines or bytes than that, and one line more."""
DETAILS_LENGTH_MAX = 4_096
ERROR_LENGTH_MAX = 1_000

Context = grpc.aio.ServicerContext[Any, Any]


class LogsServer(LogsServicer):
    """Serves `shoal.api.v1.Logs`."""

    def __init__(self, broker: LogBroker) -> None:
        self._broker = broker

    @override
    async def SubscribeLogs(
        self, request: pb.SubscribeLogsRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeLogsMessage]:
        selector = Selector(
            services=tuple(request.selector.services),
            nodes=tuple(request.selector.nodes),
            tasks=tuple(request.selector.tasks),
        )
        async with aclosing(
            self._broker.subscribe(selector, _options(request.options))
        ) as everything:
            async for news in everything:
                if isinstance(news, str):
                    yield pb.SubscribeLogsMessage(incomplete=news)
                    continue
                for part in _parts(news):
                    yield pb.SubscribeLogsMessage(messages=[_message(line) for line in part])


class LogBrokerServer(LogBrokerServicer):
    """Serves `shoal.api.v1.LogBroker`; the node is the one of the peer's certificate."""

    def __init__(self, broker: LogBroker) -> None:
        self._broker = broker

    @override
    async def ListenSubscriptions(
        self, request: pb.ListenSubscriptionsRequest, context: Context
    ) -> AsyncIterator[pb.SubscriptionMessage]:
        with self._broker.listen(current_peer().node_id) as listener:
            while (ask := await listener.next()) is not None:
                yield _subscription(ask)

    @override
    async def PublishLogs(
        self, request_iterator: AsyncIterator[pb.PublishLogsMessage], context: Context
    ) -> pb.PublishLogsResponse:
        node_id = current_peer().node_id
        place: tuple[Subscription, Publisher] | None = None
        error = "the node stopped sending"
        try:
            async for message in request_iterator:
                place = place or self._broker.publisher(message.subscription_id, node_id)
                await place[0].put(place[1], self._lines(message, node_id))
                if message.close:
                    error = message.error
                    break
        finally:
            if place is not None:
                text = f"node {node_id}: {error[:ERROR_LENGTH_MAX]}" if error else ""
                await place[0].end(place[1], text)
        return pb.PublishLogsResponse()

    def _lines(self, message: pb.PublishLogsMessage, node_id: str) -> list[LogLine]:
        """The lines of tasks that are on the node; others it has no business with."""
        lines: list[LogLine] = []
        for item in message.messages:
            service_id = self._broker.service_of(item.context.task_id, node_id)
            if service_id:
                lines.append(
                    LogLine(
                        service_id=service_id,
                        node_id=node_id,
                        task_id=item.context.task_id,
                        timestamp_ns=item.timestamp_ns,
                        stream=item.stream,
                        data=item.data,
                        details=item.details[:DETAILS_LENGTH_MAX],
                    )
                )
        return lines


def _options(message: pb.LogOptions) -> LogOptions:
    if message.HasField("tail") and message.tail < 0:
        raise InvalidArgument("tail: must not be negative")
    return LogOptions(
        follow=message.follow,
        streams=tuple(message.streams),
        tail=message.tail if message.HasField("tail") else None,
        since_ns=message.since_ns,
        until_ns=message.until_ns,
        details=message.details,
    )


def _parts(lines: Sequence[LogLine]) -> Iterator[list[LogLine]]:
    """Lines as replies of a bounded size."""
    part: list[LogLine] = []
    size_bytes = 0
    for line in lines:
        part.append(line)
        size_bytes += len(line.data) + len(line.details)
        if len(part) == MESSAGES_PER_REPLY or size_bytes >= REPLY_BYTES_MAX:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part


def _message(line: LogLine) -> pb.LogMessage:
    return pb.LogMessage(
        context=pb.LogContext(
            service_id=line.service_id, node_id=line.node_id, task_id=line.task_id
        ),
        timestamp_ns=line.timestamp_ns,
        stream=pb.LogStream.ValueType(line.stream),
        data=line.data,
        details=line.details,
    )


def _subscription(ask: Ask) -> pb.SubscriptionMessage:
    options = pb.LogOptions(
        follow=ask.options.follow,
        streams=[pb.LogStream.ValueType(stream) for stream in ask.options.streams],
        since_ns=ask.options.since_ns,
        until_ns=ask.options.until_ns,
        details=ask.options.details,
    )
    if ask.options.tail is not None:
        options.tail = ask.options.tail
    return pb.SubscriptionMessage(
        id=ask.subscription_id, task_ids=ask.task_ids, options=options, close=ask.close
    )
