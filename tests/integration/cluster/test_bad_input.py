"""What a user does wrong is answered with the field, the rule and the remedy; nothing is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest

from shoal.ids import new_id
from shoal.security.root import RootCA
from shoal.security.tokens import make_join_token
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replicas", "100000000", "web:1"], "replicas: 100000000 is more than"),
        (["--constraint", "foo==1", "web:1"], "'foo' is no key of a node"),
        (["--name", "bad name", "web:1"], "service name: 'bad name'"),
        (["UPPER:1"], "image:"),
        (["--limit-memory", "1k", "web:1"], "limit-memory: must be at least 4MiB"),
        (["--mount", "type=bind,source=x,target=/y", "web:1"], "must be an absolute path"),
    ],
)
def test_refused_before_anything_is_made(lab: Lab, arguments: list[str], says: str) -> None:
    result = lab.run("service", "create", "--detach", *arguments, check=False)

    assert result.returncode != 0
    assert says in result.stderr
    assert lab.swarmctl("service", "ls", "--quiet").split() == []


def test_a_missing_image_is_named_in_service_ps(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", service, "nosuch:1")

    eventually("the reason shows", lambda: "No such image: nosuch:1" in _errors(lab, service))
    assert len(lab.tasks(service)) <= 3  # it does not spin


def test_a_missing_program_is_named_in_service_ps(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", service, "web:1", "nosuchprogram")

    eventually("the reason shows", lambda: "nosuchprogram" in _errors(lab, service))
    assert "executable file not found" in _errors(lab, service)


def test_a_task_that_fits_nowhere_says_why(lab: Lab, service: str) -> None:
    lab.swarmctl(
        "service", "create", "--detach", "--name", service, "--reserve-memory", "100g", "web:1"
    )

    eventually(
        "the reason shows",
        lambda: "insufficient resources on 3 nodes" in _errors(lab, service),
    )


def test_zero_replicas_is_a_service_without_tasks(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--name", service, "--replicas", "0", "web:1")

    assert lab.tasks(service) == []


def test_a_port_is_taken_in_the_cluster(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", service, "-p", "8081:80", "web:1")

    result = lab.run("service", "create", "--detach", "-p", "8081:80", "web:1", check=False)

    assert result.returncode != 0
    assert f"port 8081/tcp is already in use by service {service}" in result.stderr


def test_a_port_is_taken_by_a_process_on_a_node(lab: Lab, service: str) -> None:
    holder = lab.run(
        "lab", "exec", "--name", lab.name, "w1", "--", "sh", "-c",
        "busybox httpd -f -p 8082 >/dev/null 2>&1 & echo $!",
    )  # fmt: skip
    pid = int(holder.stdout.split()[-1])
    try:
        lab.swarmctl("service", "create", "--detach", "--name", service, "-p", "8082:80", "web:1")

        def told() -> bool:
            shown = lab.swarmctl("node", "inspect", "w1", "--format", "{{.Status.Message}}")
            return "port 8082/tcp is in use by another process on this node" in shown

        eventually("w1 says so", told)
        eventually("the others answer", lambda: lab.running(service) and lab.ask("w2", 8082))
    finally:
        lab.run("lab", "exec", "--name", lab.name, "w1", "--", "kill", str(pid), check=False)
    eventually("w1 answers when the port is free", lambda: _answers(lab, "w1", 8082))


def test_a_node_of_a_cluster_is_told_so(lab: Lab) -> None:
    assert "already" in _join(lab, "w1", _token(lab)).stderr


@pytest.fixture(scope="module")
def outsider(lab: Lab) -> Iterator[str]:
    """A worker that has left, for the tests below in turn; afterwards it is one again."""
    lab.run("-H", lab.socket("w2"), "leave")
    yield "w2"
    if _swarm(lab, "w2") == "inactive":
        assert _join(lab, "w2", _token(lab)).returncode == 0
    for old in _rows(lab, "w2", "Down"):
        lab.run("node", "rm", old)
    eventually("all are ready", lambda: set(lab.node_states().values()) == {"Ready"})


def test_a_wrong_token_is_refused(lab: Lab, outsider: str) -> None:
    cluster, _, secret = _token(lab).rpartition("-")
    expired = lab.swarmctl("join-token", "create", "late", "--ttl", "1s", "--quiet").strip()
    other = make_join_token(RootCA.create(now_ns=time.time_ns()).certificate_pem)
    cases = {
        f"{cluster}-{new_id()}": "the join token is not valid for this cluster, or was used up",
        f"SWMTKN-1-{other.digest}-{secret}": "the manager's root certificate is not the one in",
        f"{cluster}-{secret[:-1]}": "the secret must have 25 characters, this has 24",
        expired: "the join token late has expired: make another one with `swarmctl join-token",
    }
    try:
        eventually("it expires", lambda: "late expired" in _limited_tokens(lab))
        for token, says in cases.items():
            refused = _join(lab, outsider, token)
            assert refused.returncode != 0
            assert says in refused.stderr
            assert secret not in refused.stderr
            assert _swarm(lab, outsider) == "inactive"
        assert len(lab.swarmctl("node", "ls", "--quiet").split()) == 3  # its old row is one of them
    finally:
        lab.swarmctl("join-token", "rm", "late")


def test_a_worker_that_left_and_joined_again_is_in_the_mesh_beside_its_old_row(
    lab: Lab, service: str, outsider: str
) -> None:
    assert _join(lab, outsider, _token(lab)).returncode == 0
    eventually("its old row is down", lambda: _rows(lab, outsider, "Down"))
    eventually("its new row is ready", lambda: _rows(lab, outsider, "Ready"))
    lab.swarmctl(
        "service", "create", "--detach", "--name", service, "--replicas", "3",
        "--replicas-max-per-node", "1", "-p", "8083:80", "web:1",
    )  # fmt: skip

    for node in lab.addresses:
        seen: set[str] = set()
        eventually(
            f"{node} balances over all",
            lambda node=node, seen=seen: _balances_over(lab, node, 8083, seen) == 3,
        )


def _balances_over(lab: Lab, node: str, port: int, seen: set[str]) -> int:
    """How many containers have answered by now, with one question more."""
    try:
        seen.add(lab.ask(node, port)[0])
    except (OSError, IndexError, ValueError):
        return 0
    return len(seen)


def _limited_tokens(lab: Lab) -> str:
    return lab.swarmctl("join-token", "ls", "--format", "{{.Name}} {{.Expires}}")


def _token(lab: Lab) -> str:
    return lab.swarmctl("join-token", "worker", "--quiet").strip()


def _join(lab: Lab, node: str, token: str) -> CompletedProcess[str]:
    remote = f"{lab.addresses['m1']}:2377"
    return lab.run("-H", lab.socket(node), "join", "--token", token, remote, check=False)


def _swarm(lab: Lab, node: str) -> str:
    """Whether the node is in a cluster, as it says itself."""
    shown = lab.run("-H", lab.socket(node), "info", "--format", "{{.Swarm.LocalNodeState}}")
    return shown.stdout.strip()


def _rows(lab: Lab, hostname: str, status: str) -> list[str]:
    """Ids of the node's rows with that status."""
    shown = lab.swarmctl("node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Status}}")
    rows = [line.split() for line in shown.splitlines()]
    return [row[0] for row in rows if row[1:] == [hostname, status]]


def _errors(lab: Lab, service: str) -> str:
    return lab.swarmctl("service", "ps", service, "--no-trunc", "--format", "{{.Error}}")


def _answers(lab: Lab, node: str, port: int) -> bool:
    try:
        lab.ask(node, port)
    except (OSError, IndexError, ValueError):
        return False
    return True
