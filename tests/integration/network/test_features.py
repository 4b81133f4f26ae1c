"""Kernels and nft programs that lack something: what is done instead, with an nft that refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from shoal.errors import Unimplemented
from tests.integration.network.lab import (
    CLIENT,
    Lab,
    ask_tcp,
    ask_udp,
    connect,
    running_lab,
    tcp,
    udp,
)
from worker.network.core import gateway_of
from worker.network.features import Features, features_of

pytestmark = pytest.mark.root
NFT = str(shutil.which("nft"))
_REFUSING = """#!/bin/sh
text=$(cat)
case "$text" in {patterns}) echo "Error: syntax error, unexpected word" >&2; exit 1;; esac
printf '%s' "$text" | exec {nft} "$@"
"""
SLOT_KEYS, ZONES = "*'. numgen'*", "*'ct original zone'*"


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make `nft` a program that refuses texts with these patterns."""

    def replace(*patterns: str) -> None:
        program = tmp_path / "bin" / "nft"
        program.parent.mkdir(exist_ok=True)
        program.write_text(_REFUSING.format(patterns="|".join(patterns), nft=NFT))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/sbin:/usr/bin:/sbin:/bin")

    return replace


def seen(lab: Lab, port: int, *, times: int = 40) -> list[set[tuple[str, str]]]:
    """Tasks, and the client as they see it, through each node."""
    return [
        {lab.client.run(lambda a=node.address: ask_tcp(a, port)) for _ in range(times)}
        for node in lab.nodes
    ]


def features(lab: Lab) -> set[Features]:
    table = [node.shell("nft list table inet shoal") for node in lab.nodes]
    lines = [next(line for line in text.splitlines() if "comment" in line) for text in table]
    return {features_of(line.strip().strip('"')) for line in lines}


def test_a_map_per_slot_balances_as_one_with_the_slot_in_its_key(
    tmp_path: Path, refusing: Callable[..., None]
) -> None:
    refusing(SLOT_KEYS)
    with running_lab(tmp_path / "lab") as lab:
        assert features(lab) == {Features(slot_keys=False)}
        tasks = [lab.start(f"task{n}", lab.nodes[n]) for n in range(2)]
        ports = [tcp(8080, tasks), udp(5353, tasks), tcp(8081, tasks, sticky=True)]
        lab.publish(*ports)
        everybody = {("task0", CLIENT), ("task1", CLIENT)}
        assert seen(lab, 8080) == [everybody] * 3
        assert all(len(one) == 1 for one in seen(lab, 8081)), "a client keeps its task"
        answers = {lab.client.run(lambda: ask_udp(lab.nodes[2].address, 5353)) for _ in range(40)}
        assert answers == everybody

        node = lab.nodes[0]
        rules = node.shell("nft list table inet shoal")
        node.close()
        node.open()
        node.wait(node.network.set_peers(lab.peers))
        for task in tasks[:1]:
            node.wait(node.network.adopt(task.task_id, task.address))
        assert node.set_ports(*ports).elements_changed == 0
        assert node.shell("nft list table inet shoal") == rules

        many = tuple(f"10.240.8.{n}" for n in range(2, 67))
        wide = msgspec.structs.replace(tcp(8082, []), endpoints=many)
        weighed = tcp(8083, tasks, weights={tasks[0].address: 64})
        placed = tcp(8084, tasks, address=node.address, weights={tasks[0].address: 63})
        errors = node.set_ports(*ports, wide, weighed, placed).errors
        assert "65 tasks" in errors.pop(("tcp", 8082))
        assert "2 tasks with weights of 65 in all" in errors.pop(("tcp", 8083))
        assert not errors
        asked = [lab.client.run(lambda: ask_tcp(node.address, 8084))[0] for _ in range(30)]
        assert asked.count("task0") > 20
        lab.publish(tcp(8080, tasks[1:]))
        assert seen(lab, 8080, times=10) == [{("task1", CLIENT)}] * 3

        # Somebody upgrades nftables: with the next ruleset the slots move into one map.
        refusing("never")
        node.close()
        node.open(msgspec.structs.replace(node.settings, mark_shift=18))
        node.wait(node.network.set_peers(lab.peers))
        assert Features() in features(lab)
        assert lab.client.run(lambda: ask_tcp(node.address, 8080))[0] == "task1"


def test_without_zones_a_client_that_comes_by_two_nodes_is_not_mistaken_for_one(
    tmp_path: Path, refusing: Callable[..., None]
) -> None:
    refusing(ZONES)
    with running_lab(tmp_path / "lab") as lab:
        assert features(lab) == {Features(zones=False)}
        task = lab.start("task0", lab.nodes[0])
        lab.publish(tcp(8080, [task]))
        gateways = [gateway_of(node.settings.subnet) for node in lab.nodes]
        assert seen(lab, 8080, times=3) == [
            {("task0", CLIENT)}, {("task0", gateways[1])}, {("task0", gateways[2])}
        ]  # fmt: skip
        both = [
            lab.client.run(lambda a=node.address: connect(a, 8080, source=(CLIENT, 5555)))
            for node in lab.nodes[1:]
        ]
        assert [lab.client.run(one.ask)[0] for one in both] == ["task0", "task0"]
        for one in both:
            one.close()


def test_what_cannot_be_done_without_is_named(
    tmp_path: Path, refusing: Callable[..., None]
) -> None:
    refusing("*masquerade*")
    refused = pytest.raises(Unimplemented, match="missing: masquerade in nft")
    with refused, running_lab(tmp_path / "lab"):
        pass
    refusing(SLOT_KEYS, ZONES)
    with running_lab(tmp_path / "both") as lab:
        assert features(lab) == {Features(slot_keys=False, zones=False)}
        assert len(lab.nodes[0].network.lost) == 2
