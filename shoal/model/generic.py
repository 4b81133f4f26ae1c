"""Generic resources: what operators say that a node has, and what its tasks are told of theirs.

A kind is either counted (`apple=5`) or a set of named pieces (`gpu=UUID1`, `gpu=UUID2`), never both
on one node: a task could not say which of them it means. Managers hand out numbers and names; what
stands behind them is the node's business (`worker.agent.pool`). Refuses, by name: kinds that are
no name of a variable, names that a list could not hold, duplicates, and more pieces than may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from shoal.errors import InvalidArgument
from shoal.model.types import GenericResource

PIECES_MAX = 256
"""Named pieces and kinds of one node."""
COUNT_MAX = 1_000_000_000
KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,127}")
_NUMBER = re.compile(r"[0-9]{1,20}")
_PREFIX = "DOCKER_RESOURCE_"


def parse_advertised(texts: Iterable[str]) -> tuple[GenericResource, ...]:
    """What a node has, of `KIND=COUNT` and `KIND=NAME`, several with commas between.

    Raises: InvalidArgument.
    """
    found: list[GenericResource] = []
    for text in (part.strip() for joined in texts for part in joined.split(",")):
        piece = _parse(text)
        for other in found:
            _check_pair(text, piece, other)
        found.append(piece)
        if len(found) > PIECES_MAX:
            raise InvalidArgument(f"generic resource: more than {PIECES_MAX} on one node")
    return tuple(found)


def check_kind(kind: str) -> None:
    """Refuse what cannot be a kind. Raises: InvalidArgument."""
    if not KIND.fullmatch(kind):
        raise InvalidArgument(
            f"generic resource: kind {kind[:80]!r} must be 1 to 63 letters, digits, '_', '.' or "
            "'-', a letter or digit first"
        )


def environment(assigned: Iterable[GenericResource]) -> tuple[str, ...]:
    """Variables that tell a task what it was given: DOCKER_RESOURCE_GPU=UUID1,UUID2."""
    values: dict[str, list[str]] = {}
    for piece in assigned:
        values.setdefault(piece.kind, []).append(piece.named_value or str(piece.count))
    return tuple(f"{_PREFIX}{kind.upper()}={','.join(values[kind])}" for kind in sorted(values))


def _parse(text: str) -> GenericResource:
    kind, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgument(f"generic resource {text!r}: must be KIND=COUNT or KIND=NAME")
    check_kind(kind)
    if _NUMBER.fullmatch(value):
        if not 1 <= int(value) <= COUNT_MAX:
            raise InvalidArgument(
                f"generic resource {text!r}: the count must be from 1 to {COUNT_MAX}"
            )
        return GenericResource(kind=kind, count=int(value))
    if not _NAME.fullmatch(value):
        raise InvalidArgument(
            f"generic resource {text!r}: the name must be 1 to 128 letters, digits or _.:@/-, "
            "a letter or digit first"
        )
    return GenericResource(kind=kind, named_value=value)


def _check_pair(text: str, piece: GenericResource, other: GenericResource) -> None:
    """Kinds that differ in case alone would be one variable of the task."""
    if piece.kind.upper() != other.kind.upper():
        return
    if piece.kind != other.kind:
        raise InvalidArgument(
            f"generic resource {text!r}: differs from {other.kind!r} in upper and lower case alone"
        )
    if not (piece.named_value and other.named_value):
        raise InvalidArgument(
            f"generic resource {text!r}: {piece.kind} is there already: give one count, or names"
        )
    if piece.named_value == other.named_value:
        raise InvalidArgument(f"generic resource {text!r}: is there already")
