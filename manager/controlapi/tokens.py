"""Join tokens with a name and limits: what the requests write, decided on one view.

They are part of the cluster's row, so that a join and the use of its token are one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from manager.controlapi.nodes import require_cluster
from manager.controlapi.validate_names import object_name
from manager.store.view import View
from shoal.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from shoal.model.enums import NodeRole
from shoal.model.objects import Cluster
from shoal.model.plan import Change, update
from shoal.model.types import ExtraJoinToken

TOKENS_MAX = 100
USES_MAX = 100_000
LABELS_MAX = 64
LABEL_LENGTH_MAX = 256
TTL_NS_MIN = 1_000_000_000
TTL_NS_MAX = 10 * 365 * 24 * 3600 * 1_000_000_000


class TokenWish(msgspec.Struct, frozen=True):
    """What the user asked for. ttl_ns, uses: 0 is without limit."""

    name: str
    role: NodeRole
    ttl_ns: int
    uses: int
    labels: Mapping[str, str]


def create_token(view: View, wish: TokenWish, token: str, *, now_ns: int) -> list[Change]:
    """Add a token; those that have expired go.

    Raises: InvalidArgument, AlreadyExists for the name, ResourceExhausted.
    """
    _check(wish)
    cluster = require_cluster(view)
    valid = [
        known
        for known in cluster.root_ca.join_tokens.extra
        if not known.expires_at_ns or known.expires_at_ns > now_ns
    ]
    if any(known.name == wish.name for known in valid):
        raise AlreadyExists(f"join token {wish.name} exists: choose another name or remove it")
    if len(valid) >= TOKENS_MAX:
        raise ResourceExhausted(
            f"there are {TOKENS_MAX} join tokens, the most a cluster keeps: remove some with "
            "`swarmctl join-token rm`"
        )
    made = ExtraJoinToken(
        name=wish.name,
        token=token,
        role=wish.role,
        expires_at_ns=now_ns + wish.ttl_ns if wish.ttl_ns else 0,
        uses_left=wish.uses,
        labels=dict(wish.labels),
    )
    return [_with_extra(cluster, (*valid, made))]


def remove_token(view: View, name: str) -> list[Change]:
    """Make a token worthless. Raises NotFound."""
    cluster = require_cluster(view)
    extra = cluster.root_ca.join_tokens.extra
    left = tuple(token for token in extra if token.name != name)
    if len(left) == len(extra):
        raise NotFound(f"join token {name} not found: `swarmctl join-token ls` shows what there is")
    return [_with_extra(cluster, left)]


def find_token(view: View, name: str) -> ExtraJoinToken:
    """A token by its name. Raises NotFound."""
    for token in require_cluster(view).root_ca.join_tokens.extra:
        if token.name == name:
            return token
    raise NotFound(f"join token {name} not found")


def _with_extra(cluster: Cluster, extra: tuple[ExtraJoinToken, ...]) -> Change:
    tokens = cluster.root_ca.join_tokens.replaced(extra=extra)
    return update(cluster.replaced(root_ca=cluster.root_ca.replaced(join_tokens=tokens)))


def _check(wish: TokenWish) -> None:
    object_name("join token name", wish.name)
    if wish.ttl_ns and not TTL_NS_MIN <= wish.ttl_ns <= TTL_NS_MAX:
        raise InvalidArgument("ttl: must be from 1s to 10 years, or 0 for no end")
    if not 0 <= wish.uses <= USES_MAX:
        raise InvalidArgument(f"uses: at most {USES_MAX}, or 0 for any number")
    if len(wish.labels) > LABELS_MAX:
        raise InvalidArgument(f"labels: {len(wish.labels)}, at most {LABELS_MAX} on a join token")
    for key, value in wish.labels.items():
        if not key or any(character.isspace() for character in key):
            raise InvalidArgument(f"labels: {key!r} must not be empty or hold spaces")
        if len(key) + len(value) > LABEL_LENGTH_MAX:
            raise InvalidArgument(f"labels: {key!r} is longer than {LABEL_LENGTH_MAX} characters")
