"""The stack commands against the control API itself, on a store in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from click.testing import Result

from manager.controlapi.server import ControlServer
from manager.controlapi.stack_calls import StacksServer
from shoal.api.v1.control_pb2_grpc import add_ControlServicer_to_server
from shoal.api.v1.node_pb2 import ResolveImageResponse
from shoal.api.v1.node_pb2_grpc import ImagesServicer, add_ImagesServicer_to_server
from shoal.api.v1.stacks_pb2_grpc import add_StacksServicer_to_server
from shoal.api.v1.types_pb2 import Platform
from shoal.model.specs import ContainerSpec
from shoal.security.grpc_tls import server_options
from shoal.wire.errors import ErrorInterceptor
from swarmctl.exits import CONFLICT, NO_CHANGE, NOT_FOUND, UNSUPPORTED, USAGE
from swarmctl.stacks import REQUEST_BYTES_MAX
from tests.support.managing import HandClock, a_store
from tests.support.planning import a_node
from tests.unit.swarmctl.conftest import run

FILE = """\
services:
  web: {image: "nginx:${TAG:-1}", depends_on: [db], secrets: [pw], build: .}
  db: {image: db}
secrets: {pw: {file: ./pw}}
"""
DIGEST = "sha256:" + "a" * 64


class Registries(ImagesServicer):
    """A node whose registries know some images."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.asked: list[str] = []

    async def ResolveImage(self, request, context):
        self.asked.append(request.image)
        if request.image not in self.known:
            await context.abort(grpc.StatusCode.NOT_FOUND, "manifest unknown")
        platforms = [Platform(architecture="amd64", os="linux"),
                     Platform(architecture="arm64", os="linux")]  # fmt: skip
        image = f"{request.image}@{self.known[request.image]}"
        return ResolveImageResponse(image=image, platforms=platforms)


Typed = Callable[..., Awaitable[Result]]


@pytest.fixture
async def store():
    return a_store([a_node("n1")], HandClock())[0]


@pytest.fixture
def registries() -> Registries:
    return Registries()


@pytest.fixture
async def typed(store, registries, tmp_path: Path) -> AsyncIterator[Typed]:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=server_options())
    add_ControlServicer_to_server(ControlServer(store, store.clock), server)
    add_StacksServicer_to_server(StacksServer(store, store.clock), server)
    add_ImagesServicer_to_server(registries, server)
    address = f"unix:{tmp_path / 'node.sock'}"
    server.add_insecure_port(address)
    await server.start()

    async def type_in(*arguments: str) -> Result:
        return await asyncio.to_thread(run, *arguments, host=address.replace(":", "://"))

    try:
        yield type_in
    finally:
        await server.stop(None)


@pytest.fixture
def deploy(typed: Typed, tmp_path: Path) -> Typed:
    """`stack deploy` of FILE in a directory of its own."""
    (tmp_path / "pw").write_text("hidden")
    file = tmp_path / "stack.yml"
    file.write_text(FILE)

    async def deployed(*flags: str) -> Result:
        return await typed("stack", "deploy", "-d", "-c", str(file), *flags, "st")

    return deployed


async def test_deployed_listed_changed_and_removed(deploy, typed, monkeypatch) -> None:
    made = await deploy()
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines() == [
        "Creating network st_default",
        "Creating secret st_pw",
        "Creating service st_db",
        "Creating service st_web",
    ]
    assert "Ignoring unsupported options: build" in made.stderr
    again = await deploy()
    assert again.stdout == "Stack st is as it is wished: nothing was changed\n"
    monkeypatch.setenv("TAG", "2")
    changed = await deploy("--check-version", "1")
    assert changed.stdout.startswith("Updating service st_web (id: ")
    stale = await deploy("--check-version", "1")
    assert stale.exit_code == USAGE
    assert "stack st is at revision 2, not 1" in stale.stderr

    listed = await typed("stack", "ls")
    assert listed.stdout.split() == ["NAME", "SERVICES", "REVISION", "st", "2", "2"]
    services = await typed("stack", "services", "st", "--format", "{{.Name}} {{.Image}}")
    assert services.stdout == "st_db db\nst_web nginx:2\n"
    tasks = await typed("stack", "ps", "st")
    assert tasks.stdout.split()[:3] == ["ID", "NAME", "IMAGE"]
    history = await typed("stack", "history", "st", "--format", "{{.Revision}}: {{.Note}}")
    assert history.stdout == "2: current\n1: \n"
    back = await typed("stack", "rollback", "-d", "st", "--to", "1")
    assert back.stdout.startswith("Updating service st_web")

    removed = await typed("stack", "rm", "st", "none")
    assert removed.exit_code == 0
    assert "Removing secret st_pw" in removed.stdout.splitlines()
    assert removed.stderr == "Nothing found in stack: none\n"
    gone = await typed("stack", "ps", "st")
    assert (gone.exit_code, gone.stderr) == (
        NOT_FOUND, "Error: nothing found in stack: st\n",
    )  # fmt: skip


async def test_what_was_deployed_and_what_would_be(deploy, typed, tmp_path) -> None:
    planned = await deploy("--plan")
    assert planned.exit_code == 0, planned.output
    assert "Creating service st_web" in planned.stdout
    assert "st_db: new; 1 task made" in planned.stdout
    assert (await typed("stack", "ls")).stdout.split() == ["NAME", "SERVICES", "REVISION"]
    shown = json.loads((await deploy("--plan", "--format", "json")).stdout)
    assert {one["Name"]: one["Created"] for one in shown["Plan"]["Services"]} == {
        "st_db": 1, "st_web": 1,
    }  # fmt: skip
    assert shown["Changes"][0] == {
        "Kind": "network", "Name": "st_default", "ID": shown["Changes"][0]["ID"],
        "Action": "create",
    }  # fmt: skip
    await deploy()
    assert (await deploy("--plan")).exit_code == NO_CHANGE
    from_cluster = await typed("stack", "config", "st")
    from_files = await typed("stack", "config", "-c", str(tmp_path / "stack.yml"))
    assert from_cluster.stdout == from_files.stdout
    assert "hidden" not in from_cluster.stdout
    raw = await typed("stack", "config", "--skip-interpolation", "-c", str(tmp_path / "stack.yml"))
    assert "nginx:${TAG:-1}" in raw.stdout


async def test_credentials_go_where_they_are_wished(deploy, store, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text('{"auths": {"docker.io": {"auth": "dTpw"}}}')
    await deploy("--with-registry-auth")
    runtime = store.view.services.by_name("st_web").spec.task.runtime
    assert isinstance(runtime, ContainerSpec)
    assert runtime.pull_options is not None
    await deploy()
    after = store.view.services.by_name("st_web").spec.task.runtime
    assert after.pull_options == runtime.pull_options


async def test_refusals(deploy, typed, tmp_path) -> None:
    cases = [
        (("stack", "deploy", "st"), USAGE, "specify a Compose file"),
        (("stack", "deploy", "-c", str(tmp_path / "no.yml"), "st"), USAGE, "No such file"),
        (("stack", "deploy", "-c", "/dev/zero", "st"), USAGE, "more than 1048576 bytes"),
        (("stack", "deploy", "--resolve-image", "odd", "st"), USAGE, "is not one of 'always'"),
        (("stack", "config"), USAGE, "give either STACK"),
        (("stack", "config", "st", "--skip-interpolation"), USAGE, "--compose-file only"),
        (("stack", "history", "st"), NOT_FOUND, "stack st not found"),
        (("stack", "rollback", "st"), NOT_FOUND, "stack st not found"),
    ]
    for arguments, code, message in cases:
        result = await typed(*arguments)
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    (tmp_path / "pw").write_bytes(b"x" * 500_000)
    file = tmp_path / "stack.yml"
    names = [f"s{n}" for n in range(8)]
    secrets = ", ".join(f"{name}: {{file: ./pw}}" for name in names)
    file.write_text(f"services: {{a: {{image: x}}}}\nsecrets: {{{secrets}}}\n")
    large = await deploy()
    assert f"at most {REQUEST_BYTES_MAX}" in large.stderr
    file.write_text("services: {a: {image: x, secrets: [s]}}\nsecrets: {s: {driver: vault}}\n")
    assert (await deploy()).exit_code == UNSUPPORTED
    file.write_text(FILE)
    (tmp_path / "pw").write_text("p")
    await typed("network", "create", "st_default")
    taken = await deploy()
    assert taken.exit_code == CONFLICT
    assert "network st_default is there already and does not belong to the stack" in taken.stderr


async def test_images_are_pinned_to_what_they_stand_for(
    deploy, typed, store, registries, monkeypatch
) -> None:
    def image() -> str:
        return store.view.services.by_name("st_web").spec.task.runtime.image

    registries.known["nginx:1"] = DIGEST
    made = await deploy()
    assert image() == f"nginx:1@{DIGEST}"
    placement = store.view.services.by_name("st_web").spec.task.placement
    assert [(one.architecture, one.os) for one in placement.platforms] == [
        ("amd64", "linux"), ("", "linux"),
    ]  # fmt: skip
    assert "image db could not be accessed on a registry" in made.stderr
    assert sorted(registries.asked) == ["db", "nginx:1"]
    for flags in ((), ("--resolve-image", "changed"), ("--resolve-image", "never")):
        again = await deploy(*flags)
        assert "nothing was changed" in again.stdout, flags
    assert len(registries.asked) == 4
    registries.known.clear()
    assert "nothing was changed" in (await deploy()).stdout  # no registry: it stays what it is
    registries.known["nginx:1"] = "sha256:" + "b" * 64
    assert (await deploy("--resolve-image", "changed")).stdout.startswith("Stack st is as it")
    assert (await deploy()).stdout.startswith("Updating service st_web")
    monkeypatch.setenv("TAG", "2")
    registries.known["nginx:2"] = DIGEST
    await deploy("--resolve-image", "changed")
    assert image() == f"nginx:2@{DIGEST}"
    await deploy("--resolve-image", "never")
    assert image() == f"nginx:2@{DIGEST}"
