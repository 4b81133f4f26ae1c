"""A service on a real cluster: created, reached, scaled, broken and healed, as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections import Counter
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.model.defaults import DYNAMIC_PORTS
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


def test_every_node_answers_and_the_client_address_is_true(lab: Lab, service: str) -> None:
    lab.swarmctl(
        "service", "create", "--name", service, "--replicas", "3", "--publish", "8080:80", "web:1"
    )

    assert len({task["NodeID"] for task in lab.running(service)}) >= 2
    containers = set()
    for _ in range(100):
        for node in lab.addresses:
            container, client = lab.ask(node, 8080)
            assert client == lab.own_address(node)
            containers.add(container)
    assert len(containers) == 3
    logged = lab.run("service", "logs", "--raw", service).stderr.splitlines()
    assert len([line for line in logged if line.startswith("asked by")]) == 300
    assert {line.split()[-1].strip("[]").removeprefix("::ffff:") for line in logged} == {
        lab.own_address(node) for node in lab.addresses
    }
    shown = lab.swarmctl("service", "endpoints", service, "--format", "{{.Port}} {{.State}}")
    assert shown.splitlines() == ["8080->80/tcp ready"] * 3
    at = ("service", "endpoints", "--nodes", service, "--format", "{{.Node}} {{.Behind}}")
    eventually(
        "every node has acknowledged the newest endpoints",
        lambda: sorted(lab.swarmctl(*at).split()) == sorted([*lab.addresses, "0", "0", "0"]),
    )


def _wait_in_force(lab: Lab, service: str, *, places: int) -> None:
    """Wait until so many places behind published ports are ready, and every node balances so."""
    shown = ("service", "endpoints", service, "--format")

    def is_so() -> bool:
        states = lab.swarmctl(*shown, "{{.State}}").split()
        behind = lab.swarmctl(*shown, "{{.Behind}}", "--nodes").split()
        return states.count("ready") == places and behind == ["0"] * len(lab.addresses)

    eventually(f"{places} places are in force", is_so)


def test_node_doctor_finds_a_wrong_setting_and_a_path_that_loses_large_packets(lab: Lab) -> None:
    def problems() -> tuple[int, dict[str, str]]:
        form = "{{.State}}|{{.Check}}|{{.What}}"
        done = lab.run("node", "doctor", "--format", form, check=False)
        lines = [line.split("|") for line in done.stdout.splitlines()]
        return done.returncode, {check: what for state, check, what in lines if state == "problem"}

    eventually("nothing is wrong", lambda: problems() == (0, {}))
    for node, ill, well in (
        (
            "m1",
            "sysctl -qw net.ipv4.conf.vxi.rp_filter=1",
            "sysctl -qw net.ipv4.conf.vxi.rp_filter=2",
        ),
        ("w1", "ip link set dev eth0 mtu 1400", "ip link set dev eth0 mtu 1500"),
    ):
        inside = ["ip", "netns", "exec", f"shoal-{lab.name}-{node}"]
        subprocess.run([*inside, *ill.split()], check=True)
        try:
            code, found = problems()
        finally:
            subprocess.run([*inside, *well.split()], check=True)
        assert code == 1
        if node == "m1":
            assert list(found) == ["sysctl ipv4/conf/vxi/rp_filter"]
        else:
            assert "large packets are lost" in found["peer w1"]
            assert list(found) == ["peer w1"]


def test_a_sticky_port_sends_a_client_to_one_task_of_each_entry_node_s_choice(
    lab: Lab, service: str
) -> None:
    port = "published=8090,target=80,sticky=true"
    three = ("--detach", "--replicas", "3", "--stop-grace-period", "0s")
    lab.swarmctl("service", "create", "--name", service, *three, "--publish", port, "web:1")
    _wait_in_force(lab, service, places=3)
    for node in lab.addresses:
        assert len({lab.ask(node, 8090)[0] for _ in range(20)}) == 1
    alike = ("--detach", "--publish-rm", "80", "--publish-add", "8090:80")
    lab.swarmctl("service", "update", *alike, service)
    for node in lab.addresses:
        eventually(
            f"all three answer at {node}",
            lambda at=node: len({lab.ask(at, 8090)[0] for _ in range(60)}) == 3,
        )


def test_ports_by_entry_node_own_tasks_and_weight(lab: Lab, service: str) -> None:
    ports = (
        "published=8091,target=80,source=node",
        "published=8092,target=80,prefer=local",
        "published=8095,target=80,weight=node.labels.size",
    )
    publish = [word for port in ports for word in ("--publish", port)]
    spread = ("--detach", "--replicas", "3", "--replicas-max-per-node", "1")
    spread = (*spread, "--stop-grace-period", "0s")
    lab.swarmctl("service", "create", "--name", service, *spread, *publish, "web:1")
    _wait_in_force(lab, service, places=9)
    for node in lab.addresses:
        gateways = {lab.ask(node, 8091)[1] for _ in range(20)}
        assert len(gateways) == 1
        assert ip_address(gateways.pop()) in ip_network("10.240.0.0/12")
        answers = {lab.ask(node, 8092) for _ in range(20)}
        assert answers == {(answers.copy().pop()[0], lab.own_address(node))}
    shown = lab.swarmctl("service", "inspect", "--pretty", service)
    for line in ("Source = node", "Prefer = local", "Weight = node.labels.size"):
        assert line in shown
    lab.swarmctl("node", "update", "--label-add", "size=60", "w1")
    try:
        form = "{{.Node}} {{.Weight}}"
        at = ("service", "endpoints", service, "--format", form)
        eventually("the label counts", lambda: "w1 60" in lab.swarmctl(*at).splitlines())
        _wait_in_force(lab, service, places=9)
        answers = Counter(lab.ask("w2", 8095)[0] for _ in range(60))
        assert answers.most_common(1)[0][1] > 40  # 58 are to be expected, 20 without weights
    finally:
        lab.swarmctl("node", "update", "--label-rm", "size", "w1")
    # Once a node has none of its own it sends to the others.
    only = ("--detach", "--replicas", "1", "--constraint-add", "node.role==manager")
    lab.swarmctl("service", "update", *only, service)
    _wait_in_force(lab, service, places=3)
    assert lab.ask("w1", 8092)[1] == lab.own_address("w1")


def test_a_port_answers_only_at_its_address_or_on_its_interface(lab: Lab, service: str) -> None:
    at = lab.addresses["w1"]
    ports = ("--publish", f"{at}:8093:80", "--publish", "published=8094,target=80,interface=lo")
    lab.swarmctl("service", "create", "--detach", "--name", service, *ports, "web:1")
    _wait_in_force(lab, service, places=2)
    assert lab.ask("w1", 8093)[1] == lab.own_address("w1")
    for node, port in (("m1", 8093), ("w2", 8093), ("w1", 8094)):
        with pytest.raises(ConnectionRefusedError):
            lab.ask(node, port)
    inside = ["ip", "netns", "exec", f"shoal-{lab.name}-m1"]
    fetch = [*inside, "curl", "-sf", "http://127.0.0.1:8094/cgi-bin/who"]
    assert subprocess.run(fetch, check=True, capture_output=True, timeout=20).stdout
    shown = lab.swarmctl("service", "ls", "--filter", f"name={service}", "--format", "{{.Ports}}")
    assert set(shown.strip().split(", ")) == {f"{at}:8093->80/tcp", "lo:8094->80/tcp"}
    shown = lab.swarmctl("service", "endpoints", service, "--format", "{{.Port}}")
    assert set(shown.split()) == {f"{at}:8093->80/tcp", "lo:8094->80/tcp"}
    # Another service may have the number elsewhere, and nobody at the same place.
    for place, refused in ((at, True), ("", True), (lab.addresses["w2"], False)):
        publish = f"{place}{':' if place else ''}8093:80"
        other = ("service", "create", "--detach", "--name", f"{service}-2", "--publish", publish)
        done = lab.run(*other, "web:1", check=False)
        assert ("is already in use by service" in done.stderr) == refused, done.stderr
    lab.swarmctl("service", "rm", f"{service}-2")


def test_ranges_and_ports_the_cluster_chooses(lab: Lab, service: str) -> None:
    ports = ("--detach", "--publish", "8100-8101:80", "--publish", "80")
    lab.swarmctl("service", "create", "--name", service, *ports, "web:1")
    _wait_in_force(lab, service, places=3)
    form = "{{range .Endpoint.Ports}}{{.PublishedPort}} {{end}}"
    *asked, chosen = map(int, lab.swarmctl("service", "inspect", "-f", form, service).split())
    assert asked == [8100, 8101]
    assert chosen in DYNAMIC_PORTS
    shown = lab.swarmctl("service", "ls", "--filter", f"name={service}", "--format", "{{.Ports}}")
    assert set(shown.strip().split(", ")) == {f"*:{n}->80/tcp" for n in (8100, 8101, chosen)}
    for port in (8100, 8101, chosen):
        assert lab.ask("w1", port)[1] == lab.own_address("w1")
    done = lab.run("service", "create", "--publish", f"{chosen}:80", "web:1", check=False)
    assert f"port {chosen}/tcp is already in use by service {service}" in done.stderr
    added = ("--detach", "--publish-add", "target=80,sticky=true")
    lab.swarmctl("service", "update", *added, service)
    form = "{{range .Endpoint.Ports}}{{.PublishedPort}}{{if .Sticky}} sticky{{end}} {{end}}"
    kept = ["8100", "8101", str(chosen), "sticky"]
    eventually(
        "the chosen port is kept",
        lambda: lab.swarmctl("service", "inspect", "-f", form, service).split() == kept,
    )


def test_scaling_up_and_down(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", service, "web:1")
    lab.swarmctl("service", "scale", "--detach", f"{service}=20")
    eventually("20 tasks run", lambda: len(lab.running(service)) == 20)

    lab.swarmctl("service", "scale", "--detach", f"{service}=2")

    eventually("2 tasks are left", lambda: len(lab.tasks(service)) == 2)
    assert sorted(task["Slot"] for task in lab.running(service)) == [1, 2]


def test_a_killed_container_is_replaced_in_its_slot(lab: Lab, service: str) -> None:
    lab.swarmctl(
        "service", "create", "--detach", "--name", service, "--restart-delay", "100ms", "web:1"
    )
    before = eventually("it runs", lambda: lab.running(service))[0]

    os.kill(before["Status"]["ContainerStatus"]["PID"], signal.SIGKILL)

    def replaced() -> bool:
        running = lab.running(service)
        return len(running) == 1 and running[0]["ID"] != before["ID"]

    eventually("another task runs", replaced)
    old = next(task for task in lab.tasks(service) if task["ID"] == before["ID"])
    assert old["Status"]["State"] == "failed"
    assert old["Status"]["ContainerStatus"]["ExitCode"] == 137
    assert {task["Slot"] for task in lab.tasks(service)} == {1}


def test_a_dead_node_s_tasks_run_elsewhere_and_it_comes_back_empty(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", service, "--replicas", "6", "web:1")
    eventually("6 tasks run", lambda: len(lab.running(service)) == 6)
    ids = lab.swarmctl("node", "ls", "--format", "{{.Hostname}} {{.ID}}").splitlines()
    victim = dict(line.split()[:2] for line in ids)["w1"]

    lab.lab("kill", "w1", "--hard")
    try:

        def moved() -> bool:
            running = lab.running(service)
            return len(running) == 6 and all(task["NodeID"] != victim for task in running)

        eventually("all tasks run elsewhere", moved)
        assert lab.node_states()["w1"] == "Down"
    finally:
        lab.lab("start", "w1")
    eventually("w1 is ready again", lambda: lab.node_states()["w1"] == "Ready")

    def settled() -> bool:
        states = [task for task in lab.tasks(service) if task["NodeID"] == victim]
        return all(task["Status"]["State"] not in {"running", "assigned"} for task in states)

    eventually("nothing of it runs on w1 any more", settled)
    running = lab.running(service)
    assert len(running) == 6
    assert sorted(task["Slot"] for task in running) == [1, 2, 3, 4, 5, 6]


def test_containers_outlive_every_daemon(lab: Lab, service: str) -> None:
    count = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.02; done"
    lab.swarmctl(
        "service", "create", "--detach", "--name", service, "--replicas", "3", "web:1",
        "sh", "-c", count,
    )  # fmt: skip
    short = f"{service}-short"
    lab.swarmctl(
        "service", "create", "--detach", "--name", short, "--restart-condition", "none",
        "web:1", "sh", "-c", "until [ -e /end ]; do sleep 0.1; done; exit 7",
    )  # fmt: skip
    try:
        before = eventually("3 run", lambda: len(r := lab.running(service)) == 3 and r)
        (ending,) = eventually("the short one runs", lambda: lab.running(short))
        pids = {task["ID"]: task["Status"]["ContainerStatus"]["PID"] for task in before}

        for node in lab.addresses:
            lab.lab("kill", node)
        # The short one ends while no daemon is there to see it.
        process = Path(f"/proc/{ending['Status']['ContainerStatus']['PID']}")
        (process / "root/end").touch()
        eventually("it has ended", lambda: not process.exists())
        for pid in pids.values():
            assert Path(f"/proc/{pid}").exists()
        for node in lab.addresses:
            lab.lab("start", node)

        eventually("all are ready", lambda: set(_states(lab).values()) == {"Ready"})
        after = eventually("3 run", lambda: len(r := lab.running(service)) == 3 and r)
        assert {t["ID"]: t["Status"]["ContainerStatus"]["PID"] for t in after} == pids
        ended = eventually(
            "the end is reported",
            lambda: [t for t in lab.tasks(short) if t["Status"]["State"] == "failed"],
        )
        assert ended[0]["Status"]["ContainerStatus"]["ExitCode"] == 7
        for task in after:
            lines = lab.swarmctl("task", "logs", "--raw", task["ID"]).splitlines()
            assert lines == [f"line {number}" for number in range(len(lines))]
            assert len(lines) > 200
    finally:
        lab.swarmctl("service", "rm", short, check=False)


def test_logs_follow_a_service_across_nodes(lab: Lab, service: str) -> None:
    lab.swarmctl(
        "service", "create", "--detach", "--name", service, "--replicas", "3", "web:1",
        "sh", "-c", "echo hello; sleep 1000",
    )  # fmt: skip

    def said() -> bool:
        lines = lab.swarmctl("service", "logs", service).splitlines()
        return len([line for line in lines if line.endswith("hello")]) == 3

    eventually("three tasks said hello", said)
    nodes = {
        line.split("@")[1].split()[0]
        for line in lab.swarmctl("service", "logs", service).splitlines()
    }
    assert nodes == set(lab.addresses)


def test_rolling_update_and_rollback(lab: Lab, service: str) -> None:
    lab.swarmctl(
        "service", "create", "--detach", "--name", service, "--replicas", "2",
        "--env", "VERSION=1", "--update-monitor", "100ms", "--stop-grace-period", "0s", "web:1",
    )  # fmt: skip
    eventually("2 run", lambda: len(lab.running(service)) == 2)

    lab.swarmctl("service", "update", "--detach", "--env-add", "VERSION=2", service)
    eventually("both are new", lambda: _versions(lab, service) == ["VERSION=2", "VERSION=2"])
    lab.swarmctl("service", "rollback", "--detach", service)

    eventually("both are old", lambda: _versions(lab, service) == ["VERSION=1", "VERSION=1"])


def test_a_drained_node_gives_up_its_tasks(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", service, "--replicas", "3", "web:1")
    eventually("3 run", lambda: len(lab.running(service)) == 3)

    lab.swarmctl("node", "update", "--availability", "drain", "w2")
    try:

        def left() -> bool:
            shown = lab.swarmctl(
                "service", "ps", service, "--filter", "desired-state=running",
                "--format", "{{.Node}}",
            ).split()  # fmt: skip
            return len(lab.running(service)) == 3 and "w2" not in shown

        eventually("w2 is empty", left)
    finally:
        lab.swarmctl("node", "update", "--availability", "active", "w2")


def test_metrics_of_every_node(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", service, "--replicas", "3", "web:1")
    eventually("3 run", lambda: len(lab.running(service)) == 3)
    for node, address in lab.addresses.items():
        with urllib.request.urlopen(f"http://{address}:9323/metrics", timeout=5) as response:
            page = response.read().decode()
        families = [family.name for family in text_string_to_metric_families(page)]
        assert len(families) == len(set(families))  # no process repeats another's
        assert "swarm_node_info" in families
        assert f'container_label_com_docker_swarm_service_name="{service}"' in page
        if node == "m1":
            assert 'swarm_manager_nodes{state="ready"} 3.0' in page
            assert 'swarm_manager_tasks_total{state="running"}' in page
            assert "swarm_manager_services_total 1.0" in page


def _states(lab: Lab) -> dict[str, str]:
    result = lab.run("node", "ls", "--format", "{{.Hostname}} {{.Status}}", check=False)
    return dict(line.split() for line in result.stdout.splitlines()) or {"": "no manager"}


def _versions(lab: Lab, service: str) -> list[str]:
    return sorted(
        variable
        for task in lab.running(service)
        for variable in task["Spec"]["ContainerSpec"]["Env"]
    )
