"""Lines of tasks' logs with the prefix that says whose they are: `web.1.abc@node    | text`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shoal.model.objects import Task
from swarmctl.render.rows import ID_WIDTH
from swarmctl.render.times import padded_timestamp
from swarmctl.types import LogLine

SEPARATOR = b"    | "


class LogStyle(msgspec.Struct, frozen=True, kw_only=True):
    """How lines are printed."""

    raw: bool = False
    timestamps: bool = False
    task_ids: bool = True
    resolve: bool = True
    trunc: bool = True


def format_line(
    line: LogLine, style: LogStyle, *, tasks: Mapping[str, Task], nodes: Mapping[str, str]
) -> bytes:
    """The line as it is printed, with its end."""
    time = f"{padded_timestamp(line.timestamp_ns)} ".encode() if style.timestamps else b""
    said = f"{line.details} ".encode() if line.details else b""
    end = b"" if line.data.endswith(b"\n") else b"\n"
    if style.raw:
        return time + said + line.data + end
    prefix = line_prefix(line, style, tasks=tasks, nodes=nodes).encode()
    return time + prefix + SEPARATOR + said + line.data + end


def line_prefix(
    line: LogLine, style: LogStyle, *, tasks: Mapping[str, Task], nodes: Mapping[str, str]
) -> str:
    """Whose line it is; ids stand in for names that are not known or not wanted."""
    task = tasks.get(line.task_id)
    service = line.service_id
    if style.resolve and task is not None and task.service_annotations.name:
        service = task.service_annotations.name
    parts = [service]
    if task is not None and task.slot:
        parts.append(str(task.slot))
    if style.task_ids:
        parts.append(line.task_id[:ID_WIDTH] if style.trunc else line.task_id)
    node = nodes.get(line.node_id, line.node_id) if style.resolve else line.node_id
    return f"{'.'.join(parts)}@{node}"
