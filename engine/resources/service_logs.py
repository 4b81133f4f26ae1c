"""`/services/{id}/logs` and `/tasks/{id}/logs`: lines from every node, through the managers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

from engine.cluster.client import ClusterClient
from engine.cluster.loglines import LineStyle
from engine.containers.logs import parse_tail
from engine.http.call import Answer, Call
from engine.http.query import Query
from engine.http.routing import Route
from shoal.api.v1 import logs_pb2
from shoal.errors import InvalidArgument
from shoal.model.specs import ContainerSpec, TaskSpec


def routes(cluster: ClusterClient) -> Iterable[Route]:
    """The operations."""

    async def of_service(call: Call) -> Answer:
        service = await cluster.service(call.path["id"])
        selector = logs_pb2.LogSelector(services=[service.id])
        return await _answered(call, cluster, selector, service.spec.task)

    async def of_task(call: Call) -> Answer:
        task = await cluster.task(call.path["id"])
        selector = logs_pb2.LogSelector(tasks=[task.id])
        return await _answered(call, cluster, selector, task.spec)

    return [
        Route("GET", "/services/{id}/logs", of_service, follows_client=True),
        Route("GET", "/tasks/{id}/logs", of_task, follows_client=True),
    ]


async def _answered(
    call: Call, cluster: ClusterClient, selector: logs_pb2.LogSelector, spec: TaskSpec
) -> Answer:
    """The lines; what is missing is told at the end, since clients stop there."""
    request = logs_pb2.SubscribeLogsRequest(selector=selector, options=_options(call.query))
    tty = isinstance(spec.runtime, ContainerSpec) and spec.runtime.tty
    style = LineStyle(
        framed=not tty,
        timestamps=call.query.flag("timestamps"),
        details=call.query.flag("details"),
    )
    async with call.output_stream(tty=tty) as out, aclosing(cluster.logs(request)) as batches:
        async for piece in _pieces(batches, style):
            await out.write(piece)
    return out.answer


async def _pieces(
    batches: AsyncIterator[logs_pb2.SubscribeLogsMessage], style: LineStyle
) -> AsyncIterator[bytes]:
    missing: list[str] = []
    async for batch in batches:
        if batch.messages:
            yield b"".join(map(style.line, batch.messages))
        if batch.incomplete:
            missing.append(batch.incomplete)
    if missing:
        yield style.failure("; ".join(missing))


def _options(query: Query) -> logs_pb2.LogOptions:
    wished = {
        logs_pb2.LOG_STREAM_STDOUT: query.flag("stdout"),
        logs_pb2.LOG_STREAM_STDERR: query.flag("stderr"),
    }
    streams = [stream for stream, wanted in wished.items() if wanted]
    if not streams:
        raise InvalidArgument("Bad parameters: you must choose at least one stream")
    return logs_pb2.LogOptions(
        follow=query.flag("follow"),
        streams=streams,
        tail=parse_tail(query.text("tail")),
        since_ns=query.time_ns("since") or 0,
        until_ns=query.time_ns("until") or 0,
        details=query.flag("details"),
    )
