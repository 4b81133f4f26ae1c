"""Credentials that nodes fetch a service's image with: from a header into its spec. Pure."""

from __future__ import annotations

from shoal.errors import InvalidArgument
from shoal.model.objects import Service
from shoal.model.specs import ContainerSpec, PullOptions, ServiceSpec

_SPEC, _PREVIOUS = "spec", "previous-spec"


def with_auth(spec: ServiceSpec, auth: str) -> ServiceSpec:
    """The spec with these credentials; without any when there are none."""
    if not isinstance(spec.task.runtime, ContainerSpec):
        return spec
    options = PullOptions(registry_auth=auth) if auth else None
    container = spec.task.runtime.replaced(pull_options=options)
    return spec.replaced(task=spec.task.replaced(runtime=container))


def auth_of(service: Service, source: str) -> str:
    """Credentials that the service has, by the source that an update without its own names.

    Raises: InvalidArgument for another source, or a previous spec that is not there.
    """
    if source not in ("", _SPEC, _PREVIOUS):
        raise InvalidArgument(
            f"unsupported registryAuthFrom value {source!r}: use {_SPEC} or {_PREVIOUS}"
        )
    spec: ServiceSpec | None = service.spec
    if source == _PREVIOUS:
        spec = service.previous_spec
        if spec is None:
            raise InvalidArgument(f"service {service.id} does not have a previous spec")
    if spec is None or not isinstance(spec.task.runtime, ContainerSpec):
        return ""
    options = spec.task.runtime.pull_options
    return "" if options is None else options.registry_auth
