"""What etcd's refusals mean."""

from __future__ import annotations

import grpc
import pytest

from manager.etcd.errors import Compacted, from_rpc, is_stale_token
from manager.store.store import TransactionTooLarge
from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

Status = grpc.StatusCode


def failed(status: Status, text: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details=text)


@pytest.mark.parametrize(
    ("status", "text", "kind", "remedy"),
    [
        (Status.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted",
         Compacted, "read the state again"),
        (Status.INVALID_ARGUMENT, "etcdserver: too many operations in txn request",
         TransactionTooLarge, "--max-txn-ops"),
        (Status.INVALID_ARGUMENT, "etcdserver: request is too large",
         TransactionTooLarge, "--max-request-bytes"),
        (Status.RESOURCE_EXHAUSTED, "grpc: received message larger than max (2 vs. 1)",
         TransactionTooLarge, "--max-request-bytes"),
        (Status.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded",
         ResourceExhausted, "--quota-backend-bytes"),
        (Status.NOT_FOUND, "etcdserver: requested lease not found", NotFound, "grant another"),
        (Status.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password",
         Unauthenticated, "check `user`"),
        (Status.FAILED_PRECONDITION, "etcdserver: authentication is not enabled",
         FailedPrecondition, "auth enable"),
        (Status.PERMISSION_DENIED, "etcdserver: permission denied", PermissionDenied, "readwrite"),
        (Status.UNAVAILABLE, "etcdserver: no leader", Unavailable, "most of etcd's members"),
        (Status.UNAVAILABLE, "etcdserver: request timed out", DeadlineExceeded, "may or may not"),
        (Status.UNAVAILABLE, "Socket closed", Unavailable, "check that etcd runs"),
        (Status.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded, "may or may not"),
        (Status.INVALID_ARGUMENT, "etcdserver: key is not provided", InvalidArgument, "3.4"),
        (Status.UNKNOWN, "", Internal, "etcd's log"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_error_and_remedy(status, text, kind, remedy):
    error = from_rpc(failed(status, text), "KV/Txn", "h:1")
    assert type(error) is kind
    assert error.message.startswith(f"etcd h:1: KV/Txn: {text or status.name}: ")
    assert remedy in error.message


def test_a_token_that_etcd_forgot_is_told_from_a_wrong_password():
    assert is_stale_token(failed(Status.UNAUTHENTICATED, "etcdserver: invalid auth token"))
    old = "etcdserver: revision of auth store is old"
    assert is_stale_token(failed(Status.INVALID_ARGUMENT, old))
    wrong = "etcdserver: authentication failed, invalid user ID or password"
    assert not is_stale_token(failed(Status.INVALID_ARGUMENT, wrong))
