"""Secrets and configs of the swarm by the docker command line, and by docker-py."""

from __future__ import annotations

import json
import shutil

import docker as docker_py
import pytest

from tests.integration.cluster.docker_cli import docker, output, socket_of
from tests.integration.cluster.lab import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is missing"),
]
IDLE = ("--detach", "--replicas", "0")
RPC = "Error response from daemon: rpc error: code ="


@pytest.mark.parametrize("noun", ["secret", "config"])
def test_files_are_made_listed_inspected_and_removed(lab: Lab, noun: str):
    made = output(lab, noun, "create", "f1", "-", stdin="one").strip()
    words = ("-l", "a=b", "--template-driver", "golang", "f2", "-")
    output(lab, noun, "create", *words, stdin="{{.Service.Name}}")
    try:
        assert output(lab, noun, "ls", "--format", "{{.Name}} {{.Labels}}") == "f1 \nf2 a=b\n"
        assert output(lab, noun, "ls", "-q", "--filter", "name=f1", "--filter", "label=a") == ""
        assert output(lab, noun, "ls", "-q", "--filter", f"id={made[:8]}") == f"{made}\n"
        specs = json.loads(f"[{output(lab, noun, 'inspect', 'f1', '--format', '{{json .Spec}}')}]")
        data = {"Data": "b25l"} if noun == "config" else {}
        assert specs == [{"Name": "f1", "Labels": {}, **data}]
        template = output(lab, noun, "inspect", "f2", "--format", "{{.Spec.Templating.Name}}")
        assert template == "golang\n"
        assert "Name:" in output(lab, noun, "inspect", "--pretty", "f1")
    finally:
        assert output(lab, noun, "rm", "f1", "f2") == "f1\nf2\n"
    assert output(lab, noun, "ls", "-q") == ""


@pytest.mark.parametrize("noun", ["secret", "config"])
def test_files_are_refused_in_docker_s_words(lab: Lab, noun: str):
    limit = 512_000 if noun == "secret" else 1_024_000
    output(lab, noun, "create", "f1", "-", stdin="one")
    lab.swarmctl("service", "create", *IDLE, "--name", "full", f"--{noun}", "f1", "web:1")
    lab.swarmctl("service", "create", *IDLE, "--name", "more", f"--{noun}", "f1", "web:1")
    name = (
        "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character"
        " must be [a-zA-Z0-9]"
    )
    size = f"{noun} data must be larger than 0 and less than {limit} bytes"
    users = f"{noun} 'f1' is in use by the following services: full, more"
    try:
        for words, stdin, text in (
            (("create", "f1", "-"), "two", f"{RPC} AlreadyExists desc = {noun} f1 already exists"),
            (("create", "bad name", "-"), "x", f"{RPC} InvalidArgument desc = {name}"),
            (("create", "big", "-"), "x" * limit, f"{RPC} InvalidArgument desc = {size}"),
            (("rm", "f1"), "", f"{RPC} InvalidArgument desc = {users}"),
            (("rm", "nosuch"), "", f"Error response from daemon: {noun} nosuch not found"),
            (("inspect", "nosuch"), "", f"Error response from daemon: {noun} nosuch not found"),
            (("ls", "--filter", "bad=1"), "", "Error response from daemon: Invalid filter 'bad'"),
        ):
            code, _, err = docker(lab, "m1", noun, *words, stdin=stdin)
            assert (code, err.strip()) == (1, text)
        if noun == "secret":
            code, _, err = docker(lab, "m1", noun, "create", "--driver", "nosuch", "s3")
            assert (code, err.strip()) == (1, f'{RPC} Unknown desc = plugin "nosuch" not found')
    finally:
        lab.swarmctl("service", "rm", "full", "more")
        lab.swarmctl(noun, "rm", "f1")


def test_docker_py_makes_files_and_changes_their_labels(lab: Lab):
    client = docker_py.DockerClient(
        base_url=f"unix://{socket_of(lab, 'm1')}", version="auto", timeout=60
    )
    try:
        secret = client.secrets.create(name="pw", data=b"hidden", labels={"a": "b"})
        config = client.configs.create(name="conf", data=b"shown")
        assert client.secrets.get(secret.id).attrs["Spec"] == {"Name": "pw", "Labels": {"a": "b"}}
        assert client.configs.get("conf").attrs["Spec"]["Data"] == "c2hvd24="
        assert [one.id for one in client.secrets.list(filters={"names": ["pw"]})] == [secret.id]
        assert client.secrets.list(filters={"names": ["p"]}) == []
        for kind, one in (("secrets", secret), ("configs", config)):
            one.reload()
            spec = {"Name": one.attrs["Spec"]["Name"], "Labels": {"new": "1"}}
            version = one.attrs["Version"]["Index"]
            assert _update(client, kind, one.id, version, spec).status_code == 200
            late = _update(client, kind, one.id, version, spec)
            assert (late.status_code, "update out of sequence" in late.text) == (500, True)
            one.reload()
            assert one.attrs["Spec"]["Labels"] == {"new": "1"}
            other = _update(
                client, kind, one.id, one.attrs["Version"]["Index"], {**spec, "Data": "eA=="}
            )
            assert other.status_code == 400
            assert "only updates to Labels are allowed" in other.text
            assert _update(client, kind, one.id, None, spec).status_code == 400
    finally:
        for one in (*client.secrets.list(), *client.configs.list()):
            one.remove()
        client.close()


def _update(client, kind: str, reference: str, version: int | None, spec: dict):
    """docker-py has no call for it."""
    api = client.api
    params = {} if version is None else {"version": version}
    return api._post_json(api._url("/{0}/{1}/update", kind, reference), data=spec, params=params)
