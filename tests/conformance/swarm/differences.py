"""Where this swarm answers otherwise than dockerd 20.10 did, each with its reason.

A command that is listed must differ: an entry nobody needs any more is an error, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.conformance.swarm.recording import GROUPS

_WHO = "the names, versions and directories of this node are its own"
_PLUGINS = "nodes do not say which drivers and labels their engines have: the drivers are the same"
_REMEDY = "the error says as well what to do, or names the value and the rule"
_LATER = "the recording was made twice, and shows what this command said the second time"
_SNAPSHOTS = "older snapshots are not kept: a number of them is refused"
_FORCE = "a new cluster is forced by `swarmd --force-new-cluster`, which does not need the API"
_ATTACHED = "networks of the swarm are overlays: drivers of one node are refused, with the reason"
_MESH = "the routing mesh is no network here: it is not listed, and needs no other"
_VERBOSE = "the services of a network are shown also where none of their tasks runs"
_NAMES = "a container's devices are named after their networks, and it has ::1"
_HUB = "the recording had a mirror of docker.io; no name resolves here"
_KEYS = "this machine's kernel has no WireGuard, which encrypted networks need, and says so"
_SPREAD = "the recording had one manager; here tasks are spread over three"
_BRIDGE = "services cannot be on networks of one node, which the error says: there is no `lb`"
_JOBS = "a job has no updates, so that none of their settings are shown of it"
_NAMED = "a task names its networks, and does not repeat what they are"
_LOCAL = "a network has no load balancer of its own, and its peers are not told by whom it is asked"
_OWN = "a task's container is on networks of the node's agent, which says of them what it knows"
_TASK = "a task's container is not removed behind its service's back"
_ORDER = "networks are listed by name"

_KNOWN: Mapping[tuple[str, str], str] = {
    ("network", "docker network create --scope swarm -d bridge swbr"): _ATTACHED,
    ("network", "docker network create --scope swarm --config-from cfgnet -d macvlan mv"):
        _ATTACHED,
    ("network", "docker network create -d overlay --ingress ing2"): _MESH,
    ("network", "docker network ls"): _MESH,
    ("network", "docker network ls --filter scope=swarm --filter driver=overlay"): _MESH,
    ("network", "docker network inspect ingress"): _MESH,
    ("network", "docker network inspect --verbose ov1"): _VERBOSE,
    ("network", "docker run --rm --network ov3 busybox ip a"): _NAMES,
    ("network", "docker network rm mv cfgnet swbr ing2"): _ATTACHED,
    ("service", "docker service create --name dns1 *"): _REMEDY,
    ("service", "docker service create --name bad/name busybox true"): _REMEDY,
    ("service", "docker service create --name portdup *"): _REMEDY,
    ("service", "docker service create --name bl *"): _REMEDY,
    ("service", 'docker service create --no-resolve-image --constraint "bad" busybox true'):
        _REMEDY,
    ("service", "docker service ls"): _LATER,
    ("service", "docker service ls -q"): _LATER,
    ("service", "docker service ps web"): _LATER,
    ("service", "docker service ps full"): _KEYS,
    ("service", "docker service ps web full *"): _SPREAD,
    ("service", "docker service ps badimg nofit"): _HUB,
    ("service", "docker service inspect --pretty web"): _LATER,
    ("service", "docker service update --publish-add *"): _KEYS,
    ("service", "docker network rm ov1"): _REMEDY,
    ("service", "docker ps"): _SPREAD,
    ("service", "docker ps --format '{{json .}}' --no-trunc"): _SPREAD,
    ("service", "docker service inspect --pretty glob rjob web"): _JOBS,
    ("service", "docker inspect llvtkt63orz4b6zm2k96i4laj"): _MESH,
    ("service", "docker inspect web"): _MESH,
    ("service", "docker inspect --type service web"): _MESH,
    ("service", "docker network inspect -v ov1"): _VERBOSE,
    ("service", "docker service rm full *"): _BRIDGE,
    ("extra", "docker service inspect --pretty full"): _LATER,
    ("extra", "docker service ps full"): _LATER,
    ("extra", "docker service ls"): _LATER,
    ("extra", "docker ps"): _SPREAD,
    ("extra", "docker node ps self"): _SPREAD,
    ("extra", "docker inspect msw83561k1fa1qtkmqysv5acp"): _NAMED,
    ("extra", "docker inspect 8zlpuwlzvbefhfmkvplv92y9d"): _NAMED,
    ("extra", "docker network inspect ov1"): _LOCAL,
    ("extra", "docker network inspect -v ov1"): _LOCAL,
    ("extra", "docker inspect e83b898e35b9"): _OWN,
    ("extra", "docker rm -f e83b898e35b9"): _TASK,
    ("stack", "docker stack deploy -c stack.yml --detach=true st"): _LATER,
    ("stack", "docker stack ls"): _LATER,
    ("stack", "docker stack services st"): _KEYS,
    ("stack", "docker stack ps st"): _KEYS,
    ("stack", "docker stack ps st --no-trunc --filter desired-state=running"): _KEYS,
    ("stack", "docker network inspect st_back"): _LOCAL,
    ("stack", "docker service inspect st_web"): _MESH,
    ("stack", "docker stack rm st"): _ORDER,
    ("stack", "docker stack deploy -c bad2.yml --detach=true bad"): _BRIDGE,
    ("stack", "docker stack rm bad"): _BRIDGE,
    ("lifecycle", "docker swarm init --advertise-addr *"): _SNAPSHOTS,
    ("lifecycle", "docker system info"): _WHO,
    ("lifecycle", "docker info"): _WHO,
    ("node", "docker node inspect self"): _PLUGINS,
    ("node", "docker node inspect --pretty *"): _PLUGINS,
    ("node", "docker node inspect xoss5flc6b2gh7z2r5l5biqgn"): _PLUGINS,
    ("node", "docker node demote xoss5flc6b2gh7z2r5l5biqgn"): _LATER,
    ("node", "docker node rm xoss5flc6b2gh7z2r5l5biqgn"): _REMEDY,
    ("leave", "docker node ls"): _LATER,
    ("leave", "docker node rm xoss5flc6b2gh7z2r5l5biqgn"): _REMEDY,
    ("leave", "docker swarm init --advertise-addr 10.77.0.1 --force-new-cluster"): _FORCE,
    ("leave", "docker swarm leave"): _REMEDY,
    ("leave", "docker info"): _WHO,
    ("founding", "docker node demote 5uawecwc5eyfiadaw3axauh64"): _REMEDY,
    ("founding", "docker node update --role worker 5uawecwc5eyfiadaw3axauh64"): _REMEDY,
    ("founding", "docker node inspect self"): _PLUGINS,
}  # fmt: skip
"""By group and command; `*` at the end: whatever it goes on with."""


def _meant(known: tuple[str, str], group: str, cmd: str) -> bool:
    name, words = known
    return name == group and (cmd == words or (words[-1] == "*" and cmd.startswith(words[:-1])))


_PLACES = [(group.name, one.cmd) for group in GROUPS for one in group.commands()]
DIFFERENCES: Mapping[tuple[str, str], str] = {
    place: reason for place in _PLACES for known, reason in _KNOWN.items() if _meant(known, *place)
}
"""By group and command."""
BY_KERNEL = {place for place, reason in DIFFERENCES.items() if reason == _KEYS}
"""What may agree where the kernel has WireGuard."""
KNOWN_NOWHERE = {known for known in _KNOWN if not any(_meant(known, *one) for one in _PLACES)}
"""What no command is meant by."""
