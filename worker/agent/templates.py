"""Placeholders in env, hostname and mount sources: `{{.Service.Name}}`, `{{.Task.Slot}}` ...

Swarm expands these on the node that runs the task. Only the documented fields exist; anything
else is an error that names the placeholder, and never text that is passed on half-expanded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from shoal.errors import InvalidArgument
from shoal.model.objects import Task
from shoal.model.row import Row

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}")
_FIELD = re.compile(r"\.([A-Za-z.]+)")
_LABEL = re.compile(r'index \.Service\.Labels "([^"]*)"')


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
    if "{{" in _PLACEHOLDER.sub("", text):
        raise InvalidArgument(f"template: {text!r} has a {{{{ without its }}}}")
    values = _values(task, node)
    labels = task.service_annotations.labels
    return _PLACEHOLDER.sub(lambda match: _value(match.group(1).strip(), values, labels), text)


def _value(expression: str, values: Mapping[str, str], labels: Mapping[str, str]) -> str:
    field = _FIELD.fullmatch(expression)
    if field and field.group(1) in values:
        return values[field.group(1)]
    label = _LABEL.fullmatch(expression)
    if label:
        return labels.get(label.group(1), "")
    known = ", ".join(f"{{{{.{name}}}}}" for name in sorted(values))
    raise InvalidArgument(f"template: {{{{{expression}}}}} is unknown, use one of {known}")


def _values(task: Task, node: NodeFacts) -> dict[str, str]:
    name = task.service_annotations.name
    return {
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
