"""Managers come, go and change roles in a real cluster, and no container notices.

One lab for all: each test leaves three managers behind, all of them reachable. `SHOAL_KILL_ROUNDS`
says how often the leader is killed (3; 30 is the long form).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.api.v1.control_pb2 import ListNodesRequest
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.security.grpc_tls import channel_credentials, secure_channel
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

KILL_ROUNDS = int(os.environ.get("SHOAL_KILL_ROUNDS", "3"))
NEXT_WRITE_S = 10.0
MANAGERS = {"m1", "m2", "m3"}
IDENTITY_FILES = ("ca.crt", "node.crt", "node.key")


@pytest.fixture(scope="module")
def three() -> Iterator[Lab]:
    """Three managers and two workers, with a service on the nodes that are never killed."""
    base = Path(tempfile.mkdtemp(prefix="shoal-e2em-"))
    made = Lab(f"e2emb{os.getpid()}", base)
    try:
        made.up(managers=3, workers=2)
        made.swarmctl(
            "service", "create", "--detach", "--name", "web", "--replicas", "5",
            *(f"--constraint=node.hostname!={name}" for name in sorted(MANAGERS)), "web:1",
        )  # fmt: skip
        eventually("web runs", lambda: len(made.running("web")) == 5)
        yield made
    finally:
        made.down()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def lab(three: Lab) -> Iterator[Lab]:
    """The lab as every test finds and leaves it: the same containers run on."""
    before = containers(three)
    assert len(before) == 5
    eventually("three managers", lambda: reachable(three) == MANAGERS)
    yield three
    assert containers(three) == before


def managers(lab: Lab, node: str = "") -> dict[str, str]:
    """Manager status by hostname, of nodes that are READY; asked of one node, or of any."""
    host = ("-H", lab.socket(node)) if node else ()
    shown = lab.run(*host, "node", "ls", "--format", "json", check=False)
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    return {row["Hostname"]: row["ManagerStatus"] for row in rows if row["Status"] == "Ready"}


def reachable(lab: Lab, node: str = "") -> set[str]:
    found = managers(lab, node)
    return {name for name, status in found.items() if status in ("Leader", "Reachable")}


def leader(lab: Lab) -> str:
    def one() -> str:
        found = [name for name, status in managers(lab).items() if status == "Leader"]
        return found[0] if len(found) == 1 else ""

    return eventually("one leads", one)


def containers(lab: Lab) -> set[tuple[str, str]]:
    """Task and container of all that is wanted."""

    def all_known() -> set[tuple[str, str]]:
        found = lab.running("web")
        known = {(one["ID"], one["Status"]["ContainerStatus"]["ContainerID"]) for one in found}
        return known if len(known) == 5 else set()

    return eventually("5 containers run", all_known)


class Writer(threading.Thread):
    """Creates services one after the other, through a node; notes what was acknowledged when."""

    def __init__(self, lab: Lab, node: str, prefix: str) -> None:
        super().__init__()
        self.lab, self.node, self.prefix = lab, node, prefix
        self.made: list[tuple[str, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            name = f"{self.prefix}-{number}"
            done = self.lab.run(
                "-H", self.lab.socket(self.node), "service", "create", "--detach", "--replicas",
                "0", "--name", name, "web:1", check=False, timeout_s=60,
            )  # fmt: skip
            if done.returncode == 0:
                self.made.append((name, time.monotonic()))

    def first_after(self, moment_s: float) -> float | None:
        return next((at_s for _, at_s in self.made if at_s > moment_s), None)


def services(lab: Lab, node: str) -> set[str]:
    shown = lab.run("-H", lab.socket(node), "service", "ls", "--format", "{{.Name}}")
    return set(shown.stdout.split())


def test_one_leads_and_every_manager_answers_every_command(lab: Lab) -> None:
    statuses = managers(lab)
    assert sorted(statuses[name] for name in MANAGERS) == ["Leader", "Reachable", "Reachable"]
    assert (statuses["w1"], statuses["w2"]) == ("", "")
    follower = min(MANAGERS - {leader(lab)})
    at = ("-H", lab.socket(follower))
    assert managers(lab, follower) == statuses
    lab.run(*at, "service", "create", "--detach", "--name", "f", "--replicas", "1", "web:1")
    lab.run(*at, "service", "scale", "--detach", "f=2")
    shown = lab.run(*at, "service", "ps", "f", "--format", "{{.Name}}").stdout
    eventually("2 run", lambda: len(lab.running("f")) == 2)
    assert "f.1" in shown
    lab.run(*at, "service", "logs", "f")
    lab.run(*at, "node", "update", "--label-add", "zone=a", "w1")
    assert json.loads(lab.run(*at, "cluster", "inspect").stdout)[0]["Spec"]["Name"] == "default"
    lab.run(*at, "service", "rm", "f")
    assert "f" not in services(lab, follower)
    roles = lab.swarmctl("lab", "ps", "--name", lab.name, "--format", "{{.Name}} {{.Role}}")
    assert sorted(role for _, role in map(str.split, roles.splitlines())) == [
        "leader", "manager", "manager", "worker", "worker",
    ]  # fmt: skip


def test_killed_leaders_cost_no_acknowledged_write(lab: Lab) -> None:
    waits_s: list[float] = []
    acknowledged: set[str] = set()
    for number in range(KILL_ROUNDS):
        victim = leader(lab)
        writer = Writer(lab, min(MANAGERS - {victim}), f"k{number}")
        writer.start()
        try:
            eventually("writes", lambda w=writer: w.made)
            lab.lab("kill", victim)
            killed_s = time.monotonic()
            accepted_s = eventually("a write", lambda w=writer, s=killed_s: w.first_after(s))
        finally:
            writer.over.set()
            writer.join()
        waits_s.append(accepted_s - killed_s)
        acknowledged |= {name for name, _ in writer.made}
        lab.lab("start", victim)
        eventually("all are back", lambda: reachable(lab) == MANAGERS)
        for name in MANAGERS:
            assert acknowledged <= services(lab, name)
    print("seconds from kill to the next accepted write:", [round(one, 2) for one in waits_s])
    for name in acknowledged:
        lab.swarmctl("service", "rm", name)
    assert max(waits_s) <= NEXT_WRITE_S


def test_a_worker_is_promoted_and_demoted(lab: Lab) -> None:
    lab.swarmctl("node", "promote", "w1")
    eventually("w1 manages", lambda: reachable(lab) == MANAGERS | {"w1"})
    eventually("w1 answers", lambda: reachable(lab, "w1") == MANAGERS | {"w1"})
    assert "w1 is already a manager" in lab.swarmctl("node", "promote", "w1")
    refused = lab.run("node", "rm", "--force", "w1", check=False)
    assert "demote it first" in refused.stderr
    kept = lab.base / "kept-identity"
    shutil.copytree(state(lab, "w1") / "identity", kept)
    eventually("its certificate is taken", lambda: ask_with(lab, kept, "m1") == "OK")
    lab.swarmctl("node", "update", "--role", "worker", "w1")
    eventually("w1 works", lambda: managers(lab).get("w1") == "")
    for name in MANAGERS:  # whoever does not lead passes the call on, and the leader refuses it
        assert ask_with(lab, kept, name) == "PERMISSION_DENIED"
    shutil.rmtree(kept)
    eventually("w1 refuses", lambda: "not a manager" in refusal(lab, "w1"))
    eventually("its log is gone", lambda: not (state(lab, "w1") / "raft").exists())
    # Again, with another raft id: a removed one never returns.
    lab.swarmctl("node", "promote", "w1")
    eventually("w1 manages again", lambda: "w1" in reachable(lab, "w1"))
    lab.swarmctl("node", "demote", "w1")
    eventually("w1 works again", lambda: managers(lab).get("w1") == "")


def test_the_leader_is_demoted_and_comes_back(lab: Lab) -> None:
    first = leader(lab)
    lab.swarmctl("node", "demote", first)
    eventually("another leads", lambda: reachable(lab) == MANAGERS - {first})
    assert leader(lab) != first
    lab.swarmctl("node", "promote", first)
    eventually("it is back", lambda: reachable(lab) == MANAGERS)


def test_leadership_is_handed_over_to_the_named_manager(lab: Lab) -> None:
    first = leader(lab)
    wanted, asked = sorted(MANAGERS - {first})
    said = lab.run("-H", lab.socket(asked), "cluster", "transfer-leadership", wanted).stdout
    assert said == f"Node {node_id(lab, wanted)} leads the cluster.\n"
    assert leader(lab) == wanted
    lab.run("-H", lab.socket(first), "service", "create", "--detach", "--name", "x", "web:1")
    lab.swarmctl("service", "rm", "x")
    lab.swarmctl("cluster", "transfer-leadership")
    assert leader(lab) != wanted
    refused = lab.run("cluster", "transfer-leadership", "w1", check=False)
    assert "is no manager: promote it first" in refused.stderr
    eventually("all follow", lambda: reachable(lab) == MANAGERS)


def test_a_manager_leaves_and_joins_again(lab: Lab) -> None:
    old = node_id(lab, "m3")
    lab.run("-H", lab.socket("m3"), "leave")
    eventually("it is gone", lambda: reachable(lab) == MANAGERS - {"m3"})
    eventually("it is down", lambda: status_of(lab, old) in ("Down", "Disconnected"))
    eventually("it is removed", lambda: lab.run("node", "rm", old, check=False).returncode == 0)
    token = lab.swarmctl("join-token", "manager", "-q").strip()
    remote = f"{lab.addresses['m1']}:2377"
    # The others cannot reach it at the address it names: all is undone.
    wrong = f"{lab.addresses['m3']}:2399"
    failed = lab.run(
        "-H", lab.socket("m3"), "join", "--token", token, "--advertise-addr", wrong, remote,
        check=False,
    )  # fmt: skip
    assert failed.returncode != 0
    assert "did not let this manager in" in failed.stderr
    assert f"{wrong} does not answer" in failed.stderr
    assert "was not ready within" not in failed.stderr, "nobody waits for a wrong address"
    assert set(node_names(lab)) == {"m1", "m2", "w1", "w2"}
    assert not (state(lab, "m3") / "raft").exists()
    joined = lab.run("-H", lab.socket("m3"), "join", "--token", token, remote)
    assert joined.stdout == "This node joined a swarm as a manager.\n"
    assert reachable(lab, "m3") == MANAGERS  # it votes when join returns
    assert node_id(lab, "m3") != old


def test_a_manager_with_a_damaged_log_is_removed_and_joins_again(lab: Lab) -> None:
    old = node_id(lab, "m3")
    lab.swarmctl("service", "create", "--detach", "--name", "kept", "--replicas", "0", "web:1")
    lab.lab("kill", "m3")
    damage_log(state(lab, "m3"))
    lab.run("lab", "start", "--name", lab.name, "m3", "--timeout", "5", check=False)
    eventually("m3 says why", lambda: "refusing to start" in lab.last_words()["m3"])
    assert "then remove this manager from the cluster" in lab.last_words()["m3"]
    lab.run("-H", lab.socket("m1"), "service", "update", "--detach", "--label-add", "a=b", "kept")
    # The remedy, word by word.
    lab.run("-H", lab.socket("m3"), "leave", "--force")
    lab.run("-H", lab.socket("m1"), "node", "demote", old)
    eventually("it is removed", lambda: lab.run("node", "rm", old, check=False).returncode == 0)
    token = lab.swarmctl("join-token", "manager", "-q").strip()
    lab.run("-H", lab.socket("m3"), "join", "--token", token, f"{lab.addresses['m1']}:2377")
    assert reachable(lab, "m3") == MANAGERS
    assert "kept" in services(lab, "m3")
    lab.swarmctl("service", "rm", "kept")


def damage_log(directory: Path) -> None:
    """Turn a bit in the middle of what was written to a manager's log."""
    for segment in (directory / "raft" / "wal").iterdir():
        content = bytearray(segment.read_bytes())
        used = len(content.rstrip(b"\0"))
        if used:
            content[used // 2] ^= 0x10
            segment.write_bytes(content)
            return
    raise AssertionError("the log is empty")


def test_a_lost_quorum_is_named_and_workers_run_on(lab: Lab) -> None:
    for name in ("m2", "m3"):
        lab.lab("kill", name)
    # At first the one that is left may still wait for the leader that it knew.
    lost = "The cluster has lost its quorum: 1 of 3 managers is reachable, 2 are needed"
    text = eventually("it is told", lambda: lost in (said := refusal(lab, "m1")) and said)
    assert "--force-new-cluster" in text
    refused = lab.run("-H", lab.socket("m1"), "node", "demote", "m2", check=False, timeout_s=30)
    assert refused.returncode != 0
    for name in ("m2", "m3"):
        lab.lab("start", name)
    eventually("all are back", lambda: reachable(lab) == MANAGERS)


def test_demotions_that_lose_the_quorum_are_refused(lab: Lab) -> None:
    lab.lab("kill", "m3")
    eventually("m3 is unreachable", lambda: unreachable(lab) == {"m3"})
    refused = lab.run("node", "demote", "m2", check=False)
    assert "loss of quorum" in refused.stderr
    left = lab.run("-H", lab.socket("m2"), "leave", check=False)
    assert "loss of quorum" in left.stderr
    lab.lab("start", "m3")
    eventually("m3 is back", lambda: reachable(lab) == MANAGERS)


def test_one_manager_goes_on_alone_when_the_others_are_lost(lab: Lab) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", "kept", "--replicas", "0", "web:1")
    for name in MANAGERS:
        lab.lab("kill", name)
    lab.lab("start", "m2", "--force-new-cluster")
    eventually("m2 leads", lambda: managers(lab, "m2").get("m2") == "Leader")
    assert {"web", "kept"} <= services(lab, "m2")
    lab.run("-H", lab.socket("m2"), "service", "rm", "kept")
    # The others find out that they are members no more, and join anew.
    for name in ("m1", "m3"):
        lab.lab("start", name)
    eventually("all are back", lambda: reachable(lab) == MANAGERS)
    assert "kept" not in services(lab, "m1")
    assert (state(lab, "m1") / "raft.removed").is_dir()


def test_spares_are_promoted_when_the_cluster_is_to_keep_managers_up(lab: Lab) -> None:
    lab.swarmctl("cluster", "update", "--managers", "4")
    # After 30 s without a fourth one.
    eventually("a spare is promoted", lambda: len(reachable(lab)) == 4, deadline_s=90)
    spare = min(reachable(lab) - MANAGERS)
    lab.swarmctl("cluster", "update", "--managers", "0")
    lab.swarmctl("node", "demote", spare)
    eventually("three are left", lambda: reachable(lab) == MANAGERS)


def ask_with(lab: Lab, directory: Path, name: str) -> str:
    """The status of a manager's answer to whoever holds that identity."""
    root, certificate, key = ((directory / file).read_bytes() for file in IDENTITY_FILES)

    async def ask() -> str:
        credentials = channel_credentials(root, certificate, key)
        async with secure_channel(f"{lab.addresses[name]}:2377", credentials) as channel:
            try:
                await ControlStub(channel).ListNodes(ListNodesRequest(), timeout=20)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

    return asyncio.run(ask())


def unreachable(lab: Lab) -> set[str]:
    shown = lab.run("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}", check=False)
    rows = [line.split() for line in shown.stdout.splitlines()]
    return {row[0] for row in rows if row[1:] == ["Unreachable"]}


def refusal(lab: Lab, node: str) -> str:
    """What a list of services is refused with, which is bounded in time."""
    return lab.run("-H", lab.socket(node), "service", "ls", check=False, timeout_s=30).stderr


def state(lab: Lab, node: str) -> Path:
    return lab.base / "lab" / lab.name / node / "state"


def node_id(lab: Lab, name: str) -> str:
    shown = lab.swarmctl("node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Status}}")
    rows = [line.split() for line in shown.splitlines()]
    return next(row[0] for row in rows if row[1] == name and row[-1] == "Ready")


def node_names(lab: Lab) -> list[str]:
    return lab.swarmctl("node", "ls", "--format", "{{.Hostname}}").split()


def status_of(lab: Lab, identity: str) -> str:
    shown = lab.swarmctl("node", "inspect", identity, "--format", "{{.Status.State}}")
    return shown.strip().title()
