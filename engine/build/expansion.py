"""Variables in the words of instructions. Pure.

`ADD COPY ENV EXPOSE FROM LABEL STOPSIGNAL USER VOLUME WORKDIR` see the environment of the image so
far and the arguments declared so far, of which the environment wins; `RUN`, `CMD` and `ENTRYPOINT`
are left to the shell that runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from e2b_dockerfile_utils import ShellLex

from engine.build.language import Instruction
from shoal.errors import InvalidArgument

_EXPANDED = frozenset(
    {"ADD", "COPY", "ENV", "EXPOSE", "FROM", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}
)
_SPLIT = frozenset({"EXPOSE"})
"""Whose variables may stand for several words."""


def expand(instruction: Instruction, variables: Mapping[str, str], escape: str) -> Instruction:
    """The instruction with every variable replaced. Raises: InvalidArgument."""
    if instruction.name == "ARG":
        return instruction.replaced(args=tuple(_argument(instruction, variables, escape)))
    if instruction.name not in _EXPANDED or instruction.literal:
        return instruction
    words: list[str] = []
    for arg in instruction.args:
        if instruction.name in _SPLIT:
            words += expand_words(arg, variables, escape)
        else:
            words.append(expand_word(arg, variables, escape))
    flags = {
        name: expand_word(value, variables, escape) for name, value in instruction.flags.items()
    }
    return instruction.replaced(args=tuple(words), flags=flags)


def expand_word(word: str, variables: Mapping[str, str], escape: str) -> str:
    """One word without its quotes. Raises: InvalidArgument."""
    try:
        return ShellLex(escape, env=variables, skip_unset_env=False).process_word(word)
    except ValueError as error:
        raise InvalidArgument(f'failed to process "{word}": {error}') from None


def expand_words(word: str, variables: Mapping[str, str], escape: str) -> list[str]:
    """The words one word becomes. Raises: InvalidArgument."""
    try:
        return ShellLex(escape, env=variables, skip_unset_env=False).process_words(word)
    except ValueError as error:
        raise InvalidArgument(f'failed to process "{word}": {error}') from None


def _argument(instruction: Instruction, variables: Mapping[str, str], escape: str) -> Iterable[str]:
    """`ARG name=default`: the default alone is expanded."""
    for arg in instruction.args:
        name, equals, value = arg.partition("=")
        yield f"{name}={expand_word(value, variables, escape)}" if equals else name
