"""Lists of tasks: names of services and nodes put in, newest attempt of each slot first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from shoal.docker.values import Record
from shoal.model.objects import Task
from swarmctl.render.rows import newest_first, slot_key, task_name, task_row
from swarmctl.types import Filters

if TYPE_CHECKING:
    from swarmctl.client import Client


async def task_rows(
    client: Client, tasks: Sequence[Task], *, now_ns: int, trunc: bool, resolve: bool
) -> list[Record]:
    """Rows of `... ps`; earlier attempts of a slot are marked."""
    names = await node_names(client) if resolve and tasks else {}
    rows: list[Record] = []
    last: object = None
    for task in newest_first(tasks):
        key = slot_key(task)
        name = task_name(task) if resolve else f"{task.service_id}.{task.slot or task.node_id}"
        rows.append(
            task_row(
                task,
                name=name,
                node=names.get(task.node_id, task.node_id),
                now_ns=now_ns,
                trunc=trunc,
                previous=key == last,
            )
        )
        last = key
    return rows


async def node_names(client: Client) -> dict[str, str]:
    """Host names of all nodes by id."""
    return {node.id: node.description.hostname or node.id for node in await client.nodes()}


async def resolve_nodes(client: Client, filters: Filters) -> Filters:
    """The filters with node names and `self` replaced by ids."""
    ids: list[str] = []
    for name in filters.nodes:
        if name == "self":
            ids.append((await client.info()).node_id)
        else:
            ids.append((await client.node(name)).id)
    return msgspec.structs.replace(filters, nodes=tuple(ids))
