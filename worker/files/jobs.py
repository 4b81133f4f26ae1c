"""What is asked of the process that works inside a container's root, and what it answers.

One job per process, given as one JSON argument. A tar comes on standard input or goes to standard
output; answers are JSON documents, one a line, on the descriptor `answers_fd`: for a reading first
`Found`, and last always `Done` or `Failed`.
"""

from __future__ import annotations

import msgspec

from shoal.errors import ERROR_BY_CODE, Code, Internal, SwarmError


class Bind(msgspec.Struct, frozen=True):
    """Something of the host that is seen at `target` inside."""

    target: str
    source: str
    read_only: bool = False
    recursive: bool = True


class LivePlace(msgspec.Struct, frozen=True, tag="live"):
    """The root of a container that runs, and of its mounts those at `targets`.

    namespace_fd: its mount namespace, passed to the process.
    """

    namespace_fd: int
    targets: tuple[str, ...] = ()
    directory: str = ""
    """Where the runtime keeps it: its root is shown there, to this process alone."""


class RestPlace(msgspec.Struct, frozen=True, tag="rest"):
    """The root of a container that does not run, laid out for this process alone.

    directory: where the runtime keeps it. Only one at a time may use a container so, and the
    container must not be started meanwhile: two overlays would write to one directory.
    """

    directory: str
    layers: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    read_only: bool = False


class TreePlace(msgspec.Struct, frozen=True, tag="tree"):
    """A directory of the node's own that stands for a root: a build's context."""

    directory: str


Place = LivePlace | RestPlace | TreePlace


class StatJob(msgspec.Struct, frozen=True, tag="stat"):
    """What is at `path`?"""

    place: Place
    path: str


class ReadJob(msgspec.Struct, frozen=True, tag="read"):
    """`path` and all below it as a tar. content_only: of a directory only what is in it."""

    place: Place
    path: str
    content_only: bool = False


class WriteJob(msgspec.Struct, frozen=True, tag="write"):
    """Unpack a tar, packed in any way, into the directory `path`.

    keep_kinds: refuse to put a directory where something else is, and the other way round. owner:
    `user[:group]` everything is given to, names being those of the container; "": as the tar says.
    """

    place: Place
    path: str
    keep_kinds: bool = False
    owner: str = ""


class ChangesJob(msgspec.Struct, frozen=True, tag="changes"):
    """What a container has changed: its upper directory against the layers, topmost first."""

    upper: str
    layers: tuple[str, ...]


class SurveyJob(msgspec.Struct, frozen=True, tag="survey"):
    """What paths and patterns of a copy stand for. archives: which of the files are tars?"""

    place: Place
    wanted: tuple[str, ...]
    archives: bool = False


class Source(msgspec.Struct, frozen=True):
    """One source of a copy. digest: of names, modes and content, in hexadecimal."""

    path: str
    is_directory: bool
    is_archive: bool
    digest: str


class CopyJob(msgspec.Struct, frozen=True, tag="copy"):
    """Sources of one tree into another; without any, the directory `destination` alone.

    destination: absolute; with a closing slash for a directory. owner: as in `WriteJob`; "": root,
    but of what is unpacked as the archive says.
    """

    place: Place | None
    sources: tuple[Source, ...]
    target: Place
    destination: str
    owner: str = ""


Job = StatJob | ReadJob | WriteJob | ChangesJob | SurveyJob | CopyJob


class Found(msgspec.Struct, frozen=True, tag="found"):
    """What is at a path. mode: as `os.stat` has it. link: where a symbolic link leads inside."""

    name: str
    size: int
    mode: int
    mtime_ns: int
    link: str = ""


class Changed(msgspec.Struct, frozen=True, tag="changed"):
    """Some changes, in order: paths that were modified, added (`A`) or deleted (`D`)."""

    changes: list[tuple[str, str]]


class Surveyed(msgspec.Struct, frozen=True, tag="surveyed"):
    """Some sources, in order."""

    sources: list[Source]


class Copied(msgspec.Struct, frozen=True, tag="copied"):
    """All is in its place. made: whether there was something to do."""

    made: bool


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The job was done."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The job was refused, or could not be done."""

    code: str
    message: str

    def error(self) -> SwarmError:
        """The error the caller sees."""
        try:
            return ERROR_BY_CODE[Code(self.code)](self.message)
        except ValueError:
            return Internal(self.message)


Answer = Found | Changed | Surveyed | Copied | Done | Failed

encode_job = msgspec.json.Encoder().encode
decode_job = msgspec.json.Decoder(Job).decode
encode_answer = msgspec.json.Encoder().encode
decode_answer = msgspec.json.Decoder(Answer).decode
