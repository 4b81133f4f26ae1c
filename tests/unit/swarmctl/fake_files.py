"""The fake daemon's secrets and configs, and what all its servicers have in common."""

from __future__ import annotations

from shoal.api.v1 import control_pb2, objects_pb2
from shoal.errors import SwarmError
from shoal.model.objects import Config, Secret
from shoal.model.specs import ConfigSpec, SecretSpec
from shoal.wire.errors import CODE_KEY, STATUS_BY_CODE
from shoal.wire.objects import from_pb, to_pb
from tests.unit.swarmctl.rows import meta


def answered(method):
    """Errors of the family as the daemons send them."""

    def call(self, request, context):
        with self.state.lock:
            self.state.requests.append(request)
            try:
                return method(self, request, context)
            except SwarmError as error:
                context.set_trailing_metadata(((CODE_KEY, error.code.value),))
                context.abort(STATUS_BY_CODE[error.code], error.message)

    return call


class Servicer:
    def __init__(self, state) -> None:
        self.state = state


class FakeFiles(Servicer):
    @answered
    def CreateSecret(self, request, context):
        return control_pb2.CreateSecretResponse(secret=self._put_file(request, Secret, SecretSpec))

    @answered
    def GetSecret(self, request, context):
        return control_pb2.GetSecretResponse(secret=self._file(Secret, request.secret))

    @answered
    def ListSecrets(self, request, context):
        return control_pb2.ListSecretsResponse(secrets=self._all_files(Secret))

    @answered
    def RemoveSecret(self, request, context):
        del self.state.files[self._file(Secret, request.secret).id]
        return control_pb2.RemoveSecretResponse()

    @answered
    def CreateConfig(self, request, context):
        return control_pb2.CreateConfigResponse(config=self._put_file(request, Config, ConfigSpec))

    @answered
    def GetConfig(self, request, context):
        return control_pb2.GetConfigResponse(config=self._file(Config, request.config))

    @answered
    def ListConfigs(self, request, context):
        return control_pb2.ListConfigsResponse(configs=self._all_files(Config))

    @answered
    def RemoveConfig(self, request, context):
        del self.state.files[self._file(Config, request.config).id]
        return control_pb2.RemoveConfigResponse()

    @answered
    def RotateSecret(self, request, context):
        row, behind = self._rotate(Secret, request.secret, request.data)
        return control_pb2.RotateSecretResponse(secret=row, service_ids=behind)

    @answered
    def RotateConfig(self, request, context):
        row, behind = self._rotate(Config, request.config, request.data)
        return control_pb2.RotateConfigResponse(config=row, service_ids=behind)

    def _rotate(self, kind, reference, data):
        """As managers do, but that services are behind when they name it."""
        old = self.state.files[self._file(kind, reference).id]
        name, index = old.spec.annotations.name, self.state.next_version()
        kept_as = old.spec.annotations.replaced(name=f"{name}@{old.revision or 1}")
        self.state.files[old.id] = old.replaced(spec=old.spec.replaced(annotations=kept_as))
        fresh = old.replaced(
            id=f"file{index:021d}",
            spec=old.spec.replaced(data=data),
            revision=(old.revision or 1) + 1,
        )
        self.state.files[fresh.id] = fresh
        field = "secrets" if kind is Secret else "configs"
        behind = [
            service.id
            for service in self.state.services.values()
            if any(one.name == name for one in getattr(service.spec.task.runtime, field))
        ]
        return self._file(kind, fresh.id), behind

    def _put_file(self, request, kind, spec):
        index = self.state.next_version()
        row = kind(id=f"file{index:021d}", meta=meta(index), spec=from_pb(request.spec, spec))
        self.state.files[row.id] = row
        return self._file(kind, row.id)

    def _file(self, kind, reference):
        """As managers answer: of a secret never the data."""
        of_kind = {key: row for key, row in self.state.files.items() if isinstance(row, kind)}
        noun = kind.__name__.lower()
        row = self.state.find(of_kind, reference, lambda one: one.spec.annotations.name, noun)
        if kind is Secret:
            row = row.replaced(spec=row.spec.replaced(data=b""))
        return to_pb(row, getattr(objects_pb2, kind.__name__))

    def _all_files(self, kind):
        rows = self.state.files.values()
        return [self._file(kind, row.id) for row in rows if isinstance(row, kind)]
