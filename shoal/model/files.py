"""Secrets and configs as files of a container: where they are, and how large they may be. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.model.objects import Config, Secret
from shoal.model.specs import ContainerSpec
from shoal.model.types import FileReference

SECRETS_DIR = "/run/secrets"
LIVE_DIRS = (SECRETS_DIR, "/run/configs")
"""Where files may be whose content changes below a running container: directories of ours, for a
file that is mounted by itself stays what it was, whatever is put in its place."""
SECRET_BYTES_MAX = 512_000
"""A secret has fewer bytes, and at least one."""
CONFIG_BYTES_MAX = 1_024_000
FILES_MAX = 256
"""Secrets and configs of one container."""
FILES_BYTES_MAX = 16 << 20
"""All secrets and configs of one container together: a node keeps them in memory."""
FILE_MODE = 0o444
FORMER_MARK = "@"
"""Between a name and the revision of a former content; users' names cannot hold it."""

FileRow = Secret | Config


def secret_path(reference: FileReference) -> str:
    """Where a secret is in its container."""
    return _below(SECRETS_DIR, reference.target)


def config_path(reference: FileReference) -> str:
    """Where a config is in its container."""
    return _below("", reference.target)


def files_of(container: ContainerSpec) -> Iterator[tuple[type[FileRow], FileReference, str]]:
    """Every secret and config of a container, with its kind and its path there."""
    for reference in container.secrets:
        yield Secret, reference, secret_path(reference)
    for reference in container.configs:
        yield Config, reference, config_path(reference)


def size_max(kind: type[FileRow]) -> int:
    """Bytes that are too many for one object of a kind."""
    return SECRET_BYTES_MAX if kind is Secret else CONFIG_BYTES_MAX


def is_former(row: FileRow) -> bool:
    """Whether another content has taken its name over."""
    return FORMER_MARK in row.spec.annotations.name


def revision_of(row: FileRow) -> int:
    """Which content of its name it is, from 1 on."""
    return row.revision or 1


def _below(directory: str, target: str) -> str:
    return target if target.startswith("/") else f"{directory}/{target}"


def live_path(path: str) -> str:
    """Where below the directories of a live container's files a path is; "" for any other path."""
    for directory in LIVE_DIRS:
        if path.startswith(f"{directory}/"):
            return path.removeprefix("/run/")
    return ""


def swapped(old: ContainerSpec, new: ContainerSpec) -> ContainerSpec:
    """The old container with the new one's contents, if both are live and show the same files."""
    if new.file_rotation is None or old.file_rotation is None:
        return old
    if _places(old) != _places(new):
        return old
    return old.replaced(secrets=new.secrets, configs=new.configs, file_rotation=new.file_rotation)


def file_ids(container: ContainerSpec) -> tuple[str, ...]:
    """Which contents a container is to have, in the order of its files."""
    return tuple(reference.id for _, reference, _ in files_of(container))


def _places(container: ContainerSpec) -> list[tuple[type[FileRow], FileReference]]:
    """Its files without their contents."""
    return [(kind, one.replaced(id="", name="")) for kind, one, _ in files_of(container)]
