"""etcd's refusals as errors of ours: which request, what was wrong, and the remedy."""

from __future__ import annotations

import grpc

from manager.store.store import TransactionTooLarge
from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SwarmError,
    Unauthenticated,
    Unavailable,
)


class Compacted(FailedPrecondition):
    """The revision that was asked for is gone: read everything anew."""


TOO_MANY_OPS = "raise etcd's --max-txn-ops (and `max_txn_ops` in the store's URL)"
TOO_LARGE = "raise etcd's --max-request-bytes (and `max_request_bytes` in the store's URL)"

# Parts of etcd's texts, which are its only stable marks: many refusals share one status.
_STALE_TOKENS = ("invalid auth token", "revision of auth store is old")
_BY_TEXT: tuple[tuple[str, type[SwarmError], str], ...] = (
    ("required revision has been compacted", Compacted, "read the state again"),
    ("too many operations in txn request", TransactionTooLarge, TOO_MANY_OPS),
    ("request is too large", TransactionTooLarge, TOO_LARGE),
    ("received message larger than max", TransactionTooLarge, TOO_LARGE),
    ("database space exceeded", ResourceExhausted,
     "compact and defragment etcd, raise its --quota-backend-bytes, then `etcdctl alarm disarm`"),
    ("requested lease not found", NotFound, "grant another"),
    ("authentication failed", Unauthenticated, "check `user` and its password"),
    ("user name is empty", Unauthenticated, "etcd wants a user: give `user` in the store's URL"),
    ("authentication is not enabled", FailedPrecondition,
     "leave `user` out of the store's URL, or run `etcdctl auth enable`"),
    ("etcdserver: no leader", Unavailable, "most of etcd's members must run and see each other"),
    ("etcdserver: too many requests", Unavailable, "etcd is overloaded"),
    ("etcdserver: request timed out", DeadlineExceeded, "it may or may not have been carried out"),
)  # fmt: skip
_BY_STATUS: dict[grpc.StatusCode, tuple[type[SwarmError], str]] = {
    grpc.StatusCode.UNAVAILABLE: (Unavailable, "check that etcd runs and can be reached"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        DeadlineExceeded, "it may or may not have been carried out"
    ),
    grpc.StatusCode.UNAUTHENTICATED: (Unauthenticated, "check `user` and its password"),
    grpc.StatusCode.PERMISSION_DENIED: (
        PermissionDenied, "give the user's role readwrite on the prefix of the store's URL"
    ),
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidArgument, "is this an etcd of version 3.4 or later?"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ResourceExhausted, "see etcd's log"),
    grpc.StatusCode.FAILED_PRECONDITION: (FailedPrecondition, "see etcd's log"),
    grpc.StatusCode.NOT_FOUND: (NotFound, "see etcd's log"),
}  # fmt: skip


def from_rpc(error: grpc.aio.AioRpcError, request: str, endpoint: str) -> SwarmError:
    """What a failed request means. request: its name for people; endpoint: who was asked."""
    text = error.details() or error.code().name
    for part, kind, remedy in _BY_TEXT:
        if part in text:
            return kind(f"etcd {endpoint}: {request}: {text}: {remedy}")
    kind, remedy = _BY_STATUS.get(error.code(), (Internal, "see etcd's log"))
    return kind(f"etcd {endpoint}: {request}: {text}: {remedy}")


def is_stale_token(error: grpc.aio.AioRpcError) -> bool:
    """Whether the token has ended or was forgotten: ask for another and try once more."""
    text = error.details() or ""
    return any(part in text for part in _STALE_TOKENS)
