"""Clusters whose certificates a CFSSL server signs: the real daemon, the real manager process."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from shoal.api.v1 import control_pb2, control_pb2_grpc, objects_pb2, types_pb2
from shoal.model.objects import Cluster
from shoal.model.specs import ClusterSpec
from shoal.model.types import CaConfig, ExternalCa, JoinTokens, RootCa
from shoal.security.identity import read_identity
from shoal.security.keys import load_key, make_key
from shoal.security.root import RootCA
from shoal.security.tokens import make_join_token
from shoal.security.trust import merge_roots
from tests.integration.swarmd.conftest import Node, until
from tests.integration.swarmd.test_cluster import (
    TIMEOUT_S,
    cluster_of,
    info,
    init,
    nodes_of,
    with_real_manager,
)
from tests.integration.swarmd.test_renewal import join, other
from tests.integration.swarmd.test_restore import a_backup, restore
from tests.support.cfssl import Cfssl
from tests.support.ports import free_port

pytestmark = pytest.mark.root
__all__ = ["other"]


@pytest.fixture
async def cfssl(tmp_path: Path) -> AsyncIterator[Cfssl]:
    server = Cfssl(tmp_path, RootCA.create(now_ns=time.time_ns()))
    await server.start()
    yield server
    await server.stop()


def an_own_root() -> tuple[bytes, bytes]:
    """A root and its key as somebody else's tools make them: another name, another key id."""
    key, now = make_key(), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Our Own Root")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(load_key(key).public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(b"not its digest"), critical=False)
        .sign(load_key(key), hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key


async def rotated(node: Node, root_pem: bytes) -> objects_pb2.Cluster:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        cluster = await cluster_of(node)
        if cluster.root_ca.certificate == root_pem and not cluster.root_ca.HasField("rotation"):
            return cluster
        assert time.monotonic() < deadline, cluster.root_ca.rotation.message
        await asyncio.sleep(0.1)


async def test_init_with_an_external_authority(node: Node, other: Node, cfssl: Cfssl):
    """It believes the managers only when their first root was made known to it."""
    port, root_pem = free_port(), cfssl.root.certificate_pem
    for one in (node, other):
        one.paths.state.mkdir(parents=True)
        one.tell("follow")
    named = types_pb2.ExternalCa(protocol="cfssl", url=cfssl.url, ca_certificate=root_pem)
    async with node.running(command=with_real_manager):
        await init(
            node, advertise_address=f"127.0.0.1:{port}", listen_address=f"127.0.0.1:{port}",
            external_cas=[named],
        )  # fmt: skip
        deadline = time.monotonic() + TIMEOUT_S
        while "signed nothing" not in (cluster := await cluster_of(node)).root_ca.rotation.message:
            assert time.monotonic() < deadline, "nobody was told"
            await asyncio.sleep(0.1)
        assert cfssl.asked == []
        assert cluster.root_ca.rotation.ca_certificate == root_pem
        cfssl.believe(cluster.root_ca.certificate)
        cluster = await rotated(node, root_pem)
        # The node is told after the cluster has done with it.
        await until(lambda: read_identity(node.paths.identity).root_pem == merge_roots(root_pem))
        async with other.running(command=with_real_manager):
            joined = await join(other, node, port)
            assert joined.root_pem == merge_roots(root_pem)
            assert set(cfssl.clients) == {"swarm-manager"}
            # A root of the user's own takes over from the authority, and nobody is lost.
            own, key = an_own_root()
            stub = control_pb2_grpc.ControlStub(node.channel)
            request = control_pb2.RotateRootCaRequest(ca_certificate=own, ca_key=key)
            await stub.RotateRootCa(request, timeout=TIMEOUT_S)
            await rotated(node, own)
            await until(lambda: read_identity(other.paths.identity).root_pem == own)
            assert len(await nodes_of(node)) == 2


async def test_a_cluster_whose_root_key_is_elsewhere_is_restored_with_the_key(
    node: Node, other: Node, cfssl: Cfssl
):
    """The key certifies the first manager and is kept nowhere: the authority goes on signing."""
    port, root = free_port(), cfssl.root
    here = f"127.0.0.1:{port}"
    ca = CaConfig(external_cas=(ExternalCa(protocol="cfssl", url=cfssl.url),))
    root_ca = RootCa(
        certificate=root.certificate_pem,
        join_tokens=JoinTokens(
            worker=make_join_token(root.certificate_pem).render(),
            manager=make_join_token(root.certificate_pem).render(),
        ),
    )
    cluster = Cluster(id="c" * 25, root_ca=root_ca, spec=ClusterSpec(ca=ca))
    for one in (node, other):
        one.paths.state.mkdir(parents=True)
        one.tell("follow")
    async with node.running(command=with_real_manager):
        await restore(
            node, a_backup(cluster),
            ca_key=root.key_pem, advertise_address=here, listen_address=here,
        )  # fmt: skip
        assert (await info(node)).state == "active"
        assert cfssl.asked == []
        restored = (await cluster_of(node)).root_ca
        assert restored.certificate == root.certificate_pem
        secret = load_key(root.key_pem).private_numbers().private_value.to_bytes(32, "big")
        kept = [path.read_bytes() for path in node.paths.state.rglob("*") if path.is_file()]
        assert not [data for data in kept if secret in data or root.key_pem in data]
        async with other.running(command=with_real_manager):
            assert (await join(other, node, port)).root_pem == merge_roots(root.certificate_pem)
        assert set(cfssl.clients) == {"swarm-manager"}


async def test_an_authority_that_is_down_is_found_out_before_anything_changes(
    node: Node, cfssl: Cfssl
):
    async with node.running(command=with_real_manager):
        await init(node)
        before = (await cluster_of(node)).root_ca
        await cfssl.stop()
        request = control_pb2.RotateRootCaRequest(
            ca_certificate=cfssl.root.certificate_pem,
            external_cas=[types_pb2.ExternalCa(protocol="cfssl", url=cfssl.url)],
        )
        with pytest.raises(grpc.aio.AioRpcError, match="signed nothing"):
            await control_pb2_grpc.ControlStub(node.channel).RotateRootCa(request, timeout=60)
        assert (await cluster_of(node)).root_ca == before
