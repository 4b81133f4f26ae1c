"""Rules for secrets and configs, and for services' references to them. Pure; texts are Docker's."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

from manager.controlapi.validate_names import object_labels
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model import templates
from shoal.model.files import FILES_MAX, LIVE_DIRS, FileRow, files_of, live_path, size_max
from shoal.model.objects import Secret
from shoal.model.specs import ContainerSpec
from shoal.model.types import Driver, FileReference

NAME_LENGTH_MAX = 64
ID_MAX = 2**32 - 2
"""Of users and groups; the next one means "unchanged" to the kernel."""
MODE_MAX = 0o777
PATH_LENGTH_MAX = 512

SIGNALS = frozenset(signal.Signals.__members__) - {"SIGKILL", "SIGSTOP"}

_NAME = re.compile(r"[A-Za-z0-9](?:[-_.A-Za-z0-9]*[A-Za-z0-9])?")


def noun_of(kind: type[FileRow]) -> str:
    """What an object of a kind is called in messages: `secret` or `config`."""
    return kind.__name__.lower()


def file_spec(row: FileRow) -> None:
    """Refuse a secret or a config that cannot be kept or delivered as it is written."""
    noun, spec = noun_of(type(row)), row.spec
    if not spec.annotations.name:
        raise InvalidArgument("name must be provided")
    name = spec.annotations.name
    if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name):
        raise InvalidArgument(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end"
            " character must be [a-zA-Z0-9]"
        )
    object_labels(f"{noun} labels", spec.annotations)
    if isinstance(row, Secret) and row.spec.driver is not None and row.spec.driver.name:
        raise Unimplemented(
            f'plugin "{row.spec.driver.name}" not found: this version has no secret drivers, give'
            " the secret its data"
        )
    if not 0 < len(spec.data) < size_max(type(row)):
        limit = size_max(type(row))
        raise InvalidArgument(f"{noun} data must be larger than 0 and less than {limit} bytes")
    if is_template(row):
        templates.parse(text_of(row), functions=True)


def is_template(row: FileRow) -> bool:
    """Whether the content is expanded for each task. Raises: InvalidArgument."""
    driver = row.spec.templating or Driver()
    if driver.name not in {"", templates.GOLANG}:
        raise InvalidArgument(f"template driver: {driver.name!r} must be {templates.GOLANG}")
    if driver.options:
        raise InvalidArgument(f"template driver: option {min(driver.options)!r} is unknown")
    return driver.name == templates.GOLANG


def text_of(row: FileRow) -> str:
    """The content as a template reads it."""
    return row.spec.data.decode("utf-8", "surrogateescape")


def file_references(container: ContainerSpec) -> None:
    """Refuse references to secrets and configs that could not be shown as files."""
    _unique("secret", container.secrets)
    _unique("config", container.configs)
    count = len(container.secrets) + len(container.configs)
    if count > FILES_MAX:
        raise InvalidArgument(f"secrets and configs: {count}, at most {FILES_MAX} for one service")
    taken = {mount.target.rstrip("/"): "a mount" for mount in container.mounts}
    for kind, reference, path in files_of(container):
        _reference(noun_of(kind), reference, path)
        what = f"{noun_of(kind)} {reference.name or reference.id}"
        if path in taken:
            raise InvalidArgument(f"{what}: its target {path} is that of {taken[path]}, too")
        taken[path] = what
    for kind, reference, path in files_of(container):
        inside = next((other for other in taken if other.startswith(f"{path}/")), None)
        if inside is not None:
            raise InvalidArgument(
                f"{noun_of(kind)} {reference.name or reference.id}: its target {path} is a file,"
                f" and so {inside} cannot be below it"
            )
    _rotation(container)


def _rotation(container: ContainerSpec) -> None:
    """Refuse contents that cannot be swapped below a running container as it is asked for."""
    rotation = container.file_rotation
    if rotation is None:
        return
    if rotation.signal and rotation.signal not in SIGNALS:
        raise InvalidArgument(
            f"secret rotation: signal {rotation.signal!r} is none that a program can be sent and"
            " catch: name one as SIGHUP or SIGUSR1"
        )
    below = " or ".join(LIVE_DIRS)
    for kind, reference, path in files_of(container):
        if not live_path(path):
            raise InvalidArgument(
                f"{noun_of(kind)} {reference.name or reference.id}: its target {path} is not below"
                f" {below}, where alone contents change below a running container: give it such a"
                " target, or let the secret rotation be restart"
            )
    for mount in container.mounts:
        if any(f"{mount.target.rstrip('/')}/".startswith(f"{one}/") for one in LIVE_DIRS):
            raise InvalidArgument(
                f"secret rotation: the mount at {mount.target} cannot be below {below}, where the"
                " secrets and configs are"
            )


def _unique(noun: str, references: Iterable[FileReference]) -> None:
    targets: dict[str, str] = {}
    for reference in references:
        if not reference.id and not reference.name:
            raise InvalidArgument(f"malformed {noun} reference")
        if reference.runtime:
            raise Unimplemented(f"{noun} {reference.name}: credential specs exist on Windows only")
        if not reference.target:
            raise InvalidArgument(
                f"malformed file {noun} reference, invalid target file name provided"
            )
        if reference.target in targets:
            raise InvalidArgument(
                f"{noun} references '{targets[reference.target]}' and '{reference.name}' have a"
                f" conflicting target: '{reference.target}'"
            )
        targets[reference.target] = reference.name


def _reference(noun: str, reference: FileReference, path: str) -> None:
    what = f"{noun} {reference.name or reference.id}"
    pieces = path.removeprefix("/").split("/")
    if any(piece in {"", ".", ".."} for piece in pieces) or "\0" in path:
        raise InvalidArgument(
            f"{what}: the target {reference.target!r} must be the path of a file, without '.',"
            " '..' or an empty name in it"
        )
    if len(path) > PATH_LENGTH_MAX:
        raise InvalidArgument(f"{what}: the target has more than {PATH_LENGTH_MAX} characters")
    for field, text in (("uid", reference.uid), ("gid", reference.gid)):
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(ID_MAX))
        if text and not (is_number and int(text) <= ID_MAX):
            raise InvalidArgument(f"{what}: {field} {text!r} must be a number from 0 to {ID_MAX}")
    if reference.mode > MODE_MAX:
        raise InvalidArgument(f"{what}: mode {reference.mode:o} must be from 0 to {MODE_MAX:o}")
