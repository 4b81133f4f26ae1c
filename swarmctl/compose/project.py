"""From the texts of Compose files to one project, and to the spec of its stack.

Reads through `Surroundings` only, so that everything here is a function of what comes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import yaml
from typing_extensions import override

from shoal.errors import InvalidArgument
from shoal.model.specs import StackSpec
from swarmctl.compose.convert import stack_spec
from swarmctl.compose.interpolate import SECTIONS, interpolate
from swarmctl.compose.merge import merged
from swarmctl.compose.normal import Ground, normalised
from swarmctl.compose.schema import check_keys, ignored
from swarmctl.compose.tree import Document, Places, read_document

FILES_MAX = 16


class Surroundings(Protocol):
    """What a project may look up outside its files."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables of the caller."""
        ...

    def read_text(self, path: str) -> str:
        """A file as text. Raises: NotFound, InvalidArgument."""
        ...

    def read_bytes(self, path: str) -> bytes:
        """A file. Raises: NotFound, InvalidArgument."""
        ...


class Source(NamedTuple):
    """A Compose file: what it is called in errors, its text, and the directory it stands in."""

    name: str
    text: str
    directory: str


class Project(NamedTuple):
    """All files as one, in long forms, and what there is to say about them."""

    document: Document
    warnings: tuple[str, ...]
    is_filled: bool = True
    """Its variables are replaced."""

    @property
    def name(self) -> str:
        """The name that the files give the stack; "" for none."""
        return str(self.document.value.get("name") or "")


def load_project(
    sources: Sequence[Source], surroundings: Surroundings, *, variables: bool = True
) -> Project:
    """Read the files and lay them over each other.

    variables: False leaves them as they are written. Raises: InvalidArgument with the line.
    """
    if not sources:
        raise InvalidArgument("specify a Compose file (with --compose-file)")
    if len(sources) > FILES_MAX:
        raise InvalidArgument(f"{len(sources)} Compose files, at most {FILES_MAX}")
    warnings: list[str] = []
    result: Document | None = None
    for source in sources:
        document = read_document(source.text, source.name)
        if variables:
            document = interpolate(document, surroundings.environ, warnings.append)
        check_keys(document)
        ground = Ground(source.directory, surroundings.environ, surroundings.read_text)
        document = normalised(document, ground)
        result = document if result is None else merged(result, document)
    if result is None:
        return Project(Document({}, Places()), ())
    warnings += ignored(result.value["services"].values())
    return Project(result, tuple(dict.fromkeys(warnings)), is_filled=variables)


def project_text(project: Project) -> str:
    """The project as one Compose file, which reads back as it is: `$` is written `$$`."""
    value = {
        key: _escaped(one) if project.is_filled and key in SECTIONS else one
        for key, one in project.document.value.items()
        if one not in ({}, None)
    }
    return yaml.dump(value, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=100)


def project_spec(project: Project, name: str, surroundings: Surroundings) -> StackSpec:
    """The spec of the project's stack. Raises: InvalidArgument with the line."""
    return stack_spec(
        project.document,
        name,
        surroundings.environ,
        surroundings.read_bytes,
        project_text(project),
    )


def directory_of(path: str, working: str) -> str:
    """The directory that relative paths of a file start from."""
    return str((PurePosixPath(working) / path).parent)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """Without anchors: what is the same twice is written twice."""

    @override
    def ignore_aliases(self, data: Any) -> bool:
        return True
