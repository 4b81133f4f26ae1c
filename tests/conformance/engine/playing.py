"""Play recorded commands against a node and say where it behaves otherwise."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.conformance.comparing import Difference, Outcome, difference, run
from tests.conformance.engine.recording import INPUTS, recorded
from tests.conformance.recorded import Recorded
from tests.integration.engine.daemon import EngineNode

RECORDED_REGISTRY = "127.0.0.1:5000"
RECORDED_APP = "/home/user/app"
RECORDED_ROOT = "/var/lib/docker"


class Player:
    """Plays groups in order, in one scratch directory."""

    def __init__(self, node: EngineNode, scratch: Path, registry: str) -> None:
        self._node = node
        self._scratch = scratch
        self._registry = registry
        self._app = scratch / "app"
        self._app.mkdir()
        write_contexts(scratch)
        self.played = 0

    def play(self, group: str) -> Iterator[Difference]:
        """Every command of a group; those that differ."""
        for one in recorded(group):
            if not one.is_played:
                self._prepare(one)
                continue
            self.played += 1
            differing = difference(group, one, self._run(one))
            if differing:
                yield differing

    def _prepare(self, one: Recorded) -> None:
        """What later commands count on of one that was done at a terminal."""
        prepared = PREPARATIONS.get(one.cmd)
        if prepared:
            self._shell(prepared, "")

    def _run(self, one: Recorded) -> Outcome:
        if before := BEFORE.get(one.cmd):
            self._shell(before, "")
        return self._shell(one.cmd, INPUTS.get(one.cmd, ""))

    def _shell(self, command: str, given: str) -> Outcome:
        command = command.replace(RECORDED_REGISTRY, self._registry)
        command = command.replace(RECORDED_APP, str(self._app))
        code, out, err = run(
            command,
            given=given,
            cwd=self._scratch,
            environment={
                "PATH": os.environ["PATH"],
                "HOME": str(self._scratch),
                "DOCKER_HOST": f"unix://{self._node.socket}",
                "DOCKER_BUILDKIT": "0",
                "DOCKER_API_VERSION": "1.41",
                "B": "from environment",
            },
        )
        return Outcome(code, self._as_recorded(out), self._as_recorded(err))

    def _as_recorded(self, text: str) -> str:
        for here, there in (
            (self._registry, RECORDED_REGISTRY),
            (str(self._app), RECORDED_APP),
            (str(self._node.state), RECORDED_ROOT),
        ):
            text = text.replace(here, there)
        return text


PREPARATIONS: Mapping[str, str] = {
    "PTY docker run -it --name it2 busybox sh": "docker run -dit --name it2 busybox sh",
    "docker run --name sigc busybox sleep 100": "docker run -d --name sigc busybox sleep 100",
    'PTY docker run -t -d --name tl busybox sh -c "echo ttyout; sleep 100"':
        'docker run -t -d --name tl busybox sh -c "echo ttyout; sleep 100"',
    "PTY docker build --no-cache -t x:1 big": "docker build --no-cache -t x:1 big",
}  # fmt: skip
"""In place of what was done at a terminal or ended by hand, as far as later commands need it."""

BEFORE: Mapping[str, str] = {
    "docker ps": "sleep 3",
    "docker logs lg": "sleep 2",
    "docker network create n1": "docker network create n1",
    "docker wait c3b": "(sleep 1; docker kill c3b) >/dev/null 2>&1 &",
}
"""What time or another hand had done before a command."""


def write_contexts(scratch: Path) -> None:
    """What the recorded builds were made from, as far as their output tells."""
    (scratch / "f1").write_text("filedata\n")
    (scratch / "Dockerfile").write_text(_DOCKERFILE)
    big = scratch / "big"
    big.mkdir()
    (big / "Dockerfile").write_text("FROM busybox\nCOPY f0 /f0\nCOPY f1 /f1\nCOPY f2 /f2\n")
    for name in ("f0", "f1", "f2"):
        (big / name).write_bytes(random.Random(name).randbytes(6_000_000))


_DOCKERFILE = """FROM busybox
ARG V=1
ENV A=$V
RUN echo building $V > /out && echo to-stdout
COPY f1 /f1
LABEL l=1
EXPOSE 80
VOLUME /v
HEALTHCHECK CMD true
USER 0
WORKDIR /w
ENTRYPOINT ["/bin/sh"]
CMD ["-c","echo x"]
"""
