"""What checks of flags stand on: containers that many flags share, and functions for one flag."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.networked import NetworkedNode
from tests.integration.engine.seeded import ok, until

NONE = ("--network", "none")
_END = "== end"


class Seen(NamedTuple):
    """What a program finds because of one flag. shell: said inside; shown: what it must print."""

    world: str
    options: tuple[str, ...]
    shell: str
    shown: str


class World:
    """A container with the options of many flags; started at its first use, then it stays."""

    def __init__(
        self, node: EngineNode, name: str, cases: dict[str, Seen], common: Iterable[str]
    ) -> None:
        self.node = node
        self.name = name
        self._cases = cases
        self._common = tuple(common)
        self._said: dict[str, str] | None = None

    def said(self, flag: str) -> str:
        """What the program printed for a flag."""
        if self._said is None:
            self._said = {}  # it is tried once
            self._said = self._run()
        return self._said[flag]

    def _run(self) -> dict[str, str]:
        options = [word for case in self._cases.values() for word in case.options]
        script = "\n".join(
            f"echo '== {flag}'; {{ {case.shell}; }} 2>&1" for flag, case in self._cases.items()
        )
        script += f"\necho '{_END}'; exec sleep 600"
        ok(self.node, "run", "-d", "--name", self.name, *self._common, *options, "busybox",
           "sh", "-c", script)  # fmt: skip
        until(lambda: _END in self._log())
        said: dict[str, str] = {}
        for piece in self._log().split("== ")[1:]:
            flag, _, text = piece.partition("\n")
            said[flag] = text.strip()
        return said

    def _log(self) -> str:
        ran = self.node.docker("logs", self.name)
        assert ran.code == 0, ran
        return ran.out + ran.err


class Worlds:
    """All of them on one node."""

    def __init__(
        self, node: EngineNode, cases: dict[str, Seen], common: dict[str, tuple[str, ...]]
    ) -> None:
        self._worlds = {
            name: World(
                node, name, {flag: one for flag, one in cases.items() if one.world == name}, options
            )
            for name, options in common.items()
        }

    def said(self, flag: str, case: Seen) -> str:
        """What was printed for a flag."""
        return self._worlds[case.world].said(flag)


Check = Callable[[NetworkedNode], None]
CHECKS: dict[str, Check] = {}
"""What is shown by a function of its own."""


def of(flag: str) -> Callable[[Check], Check]:
    """This function shows what a flag does."""

    def note(check: Check) -> Check:
        CHECKS[flag] = check
        return check

    return note


def run(node: EngineNode, *options: str, script: str = "true") -> str:
    """Run something to its end in a container without a network."""
    return ok(node, "run", "--rm", *NONE, *options, "busybox", "sh", "-c", script)


def begin(node: EngineNode, *options: str, script: str = "sleep 600") -> str:
    """Let a container run; its id."""
    return ok(node, "run", "-d", *options, "busybox", "sh", "-c", script)
