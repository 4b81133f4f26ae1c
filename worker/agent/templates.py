"""Templates as this node expands them: in env, hostname, mounts, and the content of files.

The language is `shoal.model.templates`; here is what its placeholders stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shoal.model import templates
from shoal.model.objects import Task
from shoal.model.row import Row
from shoal.model.templates import Sources


class NodeFacts(Row, frozen=True):
    """What templates may say of the node."""

    id: str
    hostname: str
    os: str
    architecture: str


def expand(text: str, task: Task, node: NodeFacts) -> str:
    """The text with every placeholder replaced. Raises InvalidArgument for an unknown one."""
    if "{{" not in text:
        return text
    return templates.expand(templates.parse(text), _sources(task, node))


def expand_content(
    data: bytes,
    task: Task,
    node: NodeFacts,
    *,
    functions: Mapping[str, Callable[[str], str]],
    size_max: int,
) -> bytes:
    """The content of a file with every placeholder replaced; other bytes stay as they are.

    size_max: characters. Raises InvalidArgument: an unknown placeholder, or too long a result.
    """
    text = data.decode("utf-8", "surrogateescape")
    parts = templates.parse(text, functions=True)
    expanded = templates.expand(parts, _sources(task, node, functions), size_max=size_max)
    return expanded.encode("utf-8", "surrogateescape")


def _sources(
    task: Task, node: NodeFacts, functions: Mapping[str, Callable[[str], str]] | None = None
) -> Sources:
    name = task.service_annotations.name
    fields = {
        "Service.ID": task.service_id,
        "Service.Name": name,
        "Node.ID": node.id,
        "Node.Hostname": node.hostname,
        "Node.Platform.OS": node.os,
        "Node.Platform.Architecture": node.architecture,
        "Task.ID": task.id,
        "Task.Name": f"{name}.{task.slot or task.node_id}.{task.id}",
        "Task.Slot": str(task.slot),
    }
    return Sources(fields, task.service_annotations.labels, functions or {})
