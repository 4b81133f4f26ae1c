"""Calls that one manager passes on to another: whose they are, in their metadata.

Only a manager's certificate may vouch for somebody else; from anybody else such metadata is a
forgery, and the call is refused. A call is passed on once.
"""

from __future__ import annotations

from collections.abc import Iterable

from shoal.errors import InvalidArgument, PermissionDenied
from shoal.ids import ClusterId, NodeId
from shoal.security.peer import Caller
from shoal.security.roles import PeerIdentity, Role

FORWARDED_KEY = "shoal-forwarded-peer"
_NOTHING = "-"


def render_caller(caller: Caller) -> tuple[str, str]:
    """The metadata that names a caller: role, node id and address."""
    identity = caller.identity
    parts = (identity.role.value, identity.node_id or _NOTHING, caller.address or _NOTHING)
    return FORWARDED_KEY, " ".join(parts)


def forwarded_metadata(
    metadata: Iterable[tuple[str, str | bytes]],
) -> tuple[tuple[str, str | bytes], ...]:
    """What `forwarded_caller` looks at, for calls that are looked at more than once."""
    return tuple((key, value) for key, value in metadata if key == FORWARDED_KEY)


def forwarded_caller(
    metadata: Iterable[tuple[str, str | bytes]], direct: PeerIdentity
) -> Caller | None:
    """For whom a call was passed on; None when it comes from the peer itself.

    direct: the peer of the connection. Raises: PermissionDenied unless that is a manager;
    InvalidArgument for metadata that names nobody.
    """
    texts = [value for key, value in metadata if key == FORWARDED_KEY]
    if not texts:
        return None
    if direct.role is not Role.MANAGER:
        raise PermissionDenied(f"{FORWARDED_KEY}: only a manager may call for others")
    parts = texts[0].split(" ") if isinstance(texts[0], str) else []
    try:
        role, node_id, address = parts
        identity = PeerIdentity(
            node_id=NodeId("" if node_id == _NOTHING else node_id),
            role=Role(role),
            cluster_id=direct.cluster_id if Role(role).certified else ClusterId(""),
        )
    except ValueError:
        raise InvalidArgument(f"{FORWARDED_KEY}: must be ROLE NODE-ID ADDRESS") from None
    if len(texts) > 1 or identity.role.certified != bool(identity.node_id):
        raise InvalidArgument(f"{FORWARDED_KEY}: names nobody, or more than one")
    return Caller(identity, "" if address == _NOTHING else address, forwarded=True)
