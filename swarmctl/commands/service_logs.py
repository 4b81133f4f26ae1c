"""service logs and task logs: lines of all tasks as their nodes send them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from shoal.clock import SystemClock
from shoal.errors import NotFound, SwarmError
from shoal.model.objects import Task
from swarmctl.complete import complete_services
from swarmctl.options import combined
from swarmctl.parsing.units import parse_count
from swarmctl.render.loglines import LogStyle, format_line
from swarmctl.render.times import parse_since
from swarmctl.session import Session
from swarmctl.tasks import node_names
from swarmctl.types import Filters, LogBatch, LogQuery

if TYPE_CHECKING:
    from swarmctl.client import Client

log_flags = combined(
    click.option("-f", "--follow", is_flag=True, help="Go on with new lines"),
    click.option("-n", "--tail", default="all", help="Lines per task from the end (default all)"),
    click.option("--since", default="", metavar="TIME", help="From a time, or a duration ago: 10m"),
    click.option("-t", "--timestamps", is_flag=True, help="Print times"),
    click.option("--details", is_flag=True, help="Print what --log-opt labels, env, tag name"),
    click.option("--raw", is_flag=True, help="Print lines alone"),
    click.option("--no-task-ids", is_flag=True, help="Leave task ids out"),
    click.option("--no-resolve", is_flag=True, help="Print ids, not names"),
    click.option("--no-trunc", is_flag=True, help="Print task ids in full"),
)


@click.command("logs")
@click.argument("name", metavar="SERVICE|TASK", shell_complete=complete_services)
@log_flags
@click.pass_obj
def service_logs(session: Session, /, name: str, **flags: Any) -> None:
    """Print what the tasks of a service, or one task, wrote."""
    print_logs(session, name, flags, task_only=False)


@click.command("logs")
@click.argument("name", metavar="TASK")
@log_flags
@click.pass_obj
def task_logs(session: Session, /, name: str, **flags: Any) -> None:
    """Print what a task wrote."""
    print_logs(session, name, flags, task_only=True)


def print_logs(session: Session, name: str, flags: dict[str, Any], *, task_only: bool) -> None:
    """Print the lines of a service or task; its stdout to stdout, its stderr to stderr."""
    style = LogStyle(
        raw=flags["raw"],
        timestamps=flags["timestamps"],
        task_ids=not flags["no_task_ids"],
        resolve=not flags["no_resolve"],
        trunc=not flags["no_trunc"],
    )
    tail = None if flags["tail"] in ("all", "-1") else parse_count(flags["tail"], name="--tail")
    since_ns = parse_since(flags["since"], SystemClock().now_ns()) if flags["since"] else 0

    async def work(client: Client) -> None:
        service_id, task = await _find(client, name, task_only=task_only)
        query = LogQuery(
            services=(service_id,) if service_id else (),
            tasks=(task.id,) if task else (),
            follow=flags["follow"],
            tail=tail,
            since_ns=since_ns,
            details=flags["details"],
        )
        names = _Names(client, style)
        await names.learn(service_id, task)
        async for batch in client.log_batches(query):
            await names.print_batch(batch)

    session.run(work)


async def _find(client: Client, name: str, *, task_only: bool) -> tuple[str, Task | None]:
    if not task_only:
        try:
            return (await client.service(name)).service.id, None
        except NotFound:
            pass
    try:
        return "", await client.task(name)
    except NotFound:
        kind = "task" if task_only else "task or service"
        raise NotFound(f"no such {kind}: {name}") from None


class _Names:
    """Names of the tasks and nodes that lines come from; new tasks are asked for once."""

    def __init__(self, client: Client, style: LogStyle) -> None:
        self._client = client
        self._style = style
        self._tasks: dict[str, Task] = {}
        self._asked: set[str] = set()
        self._nodes: dict[str, str] = {}

    async def learn(self, service_id: str, task: Task | None) -> None:
        """Ask for all tasks of the service, and for the nodes."""
        if self._style.raw:
            return
        known = [task] if task else await self._client.tasks(Filters(services=(service_id,)))
        self._tasks.update((item.id, item) for item in known)
        if self._style.resolve:
            self._nodes = await node_names(self._client)

    async def print_batch(self, batch: LogBatch) -> None:
        """Print lines; a warning for a node whose lines are missing."""
        for line in batch.lines:
            await self._ask(line.task_id, line.node_id)
            stream = sys.stderr if line.is_stderr else sys.stdout
            stream.buffer.write(
                format_line(line, self._style, tasks=self._tasks, nodes=self._nodes)
            )
        sys.stdout.buffer.flush()
        sys.stderr.buffer.flush()
        if batch.incomplete:
            click.echo(f"Warning: incomplete log stream: {batch.incomplete}", err=True)

    async def _ask(self, task_id: str, node_id: str) -> None:
        if self._style.raw or task_id in self._asked:
            return
        self._asked.add(task_id)
        try:
            if task_id not in self._tasks:
                self._tasks[task_id] = await self._client.task(task_id)
            if self._style.resolve and node_id not in self._nodes:
                self._nodes = await node_names(self._client)
        except SwarmError:  # the task is gone already: its id stands for its name
            return
