"""`COPY`, `ADD` and `WORKDIR`: trees into the container of a step.

What is copied is known before anything is made, as the hash the cache compares. Everything goes
through `worker.files`: a process of its own reads and writes, and follows no link out of a root.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from urllib.parse import unquote, urlsplit

from engine.build.language import Instruction, absolute
from shoal.errors import InvalidArgument, NotFound, SwarmError, Unimplemented
from shoal.model.row import Row
from worker.files.jobs import CopyJob, Place, Source
from worker.files.service import Files

_UNNAMED = "__unnamed__"
_NAME_MAX = 120
_FETCHED = ("http://", "https://")
_URLS = (*_FETCHED, "git://", "git@", "ftp://")
Fetch = Callable[[str, str], Awaitable[Place]]
"""From a URL and a name to a directory where the file of that name is what the URL leads to."""


class Part(Row, frozen=True):
    """Sources of one tree."""

    place: Place
    sources: tuple[Source, ...]


class Copy(Row, frozen=True):
    """One instruction's work. destination: absolute; with a closing slash for a directory."""

    name: str
    parts: tuple[Part, ...]
    destination: str
    owner: str

    @property
    def sources(self) -> list[Source]:
        """All of them, in order."""
        return [source for part in self.parts for source in part.sources]

    def summary(self) -> str:
        """As the history shows it; equal for equal content."""
        digests = ",".join(source.digest for source in self.sources)
        if len(self.sources) > 1:
            kind = "multi"
        else:
            kind = "dir" if self.sources[0].is_directory else "file"
        owner = f"--chown={self.owner} " if self.owner else ""
        return f"{self.name} {owner}{kind}:{digests} in {self.destination} "


async def survey(
    files: Files,
    place: Place,
    one: Instruction,
    working_dir: str,
    *,
    is_context: bool,
    fetch: Fetch,
) -> Copy:
    """What an instruction will copy; what is on the web is fetched.

    Raises: InvalidArgument, Unimplemented, and why something could not be fetched.
    """
    *wanted, destination = one.args
    _check_urls(one, wanted)
    parts: list[Part] = []
    for is_fetched, group in groupby(wanted, lambda source: source.startswith(_FETCHED)):
        if is_fetched:
            parts += [await _fetched(files, url, destination, fetch) for url in group]
        else:
            local = await _local(files, place, one, [*group], is_context=is_context)
            parts.append(Part(place, tuple(local)))
    sources = [source for part in parts for source in part.sources]
    if not sources:
        raise InvalidArgument(f"{one.name} failed: no source files were specified")
    if len(sources) > 1 and not destination.endswith("/"):
        raise InvalidArgument(
            f"When using {one.name} with more than one source file, the destination must be a"
            " directory and end with a /"
        )
    return Copy(
        name=one.name,
        parts=tuple(parts),
        destination=absolute(destination, working_dir),
        owner=one.flags.get("chown", ""),
    )


def _check_urls(one: Instruction, wanted: Sequence[str]) -> None:
    for source in wanted:
        if source.startswith(_URLS) and one.name == "COPY":
            raise InvalidArgument(f"COPY failed: source can't be a URL for {one.name}")
        if source.startswith(_URLS) and not source.startswith(_FETCHED):
            raise Unimplemented(
                f"ADD failed: {source}: only http:// and https:// are fetched for a build: bring it"
                " into the context first"
            )


async def _local(
    files: Files, place: Place, one: Instruction, wanted: Sequence[str], *, is_context: bool
) -> Sequence[Source]:
    try:
        return await files.survey(place, wanted, archives=one.name == "ADD")
    except NotFound as error:
        path = error.message.lstrip("/")
        missing = f"stat {path}: file does not exist"
        if is_context:
            missing = f"file not found in build context or excluded by .dockerignore: {missing}"
        raise InvalidArgument(f"{one.name} failed: {missing}") from None


async def _fetched(files: Files, url: str, destination: str, fetch: Fetch) -> Part:
    """Nothing that was fetched is unpacked, as in Docker."""
    try:
        name = name_of(url)
        if not name and destination.endswith("/"):
            raise InvalidArgument(f"cannot determine filename from url: {url}")
        place = await fetch(url, name or _UNNAMED)
        found = await files.survey(place, [_as_pattern(name or _UNNAMED)])
    except SwarmError as error:
        raise type(error)(f"ADD failed: {error.message}", **error.context) from None
    return Part(place, tuple(found))


def name_of(url: str) -> str:
    """The file's name, the last part of the URL's path; "" when it has none that could be one."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    return "" if name in {"", ".", ".."} or "\0" in name or len(name) > _NAME_MAX else name


def _as_pattern(name: str) -> str:
    """A name as a pattern that stands for itself."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", name)


async def carry_out(files: Files, copy: Copy, target: Place) -> None:
    """Put everything into a container that does not run. Raises: SwarmError."""
    try:
        for part in copy.parts:
            job = CopyJob(part.place, part.sources, target, copy.destination, copy.owner)
            await files.copy(job)
    except SwarmError as error:
        raise type(error)(f"{copy.name} failed: {error.message}", **error.context) from None


async def make_directory(files: Files, target: Place, path: str) -> bool:
    """Make a directory and those above it, unless it is there. Result: whether it was made."""
    return await files.copy(CopyJob(None, (), target, path))
