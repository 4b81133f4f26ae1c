"""One registry, spoken to as one somebody: where it is, who we are, and the few calls we make.

The address is found with the first call: TLS, then plain HTTP where that is allowed. Tokens are
kept for as long as they are good, by scope. A redirect to where blobs are kept is followed without
our credentials. Calls are tried again while the registry is busy or unreachable, a bounded number
of times; whatever it has judged is final.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from random import SystemRandom
from typing import Any, Self, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec

from shoal.errors import InvalidArgument, SwarmError, Unauthenticated, Unavailable
from worker.images.registry import challenges
from worker.images.registry.api import Credentials, RegistrySettings
from worker.images.registry.places import base_urls
from worker.images.registry.refusals import ATTEMPTS_MAX, Refusal, pause_s, read_refusal
from worker.images.registry.transport import CLIENT_NAME, failure_text, open_session

ERROR_BYTES_MAX = 64 << 10
REDIRECTS_MAX = 5
TOKEN_S = 60
"""How long a token is good that does not say so; those that do are given up a little earlier."""
T = TypeVar("T")

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_UNREACHABLE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: int = TOKEN_S


class RegistryClient:
    """Use it as a context; everything may raise `Refusal`, Unauthenticated and Unavailable."""

    def __init__(
        self,
        name: str,
        settings: RegistrySettings,
        credentials: Credentials | None = None,
        *,
        urls: tuple[str, ...] = (),
    ) -> None:
        """urls: instead of those that the registry's name leads to, for mirrors."""
        self._name = name
        self._settings = settings
        self._credentials = credentials or Credentials()
        self._urls = urls or base_urls(name, settings)
        self._base = ""
        self._challenge: challenges.Challenge | None = None
        self._tokens: dict[str, tuple[str, float]] = {}
        self._asking = asyncio.Lock()
        self._chance = SystemRandom()
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        host = urlsplit(self._urls[0]).netloc
        self._session = await open_session(host or self._name, self._settings)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def read(
        self, path: str, *, scope: str, bytes_max: int, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """A small document, whole, and the headers it came with."""

        async def once() -> tuple[bytes, Mapping[str, str]]:
            async with self.call("GET", path, scope=scope, headers=headers) as answer:
                content = await _bounded(answer, bytes_max)
                return content, answer.headers

        return await self.persistent(once)

    async def exists(self, path: str, *, scope: str) -> bool:
        """Whether the registry has it."""

        async def once() -> bool:
            try:
                async with self.call("HEAD", path, scope=scope):
                    return True
            except Refusal as refusal:
                if refusal.status == 404:
                    return False
                raise

        return await self.persistent(once)

    async def persistent(self, once: Callable[[], Awaitable[T]]) -> T:
        """Do it, and again while that may help. Raises what the last attempt did."""
        attempt = 1
        while True:
            try:
                return await once()
            except SwarmError as error:
                if not error.retryable or attempt >= ATTEMPTS_MAX:
                    raise
                retry_after = str(error.context.get("retry_after", ""))
            await self.pause(attempt, retry_after)
            attempt += 1

    async def pause(self, attempt: int, retry_after: str = "") -> None:
        """Wait before the next attempt."""
        first_s = self._settings.retry_pause_s
        await asyncio.sleep(pause_s(attempt, first_s, retry_after, self._chance.random()))

    @asynccontextmanager
    async def call(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        data: Callable[[], Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One exchange; a success or a `Refusal`. path: below the registry, or a whole URL of it.

        data: makes the body, for each time it has to be sent.
        """
        await self._find()
        url = urljoin(f"{self._base}/", path)
        answer = await self._sent(method, url, scope, headers, data)
        try:
            if answer.status == 401 and await self._learn(answer, scope):
                answer.close()
                answer = await self._sent(method, url, scope, headers, data)
            if answer.status >= 400:
                raise await self._refusal(method, url, answer)
            yield answer
        except _UNREACHABLE as error:
            raise _unreachable(method, url, error) from error
        finally:
            answer.close()

    def same_place(self, location: str) -> str:
        """An upload's location, which may be relative. Raises Unavailable for another host's."""
        url = urljoin(f"{self._base}/", location)
        if urlsplit(url).netloc != urlsplit(self._base).netloc:
            raise Unavailable(f"registry {self._name}: it sends uploads elsewhere: {url[:200]}")
        return urlsplit(url)._replace(scheme=urlsplit(self._base).scheme).geturl()

    async def _sent(
        self,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str] | None,
        data: Callable[[], Any] | None,
    ) -> aiohttp.ClientResponse:
        """The answer to one request, redirects of reads followed."""
        asked = {**(headers or {}), **await self._authorization(scope)}
        for _ in range(REDIRECTS_MAX):
            try:
                answer = await self._session.request(
                    method,
                    url,
                    headers=asked,
                    data=None if data is None else data(),
                    allow_redirects=False,
                )
            except _UNREACHABLE as error:
                raise _unreachable(method, url, error) from error
            if answer.status not in _REDIRECTS or method not in {"GET", "HEAD"}:
                return answer
            target = urljoin(url, answer.headers.get("Location", ""))
            answer.close()
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise Unavailable(f'Get "{url}": it leads from TLS to {target[:200]}: refused')
            if urlsplit(target).netloc != urlsplit(url).netloc:
                asked.pop("Authorization", None)
            url = target
        raise Unavailable(f'Get "{url}": more than {REDIRECTS_MAX} redirects')

    # -- where it is, and who we are ---------------------------------------------------------

    async def _find(self) -> None:
        """Learn which address answers, and what it demands."""
        async with self._asking:
            if self._base:
                return
            for url in self._urls:
                try:
                    async with self._session.get(f"{url}/v2/", allow_redirects=False) as answer:
                        header = answer.headers.get("WWW-Authenticate", "")
                        self._challenge = challenges.parse_challenge(header)
                except _UNREACHABLE as error:
                    if url == self._urls[-1]:
                        failure = _unreachable("GET", f"{url}/v2/", error)
                        failure.retryable = False  # nobody is there: say so at once
                        raise failure from error
                else:
                    self._base = url
                    return

    async def _authorization(self, scope: str) -> dict[str, str]:
        if self._challenge is None:
            return {}
        if self._challenge.scheme == "basic":
            if self._credentials.anonymous:
                return {}
            return {"Authorization": challenges.basic(self._credentials)}
        if self._credentials.registry_token:
            return {"Authorization": f"Bearer {self._credentials.registry_token}"}
        async with self._asking:
            token, good_until = self._tokens.get(scope, ("", 0.0))
            if asyncio.get_running_loop().time() >= good_until:
                token = await self._new_token(self._challenge, scope)
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _learn(self, answer: aiohttp.ClientResponse, scope: str) -> bool:
        """Whether asking again may help after a 401: with a new token, or now that one is wanted.

        Raises Unauthenticated when there is nothing to show.
        """
        found = challenges.parse_challenge(answer.headers.get("WWW-Authenticate", ""))
        if found is None:
            return False
        if found.scheme == "basic":
            if self._credentials.anonymous:
                raise Unauthenticated(f'Get "{answer.url}": no basic auth credentials')
            asked_without = "Authorization" not in answer.request_info.headers
            self._challenge = found
            return asked_without
        self._challenge = found
        self._tokens.pop(scope, None)
        return True

    async def _new_token(self, challenge: challenges.Challenge, scope: str) -> str:
        scopes = tuple(scope.split()) or challenge.scopes
        try:
            async with self._token_request(challenge, scopes) as answer:
                content = await _bounded(answer, ERROR_BYTES_MAX)
                if answer.status != 200:
                    raise read_refusal(
                        "GET", challenge.realm, answer.status, answer.reason or "", content
                    )
        except _UNREACHABLE as error:
            raise _unreachable("GET", challenge.realm, error) from error
        except Refusal as refusal:
            if refusal.status in {401, 403}:
                words = refusal.message if refusal.kind else "incorrect username or password"
                raise Unauthenticated(f'Get "{challenge.realm}": unauthorized: {words}') from None
            raise
        try:
            found = msgspec.json.decode(content, type=_Token)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Unavailable(f'Get "{challenge.realm}": the answer is no token') from None
        good_s = max(found.expires_in, TOKEN_S) * 0.9
        token = found.token or found.access_token
        self._tokens[scope] = (token, asyncio.get_running_loop().time() + good_s)
        return token

    def _token_request(self, challenge: challenges.Challenge, scopes: tuple[str, ...]) -> Any:
        wanted = msgspec.structs.replace(challenge, scopes=scopes)
        if self._credentials.identity_token:
            form = dict(challenges.refresh_form(wanted, self._credentials, CLIENT_NAME))
            return self._session.post(challenge.realm, data=form, allow_redirects=False)
        url = challenges.token_url(wanted, self._credentials.username)
        headers = {}
        if not self._credentials.anonymous:
            headers["Authorization"] = challenges.basic(self._credentials)
        return self._session.get(url, headers=headers, allow_redirects=False)

    async def _refusal(self, method: str, url: str, answer: aiohttp.ClientResponse) -> Refusal:
        content = await answer.content.read(ERROR_BYTES_MAX)
        refusal = read_refusal(method, url, answer.status, answer.reason or "", content)
        refusal.context["retry_after"] = answer.headers.get("Retry-After", "")
        return refusal


async def _bounded(answer: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    parts, size = [], 0
    async for data in answer.content.iter_any():
        size += len(data)
        if size > bytes_max:
            raise InvalidArgument(f"{answer.url}: answers more than {bytes_max} bytes")
        parts.append(data)
    return b"".join(parts)


def _unreachable(method: str, url: str, error: BaseException) -> Unavailable:
    what = "Get" if method == "GET" else method.capitalize()
    return Unavailable(f'{what} "{url}": {failure_text(error)}')
