"""Credentials from the docker command line's file and helpers, as workers read them."""

from __future__ import annotations

import base64
import json

import pytest

from shoal.errors import FailedPrecondition
from shoal.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from swarmctl.commands.service_write import with_auth
from swarmctl.edit.service import edit_service
from swarmctl.registry_auth import registry_auth
from worker.images.registry.auths import read_auth

PAIR = base64.b64encode(b"me:s:cret").decode()


def written(tmp_path, content):
    (tmp_path / "config.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return tmp_path


@pytest.mark.parametrize(
    ("image", "server"),
    [
        ("r.example:5000/a/b:1", "r.example:5000"),
        ("r.example:5000/a/b:1", "https://r.example:5000"),
        ("web", "https://index.docker.io/v1/"),
    ],
)
def test_what_login_wrote(tmp_path, image, server):
    text = registry_auth(image, written(tmp_path, {"auths": {server: {"auth": PAIR}}}))
    found = read_auth(text)
    assert (found.username, found.password) == ("me", "s:cret")


def test_nobody_logged_in(tmp_path):
    assert registry_auth("r.example/a", tmp_path) == ""
    assert (
        registry_auth("r.example/a", written(tmp_path, {"auths": {"other": {"auth": PAIR}}})) == ""
    )
    assert read_auth("").anonymous


def test_a_helper(tmp_path, monkeypatch):
    helper = tmp_path / "docker-credential-x"
    helper.write_text(
        '#!/bin/sh\nread s\necho "{\\"Username\\": \\"$s\\", \\"Secret\\": \\"p\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    text = registry_auth("r.example/a", written(tmp_path, {"credHelpers": {"r.example": "x"}}))
    assert read_auth(text).username == "r.example"
    helper.write_text("#!/bin/sh\necho credentials not found; exit 1\n")
    assert registry_auth("r.example/a", tmp_path) == ""
    helper.write_text("#!/bin/sh\necho locked >&2; exit 1\n")
    with pytest.raises(FailedPrecondition, match="docker-credential-x: locked"):
        registry_auth("r.example/a", tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"credsStore": "../x"}'])
def test_files_that_cannot_be_used(tmp_path, content):
    with pytest.raises(FailedPrecondition):
        registry_auth("r.example/a", written(tmp_path, content))


def test_the_flag_puts_the_login_into_the_spec(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    written(tmp_path, {"auths": {"r.example": {"auth": PAIR}}})
    flags = with_auth({"with_registry_auth": True, "replicas": 2}, "r.example/a:1")
    container = edit_service(
        ServiceSpec(task=TaskSpec(runtime=ContainerSpec())), flags
    ).task.runtime
    assert read_auth(container.pull_options.registry_auth).username == "me"
    assert with_auth({"replicas": 2}, "r.example/a:1") == {"replicas": 2}
