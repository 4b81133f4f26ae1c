"""The node's calls to the certificate authority: the first contact, and every renewal.

The token's secret is sent only over a connection whose root the token's digest vouches for; see
docs/design/identity.md for the sequence.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import msgspec

from shoal.api.v1 import ca_pb2, ca_pb2_grpc, node_pb2_grpc, types_pb2
from shoal.clock import Clock
from shoal.errors import Internal, Unavailable
from shoal.model.enums import NodeAvailability
from shoal.security.grpc_tls import (
    channel_credentials,
    fetch_server_certificate,
    joiner_credentials,
    secure_channel,
)
from shoal.security.identity import NodeIdentity, make_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.recovery import prove_expired
from shoal.security.tokens import JoinToken
from shoal.wire.errors import from_rpc_error
from swarmd.addresses import join_host_port
from swarmd.upstream import Upstream

TIMEOUT_S = 10.0
CLOCK_TIMEOUT_S = 3.0
ISSUE_TIMEOUT_S = 30.0
"""For a certificate: an authority outside the cluster may have to be asked, at several places."""


class Applicant(msgspec.Struct, frozen=True):
    """What a node says of itself when it joins."""

    hostname: str
    availability: NodeAvailability


class ClockReading(msgspec.Struct, frozen=True):
    """How far another clock is ahead of ours, and by how much that may be wrong; nanoseconds."""

    ahead_ns: int
    uncertain_ns: int


async def apply_for_identity(
    host: str, port: int, token: JoinToken, applicant: Applicant
) -> NodeIdentity:
    """An identity from the manager at that address.

    Raises: Unavailable or DeadlineExceeded if it cannot be reached, Unauthenticated if its root is
    not the token's, and what the manager refuses with.
    """
    leaf = await fetch_server_certificate(host, port, TIMEOUT_S)
    target = join_host_port(host, port)
    try:
        root_pem = await _fetch_root(target, leaf)
        token.verify_root(root_pem)
        return await _request(target, root_pem, token, applicant)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def _fetch_root(target: str, leaf_pem: bytes) -> bytes:
    async with secure_channel(target, joiner_credentials(leaf_pem)) as channel:
        answer = await ca_pb2_grpc.CaStub(channel).GetRootCaCertificate(
            ca_pb2.GetRootCaCertificateRequest(), timeout=TIMEOUT_S
        )
    return answer.certificate


async def _request(
    target: str, root_pem: bytes, token: JoinToken, applicant: Applicant
) -> NodeIdentity:
    key_pem = await asyncio.to_thread(make_key)
    request = ca_pb2.IssueNodeCertificateRequest(
        csr=make_csr(key_pem),
        token=token.render(),
        availability=types_pb2.NodeAvailability.ValueType(applicant.availability),
        hostname=applicant.hostname,
    )
    async with secure_channel(target, joiner_credentials(root_pem)) as channel:
        answer = await ca_pb2_grpc.CaStub(channel).IssueNodeCertificate(
            request, timeout=ISSUE_TIMEOUT_S
        )
    # During a root rotation the manager sends both roots; it has proved to hold the right one.
    identity = make_identity(answer.certificate, key_pem, answer.root_certificate or root_pem)
    if (identity.peer.node_id, identity.peer.cluster_id) != (answer.node_id, answer.cluster_id):
        raise Internal(f"{target}: the certificate is not for the node it was said to be for")
    return identity


async def renew_as_member(target: str, identity: NodeIdentity) -> NodeIdentity:
    """Another certificate for this node from the manager at `target`, shown the present one.

    Raises SwarmError: what the manager refuses with, Unavailable, DeadlineExceeded.
    """
    async with _member_channel(target, identity) as channel:
        return await _renew(ca_pb2_grpc.CaStub(channel).IssueNodeCertificate, identity, prove=False)


async def renew_expired(target: str, identity: NodeIdentity) -> NodeIdentity:
    """The same for a certificate that has expired: the node shows the joiner identity."""
    async with secure_channel(target, joiner_credentials(identity.root_pem)) as channel:
        return await _renew(ca_pb2_grpc.CaStub(channel).IssueNodeCertificate, identity, prove=True)


async def renew_locally(upstream: Upstream, identity: NodeIdentity) -> NodeIdentity:
    """The same through this node's own manager, which answers also when its certificate has ended.

    It passes the request on to the leader. If there is none and the certificate has expired, it
    renews its own: managers that were all away for too long cannot elect a leader before.
    """
    channel = await upstream.channel()
    try:
        return await _renew(ca_pb2_grpc.CaStub(channel).IssueNodeCertificate, identity, prove=True)
    except Unavailable:
        own = node_pb2_grpc.ManagerControlStub(channel).RenewExpired
        return await _renew(own, identity, prove=True)


async def confirm(target: str, identity: NodeIdentity) -> None:
    """Tell a manager that this certificate is in use. Raises SwarmError."""
    async with _member_channel(target, identity) as channel:
        try:
            await ca_pb2_grpc.CaStub(channel).ConfirmNodeCertificate(
                ca_pb2.ConfirmNodeCertificateRequest(certificate=identity.certificate_pem),
                timeout=TIMEOUT_S,
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


async def ask_clock(target: str, identity: NodeIdentity, clock: Clock) -> ClockReading | None:
    """How far a manager's clock is from `clock`; None: it does not tell. Raises SwarmError.

    Asked twice: the first call also pays for the connection.
    """
    async with _member_channel(target, identity) as channel:
        ask = ca_pb2_grpc.CaStub(channel).GetRootCaCertificate
        try:
            await ask(ca_pb2.GetRootCaCertificateRequest(), timeout=CLOCK_TIMEOUT_S)
            before_ns = clock.now_ns()
            answer = await ask(ca_pb2.GetRootCaCertificateRequest(), timeout=CLOCK_TIMEOUT_S)
            after_ns = clock.now_ns()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
    if not answer.now_ns:
        return None
    middle_ns = (before_ns + after_ns) // 2
    return ClockReading(answer.now_ns - middle_ns, (after_ns - before_ns) // 2)


def _member_channel(target: str, identity: NodeIdentity) -> grpc.aio.Channel:
    credentials = channel_credentials(identity.root_pem, identity.certificate_pem, identity.key_pem)
    return secure_channel(target, credentials)


async def _renew(ask: Any, identity: NodeIdentity, *, prove: bool) -> NodeIdentity:
    """ask: the method of a stub."""
    key_pem = await asyncio.to_thread(make_key)
    request = ca_pb2.IssueNodeCertificateRequest(csr=make_csr(key_pem))
    if prove:
        proof = prove_expired(identity.certificate_pem, identity.key_pem, request.csr)
        request.expired.certificate = proof.certificate_pem
        request.expired.signature = proof.signature
    try:
        answer = await ask(request, timeout=ISSUE_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    renewed = make_identity(answer.certificate, key_pem, answer.root_certificate)
    old, new = identity.peer, renewed.peer
    if (old.node_id, old.cluster_id) != (new.node_id, new.cluster_id):
        raise Internal("the manager renewed the certificate of another node")
    return renewed
