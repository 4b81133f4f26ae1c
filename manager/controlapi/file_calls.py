"""The calls about secrets and configs, as a part of the Control service.

Invariant: no answer holds the data of a secret. A config's is shown: it is no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from typing_extensions import override

from manager.controlapi import files
from manager.controlapi.file_rotation import followers, rotate_file
from manager.controlapi.filters import filters_of
from manager.controlapi.select import page, select_files
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import objects_pb2
from shoal.api.v1.control_pb2_grpc import ControlServicer
from shoal.errors import InvalidArgument
from shoal.ids import new_id
from shoal.model.files import FileRow
from shoal.model.objects import Config, Secret
from shoal.model.plan import Change
from shoal.model.specs import ConfigSpec, SecretSpec
from shoal.wire.objects import fill_pb, from_pb, to_pb

Context = grpc.aio.ServicerContext[Any, Any]


class FileCalls(ControlServicer):
    """Secrets and configs of `shoal.api.v1.Control`; sizes are judged by `validate_files`."""

    _store: Store

    @override
    async def CreateSecret(
        self, request: pb.CreateSecretRequest, context: Context
    ) -> pb.CreateSecretResponse:
        _require_spec(request)
        row = Secret(id=new_id(), spec=from_pb(request.spec, SecretSpec))
        await self._change(lambda view: files.create_file(view, row))
        return pb.CreateSecretResponse(secret=self._secret(row.id))

    @override
    async def GetSecret(
        self, request: pb.GetSecretRequest, context: Context
    ) -> pb.GetSecretResponse:
        return pb.GetSecretResponse(secret=self._secret(request.secret))

    @override
    async def ListSecrets(
        self, request: pb.ListSecretsRequest, context: Context
    ) -> pb.ListSecretsResponse:
        response = pb.ListSecretsResponse()
        response.next_page_token = page(
            select_files(self._store.view.secrets, filters_of(request.filters)),
            size=request.page_size,
            token=request.page_token,
            attach=lambda row: _attach(row, response.secrets.add()),
        )
        return response

    @override
    async def UpdateSecret(
        self, request: pb.UpdateSecretRequest, context: Context
    ) -> pb.UpdateSecretResponse:
        _require_spec(request)
        spec, version = from_pb(request.spec, SecretSpec), request.version.index
        await self._change(
            lambda view: files.update_file(view, Secret, request.secret, spec, version=version),
            version=version,
        )
        return pb.UpdateSecretResponse(secret=self._secret(request.secret))

    @override
    async def RotateSecret(
        self, request: pb.RotateSecretRequest, context: Context
    ) -> pb.RotateSecretResponse:
        name = await self._rotate(Secret, request.secret, request.data, request.version.index)
        return pb.RotateSecretResponse(
            secret=self._secret(name), service_ids=self._followers(Secret, name)
        )

    @override
    async def RemoveSecret(
        self, request: pb.RemoveSecretRequest, context: Context
    ) -> pb.RemoveSecretResponse:
        await self._change(lambda view: files.remove_file(view, Secret, request.secret))
        return pb.RemoveSecretResponse()

    @override
    async def CreateConfig(
        self, request: pb.CreateConfigRequest, context: Context
    ) -> pb.CreateConfigResponse:
        _require_spec(request)
        row = Config(id=new_id(), spec=from_pb(request.spec, ConfigSpec))
        await self._change(lambda view: files.create_file(view, row))
        return pb.CreateConfigResponse(config=self._config(row.id))

    @override
    async def GetConfig(
        self, request: pb.GetConfigRequest, context: Context
    ) -> pb.GetConfigResponse:
        return pb.GetConfigResponse(config=self._config(request.config))

    @override
    async def ListConfigs(
        self, request: pb.ListConfigsRequest, context: Context
    ) -> pb.ListConfigsResponse:
        response = pb.ListConfigsResponse()
        response.next_page_token = page(
            select_files(self._store.view.configs, filters_of(request.filters)),
            size=request.page_size,
            token=request.page_token,
            attach=lambda row: _attach(row, response.configs.add()),
        )
        return response

    @override
    async def UpdateConfig(
        self, request: pb.UpdateConfigRequest, context: Context
    ) -> pb.UpdateConfigResponse:
        _require_spec(request)
        spec, version = from_pb(request.spec, ConfigSpec), request.version.index
        await self._change(
            lambda view: files.update_file(view, Config, request.config, spec, version=version),
            version=version,
        )
        return pb.UpdateConfigResponse(config=self._config(request.config))

    @override
    async def RotateConfig(
        self, request: pb.RotateConfigRequest, context: Context
    ) -> pb.RotateConfigResponse:
        name = await self._rotate(Config, request.config, request.data, request.version.index)
        return pb.RotateConfigResponse(
            config=self._config(name), service_ids=self._followers(Config, name)
        )

    @override
    async def RemoveConfig(
        self, request: pb.RemoveConfigRequest, context: Context
    ) -> pb.RemoveConfigResponse:
        await self._change(lambda view: files.remove_file(view, Config, request.config))
        return pb.RemoveConfigResponse()

    async def _rotate(self, kind: type[FileRow], reference: str, data: bytes, version: int) -> str:
        """Another content; the name."""
        name = files.find(self._store.view, kind, reference).spec.annotations.name
        fresh = new_id()
        await self._change(
            lambda view: rotate_file(view, kind, name, data, version=version, new_id=fresh),
            version=version,
        )
        return name

    def _followers(self, kind: type[FileRow], name: str) -> list[str]:
        return [service.id for service in followers(self._store.view, kind, name)]

    async def _change(self, build: Callable[[View], Sequence[Change]], *, version: int = 0) -> None:
        """Commit; tried again when another change came first, unless the caller named a version."""
        if version:
            await self._store.commit(build(self._store.view))
        else:
            await commit_with_retry(self._store, build)

    def _secret(self, reference: str) -> objects_pb2.Secret:
        row = files.find(self._store.view, Secret, reference)
        return to_pb(files.without_data(row), objects_pb2.Secret)

    def _config(self, reference: str) -> objects_pb2.Config:
        row = files.find(self._store.view, Config, reference)
        return to_pb(row, objects_pb2.Config)


def _require_spec(
    request: pb.CreateSecretRequest
    | pb.UpdateSecretRequest
    | pb.CreateConfigRequest
    | pb.UpdateConfigRequest,
) -> None:
    if not request.HasField("spec"):
        raise InvalidArgument("spec: must be given")


def _attach(row: FileRow, message: Message) -> int:
    fill_pb(files.without_data(row), message)
    return message.ByteSize()
