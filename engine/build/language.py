"""The text of a Dockerfile as stages of instructions. Pure.

Lines, words, flags and here-documents are the parser library's; which instructions may stand where,
how many arguments they take, and what Docker says otherwise, is decided here, so that a build that
cannot succeed is refused before it begins.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from e2b_dockerfile_utils import (
    DockerfileInstruction,
    DockerfileSyntaxError,
    parse_dockerfile_ast,
)

from shoal.errors import InvalidArgument
from shoal.model.row import Row

TEXT_BYTES_MAX = 4 << 20
INSTRUCTIONS_MAX = 1000
"""Far more than an image may have layers."""

_FLAGS: Mapping[str, frozenset[str]] = {
    "FROM": frozenset({"platform"}),
    "COPY": frozenset({"from", "chown"}),
    "ADD": frozenset({"chown"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
}
_BUILDKIT_FLAGS: Mapping[str, frozenset[str]] = {
    "RUN": frozenset({"mount", "network", "security", "device"}),
    "COPY": frozenset({"chmod", "link", "parents", "exclude"}),
    "ADD": frozenset({"chmod", "link", "checksum", "keep-git-dir", "exclude", "unpack"}),
}
_ONE = frozenset({"MAINTAINER", "STOPSIGNAL", "USER", "WORKDIR"})
_SOME = frozenset({"ARG", "ENV", "EXPOSE", "LABEL", "ONBUILD", "RUN", "SHELL", "VOLUME"})
_NEVER_TRIGGERED = frozenset({"ONBUILD", "FROM", "MAINTAINER"})


class Heredoc(Row, frozen=True):
    """A here-document. expands: its text has variables."""

    name: str
    content: str
    expands: bool


class Instruction(Row, frozen=True):
    """One instruction. text: as the output shows it. args: of `ENV`, `LABEL`: names and values.

    json: the arguments were an array. heredocs: of `RUN` alone. literal: nothing is a variable.
    """

    name: str
    text: str
    line: int
    args: tuple[str, ...] = ()
    flags: Mapping[str, str] = {}
    json: bool = False
    heredocs: tuple[Heredoc, ...] = ()
    literal: bool = False

    @property
    def rest(self) -> str:
        """What follows the keyword, as it was written."""
        return self.text.partition(" ")[2].strip()


class Stage(Row, frozen=True):
    """`FROM` and what follows it. name: in lower case, or ""."""

    start: Instruction
    base: str
    name: str
    platform: str
    steps: tuple[Instruction, ...]


class Dockerfile(Row, frozen=True):
    """A whole file. metas: `ARG` before the first stage, with defaults, if any."""

    metas: tuple[tuple[str, str | None], ...]
    stages: tuple[Stage, ...]
    escape: str = "\\"

    def until(self, target: str) -> tuple[Stage, ...]:
        """The stages that lead to a target, by name or number; "": all. Raises: InvalidArgument."""
        if not target:
            return self.stages
        at = find_stage(self.stages, target)
        if at is None:
            raise InvalidArgument(f"failed to reach build target {target} in Dockerfile")
        return self.stages[: at + 1]


def find_stage(stages: Sequence[Stage], ref: str) -> int | None:
    """The last stage of that name, or the one of that number."""
    for at in reversed(range(len(stages))):
        if stages[at].name and stages[at].name == ref.lower():
            return at
    if ref.isascii() and ref.isdecimal() and len(ref) < 5 and int(ref) < len(stages):
        return int(ref)
    return None


def parse_dockerfile(content: bytes, name: str = "Dockerfile") -> Dockerfile:
    """Raises: InvalidArgument with Docker's words."""
    if len(content) > TEXT_BYTES_MAX:
        raise InvalidArgument(f"{name}: larger than {TEXT_BYTES_MAX >> 20} MiB")
    instructions, escape = _instructions(content.decode("utf-8", "surrogateescape"), name)
    metas: list[tuple[str, str | None]] = []
    at = 0
    while at < len(instructions) and instructions[at].name == "ARG":
        metas += arguments_of(instructions[at])
        at += 1
    if at == len(instructions) or instructions[at].name != "FROM":
        raise InvalidArgument("no build stage in current context")
    stages: list[Stage] = []
    while at < len(instructions):
        end = at + 1
        while end < len(instructions) and instructions[end].name != "FROM":
            end += 1
        stages.append(_stage(instructions[at], instructions[at + 1 : end]))
        at = end
    return Dockerfile(tuple(metas), tuple(stages), escape)


def parse_trigger(text: str) -> Instruction:
    """One instruction of a base image's `ONBUILD`. Raises: InvalidArgument."""
    found, _ = _instructions(text, "ONBUILD")
    if len(found) != 1 or found[0].name in _NEVER_TRIGGERED:
        raise InvalidArgument(f"ONBUILD {text!r} of the base image is not one instruction")
    return found[0]


def arguments_of(instruction: Instruction) -> list[tuple[str, str | None]]:
    """Names and defaults an `ARG` declares. Raises: InvalidArgument."""
    found: list[tuple[str, str | None]] = []
    for word in instruction.args:
        name, equals, value = word.partition("=")
        if not name:
            raise _error(instruction.line, "ARG names can not be blank")
        found.append((name, value if equals else None))
    return found


def _instructions(text: str, name: str) -> tuple[list[Instruction], str]:
    try:
        ast = parse_dockerfile_ast(text)
    except DockerfileSyntaxError as error:
        said = str(error).partition(": ")[2]
        raise _error(error.line or 1, said) from None
    except ValueError as error:
        raise InvalidArgument(f"dockerfile parse error: {error}") from None
    if not ast.instructions:
        raise InvalidArgument(f"the Dockerfile ({name}) cannot be empty")
    if len(ast.instructions) > INSTRUCTIONS_MAX:
        raise InvalidArgument(f"{name}: more than {INSTRUCTIONS_MAX} instructions")
    return [_instruction(found) for found in ast.instructions], ast.escape_token


def _instruction(found: DockerfileInstruction) -> Instruction:
    args = tuple(found.args)
    if found.name in ("ENV", "LABEL"):
        args = tuple(arg for number, arg in enumerate(args) if number % 3 != 2)
    keyword, _, rest = found.original.strip().partition(" ")
    instruction = Instruction(
        name=found.name,
        text=f"{keyword.upper()} {rest.strip()}".strip(),
        line=found.start_line,
        args=args,
        flags=_flags(found),
        json=found.json,
        heredocs=tuple(
            Heredoc(one.name, _chomped(one.content) if one.chomp else one.content, one.expand)
            for one in found.heredocs
        ),
    )
    _check(instruction)
    return instruction


def _chomped(content: str) -> str:
    return "".join(line.lstrip("\t") for line in content.splitlines(keepends=True))


def _flags(found: DockerfileInstruction) -> dict[str, str]:
    flags: dict[str, str] = {}
    known = _FLAGS.get(found.name, frozenset())
    for flag in found.flags:
        name, equals, value = flag.removeprefix("--").partition("=")
        if name in _BUILDKIT_FLAGS.get(found.name, ()):
            raise InvalidArgument(
                f"the --{name} option requires BuildKit. Refer to"
                " https://docs.docker.com/go/buildkit/ to learn how to build images with BuildKit"
                " enabled"
            )
        if name not in known:
            raise _error(found.start_line, f"unknown flag: --{name}")
        if name in flags:
            raise _error(found.start_line, f"duplicate flag specified: {name}")
        if not equals:
            raise _error(found.start_line, f"missing a value on flag: {name}")
        flags[name] = value
    return flags


def _check(one: Instruction) -> None:
    """How many arguments it takes."""
    count = len(one.args)
    if one.name == "ONBUILD":
        _check_trigger(one)
    elif one.name in _SOME and (not count or not one.args[0]):
        raise _error(one.line, f"{one.name} requires at least one argument")
    elif one.name in _ONE and (count != 1 or not one.args[0].strip()):
        raise _error(one.line, f"{one.name} requires exactly one argument")
    elif one.name in ("COPY", "ADD"):
        if one.heredocs:
            raise _error(one.line, f"{one.name} of here-documents requires BuildKit")
        if count < 2:
            given = "only one was provided" if count else "none was provided"
            raise _error(
                one.line,
                f"{one.name} requires at least two arguments, but {given}."
                " Destination could not be determined",
            )
    elif one.name == "SHELL" and not one.json:
        raise _error(one.line, "SHELL requires the arguments to be in JSON form")
    elif one.name == "HEALTHCHECK" and not count:
        raise _error(one.line, "HEALTHCHECK requires at least one argument")


def _check_trigger(one: Instruction) -> None:
    keyword = one.rest.partition(" ")[0].upper()
    if not keyword:
        raise _error(one.line, "ONBUILD requires at least one argument")
    if keyword == "ONBUILD":
        raise _error(one.line, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if keyword in _NEVER_TRIGGERED:
        raise _error(one.line, f"{keyword} isn't allowed as an ONBUILD trigger")
    try:
        parse_trigger(one.rest)
    except InvalidArgument as error:
        raise _error(one.line, error.message) from None


def _stage(start: Instruction, steps: list[Instruction]) -> Stage:
    args = start.args
    named = len(args) == 3 and args[1].upper() == "AS"
    if len(args) != 1 and not named:
        raise _error(start.line, "FROM requires either one or three arguments")
    name = args[2].lower() if named else ""
    if named and not _is_stage_name(name):
        raise _error(
            start.line,
            f'invalid name for build stage: "{args[2]}", name can\'t start with a number or contain'
            " symbols",
        )
    return Stage(
        start=start,
        base=args[0],
        name=name,
        platform=start.flags.get("platform", ""),
        steps=tuple(steps),
    )


def _is_stage_name(name: str) -> bool:
    return name[:1].isalpha() and all(char.isalnum() or char in "-_." for char in name)


def _error(line: int, text: str) -> InvalidArgument:
    return InvalidArgument(f"dockerfile parse error line {line}: {text}")


def absolute(path: str, working_dir: str) -> str:
    """A path of an image as an instruction means it; a closing slash stays."""
    joined = posixpath.normpath(posixpath.join("/", working_dir or "/", path))
    clean = "/" + joined.lstrip("/")
    is_directory = path.endswith("/") or posixpath.basename(path) in (".", "..")
    return clean if not is_directory or clean == "/" else f"{clean}/"
