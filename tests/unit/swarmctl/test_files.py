"""Secrets and configs on the command line: grammars, requests that arrive, and what is printed."""

from __future__ import annotations

import base64
import json

import pytest

from shoal.api.v1 import control_pb2
from shoal.errors import InvalidArgument
from shoal.model.specs import ReplicatedJobMode, SecretSpec, ServiceSpec
from shoal.model.types import Annotations, Driver, FileReference
from shoal.wire.objects import from_pb
from swarmctl.parsing.files import parse_file
from tests.unit.swarmctl.conftest import run
from tests.unit.swarmctl.test_commands import create, last


def ref(name: str, target: str = "", **fields: object) -> FileReference:
    whole = FileReference(name=name, target=target or name, uid="0", gid="0", mode=0o444)
    return whole.replaced(**fields)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("db", ref("db")),
        ("source=db", ref("db")),
        ("src=db,target=/etc/key,uid=33,gid=4,mode=0400",
         ref("db", "/etc/key", uid="33", gid="4", mode=0o400)),
        ('"source=db","target=a,b"', ref("db", "a,b")),
        ("source=db,mode=292", ref("db")),
        ("source=db,mode=0o400", ref("db", mode=0o400)),
    ],
)  # fmt: skip
def test_references(text: str, reference: FileReference) -> None:
    assert parse_file(text) == reference


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "source needs a value"),
        ("target=x", "source is required"),
        ("source=", "source needs a value"),
        ("source=a,color=red", "unknown key 'color'"),
        ("source=a,mode=0888", "write it in octal"),
        ("source=a,mode=rw", "write it in octal"),
        ("source=a,mode=4000", "write it in octal"),
    ],
)
def test_references_that_say_nothing_are_refused(text: str, error: str) -> None:
    with pytest.raises(InvalidArgument, match=error):
        parse_file(text)


def test_a_secret_is_made_of_a_file_or_of_standard_input(daemon, tmp_path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\x00\xffkey")
    result = run(
        "secret", "create", "-l", "tier=db", "--template-driver", "golang", "db", str(file),
        host=daemon.address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.strip() in daemon.state.files
    assert from_pb(last(daemon, control_pb2.CreateSecretRequest).spec, SecretSpec) == SecretSpec(
        annotations=Annotations("db", {"tier": "db"}),
        data=b"\x00\xffkey",
        templating=Driver("golang"),
    )
    run("config", "create", "site", "-", host=daemon.address, stdin=b"hello")
    assert last(daemon, control_pb2.CreateConfigRequest).spec.data == b"hello"
    run("secret", "create", "-d", "vault", "far", str(file), host=daemon.address)
    assert last(daemon, control_pb2.CreateSecretRequest).spec.driver.name == "vault"


def test_contents_out_of_bounds_are_not_even_sent(daemon, tmp_path) -> None:
    file = tmp_path / "big"
    for kind, limit in (("secret", 512_000), ("config", 1_024_000)):
        for size in (0, limit):
            file.write_bytes(b"x" * size)
            result = run(kind, "create", "big", str(file), host=daemon.address)
            assert result.exit_code != 0
            assert f"{kind} data must be larger than 0 and less than {limit}" in result.output
    result = run("secret", "create", "no", str(tmp_path / "none"), host=daemon.address)
    assert "No such file" in result.output
    assert not daemon.state.files


def test_lists_and_inspect(daemon, tmp_path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"content")
    for kind in ("secret", "config"):
        for name in ("two", "one"):
            run(kind, "create", "-l", "a=b", name, str(file), host=daemon.address)
    lines = run("secret", "ls", host=daemon.address).output.splitlines()
    assert lines[0].split() == ["ID", "NAME", "DRIVER", "CREATED", "UPDATED"]
    assert [line.split()[1] for line in lines[1:]] == ["one", "two"]
    lines = run("config", "ls", "--filter", "label=a", host=daemon.address).output.splitlines()
    assert lines[0].split() == ["ID", "NAME", "CREATED", "UPDATED"]
    shown = run("config", "ls", "--format", "{{.Name}} {{.Labels}}", host=daemon.address).output
    assert shown == "one a=b\ntwo a=b\n"
    assert len(run("secret", "ls", "-q", host=daemon.address).output.split()) == 2

    (found,) = json.loads(run("secret", "inspect", "one", host=daemon.address).output)
    assert found["Spec"] == {"Labels": {"a": "b"}, "Name": "one"}
    (found,) = json.loads(run("config", "inspect", "one", host=daemon.address).output)
    assert base64.b64decode(found["Spec"]["Data"]) == b"content"
    pretty = run("config", "inspect", "--pretty", "one", host=daemon.address).output
    assert "Name:\t\t\tone\nLabels:\n - a=b\n" in pretty
    assert pretty.endswith("Data:\ncontent\n")
    assert "content" not in run("secret", "inspect", "--pretty", "one", host=daemon.address).output

    result = run("secret", "rm", "one", "three", "two", host=daemon.address)
    assert result.exit_code != 0
    assert result.output.splitlines()[:2] == ["one", "two"]
    assert "secret three not found" in result.output
    assert run("secret", "rm", "--force", "three", host=daemon.address).exit_code == 0


def test_another_content_reaches_services_in_turn_but_no_job(daemon, tmp_path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"one")
    run("secret", "create", "db", str(file), host=daemon.address)
    create(daemon, "--secret", "db", "--secret", "other")
    (web,) = daemon.state.services.values()
    container = web.spec.task.runtime
    stored = tuple(one.replaced(id=f"id-{one.name}") for one in container.secrets)
    spec = web.spec.replaced(
        task=web.spec.task.replaced(runtime=container.replaced(secrets=stored))
    )
    job = ReplicatedJobMode(total_completions=1)
    daemon.state.services = {
        web.id: web.replaced(spec=spec),
        "job": web.replaced(id="job", spec=named(spec.replaced(mode=job), "job")),
    }
    file.write_bytes(b"two")
    result = run("secret", "update", "db", str(file), host=daemon.address)
    assert result.exit_code == 0, result.output
    assert last(daemon, control_pb2.RotateSecretRequest).data == b"two"
    (update,) = [
        one for one in daemon.state.requests if isinstance(one, control_pb2.UpdateServiceRequest)
    ]
    assert update.service == web.id
    runtime = from_pb(update.spec, ServiceSpec).task.runtime
    assert [(one.id, one.name) for one in runtime.secrets] == [("", "db"), ("id-other", "other")]
    assert "web updated" in result.output
    assert "still with an earlier content of the secret: job\n" in result.output

    result = run("secret", "update", "--no-restart", "db", str(file), host=daemon.address)
    assert "still with an earlier content of the secret: web, job\n" in result.output
    assert [line.split()[1] for line in listed(daemon)] == ["db"]
    assert [line.split()[1] for line in listed(daemon, "--all")] == ["db", "db@1", "db@2"]


def named(spec: ServiceSpec, name: str) -> ServiceSpec:
    return spec.replaced(annotations=spec.annotations.replaced(name=name))


def listed(daemon, *flags: str) -> list[str]:
    return run("secret", "ls", *flags, host=daemon.address).output.splitlines()[1:]


def test_services_get_and_lose_files(daemon) -> None:
    create(daemon, "--secret", "db", "--secret", "source=key,target=/etc/key", "--config", "site")
    spec = from_pb(last(daemon, control_pb2.CreateServiceRequest).spec, ServiceSpec)
    assert spec.task.runtime.secrets == (ref("db"), ref("key", "/etc/key"))
    assert spec.task.runtime.configs == (ref("site"),)
    pretty = run("service", "inspect", "--pretty", "web", host=daemon.address).output
    assert "Secrets:\n Target:\tdb\n  Source:\tdb\n Target:\t/etc/key\n  Source:\tkey\n" in pretty
    assert "Configs:\n Target:\tsite\n  Source:\tsite\n" in pretty
    result = run(
        "service", "update", "-d", "--secret-rm", "db", "--secret-add", "source=new,target=db",
        "--secret-add", "source=fresh,target=/etc/key", "--config-rm", "site", "web",
        host=daemon.address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    spec = from_pb(last(daemon, control_pb2.UpdateServiceRequest).spec, ServiceSpec)
    assert spec.task.runtime.secrets == (ref("fresh", "/etc/key"), ref("new", "db"))
    assert spec.task.runtime.configs == ()
