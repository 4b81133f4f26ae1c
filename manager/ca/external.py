"""Certificates from an authority outside the cluster, which speaks CFSSL over HTTPS.

The manager shows its own certificate and believes the cluster's roots, nothing of the operating
system's. URLs are tried in their order; the first answer that fits is taken, and what each of the
others failed with becomes the error. Bounded: 5 s and 256 KiB an answer, no redirection, no
compression, 8 requests at once.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

import aiohttp
import structlog

from manager.ca.cfssl import URLS_MAX, certificate_in, shown, sign_url
from manager.ca.metrics import EXTERNAL_LATENCY, EXTERNAL_REQUESTS
from shoal.clock import Clock
from shoal.errors import FailedPrecondition, SwarmError
from shoal.model.types import ExternalCa
from shoal.security.identity import NodeIdentity

ANSWER_TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 256 * 1024
REQUESTS_AT_ONCE_MAX = 8

Check = Callable[[bytes, int], None]
"""Refuses a certificate that is not the wished one, or not valid at the moment it came (wall clock,
nanoseconds): an authority may date it later than the request. Raises: FailedPrecondition."""

_log = structlog.get_logger()


class OwnIdentity(Protocol):
    """The manager's certificate and the roots it believes, as they are now."""

    identity: NodeIdentity

    @property
    def root_pem(self) -> bytes:
        """Every root that is believed."""
        ...


class ExternalAuthorities:
    """The client of every external authority of one manager."""

    def __init__(self, own: OwnIdentity, clock: Clock) -> None:
        self._own = own
        self._clock = clock
        self._places = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)
        self.problem = ""
        """What the last request failed with; empty when it did not."""

    async def sign(self, endpoints: Sequence[ExternalCa], body: bytes, check: Check) -> bytes:
        """The first certificate that passes the check, PEM.

        Raises: FailedPrecondition with the reason of each.
        """
        reasons: list[str] = []
        async with self._places:
            for endpoint in endpoints[:URLS_MAX]:
                try:
                    certificate_pem = await self._ask(endpoint, body)
                    check(certificate_pem, self._clock.now_ns())
                except SwarmError as error:
                    EXTERNAL_REQUESTS.labels(outcome="refused").inc()
                    reasons.append(f"{endpoint.url}: {error.message}")
                except _NO_ANSWER as error:
                    EXTERNAL_REQUESTS.labels(outcome="failed").inc()
                    reasons.append(f"{endpoint.url}: {_why(error)}")
                else:
                    EXTERNAL_REQUESTS.labels(outcome="signed").inc()
                    self.problem = ""
                    return certificate_pem
                _log.warning("external_ca.failed", reason=reasons[-1])
        self.problem = (
            f"the external certificate authority signed nothing ({'; '.join(reasons)}): see that it"
            " runs, believes this manager's certificate and takes subject and hosts of requests"
        )
        raise FailedPrecondition(self.problem)

    async def _ask(self, endpoint: ExternalCa, body: bytes) -> bytes:
        identity, trusted = self._own.identity, self._own.root_pem + endpoint.ca_certificate
        context = await asyncio.to_thread(_client_context, identity, trusted)
        with EXTERNAL_LATENCY.time():
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_S),
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=context, force_close=True),
                    auto_decompress=False,
                    headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
                ) as session,
                session.post(sign_url(endpoint.url), data=body, allow_redirects=False) as response,
            ):
                answer = await _bounded(response)
                if response.status != 200:
                    text = shown(answer.decode(errors="replace")) or response.reason
                    raise FailedPrecondition(f"it answered with status {response.status}: {text}")
        return certificate_in(answer)


_NO_ANSWER = (TimeoutError, aiohttp.ClientError, OSError, ValueError)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The whole answer. Raises FailedPrecondition when it is too long."""
    answer = bytearray()
    async for chunk in response.content.iter_any():
        answer += chunk
        if len(answer) > ANSWER_BYTES_MAX:
            raise FailedPrecondition(f"its answer is longer than {ANSWER_BYTES_MAX // 1024} KiB")
    return bytes(answer)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {ANSWER_TIMEOUT_S:g} s"
    return shown(str(error) or type(error).__name__)


def _client_context(identity: NodeIdentity, trusted_pem: bytes) -> ssl.SSLContext:
    """TLS with the node's certificate. Python's ssl reads files only: this one is never on a disk.

    Blocking.
    """
    context = ssl.create_default_context(cadata=trusted_pem.decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.certificate_pem.rstrip() + b"\n" + identity.key_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
