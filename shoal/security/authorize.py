"""What each role may call. Deny is the default: a method that is not in the table is nobody's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.errors import PermissionDenied
from shoal.security.roles import PeerIdentity, Role


class Permissions:
    """A table from full method name (`/shoal.api.v1.Control/CreateService`) to allowed roles."""

    __slots__ = ("_allowed",)

    def __init__(self, table: Mapping[str, frozenset[Role]]) -> None:
        self._allowed = dict(table)

    def check(self, method: str, peer: PeerIdentity) -> None:
        """Raise PermissionDenied unless the peer's role may call the method."""
        allowed = self._allowed.get(method)
        if allowed is None:
            raise PermissionDenied(f"{method} is open to nobody: it is missing in the permissions")
        if peer.role not in allowed:
            roles = " or ".join(sorted(role.value for role in allowed)) or "nobody"
            raise PermissionDenied(
                f"{method} is not open to the role {peer.role.value}, only to {roles}"
            )


def allow(service: str, methods: Iterable[str], *roles: Role) -> dict[str, frozenset[Role]]:
    """Rows of a table: every method of one service (`shoal.api.v1.Control`), the same roles."""
    return {f"/{service}/{method}": frozenset(roles) for method in methods}
