"""gRPC channels and servers with mutual TLS; every gRPC option name of Shoal is in this file.

Clients verify managers by the name `swarm-manager` whatever address they dial: a certificate is
for a node, not for an address, and addresses change. TLS 1.2 is the floor of gRPC itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import grpc

from shoal.errors import DeadlineExceeded, Unavailable
from shoal.security.joiner import joiner_identity
from shoal.security.roles import MANAGER_NAME

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
STREAMS_PER_CONNECTION_MAX = 1024
"""Calls in progress on one connection; a client's further calls wait on its side."""
KEEPALIVE_TIME_S = 10
KEEPALIVE_TIMEOUT_S = 5
RECONNECT_BACKOFF_MIN_S = 0.1
RECONNECT_BACKOFF_MAX_S = 5

Options = list[tuple[str, int | str]]


class ServerTls:
    """The certificate a server shows and the roots it asks for, replaceable while it runs."""

    def __init__(self, root_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> None:
        self._configuration = _server_configuration(root_pem, certificate_pem, key_pem)
        self._shown = self._configuration
        self.credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._fetch,  # type: ignore[arg-type]  # gRPC documents None, its stubs forgot it
            require_client_authentication=True,
        )

    def renew(self, root_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> None:
        """Use another certificate, key and roots for every handshake from now on."""
        self._configuration = _server_configuration(root_pem, certificate_pem, key_pem)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by a gRPC thread before each handshake; None means "as before"."""
        configuration = self._configuration
        if configuration is self._shown:
            return None
        self._shown = configuration
        return configuration


def server_credentials(root_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> ServerTls:
    """TLS for a server that admits this cluster's nodes and the joiner identity.

    The result's `credentials` go to `add_secure_port`; keep it to `renew` the certificate.
    """
    return ServerTls(root_pem, certificate_pem, key_pem)


def channel_credentials(
    root_pem: bytes, certificate_pem: bytes, key_pem: bytes
) -> grpc.ChannelCredentials:
    """TLS for a client with a node certificate, believing these roots only."""
    return grpc.ssl_channel_credentials(
        root_certificates=root_pem, private_key=key_pem, certificate_chain=certificate_pem
    )


def joiner_credentials(root_pem: bytes) -> grpc.ChannelCredentials:
    """TLS for a node that has no certificate yet.

    root_pem: the root once it has been verified against the join token; before that, the server's
    own certificate as `fetch_server_certificate` returned it, which gRPC then trusts exactly.
    """
    joiner = joiner_identity()
    return channel_credentials(root_pem, joiner.certificate_pem, joiner.key_pem)


def secure_channel(
    target: str, credentials: grpc.ChannelCredentials, *, server_name: str = MANAGER_NAME
) -> grpc.aio.Channel:
    """A channel to `host:port` whose server must hold a certificate for `server_name`."""
    options = [*channel_options(), ("grpc.ssl_target_name_override", server_name)]
    return grpc.aio.secure_channel(target, credentials, options=options)


def local_channel(socket_path: Path) -> grpc.aio.Channel:
    """A channel over a unix socket. Who may open it is a matter of file permissions."""
    return grpc.aio.insecure_channel(f"unix:{socket_path}", options=channel_options())


def channel_options() -> Options:
    """The options of every channel."""
    return [
        *_common_options(),
        ("grpc.enable_http_proxy", 0),  # cluster traffic never takes a proxy from the environment
        ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_BACKOFF_MIN_S * 1000)),
        ("grpc.min_reconnect_backoff_ms", int(RECONNECT_BACKOFF_MAX_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MAX_S * 1000),
    ]


def server_options() -> Options:
    """The options of every server; it tolerates the keepalive pings of `channel_options`."""
    return [
        *_common_options(),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_S * 1000 // 2),
        ("grpc.so_reuseport", 0),  # a second daemon on the port must fail, not share it
    ]


async def fetch_server_certificate(host: str, port: int, timeout_s: float) -> bytes:
    """The certificate a TLS server shows, PEM, without believing it.

    For the first contact of a join only: the caller must verify what it learns over this
    certificate against the digest in its join token. Raises Unavailable if the server cannot be
    reached or does not speak TLS 1.3, DeadlineExceeded after `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _fetch(host, port)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"{host}:{port} did not finish a TLS handshake within {timeout_s:g} s: check that a "
            "manager listens there and that no firewall drops the packets"
        ) from error
    except OSError as error:
        raise Unavailable(
            f"{host}:{port} did not answer as a manager ({error}): check the address and port"
        ) from error


async def _fetch(host: str, port: int) -> bytes:
    _, writer = await asyncio.open_connection(host, port, ssl=_unverifying_context())
    try:
        connection = writer.get_extra_info("ssl_object")
        der: bytes = connection.getpeercert(binary_form=True)
    finally:
        # The server hangs up because we show no certificate; that is not worth an error.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _unverifying_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Under TLS 1.3 the client's side of the handshake ends before the server asks who we are.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def _server_configuration(
    root_pem: bytes, certificate_pem: bytes, key_pem: bytes
) -> grpc.ServerCertificateConfiguration:
    trusted = root_pem.rstrip() + b"\n" + joiner_identity().certificate_pem
    return grpc.ssl_server_certificate_configuration(
        [(key_pem, certificate_pem)], root_certificates=trusted
    )


def _common_options() -> Options:
    return [
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
