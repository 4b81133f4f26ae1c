"""The groups that were recorded on swarms, and who plays them here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from tests.conformance.recorded import Recorded, read

_HERE = Path(__file__).parent / "recordings"


class Group(msgspec.Struct, frozen=True):
    """Commands that were given to two nodes. nodes: who plays these here."""

    name: str
    nodes: tuple[str, str]

    def commands(self) -> list[Recorded]:
        """In order."""
        return read(_HERE, self.name)


LAB, PAIR = ("m2", "w2"), ("w1", "w2")
GROUPS = (
    Group("config-secret", LAB),
    Group("network", LAB),
    Group("service", LAB),
    Group("clearing", LAB),
    Group("extra", LAB),
    Group("stack", LAB),
    Group("lifecycle", PAIR),
    Group("node", PAIR),
    Group("leave", PAIR),
    Group("founding", PAIR),
)
"""In this order: on the lab, of which the pair then takes leave for swarms of its own."""

_SELF = "$(docker info -f '{{.Swarm.NodeID}}')"
_OTHER = "$(docker node ls -q --filter name=w2 | head -n 1)"
KNOWN: Mapping[str, str] = {
    "docker inspect e83b898e35b9": "at $(where full.1) inspect $(task full.1)",
    "docker exec e83b898e35b9": "at $(where full.1) exec $(task full.1)",
    "docker rm -f e83b898e35b9": "at $(where full.1) rm -f $(task full.1)",
    "SWMTKN-1-<50 base36>-<25 base36>": "$(at w1 swarm join-token -q worker)",
    "xoss5flc6b2gh7z2r5l5biqgn": _OTHER,
    "5uawecwc5eyfiadaw3axauh64": _SELF,
    "mjj69l4mnupia4hcsbyr4wuxr": "$(task lgs.1)",
    "docker inspect llvtkt63orz4b6zm2k96i4laj": "docker inspect --type task $(task web.1)",
    "docker inspect msw83561k1fa1qtkmqysv5acp": "docker inspect --type task $(task full.1)",
    "docker inspect 8zlpuwlzvbefhfmkvplv92y9d": "docker inspect --type task $(task full.1)",
}
"""What commands named by ids, in words that find the same thing here. A task's container has the
task's id: where it runs, docker finds that first unless the type is said.
"""

NOT_COMPARED: Mapping[tuple[str, str], str] = {
    (
        "service",
        "docker service logs --no-task-ids -n 1 lgs",
    ): "of two lines that are written at once, either is the last",
    (
        "service",
        "docker inspect --type task x",
    ): "three tasks of the recording had ids that begin alike",
}
"""By group and command what chance decides, with the reason."""

INPUTS: Mapping[tuple[str, str], str] = {
    ("config-secret", "docker secret create -l a=b --template-driver golang s2 -"): "x",
    ("config-secret", "docker config create -l a=b --template-driver golang c2 -"):
        "x {{.Node.Hostname}}\n",
    ("config-secret", "docker secret create big -"): "x" * 512_001,
    ("extra", "docker secret create s1 -"): "a",
    ("extra", "docker secret create s2 -"): "b",
    ("extra", "docker config create c1 -"): "c",
    ("extra", "docker config create c2 -"): "d",
}  # fmt: skip
"""By group and command what was typed; nothing else was."""

FILES: Mapping[str, str] = {
    "s.txt": "topsecret",
    "c.txt": "conf={{.Service.Name}}\n",
    "se.txt": "hello-secret\n",
    "cf.txt": "hello-config\n",
    "cf2.txt": "changed\n",
    "env": "FROMFILE=1\n",
}
"""What lay where the commands were given."""
