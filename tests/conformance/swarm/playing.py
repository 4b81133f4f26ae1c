"""Play recorded commands on the nodes of a lab and say where they behave otherwise."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path

import msgspec

from tests.conformance.comparing import Difference, Outcome, difference
from tests.conformance.recorded import Recorded
from tests.conformance.swarm.normal import normal
from tests.conformance.swarm.recording import FILES, INPUTS, KNOWN, NOT_COMPARED, Group
from tests.conformance.swarm.site import Site

RECORDED_ADDRESSES = ("10.77.0.1", "10.77.0.2")
RECORDED_APP = "/home/user/app"
RECORDED_ROOT = "/var/lib/docker"
RECORDED_HOST = "vm"
RECORDED_VERSION = "20.10.24+dfsg1"


class Player:
    """Plays groups in order, in one scratch directory."""

    def __init__(self, site: Site) -> None:
        self._site = site
        for name, text in FILES.items():
            (site.scratch / name).write_text(text)
        shutil.copytree(Path(__file__).parent / "files", site.scratch, dirs_exist_ok=True)
        self.played = 0

    def play(self, group: Group) -> Iterator[Difference]:
        """Every command of a group; those that differ."""
        self._by_hand(group, (group.name, ""))
        for _, together in groupby(group.commands(), key=lambda one: _aside(group, one)):
            commands = list(together)
            with ThreadPoolExecutor(len(commands) if _aside(group, commands[0]) else 1) as side:
                for found in side.map(partial(self._play, group), commands):
                    yield from found

    def _play(self, group: Group, one: Recorded) -> list[Difference]:
        self._by_hand(group, (group.name, one.cmd))
        if (group.name, one.cmd) in NOT_COMPARED:
            return []
        if not one.is_played:
            self._detached(group, one)
            return []
        self.played += 1
        differing = difference(group.name, one, self._run(group, one), normal)
        return [differing] if differing else []

    def _by_hand(self, group: Group, place: tuple[str, str]) -> None:
        if done := BY_HAND.get(place):
            self._site.ok(group.nodes[0], done)

    def _detached(self, group: Group, one: Recorded) -> None:
        """Let a service be made that a person watched until it was enough."""
        words = one.cmd.removeprefix("PTY ").replace(_NOTHING_OF_IT, "")
        for watched in ("docker service create", "docker stack deploy"):
            if words.startswith(watched):
                words = words.replace("--detach=false", "").replace(watched, f"{watched} -d")
                self._run(group, msgspec.structs.replace(one, cmd=words))

    def _run(self, group: Group, one: Recorded) -> Outcome:
        command = one.cmd.replace(RECORDED_APP, str(self._site.scratch))
        for recorded, here in zip(RECORDED_ADDRESSES, group.nodes, strict=True):
            command = command.replace(recorded, self._site.lab.addresses[here])
        for recorded, here in KNOWN.items():
            command = command.replace(recorded, here)
        given = INPUTS.get((group.name, one.cmd), "")
        node = group.nodes[one.node - 1]
        code, out, err = self._site.bash(node, command, given)
        return Outcome(code, self._as_recorded(node, out), self._as_recorded(node, err))

    def _as_recorded(self, node: str, text: str) -> str:
        for here, there in (
            (str(self._site.scratch), RECORDED_APP),
            (str(self._site.directory(node) / "state"), RECORDED_ROOT),
        ):
            text = text.replace(here, there)
        version = rf"(?<![\w.]){re.escape(self._site.version)}(?![\w.])"
        text = re.sub(version, RECORDED_VERSION, text)
        return _HOSTS.sub(RECORDED_HOST, text)


_HOSTS = re.compile(r"\b[mw][1-3]\b")

_REACHABLE = "until_ 'docker node ls | grep -q Reachable'"
_TRUSTED = "until_ '! docker node ls --format {{.TLSStatus}} | grep -v Ready'"

_NOTHING_OF_IT = " --generic-resource foo=0"
"""Refused here: none of a resource is not reserved."""
_ASIDE = re.compile(r"docker service create --name (glob|rjob|gjob|pub|regsvc) ")
"""What nobody needs to wait for before the next begins."""


def _aside(group: Group, one: Recorded) -> bool:
    return group.name == "service" and one.is_played and bool(_ASIDE.match(one.cmd))


_RUNS = "until_ 'docker service ps {} --format {{{{.CurrentState}}}} | grep -q Running'"

BY_HAND: Mapping[tuple[str, str], str] = {
    ("config-secret", "docker secret create s1 s.txt"): "docker secret create s1 s.txt",
    ("config-secret", "docker config create c1 c.txt"): "docker config create c1 c.txt",
    ("network", "docker network create -d overlay ov1"): "docker network create -d overlay ov1",
    ("service", "docker service ps --filter bad=1 web"):
        "docker service update -d -q --update-parallelism 3 --update-monitor 1s"
        " --rollback-parallelism 3 --rollback-monitor 1s --stop-grace-period 1s web",
    ("service", "docker service scale web=1 lgs=1"):
        "docker service update -d --image busybox:latest web",
    ("extra", "docker service ps full"): _RUNS.format("full"),
    ("extra", "docker node ps self"): _RUNS.format("gl"),
    ("extra", "docker exec e83b898e35b9 ls -l /run/secrets /c2 /x/s2"): _RUNS.format("full"),
    ("stack", "docker stack rm bad"): "docker network rm e",
    ("lifecycle", ""): "docker swarm leave & at w2 swarm leave; wait",
    ("stack", "docker stack deploy -c bad.yml --detach=true bad"):
        "docker network create e",
    ("stack", "docker stack config -c stack.yml"): "docker service rm $(docker service ls -q)",
    ("lifecycle", "docker swarm init"):
        "docker swarm init --advertise-addr $HERE:2377 --listen-addr $HERE:2377"
        " --data-path-addr $HERE --data-path-port 4790 --default-addr-pool 10.20.0.0/16"
        " --default-addr-pool-mask-length 24 --task-history-limit 3 --cert-expiry 720h"
        " --dispatcher-heartbeat 3s --snapshot-interval 5000 --availability active",
    ("node", ""): _TRUSTED,
    ("node", "docker node ls"): _REACHABLE,
    ("leave", "docker service create busybox true"):
        "lab kill w1 && lab start w1 && until_ 'docker info | grep -q Swarm:.locked'",
}  # fmt: skip
"""By group and command what another hand had done before it; before the group where no command
stands."""
