"""TLS with an authority of our own, and users with passwords."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal.errors import FailedPrecondition, PermissionDenied, Unauthenticated, Unavailable
from shoal.etcd.v1 import rpc_pb2 as pb
from shoal.model.plan import create
from tests.support.etcd import Etcd, etcd_client, etcd_server, etcd_store, needs_etcd
from tests.support.managing import until
from tests.support.planning import a_task

pytestmark = [pytest.mark.etcd, needs_etcd]


class Authority:
    """Issues certificates for 127.0.0.1, as files."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.ca = directory / f"{name}.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), authority=False)
        paths = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


async def test_tls_with_client_certificates(tmp_path: Path):
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    cert, key = ours.issue("server")
    mine, my_key = ours.issue("client")
    theirs, their_key = other.issue("stranger")
    server = Etcd(
        tmp_path / "etcd",
        options=[
            "--cert-file", str(cert), "--key-file", str(key),
            "--trusted-ca-file", str(ours.ca), "--client-cert-auth",
        ],
    )  # fmt: skip
    server.scheme = "https"
    try:
        server.start()
        query = f"cacert={ours.ca}&cert={mine}&key={my_key}"
        async with etcd_store(server.url("p", query), address="me:1") as (store, _):
            await store.commit([create(a_task("t1"))])
            assert len(store.view.tasks) == 1
        for wrong in (
            f"cacert={ours.ca}",
            f"cacert={other.ca}&cert={mine}&key={my_key}",
            f"cacert={ours.ca}&cert={theirs}&key={their_key}",
            "tls=true",
            "tls=false",
        ):
            async with etcd_client(server.url("p", f"{wrong}&timeout_s=1")) as client:
                with pytest.raises(Unavailable):
                    await client.range(pb.RangeRequest(key=b"x"))
    finally:
        server.kill()


def jwt_options(directory: Path) -> str:
    """Signed tokens, which name the revision of the users that they are for."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = directory / "token.key", directory / "token.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return f"jwt,pub-key={public},priv-key={private},sign-method=ES256,ttl=1h"


@pytest.fixture(params=["simple", "jwt"])
def guarded(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Etcd]:
    """With a user `shoal` that may use the prefix /mine/ alone; its tokens end soon."""
    token = "simple" if request.param == "simple" else jwt_options(tmp_path)
    options = ["--auth-token", token, "--auth-token-ttl", "1"]
    with etcd_server(tmp_path / "etcd", options=options) as server:
        for command in (
            "user add root:top",
            "user grant-role root root",
            "role add store",
            "role grant-permission --prefix=true store readwrite /mine/",
            "user add shoal:secret",
            "user grant-role shoal store",
            "auth enable",
        ):
            if command.startswith("user grant-role root"):
                server.ctl("role", "add", "root")
            server.ctl(*command.split())
        server.ctl_options = ("--user", "root:top")
        yield server


def with_password(server: Etcd, directory: Path, prefix: str, password: str) -> str:
    path = directory / "password"
    path.write_text(f"{password}\n")
    return server.url(prefix, f"user=shoal&password_file={path}")


async def test_a_user_has_its_prefix_and_nothing_else(guarded: Etcd, tmp_path: Path, monkeypatch):
    url = with_password(guarded, tmp_path, "mine", "secret")
    async with etcd_store(url, address="me:1") as (store, _):
        await store.commit([create(a_task("t1"))])
    async with etcd_client(url) as client:
        with pytest.raises(PermissionDenied, match="readwrite on the prefix"):
            await client.range(pb.RangeRequest(key=b"/theirs/x"))
    async with etcd_client(with_password(guarded, tmp_path, "mine", "wrong")) as client:
        with pytest.raises(Unauthenticated, match="check `user` and its password"):
            await client.range(pb.RangeRequest(key=b"/mine/x"))
    async with etcd_client(guarded.url("mine")) as client:
        with pytest.raises(Unauthenticated, match="give `user` in the store's URL"):
            await client.range(pb.RangeRequest(key=b"/mine/x"))
    monkeypatch.setenv("MY_ETCD", "secret")
    url = guarded.url("mine", "user=shoal&password_env=MY_ETCD")
    async with etcd_client(url) as client:
        answer = await client.range(pb.RangeRequest(key=b"/mine/store/task/t1"))
        assert answer.count == 1


async def test_a_store_lives_on_when_its_tokens_end(guarded: Etcd, tmp_path: Path):
    url = with_password(guarded, tmp_path, "mine", "secret")
    async with etcd_store(url, address="me:1") as (store, consensus):
        await store.commit([create(a_task("t1"))])
        guarded.kill()
        await asyncio.to_thread(guarded.start)
        async for one in consensus.leadership():
            if one.leader:
                break
        await store.commit([create(a_task("t2"))])
        guarded.ctl("put", "/mine/store/barrier", "")
        guarded.ctl("user", "add", "another:x")  # the revision of the users rises
        await store.commit([create(a_task("t3"))])
        await until(lambda: len(store.view.tasks) == 3)


async def test_a_client_without_a_watch_renews_its_token_too(guarded: Etcd, tmp_path: Path):
    async with etcd_client(with_password(guarded, tmp_path, "mine", "secret")) as client:
        await client.range(pb.RangeRequest(key=b"/mine/x"))
        old = client._token
        guarded.ctl("user", "add", "another:x")  # ends signed tokens
        await asyncio.sleep(4)  # ends the others, which etcd looks after once a second
        put = pb.RequestOp(request_put=pb.PutRequest(key=b"/mine/x", value=b"1"))
        await client.txn(pb.TxnRequest(success=[put]))
        assert client._token != old
        answer = await client.range(pb.RangeRequest(key=b"/mine/x"))
        assert answer.kvs[0].value == b"1"


async def test_a_user_where_etcd_has_none(tmp_path: Path):
    with etcd_server(tmp_path / "etcd") as server:
        async with etcd_client(with_password(server, tmp_path, "p", "secret")) as client:
            with pytest.raises(FailedPrecondition, match="leave `user` out"):
                await client.range(pb.RangeRequest(key=b"x"))
