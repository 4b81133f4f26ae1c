"""The HTTP core with routes of a test's own, in this process; clients that do as Docker's do."""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.http.dispatch import Dispatcher
from engine.http.routing import Route, Table
from engine.http.server import serve
from engine.http.settings import TlsSettings

DEADLINE_S = 40.0


class Served:
    """A core that serves. port: of TCP, 0 without."""

    def __init__(self, path: Path, dispatcher: Dispatcher, port: int) -> None:
        self.path = path
        self.dispatcher = dispatcher
        self.port = port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the unix socket."""
        return await asyncio.open_unix_connection(str(self.path))

    async def ask(
        self, method: str, target: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One exchange on a connection of its own: status, headers in lower case, whole body."""
        reader, writer = await self.connect()
        async with asyncio.timeout(DEADLINE_S):
            writer.write(request(method, target, body, **{"Connection": "close"} | headers))
            status, found = await read_head(reader)
            content = await reader.read()
            writer.close()
        if found.get("transfer-encoding") == "chunked":
            content = b"".join(dechunk(content))
        return status, found, content

    async def message(self, method: str, target: str, body: bytes = b"", **headers: str):
        """Status and `message` of an error."""
        status, _, content = await self.ask(method, target, body, **headers)
        return status, json.loads(content)["message"]


@asynccontextmanager
async def serving(routes: Iterable[Route], *, tls: Path | None = None) -> AsyncIterator[Served]:
    """Serve until left. tls: directory of certificates, for TCP on a free port of loopback."""
    with tempfile.TemporaryDirectory(prefix="shoal-engine-") as directory:
        path = Path(directory) / "d.sock"
        dispatcher = Dispatcher(Table(routes), "Shoal/test (linux)")
        settings = None if tls is None else TlsSettings("127.0.0.1", 0, tls)
        async with serve(dispatcher, path, settings) as address:
            yield Served(path, dispatcher, 0 if address is None else address[1])
        assert not path.exists()


def request(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as bytes; underscores in header names are dashes."""
    lines = [f"{method} {target} HTTP/1.1", "Host: d"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case."""
    async with asyncio.timeout(DEADLINE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.rstrip("\r\n").split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, value in pairs}


def dechunk(content: bytes) -> list[bytes]:
    """The chunks of a whole chunked body."""
    chunks = []
    while True:
        size, _, rest = content.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return chunks
        chunks.append(rest[:length])
        content = rest[length + 2 :]


def frames(content: bytes) -> list[tuple[int, bytes]]:
    """The frames of a multiplexed stream."""
    found = []
    while content:
        length = int.from_bytes(content[4:8], "big")
        found.append((content[0], content[8 : 8 + length]))
        content = content[8 + length :]
    return found


def write_certificates(directory: Path, *, authority: str = "docker ca") -> None:
    """ca.pem, cert.pem and key.pem, good for a server on loopback and for a client."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, authority)])
    now = datetime.now(UTC)

    def a_certificate(subject: x509.Name, public, *, is_root: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
                critical=False,
            )
        )
        if not is_root:
            usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        return builder.sign(root_key, hashes.SHA256())

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    pem = serialization.Encoding.PEM
    root = a_certificate(issuer, root_key.public_key(), is_root=True)
    leaf = a_certificate(subject, key.public_key(), is_root=False)
    directory.mkdir(exist_ok=True)
    (directory / "ca.pem").write_bytes(root.public_bytes(pem))
    (directory / "cert.pem").write_bytes(leaf.public_bytes(pem))
    (directory / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


class TlsClient:
    """TLS by hand, as Go has it: ends its side with close_notify alone and goes on reading."""

    def __init__(self, server: Path, *, as_: Path | None) -> None:
        """server, as_: directories whose ca.pem is believed, whose certificate is shown."""
        context = ssl.create_default_context(cafile=str(server / "ca.pem"))
        if as_ is not None:
            context.load_cert_chain(as_ / "cert.pem", as_ / "key.pem")
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def connect(self, port: int) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        await self._until(self._tls.do_handshake)

    async def write(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def read(self) -> bytes:
        """Some bytes; b"" at the server's end."""
        try:
            return await self._until(lambda: self._tls.read(65536))
        except ssl.SSLZeroReturnError:
            return b""

    async def close_write(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            await self._flush()

    def close(self) -> None:
        self._writer.close()

    async def _until(self, step):
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    await self._flush()
                    data = await self._reader.read(65536)
                    self._incoming.write(data) if data else self._incoming.write_eof()
                finally:
                    await self._flush()

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._writer.write(data)
            await self._writer.drain()
