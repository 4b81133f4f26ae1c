r"""Placement constraints: `node.labels.zone == east`.

Grammar: KEY OP VALUE with OP `==` or `!=`, spaces around each free. KEY starts with a letter or
`_`, then letters, digits, `-`, `_`, `.`; VALUE holds letters, digits and `: - _ . * ( ) ? + [ ]
\ ^ $ | /` and spaces inside; none of these symbols has a meaning. All constraints of a task must
hold. Values compare without regard to case, label names with it. A label that a node does not
have counts as empty. Swarm lets a key pass that nobody knows and never matches it; here it is
refused with the list of those that exist, since the service could never run.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

from shoal.errors import InvalidArgument
from shoal.model.enums import NodeRole
from shoal.model.objects import Node
from shoal.model.row import Row

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9\-_.]*")
_VALUE = re.compile(r"[A-Za-z0-9:\-_\s.*()?+\[\]\\^$|/]+")
_LABELS = ".labels."
_NODE_LABELS = "node.labels."
_ENGINE_LABELS = "engine.labels."
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Constraint(Row, frozen=True):
    """One parsed constraint. `equal` is False for `!=`."""

    key: str
    equal: bool
    value: str


def parse_constraints(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """Parse the constraints of a placement.

    Raises: InvalidArgument, naming the constraint and the rule.
    """
    return tuple(_parse(text) for text in texts)


def node_matches(node: Node, constraints: Iterable[Constraint]) -> bool:
    """Whether every constraint holds for the node."""
    return all(_holds(node, constraint) for constraint in constraints)


def value_of(node: Node, key: str) -> str:
    """What the node has under the key of a constraint; "" when it has nothing there."""
    lower = key.lower()
    if lower == "node.ip":
        return _host(node.status.address)
    read = _FIELDS.get(lower)
    if read is not None:
        return read(node)
    if lower.startswith((_NODE_LABELS, _ENGINE_LABELS)):
        start = lower.index(_LABELS) + len(_LABELS)
        return label_of(node, lower[:start] + key[start:])
    return ""


def normal_architecture(architecture: str) -> str:
    """Go's name of an architecture that the kernel calls otherwise."""
    return _ARCHITECTURES.get(architecture.lower(), architecture.lower())


def label_of(node: Node, descriptor: str) -> str:
    """Value of a `node.labels.X` or `engine.labels.X` descriptor; "" where there is none."""
    if descriptor.startswith(_NODE_LABELS):
        return node.spec.annotations.labels.get(descriptor[len(_NODE_LABELS) :], "")
    if descriptor.startswith(_ENGINE_LABELS):
        return node.description.engine.labels.get(descriptor[len(_ENGINE_LABELS) :], "")
    return ""


def _parse(text: str) -> Constraint:
    for operator in ("==", "!="):
        key, found, value = text.partition(operator)
        if not found:
            continue
        key, value = key.strip(), value.strip()
        if not _KEY.fullmatch(key):
            raise InvalidArgument(
                f"constraint {text!r}: key {key!r} must start with a letter or _ and go on with "
                "letters, digits, -, _ or ."
            )
        if not _VALUE.fullmatch(value):
            raise InvalidArgument(f"constraint {text!r}: value {value!r} is empty or has a sign "
                                  "that is not allowed")  # fmt: skip
        _check_key(text, key)
        return Constraint(key=key, equal=operator == "==", value=value)
    raise InvalidArgument(f"constraint {text!r}: must be KEY==VALUE or KEY!=VALUE")


def _check_key(text: str, key: str) -> None:
    if not _is_known(key.lower()):
        known = ", ".join((*sorted(_FIELDS), "node.ip", "node.labels.NAME", "engine.labels.NAME"))
        raise InvalidArgument(f"constraint {text!r}: {key!r} is no key of a node, use {known}")


def _is_known(lower_key: str) -> bool:
    if lower_key in _FIELDS or lower_key == "node.ip":
        return True
    prefixes = (_NODE_LABELS, _ENGINE_LABELS)
    return lower_key.startswith(prefixes) and lower_key not in prefixes


def _holds(node: Node, constraint: Constraint) -> bool:
    key = constraint.key.lower()
    if key == "node.ip":
        return _address_holds(node.status.address, constraint)
    if not _is_known(key):
        return False
    wanted = constraint.value
    if key == "node.platform.arch":
        wanted = normal_architecture(wanted)
    return (value_of(node, constraint.key).lower() == wanted.lower()) is constraint.equal


def _address_holds(address: str, constraint: Constraint) -> bool:
    try:
        actual = ipaddress.ip_address(_host(address))
        network = ipaddress.ip_network(constraint.value, strict=False)
    except ValueError:
        return False
    return (actual in network) is constraint.equal


def _host(address: str) -> str:
    """The address without a port: 10.0.0.1:2377, [::1]:2377."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _role(node: Node) -> str:
    return "manager" if node.role is NodeRole.MANAGER else "worker"


_FIELDS: dict[str, Callable[[Node], str]] = {
    "node.id": lambda node: node.id,
    "node.hostname": lambda node: node.description.hostname,
    "node.role": _role,
    "node.platform.os": lambda node: node.description.platform.os,
    "node.platform.arch": lambda node: normal_architecture(node.description.platform.architecture),
}
