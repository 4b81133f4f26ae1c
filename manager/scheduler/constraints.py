r"""Placement constraints: `node.labels.zone == east`.

Grammar, spaces around operators free, words in lower case:

    KEY == VALUE    KEY != VALUE                     without regard to case
    KEY ~= PATTERN                                   the whole value; `*`, `?`, `[abc]` as in shells
    KEY < NUMBER    KEY <= ..   KEY > ..   KEY >= .. labels that hold decimal numbers
    KEY in (VALUE, ...)    KEY notin (VALUE, ...)
    KEY exists

KEY starts with a letter or `_`, then letters, digits, `-`, `_`, `.`; VALUE holds letters, digits
and `: - _ . * ( ) ? + [ ] \ ^ $ | /` and spaces inside, which mean nothing but in a PATTERN. All
constraints of a task must hold. Label names compare with regard to case. A label that a node does
not have counts as empty, and is no number. Patterns are not regular expressions, some of which
take exponential time: constraints are tried on every node by the one who leads.

`service.name` and `service.labels.NAME` are those of other services with tasks on the node: they
are no facts of the node, hold here for every node, and are `manager.scheduler.company`'s.

Swarm has `==` and `!=`. It lets a key pass that nobody knows and never matches it; here it is
refused with the list of those that exist, since the service could never run.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from operator import ge, gt, le, lt

from shoal.errors import InvalidArgument
from shoal.model.enums import NodeRole
from shoal.model.objects import Node
from shoal.model.row import Row


class Operator(StrEnum):
    """How a constraint compares, as it is written."""

    EQUAL = "=="
    UNEQUAL = "!="
    LIKE = "~="
    BELOW = "<"
    AT_MOST = "<="
    ABOVE = ">"
    AT_LEAST = ">="
    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"


VALUES_MAX = 64
"""Values that one `in` or `notin` may list: each is compared on every node."""

_CACHED_MAX = 4096
"""Placements remembered: those of thousands of tasks are few."""
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9\-_.]*")
_VALUE = re.compile(r"[A-Za-z0-9:\-_\s.*()?+\[\]\\^$|/]+")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,9})?")
_SYMBOL = re.compile(r"==|!=|~=|<=|>=|<|>")
_LIST = re.compile(r"\s*(\S+)\s+(in|notin)\s*\((.*)\)\s*", re.DOTALL)
_EXISTS = re.compile(r"\s*(\S+)\s+exists\s*")
_FORMS = "KEY==VALUE, !=, ~=, <, <=, >, >=, KEY in (VALUE, ...), KEY notin (VALUE, ...), KEY exists"
_COMPARISONS: dict[Operator, Callable[[Decimal, Decimal], bool]] = {
    Operator.BELOW: lt,
    Operator.AT_MOST: le,
    Operator.ABOVE: gt,
    Operator.AT_LEAST: ge,
}
NEGATED = frozenset({Operator.UNEQUAL, Operator.NOT_IN})
SERVICE_LABELS = "service.labels."
_SERVICE_NAME = "service.name"
_NODE_LABELS = "node.labels."
_ENGINE_LABELS = "engine.labels."
_ADDRESS = "node.ip"
_ARCHITECTURE = "node.platform.arch"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Constraint(Row, frozen=True):
    """One parsed constraint. `values`: several with `in` and `notin`, none with `exists`."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


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
    if lower == _ADDRESS:
        return _host(node.status.address)
    read = _FIELDS.get(lower)
    if read is not None:
        return read(node)
    return label_of(node, _descriptor(key))


def is_of_services(key: str) -> bool:
    """Whether a constraint with this key is about what else runs on a node."""
    lower = key.lower()
    return lower == _SERVICE_NAME or (lower.startswith(SERVICE_LABELS) and lower != SERVICE_LABELS)


@lru_cache(maxsize=_CACHED_MAX)
def company_of(texts: tuple[str, ...]) -> tuple[Constraint, ...]:
    """Those of a placement's constraints that are about other services.

    None of them when they cannot be read: no node fits such a placement anyway.
    """
    try:
        return tuple(one for one in parse_constraints(texts) if is_of_services(one.key))
    except InvalidArgument:
        return ()


@lru_cache(maxsize=_CACHED_MAX)
def keeps_away(texts: tuple[str, ...]) -> bool:
    """Whether tasks with these constraints must not be where tasks of some other service are."""
    return any(one.operator in NEGATED for one in company_of(texts))


def normal_architecture(architecture: str) -> str:
    """Go's name of an architecture that the kernel calls otherwise."""
    return _ARCHITECTURES.get(architecture.lower(), architecture.lower())


def label_of(node: Node, descriptor: str) -> str:
    """Value of a `node.labels.X` or `engine.labels.X` descriptor; "" where there is none."""
    labels, name = _labels_of(node, descriptor)
    return labels.get(name, "")


def _has_label(node: Node, key: str) -> bool:
    """Whether a label is there, be its value empty."""
    labels, name = _labels_of(node, _descriptor(key))
    return name in labels


def _labels_of(node: Node, descriptor: str) -> tuple[Mapping[str, str], str]:
    """The labels that a descriptor means, and the name in them."""
    if descriptor.startswith(_NODE_LABELS):
        return node.spec.annotations.labels, descriptor[len(_NODE_LABELS) :]
    if descriptor.startswith(_ENGINE_LABELS):
        return node.description.engine.labels, descriptor[len(_ENGINE_LABELS) :]
    return {}, ""


def _descriptor(key: str) -> str:
    """The key of a label with its prefix in lower case: names keep theirs."""
    for prefix in (_NODE_LABELS, _ENGINE_LABELS):
        if key.lower().startswith(prefix):
            return prefix + key[len(prefix) :]
    return key


def _parse(text: str) -> Constraint:
    constraint = _read(text)
    if not _KEY.fullmatch(constraint.key):
        raise InvalidArgument(
            f"constraint {text!r}: key {constraint.key!r} must start with a letter or _ and go on "
            "with letters, digits, -, _ or ."
        )
    for value in constraint.values:
        if not _VALUE.fullmatch(value):
            raise InvalidArgument(f"constraint {text!r}: value {value!r} is empty or has a sign "
                                  "that is not allowed")  # fmt: skip
    _check_key(text, constraint.key)
    if constraint.operator in _COMPARISONS:
        _check_comparison(text, constraint)
    return constraint


def _read(text: str) -> Constraint:
    """The parts, not looked at yet."""
    symbol = _SYMBOL.search(text)
    if symbol is not None:
        key, value = text[: symbol.start()].strip(), text[symbol.end() :].strip()
        return Constraint(key, Operator(symbol.group()), (value,))
    if listed := _LIST.fullmatch(text):
        key, word, inside = listed.groups()
        values = tuple(value.strip() for value in inside.split(","))
        if len(values) > VALUES_MAX:
            raise InvalidArgument(
                f"constraint {text[:80]!r}...: {len(values)} values, at most {VALUES_MAX} may be"
            )
        return Constraint(key, Operator(word), values)
    if asked := _EXISTS.fullmatch(text):
        return Constraint(asked.group(1), Operator.EXISTS)
    raise InvalidArgument(f"constraint {text!r}: must be one of {_FORMS}")


def _check_key(text: str, key: str) -> None:
    if not _is_known(key.lower()):
        labels = ("node.labels.NAME", "engine.labels.NAME", f"{SERVICE_LABELS}NAME")
        known = ", ".join((*sorted(_FIELDS), _ADDRESS, _SERVICE_NAME, *labels))
        raise InvalidArgument(f"constraint {text!r}: {key!r} is no key of a node, use {known}")


def _check_comparison(text: str, constraint: Constraint) -> None:
    if not _is_label(constraint.key.lower()):
        raise InvalidArgument(
            f"constraint {text!r}: {constraint.operator} compares numbers, which only labels of "
            "nodes hold"
        )
    if not _NUMBER.fullmatch(constraint.values[0]):
        raise InvalidArgument(
            f"constraint {text!r}: {constraint.values[0]!r} is no decimal number such as 16 or 2.5"
        )


def _is_known(lower_key: str) -> bool:
    known = lower_key in _FIELDS or lower_key == _ADDRESS
    return known or _is_label(lower_key) or is_of_services(lower_key)


def _is_label(lower_key: str) -> bool:
    prefixes = (_NODE_LABELS, _ENGINE_LABELS)
    return lower_key.startswith(prefixes) and lower_key not in prefixes


def _holds(node: Node, constraint: Constraint) -> bool:
    key = constraint.key.lower()
    if not _is_known(key):
        return False
    if is_of_services(key):
        return True
    actual = value_of(node, constraint.key)
    match constraint.operator:
        case Operator.EXISTS:
            return bool(actual) or _has_label(node, constraint.key)
        case Operator.LIKE:
            return fnmatchcase(actual.lower(), _comparable(key, constraint.values[0]))
        case Operator.BELOW | Operator.AT_MOST | Operator.ABOVE | Operator.AT_LEAST:
            return _compares(actual, constraint)
        case _ if key == _ADDRESS:
            return _address_holds(actual, constraint)
        case _:
            wanted = {_comparable(key, value) for value in constraint.values}
            return (actual.lower() in wanted) is not (constraint.operator in NEGATED)


def _comparable(key: str, value: str) -> str:
    return normal_architecture(value) if key == _ARCHITECTURE else value.lower()


def _compares(actual: str, constraint: Constraint) -> bool:
    """A label that is no number holds no comparison, also not the opposite one."""
    number = actual.strip()
    if not _NUMBER.fullmatch(number):
        return False
    compare = _COMPARISONS[constraint.operator]
    return compare(Decimal(number), Decimal(constraint.values[0]))


def _address_holds(address: str, constraint: Constraint) -> bool:
    """Addresses are in networks. What is none of both holds nothing, also not the opposite."""
    try:
        actual = ipaddress.ip_address(address)
        networks = [ipaddress.ip_network(value, strict=False) for value in constraint.values]
    except ValueError:
        return False
    inside = any(actual in network for network in networks)
    return inside is not (constraint.operator in NEGATED)


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
    _ARCHITECTURE: lambda node: normal_architecture(node.description.platform.architecture),
}
