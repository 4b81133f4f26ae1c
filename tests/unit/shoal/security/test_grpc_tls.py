"""Against the real gRPC server on loopback: who gets through the handshake and the gate."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from shoal.clock import SystemClock
from shoal.errors import DeadlineExceeded, Unavailable
from shoal.security.authorize import Permissions, allow
from shoal.security.grpc_tls import (
    ServerTls,
    channel_credentials,
    fetch_server_certificate,
    joiner_credentials,
    local_channel,
    secure_channel,
    server_credentials,
    server_options,
)
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.security.joiner import joiner_identity
from shoal.security.peer import PeerVerifier, current_peer
from shoal.security.roles import Role
from shoal.security.root import RootCA
from shoal.security.tokens import make_join_token
from shoal.security.trust import load_certificate
from tests.unit.shoal.security.support import CLUSTER, NOW_NS, a_node, forge

ROOT = RootCA.create(now_ns=NOW_NS)
SERVER = a_node(ROOT, Role.MANAGER, node_id="server")
WORKER = a_node(ROOT, Role.WORKER, node_id="worker")
MANAGER = a_node(ROOT, Role.MANAGER, node_id="manager")
JOINER = joiner_identity()
TIMEOUT_S = 10.0

TABLE = (
    allow("t.S", ["WhoAmI"], *Role)
    | allow("t.S", ["Manage"], Role.MANAGER, Role.LOCAL)
    | allow("t.S", ["Count", "Push", "Sum", "Echo"], Role.WORKER)
)


async def who_am_i(request: bytes, context) -> bytes:
    peer = current_peer()
    return f"{peer.role.value} {peer.node_id}".encode()


async def count(request: bytes, context) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield current_peer().node_id.encode()


async def push(request: bytes, context) -> None:
    for _ in range(2):
        await context.write(current_peer().node_id.encode())


async def add(requests: AsyncIterator[bytes], context) -> bytes:
    return b"+".join([request async for request in requests])


async def echo(requests: AsyncIterator[bytes], context) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request + current_peer().role.value.encode()


METHODS = {
    "WhoAmI": grpc.unary_unary_rpc_method_handler(who_am_i),
    "Manage": grpc.unary_unary_rpc_method_handler(who_am_i),
    "Forgotten": grpc.unary_unary_rpc_method_handler(who_am_i),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Push": grpc.unary_stream_rpc_method_handler(push),
    "Sum": grpc.stream_unary_rpc_method_handler(add),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
}


@asynccontextmanager
async def a_server(tls: ServerTls, socket_path: Path | None = None) -> AsyncIterator[int]:
    verifier = PeerVerifier(ROOT.certificate_pem, cluster_id=CLUSTER, clock=SystemClock())
    gate = AuthorizationInterceptor(verifier, Permissions(TABLE))
    server = grpc.aio.server(interceptors=[gate], options=server_options())
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.S", METHODS)])
    port = server.add_secure_port("127.0.0.1:0", tls.credentials)
    if socket_path is not None:
        server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@pytest.fixture
def tls() -> ServerTls:
    return server_credentials(ROOT.certificate_pem, SERVER.certificate_pem, SERVER.key_pem)


@pytest.fixture
async def port(tls: ServerTls) -> AsyncIterator[int]:
    async with a_server(tls) as port:
        yield port


def channel_of(port: int, certificate: bytes, key: bytes, **names: str) -> grpc.aio.Channel:
    credentials = channel_credentials(ROOT.certificate_pem, certificate, key)
    return secure_channel(f"127.0.0.1:{port}", credentials, **names)


async def ask(channel: grpc.aio.Channel, method: str = "WhoAmI") -> bytes:
    async with channel:
        return await channel.unary_unary(f"/t.S/{method}")(b"", timeout=TIMEOUT_S)


async def refused(channel: grpc.aio.Channel, method: str = "WhoAmI") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, method)
    return caught.value


async def test_a_node_and_a_joiner_are_both_let_in(port: int):
    worker = channel_of(port, WORKER.certificate_pem, WORKER.key_pem)
    assert await ask(worker) == b"worker worker"
    joiner = secure_channel(f"127.0.0.1:{port}", joiner_credentials(ROOT.certificate_pem))
    assert await ask(joiner) == b"joiner "


@pytest.mark.parametrize("chained", [False, True])
async def test_a_certificate_signed_by_the_joiner_fails_the_handshake(port: int, chained: bool):
    certificate, key = forge(JOINER.certificate_pem, JOINER.key_pem)
    chain = certificate + (JOINER.certificate_pem if chained else b"")
    error = await refused(channel_of(port, chain, key))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_self_made_twin_of_the_joiner_fails_the_handshake(port: int):
    for ca in (False, True):
        certificate, key = forge(
            JOINER.certificate_pem, JOINER.key_pem, ca=ca, key_pem=JOINER.key_pem
        )
        error = await refused(channel_of(port, certificate, key))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_signed_by_a_worker_fails_the_handshake(port: int):
    certificate, key = forge(WORKER.certificate_pem, WORKER.key_pem)
    for chain in (certificate, certificate + WORKER.certificate_pem):
        error = await refused(channel_of(port, chain, key))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_a_foreign_root_fails_the_handshake(port: int):
    foreign_root = RootCA.create(now_ns=NOW_NS)
    foreign = a_node(foreign_root, Role.MANAGER)
    for chain in (foreign.certificate_pem, foreign.certificate_pem + foreign_root.certificate_pem):
        error = await refused(channel_of(port, chain, foreign.key_pem))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_no_certificate_fails_the_handshake(port: int):
    credentials = grpc.ssl_channel_credentials(ROOT.certificate_pem)
    error = await refused(secure_channel(f"127.0.0.1:{port}", credentials))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_refuses_a_server_that_is_no_manager():
    tls = server_credentials(ROOT.certificate_pem, WORKER.certificate_pem, WORKER.key_pem)
    async with a_server(tls) as port:
        error = await refused(channel_of(port, MANAGER.certificate_pem, MANAGER.key_pem))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        named = channel_of(
            port, MANAGER.certificate_pem, MANAGER.key_pem, server_name="swarm-worker"
        )
        assert await ask(named) == b"manager manager"


async def test_a_client_refuses_a_server_of_another_root(port: int):
    other = RootCA.create(now_ns=NOW_NS).certificate_pem
    error = await refused(secure_channel(f"127.0.0.1:{port}", joiner_credentials(other)))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_gate_follows_the_table(port: int):
    assert await ask(channel_of(port, MANAGER.certificate_pem, MANAGER.key_pem), "Manage")
    for certificate, key in (
        (WORKER.certificate_pem, WORKER.key_pem),
        (JOINER.certificate_pem, JOINER.key_pem),
    ):
        error = await refused(channel_of(port, certificate, key), "Manage")
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "only to local or manager" in (error.details() or "")


async def test_a_method_missing_in_the_table_is_closed(port: int):
    error = await refused(channel_of(port, MANAGER.certificate_pem, MANAGER.key_pem), "Forgotten")
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    unknown = await refused(channel_of(port, MANAGER.certificate_pem, MANAGER.key_pem), "Nothing")
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_every_kind_of_call_passes_the_gate(port: int):
    async with channel_of(port, WORKER.certificate_pem, WORKER.key_pem) as channel:
        counted = channel.unary_stream("/t.S/Count")(b"", timeout=TIMEOUT_S)
        assert [reply async for reply in counted] == [b"worker"] * 3
        pushed = channel.unary_stream("/t.S/Push")(b"", timeout=TIMEOUT_S)
        assert [reply async for reply in pushed] == [b"worker"] * 2
        added = channel.stream_unary("/t.S/Sum")(iter([b"1", b"2"]), timeout=TIMEOUT_S)
        assert await added == b"1+2"
        echoed = channel.stream_stream("/t.S/Echo")(iter([b"a", b"b"]), timeout=TIMEOUT_S)
        assert [reply async for reply in echoed] == [b"aworker", b"bworker"]


@pytest.mark.parametrize("method", ["Count", "Push", "Echo"])
async def test_a_stream_is_refused_before_its_first_reply(port: int, method: str):
    async with channel_of(port, MANAGER.certificate_pem, MANAGER.key_pem) as channel:
        if method == "Echo":
            call = channel.stream_stream(f"/t.S/{method}")(iter([b"a"]), timeout=TIMEOUT_S)
        else:
            call = channel.unary_stream(f"/t.S/{method}")(b"", timeout=TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(call))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_unix_socket_peer_is_local(tls: ServerTls, tmp_path: Path):
    path = tmp_path / "s.sock"
    async with a_server(tls, path):
        assert await ask(local_channel(path), "Manage") == b"local "
        error = await refused(local_channel(path), "Forgotten")
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_certificate_is_renewed_without_a_restart(port: int, tls: ServerTls):
    before = await fetch_server_certificate("127.0.0.1", port, TIMEOUT_S)
    assert load_certificate(before) == load_certificate(SERVER.certificate_pem)
    renewed = a_node(ROOT, Role.MANAGER, node_id="server")
    tls.renew(ROOT.certificate_pem, renewed.certificate_pem, renewed.key_pem)
    after = await fetch_server_certificate("127.0.0.1", port, TIMEOUT_S)
    assert load_certificate(after) == load_certificate(renewed.certificate_pem)
    assert await ask(channel_of(port, WORKER.certificate_pem, WORKER.key_pem)) == b"worker worker"


async def test_a_join_starts_from_the_token_alone(port: int):
    """The whole first contact: believe the leaf exactly, learn the root, check it, reconnect."""
    token = make_join_token(ROOT.certificate_pem)
    leaf = await fetch_server_certificate("127.0.0.1", port, TIMEOUT_S)
    first = secure_channel(f"127.0.0.1:{port}", joiner_credentials(leaf))
    assert await ask(first) == b"joiner "
    token.verify_root(ROOT.certificate_pem)
    second = secure_channel(f"127.0.0.1:{port}", joiner_credentials(ROOT.certificate_pem))
    assert await ask(second) == b"joiner "


async def test_trust_in_a_leaf_is_in_that_leaf_only(port: int):
    other = a_node(ROOT, Role.MANAGER, node_id="server")
    error = await refused(
        secure_channel(f"127.0.0.1:{port}", joiner_credentials(other.certificate_pem))
    )
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_both_roots_of_a_rotation_are_believed():
    new = RootCA.create(now_ns=NOW_NS)
    roots = ROOT.certificate_pem + new.certificate_pem
    tls = server_credentials(roots, SERVER.certificate_pem, SERVER.key_pem)
    renewed = a_node(new, Role.WORKER)
    async with a_server(tls) as port:
        credentials = channel_credentials(roots, renewed.certificate_pem, renewed.key_pem)
        error = await refused(secure_channel(f"127.0.0.1:{port}", credentials))
        # Past the handshake: the gate of this server still believes the old root only.
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def tls_of_at_most(version: ssl.TLSVersion, directory: Path) -> ssl.SSLContext:
    """A client as old as that, with the joiner's certificate."""
    certificate, key = directory / "joiner.crt", directory / "joiner.key"
    certificate.write_bytes(JOINER.certificate_pem)
    key.write_bytes(JOINER.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(certificate, key)
    context.set_ciphers("ALL:@SECLEVEL=0")  # this side would speak the old versions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    return context


async def test_tls_1_2_is_the_floor(port: int, tmp_path: Path):
    context = tls_of_at_most(ssl.TLSVersion.TLSv1_2, tmp_path)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
    writer.transport.abort()
    context = tls_of_at_most(ssl.TLSVersion.TLSv1_1, tmp_path)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def test_a_closed_port_is_unavailable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="check the address"):
            await fetch_server_certificate("127.0.0.1", taken.getsockname()[1], TIMEOUT_S)


async def test_a_server_without_tls_is_unavailable():
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        with pytest.raises(Unavailable):
            await fetch_server_certificate(
                "127.0.0.1", server.sockets[0].getsockname()[1], TIMEOUT_S
            )


async def test_a_silent_server_runs_into_the_deadline():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DeadlineExceeded, match="TLS handshake"):
            await fetch_server_certificate("127.0.0.1", silent.getsockname()[1], 0.05)
