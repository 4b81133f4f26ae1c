"""`COPY`, `ADD` and `WORKDIR`: trees into the container of a step.

What is copied is known before anything is made, as the hash the cache compares. Everything goes
through `worker.files`: a process of its own reads and writes, and follows no link out of a root.
"""

from __future__ import annotations

from engine.build.language import Instruction, absolute
from shoal.errors import InvalidArgument, NotFound, SwarmError, Unimplemented
from shoal.model.row import Row
from worker.files.jobs import CopyJob, Place, Source
from worker.files.service import Files

_URLS = ("http://", "https://", "git://", "git@", "ftp://")


class Copy(Row, frozen=True):
    """One instruction's work. destination: absolute; with a closing slash for a directory."""

    name: str
    place: Place
    sources: tuple[Source, ...]
    destination: str
    owner: str

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
    files: Files, place: Place, one: Instruction, working_dir: str, *, is_context: bool
) -> Copy:
    """What an instruction will copy. Raises: InvalidArgument, Unimplemented."""
    *wanted, destination = one.args
    for source in wanted:
        if source.startswith(_URLS):
            if one.name == "COPY":
                raise InvalidArgument(f"COPY failed: source can't be a URL for {one.name}")
            raise Unimplemented(
                f"ADD failed: {source}: this node fetches no URL for a build: download it into the"
                " context first"
            )
    try:
        sources = await files.survey(place, wanted, archives=one.name == "ADD")
    except NotFound as error:
        path = error.message.lstrip("/")
        missing = f"stat {path}: file does not exist"
        if is_context:
            missing = f"file not found in build context or excluded by .dockerignore: {missing}"
        raise InvalidArgument(f"{one.name} failed: {missing}") from None
    if not sources:
        raise InvalidArgument(f"{one.name} failed: no source files were specified")
    if len(sources) > 1 and not destination.endswith("/"):
        raise InvalidArgument(
            f"When using {one.name} with more than one source file, the destination must be a"
            " directory and end with a /"
        )
    return Copy(
        name=one.name,
        place=place,
        sources=tuple(sources),
        destination=absolute(destination, working_dir),
        owner=one.flags.get("chown", ""),
    )


async def carry_out(files: Files, copy: Copy, target: Place) -> None:
    """Put everything into a container that does not run. Raises: SwarmError."""
    job = CopyJob(copy.place, copy.sources, target, copy.destination, copy.owner)
    try:
        await files.copy(job)
    except SwarmError as error:
        raise type(error)(f"{copy.name} failed: {error.message}", **error.context) from None


async def make_directory(files: Files, target: Place, path: str) -> bool:
    """Make a directory and those above it, unless it is there. Result: whether it was made."""
    return await files.copy(CopyJob(None, (), target, path))
