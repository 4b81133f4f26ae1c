"""`--filter key=value` into the filters of a list call. Pure.

Every command knows its keys; another key is refused with the list of those it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shoal.errors import InvalidArgument
from shoal.model.enums import NodeMembership, NodeRole, TaskState
from swarmctl.types import Filters

MODES = ("replicated", "global", "replicated-job", "global-job")

_Rule = tuple[str, Callable[[str], Any]]
_DESIRED = {
    "accepted": TaskState.ACCEPTED,
    "running": TaskState.RUNNING,
    "shutdown": TaskState.SHUTDOWN,
    "complete": TaskState.COMPLETE,
    "ready": TaskState.READY,
    "remove": TaskState.REMOVE,
}


def _word(choices: Mapping[str, Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if text not in choices:
            raise InvalidArgument(f"--filter: {text!r} is not one of {', '.join(choices)}")
        return choices[text]

    return parse


def _same(text: str) -> str:
    return text


_ROLES = {role.name.lower(): role for role in NodeRole}
_MEMBERSHIPS = {item.name.lower(): item for item in NodeMembership}

NODE_RULES: Mapping[str, _Rule] = {
    "id": ("ids", _same),
    "name": ("names", _same),
    "label": ("labels", _same),
    "node.label": ("node_labels", _same),
    "role": ("roles", _word(_ROLES)),
    "membership": ("memberships", _word(_MEMBERSHIPS)),
}
SERVICE_RULES: Mapping[str, _Rule] = {
    "id": ("ids", _same),
    "name": ("names", _same),
    "label": ("labels", _same),
    "mode": ("modes", _word({mode: mode for mode in MODES})),
}
NETWORK_RULES: Mapping[str, _Rule] = {
    "id": ("ids", _same),
    "name": ("names", _same),
    "label": ("labels", _same),
    "driver": ("drivers", _same),
}
FILE_RULES: Mapping[str, _Rule] = {
    "id": ("ids", _same),
    "name": ("names", _same),
    "label": ("labels", _same),
}
TASK_RULES: Mapping[str, _Rule] = {
    "id": ("ids", _same),
    "name": ("names", _same),
    "label": ("labels", _same),
    "node": ("nodes", _same),
    "service": ("services", _same),
    "desired-state": ("desired_states", _word(_DESIRED)),
}


def parse_filters(texts: Iterable[str], rules: Mapping[str, _Rule]) -> Filters:
    """The filters of all `--filter` flags of one command. Raises InvalidArgument."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in rules:
            raise InvalidArgument(
                f"--filter {text!r}: write key=value; the keys are {', '.join(rules)}"
            )
        name, parse = rules[key]
        found.setdefault(name, []).append(parse(value))
    lists: dict[str, Any] = {name: tuple(values) for name, values in found.items()}
    return Filters(**lists)
