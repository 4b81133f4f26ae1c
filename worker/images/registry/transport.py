"""Connections to registries: TLS as Docker's `certs.d` says it, deadlines, no limits on blobs.

A registry that must show a trusted certificate is never spoken to without; one that is listed as
insecure may show any, or speak plain HTTP. Nothing is decompressed on the way: digests are over
what was sent.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import aiohttp

from shoal.errors import FailedPrecondition
from worker.images.registry.api import RegistrySettings
from worker.images.registry.places import is_insecure

CLIENT_NAME = "shoal"
CONNECT_S = 15.0
FIND_S = 30.0
"""With looking its name up and the TLS handshake."""
SILENCE_S = 60.0
"""A connection over which nothing comes for so long is given up."""


async def open_session(
    name: str, settings: RegistrySettings, *, total_s: float | None = None
) -> aiohttp.ClientSession:
    """Connections to one registry. total_s: of one exchange. Raises FailedPrecondition."""
    context = await asyncio.to_thread(_context, name, settings)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=0, limit_per_host=0),
        timeout=aiohttp.ClientTimeout(
            total=total_s, connect=FIND_S, sock_connect=CONNECT_S, sock_read=SILENCE_S
        ),
        headers={"User-Agent": CLIENT_NAME},
        auto_decompress=False,
        trust_env=True,
    )


def failure_text(error: BaseException) -> str:
    """Why there was no answer, in the words people know from Docker."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"dial tcp: lookup {error.host}: no such host"
        case aiohttp.ClientConnectorCertificateError():
            return f"tls: failed to verify certificate: {error.certificate_error}"
        case aiohttp.ClientSSLError():
            return f"tls: {error.os_error}"
        case aiohttp.ClientConnectorError():
            reason = os.strerror(error.os_error.errno or 0).lower()
            return f"dial tcp {error.host}:{error.port}: connect: {reason}"
        case TimeoutError():
            return "no answer in time"
        case _:
            return str(error) or repr(error)


def _context(name: str, settings: RegistrySettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if is_insecure(name, settings):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    directory = Path(settings.certificates) / name
    try:
        for authority in sorted(directory.glob("*.crt")):
            context.load_verify_locations(authority)
        for certificate in sorted(directory.glob("*.cert")):
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    except (OSError, ssl.SSLError) as error:
        raise FailedPrecondition(f"registry {name}: {directory} cannot be used: {error}") from error
    return context
