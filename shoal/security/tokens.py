"""Join tokens: `SWMTKN-1-<digest of the root>-<secret>`, exactly Swarm's form.

A token proves two things at once. Its digest (50 base-36 characters, SHA-256 of the root's PEM)
tells a joining node that it talks to the right cluster; its secret (25 characters, 128 random
bits) tells the cluster that the node was invited. Neither is ever shown by a repr or an error.
"""

from __future__ import annotations

import hmac
import re

import msgspec
from typing_extensions import override

from shoal.errors import InvalidArgument, Unauthenticated
from shoal.ids import new_id
from shoal.security.trust import DIGEST_LENGTH, root_digest

_PREFIX = "SWMTKN"
_VERSION = "1"
_SECRET_LENGTH = 25
_BASE36 = re.compile(r"[0-9a-z]*")
_REMEDY = "; copy the whole line that `swarmctl join-token` prints on a manager"


class JoinToken(msgspec.Struct, frozen=True):
    """A well-formed token; whether a cluster accepts it is another question."""

    digest: str
    secret: str

    def render(self) -> str:
        """The text users copy."""
        return f"{_PREFIX}-{_VERSION}-{self.digest}-{self.secret}"

    def verify_root(self, root_pem: bytes) -> None:
        """Refuse a root certificate other than the one this token was made for.

        Raises Unauthenticated for another root, InvalidArgument for unreadable PEM.
        """
        if not hmac.compare_digest(root_digest(root_pem), self.digest):
            raise Unauthenticated(
                "the manager's root certificate is not the one in the join token: the address "
                "belongs to another cluster, the root was rotated since the token was made, or "
                "someone stands in between"
            )

    @override
    def __repr__(self) -> str:
        return "JoinToken(...)"


def make_join_token(root_pem: bytes) -> JoinToken:
    """A token with a new random secret for the cluster with this root."""
    # An id is 128 random bits in 25 base-36 characters, which is what a token's secret is.
    return JoinToken(digest=root_digest(root_pem), secret=new_id())


def parse_join_token(text: str) -> JoinToken:
    """Read a token; white space around it is ignored.

    Raises InvalidArgument naming the malformed part, never quoting it.
    """
    parts = text.strip().split("-")
    if parts[0] != _PREFIX:
        raise InvalidArgument(f"join token: must start with `{_PREFIX}-`{_REMEDY}")
    if len(parts) >= 2 and parts[1] != _VERSION:
        raise InvalidArgument(
            f"join token: only version {_VERSION} is known (`{_PREFIX}-{_VERSION}-...`){_REMEDY}"
        )
    if len(parts) != 4:
        raise InvalidArgument(
            f"join token: must have 4 parts separated by `-`, this has {len(parts)}{_REMEDY}"
        )
    _check_part("digest", parts[2], DIGEST_LENGTH, 256)
    _check_part("secret", parts[3], _SECRET_LENGTH, 128)
    return JoinToken(digest=parts[2], secret=parts[3])


def same_token(left: str, right: str) -> bool:
    """Whether two tokens are equal, in time that does not tell where they differ."""
    return hmac.compare_digest(left.encode(), right.encode())


def _check_part(name: str, part: str, length: int, bits: int) -> None:
    if len(part) != length:
        raise InvalidArgument(
            f"join token: the {name} must have {length} characters, this has {len(part)}{_REMEDY}"
        )
    if not _BASE36.fullmatch(part):
        raise InvalidArgument(
            f"join token: the {name} may only contain digits and lower-case letters{_REMEDY}"
        )
    if int(part, 36).bit_length() > bits:
        raise InvalidArgument(f"join token: the {name} is larger than {bits} bits{_REMEDY}")
