"""Secrets and configs: the engine's calls about them, and their bodies read into specs.

Invariant: the data of a secret goes to the managers and never comes back.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from engine.cluster.calls import CALL_TIMEOUT_S, PAGE_SIZE, Calls
from engine.http.errors import Refused
from shoal.api.v1 import control_pb2, specs_pb2, types_pb2
from shoal.errors import InvalidArgument
from shoal.model.files import FileRow
from shoal.model.objects import Config, Secret
from shoal.model.specs import ConfigSpec, SecretSpec
from shoal.model.types import Annotations, Driver
from shoal.wire.objects import from_pb, to_pb


class _Body(msgspec.Struct, frozen=True, rename="pascal"):
    """Docker's spelling."""


class DriverBody(_Body, frozen=True):
    """`Driver` and `Templating`."""

    name: str = ""
    options: dict[str, str] = {}


class FileBody(_Body, frozen=True):
    """`POST /secrets/create`, `/configs/create`, and their updates."""

    name: str = ""
    labels: dict[str, str] = {}
    data: str = ""
    driver: DriverBody = DriverBody()
    templating: DriverBody = DriverBody()

    def secret(self) -> SecretSpec:
        """Raises: InvalidArgument; Refused for a driver, as there are none."""
        if self.driver.name:
            text = f'plugin "{self.driver.name}" not found'
            raise Refused(500, f"rpc error: code = Unknown desc = {text}")
        return SecretSpec(
            annotations=Annotations(self.name, self.labels),
            data=self._content(),
            templating=self._template(),
        )

    def config(self) -> ConfigSpec:
        """Raises: InvalidArgument."""
        return ConfigSpec(
            annotations=Annotations(self.name, self.labels),
            data=self._content(),
            templating=self._template(),
        )

    def _content(self) -> bytes:
        try:
            return base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidArgument("Data: must be in base64 (RFC 4648, section 4)") from None

    def _template(self) -> Driver | None:
        one = self.templating
        return Driver(one.name, one.options) if one.name else None


class FileCalls(Calls):
    """Calls about secrets and configs. Named by id, name or unique id prefix."""

    async def secrets(self, filters: control_pb2.Filters) -> list[Secret]:
        """The secrets that fit, former contents included."""
        request = control_pb2.ListSecretsRequest(filters=filters, page_size=PAGE_SIZE)
        found: list[Secret] = []
        async for answer in self._pages(self._control.ListSecrets, request):
            found += (from_pb(one, Secret) for one in answer.secrets)
        return found

    async def configs(self, filters: control_pb2.Filters) -> list[Config]:
        """The configs that fit, former contents included."""
        request = control_pb2.ListConfigsRequest(filters=filters, page_size=PAGE_SIZE)
        found: list[Config] = []
        async for answer in self._pages(self._control.ListConfigs, request):
            found += (from_pb(one, Config) for one in answer.configs)
        return found

    async def file(self, kind: type[FileRow], reference: str) -> FileRow:
        """One of them."""
        if kind is Secret:
            secret = control_pb2.GetSecretRequest(secret=reference)
            answer = await self._call(self._control.GetSecret(secret, timeout=CALL_TIMEOUT_S))
            return from_pb(answer.secret, Secret)
        config = control_pb2.GetConfigRequest(config=reference)
        found = await self._call(self._control.GetConfig(config, timeout=CALL_TIMEOUT_S))
        return from_pb(found.config, Config)

    async def create_secret(self, spec: SecretSpec) -> str:
        """The new secret's id."""
        request = control_pb2.CreateSecretRequest(spec=to_pb(spec, specs_pb2.SecretSpec))
        answer = await self._call(self._control.CreateSecret(request, timeout=CALL_TIMEOUT_S))
        return answer.secret.id

    async def create_config(self, spec: ConfigSpec) -> str:
        """The new config's id."""
        request = control_pb2.CreateConfigRequest(spec=to_pb(spec, specs_pb2.ConfigSpec))
        answer = await self._call(self._control.CreateConfig(request, timeout=CALL_TIMEOUT_S))
        return answer.config.id

    async def update_secret(self, reference: str, version: int, spec: SecretSpec) -> None:
        """Other labels."""
        request = control_pb2.UpdateSecretRequest(
            secret=reference,
            version=types_pb2.Version(index=version),
            spec=to_pb(spec, specs_pb2.SecretSpec),
        )
        await self._call(self._control.UpdateSecret(request, timeout=CALL_TIMEOUT_S))

    async def update_config(self, reference: str, version: int, spec: ConfigSpec) -> None:
        """Other labels."""
        request = control_pb2.UpdateConfigRequest(
            config=reference,
            version=types_pb2.Version(index=version),
            spec=to_pb(spec, specs_pb2.ConfigSpec),
        )
        await self._call(self._control.UpdateConfig(request, timeout=CALL_TIMEOUT_S))

    async def remove_file(self, kind: type[FileRow], reference: str) -> None:
        """Remove one that no service uses."""
        if kind is Secret:
            secret = control_pb2.RemoveSecretRequest(secret=reference)
            await self._call(self._control.RemoveSecret(secret, timeout=CALL_TIMEOUT_S))
            return
        config = control_pb2.RemoveConfigRequest(config=reference)
        await self._call(self._control.RemoveConfig(config, timeout=CALL_TIMEOUT_S))
