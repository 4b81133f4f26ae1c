"""A recorded command beside the same one here: what differs, and whether a reason is known."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.conformance.normal import agrees, normal
from tests.conformance.recorded import CUT_AT, ERRORS_CUT_AT, Recorded

TIMEOUT_S = 60.0
SHOWN = 1500


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Difference(msgspec.Struct, frozen=True):
    """One command that behaved otherwise. what: of exit code, stdout, stderr."""

    group: str
    cmd: str
    what: tuple[str, ...]
    expected: str
    found: str


def run(command: str, *, given: str, cwd: Path, environment: Mapping[str, str]) -> Outcome:
    """A line of bash. given: its input."""
    try:
        done = subprocess.run(
            ["bash", "-c", command], cwd=cwd, input=given, text=True, capture_output=True,
            timeout=TIMEOUT_S, check=False, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(-1, "", f"no end after {TIMEOUT_S:.0f} s")
    return Outcome(done.returncode, done.stdout, done.stderr)


def difference(
    group: str, one: Recorded, found: Outcome, clean: Callable[[str], str] = normal
) -> Difference | None:
    """How an outcome differs from the recorded one, if it does."""
    same = {
        "exit code": found.code == one.rc,
        "stdout": agrees(one.stdout, found.out, cut=len(one.stdout) >= CUT_AT, clean=clean),
        "stderr": agrees(one.stderr, found.err, cut=len(one.stderr) >= ERRORS_CUT_AT, clean=clean),
    }
    what = tuple(name for name, agreed in same.items() if not agreed)
    if not what:
        return None

    def shown(code: int | str, out: str, err: str) -> str:
        return f"[{code}]\n{clean(out)}\n--\n{clean(err)}"

    return Difference(group, one.cmd, what, shown(one.rc, one.stdout, one.stderr), shown(*found))


def check(
    found: Iterable[Difference],
    reasons: Mapping[tuple[str, str], str],
    *,
    may_agree: Container[tuple[str, str]] = (),
) -> None:
    """Every difference has its reason, and every reason its difference. Raises AssertionError.

    may_agree: what differs on some machines only.
    """
    found = list(found)
    unexplained = [each for each in found if (each.group, each.cmd) not in reasons]
    assert not unexplained, "\n\n".join(
        f"{each.group}: {each.cmd}: {each.what}\n{each.expected}\n-- here --\n{each.found}"
        for each in unexplained
    )
    differing = {(each.group, each.cmd) for each in found}
    agreeing = sorted(place for place in reasons.keys() - differing if place not in may_agree)
    assert agreeing == [], "these agree now: take them off the list"


def show(found: Iterable[Difference], reasons: Mapping[tuple[str, str], str]) -> int:
    """Print differences side by side; how many have no reason."""
    bad = 0
    for each in found:
        reason = reasons.get((each.group, each.cmd))
        bad += reason is None
        print(f"\n=== {each.group}: {each.cmd[:200]}\n{', '.join(each.what)}: {reason or '?'}")
        print(f"-- recorded\n{each.expected[:SHOWN]}\n-- here\n{each.found[:SHOWN]}")
    return bad
