"""A directory in memory, and files in it."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.errors import NotFound
from shoal.model.specs import ContainerSpec, ServiceSpec, StackSpec
from swarmctl.compose.project import Project, Source, load_project, project_spec


class Site:
    """Implements `swarmctl.compose.project.Surroundings`."""

    def __init__(
        self, files: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._files = dict(files or {})
        self.environ = dict(environ or {})

    def read_text(self, path: str) -> str:
        return self.read_bytes(path).decode()

    def read_bytes(self, path: str) -> bytes:
        if path not in self._files:
            raise NotFound(f"{path}: there is no such file")
        return self._files[path].encode()


def load(*texts: str, site: Site | None = None) -> Project:
    sources = [Source(f"{index}.yml", text, "/srv") for index, text in enumerate(texts)]
    return load_project(sources, site or Site())


def spec_of(*texts: str, site: Site | None = None) -> StackSpec:
    return project_spec(load(*texts, site=site), "st", site or Site())


def service_of(keys: str, *, site: Site | None = None, rest: str = "") -> ServiceSpec:
    """The one service of a file, from the lines of its keys."""
    lines = "\n".join(f"    {line}" for line in keys.splitlines())
    text = f"services:\n  web:\n    image: nginx\n{lines}\n{rest}"
    return spec_of(text, site=site).services[0]


def container_of(keys: str, *, site: Site | None = None, rest: str = "") -> ContainerSpec:
    runtime = service_of(keys, site=site, rest=rest).task.runtime
    assert isinstance(runtime, ContainerSpec)
    return runtime
