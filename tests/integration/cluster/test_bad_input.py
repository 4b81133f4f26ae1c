"""What a user does wrong is answered with the field, the rule and the remedy; nothing is left."""

from __future__ import annotations

import pytest

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


def test_a_wrong_token_is_refused(lab: Lab) -> None:
    token = lab.swarmctl("join-token", "--quiet", "worker").strip()
    wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
    worker = lab.socket("w1")
    assert (
        "already"
        in lab.run(
            "-H", worker, "join", "--token", token, f"{lab.addresses['m1']}:2377", check=False
        ).stderr
    )

    spare = lab.base / "spare"
    result = lab.run(
        "-H", f"unix://{spare}/none.sock", "join", "--token", wrong,
        f"{lab.addresses['m1']}:2377", check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "swarmd" in result.stderr


def _errors(lab: Lab, service: str) -> str:
    return lab.swarmctl("service", "ps", service, "--no-trunc", "--format", "{{.Error}}")


def _answers(lab: Lab, node: str, port: int) -> bool:
    try:
        lab.ask(node, port)
    except (OSError, IndexError, ValueError):
        return False
    return True
