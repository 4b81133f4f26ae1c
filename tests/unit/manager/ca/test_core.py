"""The authority's decisions: token to role, request to certificate."""

from __future__ import annotations

import pytest

from manager.ca.core import (
    Authority,
    IssuedCertificate,
    invitation_of,
    issue_to_node,
    joining_identity,
    new_cluster_secrets,
    new_join_tokens,
    sign_here,
)
from shoal.errors import InvalidArgument, PermissionDenied
from shoal.ids import ClusterId, NodeId
from shoal.security.identity import make_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import JOINER, LOCAL, PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.security.tokens import parse_join_token

NOW_NS = 1_800_000_000 * 10**9
CLUSTER = ClusterId("c" * 25)
NODE = NodeId("n" * 25)
SECRETS = new_cluster_secrets(now_ns=NOW_NS)
AUTHORITY = Authority(
    cluster_id=CLUSTER,
    root_pem=SECRETS.root_certificate_pem,
    root=RootCA(SECRETS.root_certificate_pem, SECRETS.root_key_pem),
    tokens=SECRETS.tokens,
)
KEY = make_key()
CSR = make_csr(KEY)


def issue_to_joiner(
    authority: Authority, csr: bytes, *, token: str, new_node_id: NodeId, now_ns: int
) -> IssuedCertificate:
    identity = joining_identity(authority, token=token, new_node_id=new_node_id, now_ns=now_ns)
    return sign_here(authority, csr, identity, now_ns=now_ns)


@pytest.mark.parametrize(
    ("token", "role"),
    [(SECRETS.tokens.worker, Role.WORKER), (SECRETS.tokens.manager, Role.MANAGER)],
    ids=["worker", "manager"],  # the tokens are other ones in every process
)
def test_the_token_decides_the_role(token: str, role: Role):
    issued = issue_to_joiner(AUTHORITY, CSR, token=token, new_node_id=NODE, now_ns=NOW_NS)
    identity = make_identity(issued.certificate_pem, KEY, SECRETS.root_certificate_pem)
    assert identity.peer == issued.identity
    assert identity.peer == PeerIdentity(node_id=NODE, role=role, cluster_id=CLUSTER)


def test_a_token_of_another_cluster_is_refused_with_the_remedy():
    other = new_cluster_secrets(now_ns=NOW_NS).tokens.manager
    with pytest.raises(PermissionDenied, match="swarmctl join-token worker"):
        issue_to_joiner(AUTHORITY, CSR, token=other, new_node_id=NODE, now_ns=NOW_NS)


def test_the_right_digest_with_another_secret_is_refused():
    rotated = new_join_tokens(AUTHORITY.root_pem)
    assert parse_join_token(rotated.worker).digest == parse_join_token(SECRETS.tokens.worker).digest
    with pytest.raises(PermissionDenied, match="not valid for this cluster"):
        invitation_of(SECRETS.tokens.worker, rotated, now_ns=NOW_NS)


def test_a_malformed_token_is_the_callers_mistake():
    with pytest.raises(InvalidArgument, match="join token"):
        issue_to_joiner(AUTHORITY, CSR, token="SWMTKN-1-x", new_node_id=NODE, now_ns=NOW_NS)


@pytest.mark.parametrize("csr", [b"", b"junk", SECRETS.root_certificate_pem])
def test_a_bad_request_is_the_callers_mistake(csr: bytes):
    with pytest.raises(InvalidArgument, match="csr: "):
        issue_to_joiner(
            AUTHORITY, csr, token=SECRETS.tokens.worker, new_node_id=NODE, now_ns=NOW_NS
        )


@pytest.mark.parametrize("role", [Role.WORKER, Role.MANAGER])
def test_a_renewal_keeps_the_node_and_takes_the_role_of_the_store(role: Role):
    peer = PeerIdentity(node_id=NODE, role=Role.WORKER, cluster_id=CLUSTER)
    issued = issue_to_node(AUTHORITY, CSR, peer=peer, role=role, now_ns=NOW_NS)
    assert issued.identity == PeerIdentity(node_id=NODE, role=role, cluster_id=CLUSTER)


@pytest.mark.parametrize(
    "peer",
    [JOINER, LOCAL, PeerIdentity(node_id=NODE, role=Role.MANAGER, cluster_id=ClusterId("d"))],
)
def test_only_a_node_of_the_cluster_renews(peer: PeerIdentity):
    with pytest.raises(PermissionDenied, match="certificate of this cluster"):
        issue_to_node(AUTHORITY, CSR, peer=peer, role=Role.WORKER, now_ns=NOW_NS)


def test_reprs_show_no_secret():
    text = f"{SECRETS!r} {SECRETS.tokens!r} {AUTHORITY!r}"
    for secret in (SECRETS.tokens.worker, SECRETS.tokens.manager, "PRIVATE"):
        assert secret not in text
