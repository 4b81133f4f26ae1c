"""Check what no linter does: sizes of files and functions, and leftovers without an issue.

Limits: 600 lines a file, 70 a function, counted as written. Exceptions stand in tidy_allow.txt,
each with a limit, a date and a reason; one that is not needed any more is an error too.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "shoal", "manager", "worker", "engine", "swarmd", "swarmctl", "tests", "tools", "bench",
)  # fmt: skip
GENERATED = ("shoal/api/", "shoal/etcd/")
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
_LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))")


class Size(NamedTuple):
    """Something measured: `path` or `path:function`, where it starts, and its lines."""

    name: str
    place: str
    lines: int
    limit: int


class Exemption(NamedTuple):
    """A line of the list of exceptions."""

    name: str
    limit: int
    day: date
    reason: str


def check(root: Path, allow_text: str) -> list[str]:
    """Every problem below `root` as one line each; allow_text: the list of exceptions."""
    exemptions = {each.name: each for each in parse_exemptions(allow_text)}
    problems: list[str] = []
    needed: set[str] = set()
    for path in sources(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text()
        problems += leftovers(name, text)
        for size in sizes(name, text):
            if size.lines <= size.limit:
                continue
            needed.add(size.name)
            known = exemptions.get(size.name)
            limit = known.limit if known else size.limit
            if size.lines > limit:
                problems.append(
                    f"{size.place}: {size.name} has {size.lines} lines, {limit} allowed"
                )
    stale = sorted(set(exemptions) - needed)
    return problems + [
        f"tools/tidy_allow.txt: {name} needs no exception any more" for name in stale
    ]


def sources(root: Path) -> Iterator[Path]:
    """The Python files that people write."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if not path.relative_to(root).as_posix().startswith(GENERATED):
                yield path


def sizes(name: str, text: str) -> Iterator[Size]:
    """The file and each of its functions."""
    yield Size(name, name, len(text.splitlines()), FILE_LINES_MAX)
    for node in ast.walk(ast.parse(text, filename=name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            place = f"{name}:{node.lineno}"
            yield Size(f"{name}:{node.name}", place, lines, FUNCTION_LINES_MAX)


def leftovers(name: str, text: str) -> list[str]:
    """Comments that promise work without naming its issue."""
    return [
        f"{name}:{token.start[0]}: {found[1]} without an issue; write {found[1]}(#number)"
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and (found := _LEFTOVER.search(token.string))
    ]


def parse_exemptions(text: str) -> Iterator[Exemption]:
    """Read `name limit day reason...` lines; empty ones and comments are skipped.

    Raises: ValueError naming the line.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, limit, day, reason = line.split(maxsplit=3)
            yield Exemption(name, int(limit), date.fromisoformat(day), reason)
        except ValueError as error:
            raise ValueError(
                f"tools/tidy_allow.txt:{number}: write NAME LIMIT YYYY-MM-DD REASON ({error})"
            ) from error


def main() -> None:
    """Print the problems; exit with 1 when there are any."""
    problems = check(ROOT, (ROOT / "tools/tidy_allow.txt").read_text())
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
