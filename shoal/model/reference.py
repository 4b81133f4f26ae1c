"""Image references: what a user types, and the one full form the store keeps.

`web`, `web:latest`, `library/web` and `docker.io/library/web:latest` are the same image. A
`Reference` is always complete (registry and repository are filled in), so two references are equal
exactly when they name the same thing. Refuses everything outside the grammar, with the part that
is wrong; never guesses. Grammar: distribution/reference, as the docker command line applies it.
"""

from __future__ import annotations

import re

import msgspec
from typing_extensions import override

from shoal.errors import InvalidArgument

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
REPOSITORY_LENGTH_MAX = 255
REFERENCE_LENGTH_MAX = 1024

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(
    rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HEX_ID = re.compile(r"[0-9a-f]{64}")
_LEGACY_REGISTRY = "index.docker.io"


class Reference(msgspec.Struct, frozen=True, order=True):
    """A normalised image reference. At least one of `tag` and `digest` may be absent, or both."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @override
    def __str__(self) -> str:
        """The full form, for example `docker.io/library/web:latest`."""
        return f"{self.registry}/{self.repository}{self._suffix()}"

    def familiar(self) -> str:
        """The short form people read, for example `web:latest`."""
        name = f"{self.registry}/{self.repository}"
        if self.registry == DEFAULT_REGISTRY:
            name = self.repository
            bare = name.removeprefix("library/")
            name = bare if "/" not in bare else name
            first, slash, _ = name.partition("/")
            if _HEX_ID.fullmatch(name) or (slash and _looks_like_host(first)):
                name = f"{self.registry}/{self.repository}"  # shorter, it would mean another
        return name + self._suffix()

    def with_default_tag(self) -> Reference:
        """This reference with tag `latest` where it has neither tag nor digest."""
        if self.tag is not None or self.digest is not None:
            return self
        return Reference(registry=self.registry, repository=self.repository, tag=DEFAULT_TAG)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return tag + (f"@{self.digest}" if self.digest is not None else "")


def parse_reference(text: str) -> Reference:
    """Parse what a user typed. A missing tag stays missing: see `Reference.with_default_tag`.

    Raises InvalidArgument naming the part that breaks the grammar.
    """
    if not text:
        raise InvalidArgument("image reference is empty: give a name such as web or web:1.0")
    if len(text) > REFERENCE_LENGTH_MAX:
        raise InvalidArgument(f"image reference is longer than {REFERENCE_LENGTH_MAX} characters")
    if _HEX_ID.fullmatch(text):
        raise InvalidArgument(
            f"image reference {text!r} is 64 hexadecimal digits, which is reserved for image ids"
        )
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _broken(text, f"digest {digest!r} is not sha256:<64 hexadecimal digits>")
    name, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _broken(
            text,
            f"tag {tag!r} must be 1 to 128 of letters, digits, '_', '.', '-'"
            " and must not begin with '.' or '-'",
        )
    registry, repository = _split_registry(name)
    _check_registry(text, registry)
    _check_repository(text, registry, repository)
    return Reference(
        registry=registry, repository=repository, tag=tag, digest=digest if at else None
    )


def _split_tag(rest: str) -> tuple[str, str | None]:
    """Cut the tag off: a colon after the last slash (one before it belongs to a port)."""
    head, slash, last = rest.rpartition("/")
    leaf, colon, tag = last.partition(":")
    return head + slash + leaf, tag if colon else None


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not _looks_like_host(first):
        first, rest = DEFAULT_REGISTRY, name
    elif first == _LEGACY_REGISTRY:
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _looks_like_host(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost" or first != first.lower()


def _check_registry(text: str, registry: str) -> None:
    if not _REGISTRY.fullmatch(registry):
        raise _broken(text, f"registry {registry!r} is not host, host:port or [ipv6]:port")


def _check_repository(text: str, registry: str, repository: str) -> None:
    for component in repository.split("/"):
        if _COMPONENT.fullmatch(component):
            continue
        if component and _COMPONENT.fullmatch(component.lower()):
            raise _broken(text, f"repository name component {component!r} must be lower case")
        raise _broken(
            text,
            f"repository name component {component!r} must be lower-case letters and digits,"
            " separated by one '.', one or two '_', or '-'",
        )
    if len(registry) + 1 + len(repository) > REPOSITORY_LENGTH_MAX:
        raise _broken(text, f"repository name is longer than {REPOSITORY_LENGTH_MAX} characters")


def _broken(text: str, rule: str) -> InvalidArgument:
    return InvalidArgument(f"invalid image reference {text!r}: {rule}")
