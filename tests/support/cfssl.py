"""An authority outside the cluster: CFSSL's signing endpoint over HTTPS, with a real key.

It signs what it is asked to, as CFSSL's signer does: subject and hosts of the request, the usages
of its profile. Clients must show a certificate of a root that it believes. A test says how it
fails.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.security.keys import load_key
from shoal.security.root import RootCA, key_usage
from shoal.security.trust import load_certificate

PATH = "/api/v1/cfssl/sign"
OIDS = {
    "CN": NameOID.COMMON_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
}
DAY = dt.timedelta(days=1)


class Cfssl:
    """`start` and `stop`; `fail` takes the place of the handler when it is set."""

    def __init__(self, directory: Path, root: RootCA | None = None) -> None:
        """directory: for the files that Python's TLS wants."""
        self.root = root or RootCA.create(now_ns=time.time_ns())
        self.signing_root = self.root
        self.directory = directory
        self.port = 0
        self.asked: list[dict[str, Any]] = []
        self.clients: list[str] = []
        self.fail: Callable[[web.Request], Any] | None = None
        self.change: Callable[[dict[str, Any]], None] = lambda _: None
        """Changes a request before it is signed: an authority that does not do as it is told."""
        self.usage = key_usage(signs_certificates=False)
        self.purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        self.names_issuer = True
        self.validity = (-DAY, 30 * DAY)
        self.never = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}{PATH}"

    async def start(self, *client_roots: bytes, port: int = 0) -> None:
        """client_roots: PEM, who clients must be certified by."""
        key_path, certificate_path = self.directory / "cfssl.key", self.directory / "cfssl.crt"
        key = ec.generate_private_key(ec.SECP256R1())
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        certificate_path.write_bytes(
            self._signed(key.public_key(), {"CN": "localhost"}, ["localhost"])
        )
        self._context.load_cert_chain(certificate_path, key_path)
        self._context.verify_mode = ssl.CERT_REQUIRED
        for root_pem in client_roots or (self.root.certificate_pem,):
            self.believe(root_pem)
        application = web.Application()
        application.router.add_post(PATH, self._handle)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        self.never.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def believe(self, root_pem: bytes) -> None:
        """Take clients of this root too, from the next connection on."""
        self._context.load_verify_locations(cadata=root_pem.decode())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peercert")  # type: ignore[union-attr]
        self.clients += [
            value
            for name in peer["subject"]
            for key, value in name
            if key == "organizationalUnitName"
        ]
        wish = await request.json()
        self.asked.append(wish)
        if self.fail is not None:
            return await self.fail(request)
        return self.answer(self.sign(wish))

    def answer(self, certificate_pem: bytes) -> web.Response:
        result = {"certificate": certificate_pem.decode()}
        return web.json_response({"success": True, "result": result, "errors": [], "messages": []})

    def sign(self, wish: dict[str, Any]) -> bytes:
        """As CFSSL's local signer: the request's signature is checked, its key is taken."""
        wish = json.loads(json.dumps(wish))
        self.change(wish)
        csr = x509.load_pem_x509_csr(wish["certificate_request"].encode())
        assert csr.is_signature_valid
        names = {"CN": wish["subject"]["CN"]}
        for one in wish["subject"]["names"]:
            names |= one
        is_authority = wish.get("profile") == "CA"
        return self._signed(csr.public_key(), names, wish.get("hosts", []), is_authority)

    def _signed(
        self, key: Any, names: dict[str, str], hosts: list[str], is_authority: bool = False
    ) -> bytes:
        issuer = load_certificate(self.root.certificate_pem)
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        subject = x509.Name([x509.NameAttribute(OIDS[name], text) for name, text in names.items()])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + self.validity[0])
            .not_valid_after(now + self.validity[1])
            .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
            .add_extension(key_usage(signs_certificates=True) if is_authority else self.usage, True)
        )
        if self.names_issuer:
            own_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            named = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id)
            builder = builder.add_extension(named, False)
        if not is_authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.purposes), False)
        if hosts:
            names_ = [x509.DNSName(one) for one in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names_), False)
        signer = load_key(self.signing_root.key_pem)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
