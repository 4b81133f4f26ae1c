"""Asking a registry whether it knows somebody: `docker login`.

Nothing is kept: the client stores what it was told. Answers are read up to ANSWER_BYTES_MAX, and
each exchange has a deadline. No redirect is followed: a password goes only where it was meant to.
"""

from __future__ import annotations

import aiohttp
import msgspec

from shoal.errors import DeadlineExceeded, SwarmError, Unauthenticated, Unavailable
from worker.images.registry import challenges
from worker.images.registry.api import Credentials, RegistrySettings
from worker.images.registry.places import base_urls, registry_name
from worker.images.registry.transport import CLIENT_NAME, failure_text, open_session

EXCHANGE_S = 20.0
ANSWER_BYTES_MAX = 64 << 10


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    refresh_token: str = ""


class RegistryLogin:
    """Implements the `login` of `worker.images.registry.api.Registry`."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings

    async def login(self, credentials: Credentials) -> str:
        """Show the registry who we are. Result: an identity token, mostly "".

        Raises: Unauthenticated in the registry's words, Unavailable, DeadlineExceeded.
        """
        name = registry_name(credentials.server_address)
        urls = base_urls(name, self._settings)
        async with await open_session(name, self._settings, total_s=EXCHANGE_S) as session:
            for url in urls:
                try:
                    return await self._login(session, f"{url}/v2/", credentials)
                except (aiohttp.ClientConnectionError, aiohttp.ClientResponseError) as error:
                    if url == urls[-1]:
                        raise Unavailable(f'Get "{url}/v2/": {failure_text(error)}') from error
                except TimeoutError:
                    raise DeadlineExceeded(
                        f'Get "{url}/v2/": no answer within {EXCHANGE_S:.0f} s'
                    ) from None
        raise Unavailable(f"registry {name}: it has no address")  # base_urls gives at least one

    async def _login(
        self, session: aiohttp.ClientSession, url: str, credentials: Credentials
    ) -> str:
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status == 200:
                return ""  # it lets everybody in
            challenge = challenges.parse_challenge(answer.headers.get("WWW-Authenticate", ""))
            if answer.status != 401 or challenge is None:
                raise await _refusal(f"login attempt to {url}", answer)
        if challenge.scheme == "basic":
            authorization, identity = challenges.basic(credentials), ""
        else:
            authorization, identity = await self._token(session, challenge, credentials)
        headers = {"Authorization": authorization}
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise await _refusal(f"login attempt to {url}", answer)
        return identity

    async def _token(
        self,
        session: aiohttp.ClientSession,
        challenge: challenges.Challenge,
        credentials: Credentials,
    ) -> tuple[str, str]:
        """The Authorization header for the registry, and an identity token to keep."""
        if credentials.identity_token:
            form = challenges.refresh_form(challenge, credentials, CLIENT_NAME)
            request = session.post(challenge.realm, data=dict(form), allow_redirects=False)
        else:
            url = challenges.token_url(challenge, credentials.username)
            headers = {"Authorization": challenges.basic(credentials)}
            request = session.get(
                f"{url}&offline_token=true&client_id={CLIENT_NAME}" if "?" in url else url,
                headers=headers,
                allow_redirects=False,
            )
        async with request as answer:
            if answer.status != 200:
                raise await _refusal(f"Get {challenge.realm}", answer)
            try:
                found = msgspec.json.decode(await _content(answer), type=_Token)
            except msgspec.DecodeError as error:
                raise Unavailable(f"Get {challenge.realm}: the answer is no token") from error
        return f"Bearer {found.token or found.access_token}", found.refresh_token


async def _refusal(what: str, answer: aiohttp.ClientResponse) -> SwarmError:
    """The registry's answer as an error, in its own words where it has some."""
    try:
        errors = msgspec.json.decode(await _content(answer), type=_Errors).errors
    except msgspec.DecodeError:
        errors = []
    words = "; ".join(one.message.lower() or one.code.lower() for one in errors)
    if answer.status in {401, 403}:
        return Unauthenticated(f"{what}: unauthorized: {words or 'incorrect username or password'}")
    status = f"{answer.status} {answer.reason}"
    return Unavailable(f"{what} failed with status: {status}{': ' + words if words else ''}")


async def _content(answer: aiohttp.ClientResponse) -> bytes:
    return await answer.content.read(ANSWER_BYTES_MAX)
