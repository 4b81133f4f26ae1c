"""Secrets and configs in the control API: limits, references, who keeps one, and no data shown."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from manager.controlapi.files import remove_file, with_file_ids
from manager.controlapi.server import ControlServer
from manager.controlapi.validate_files import file_references, file_spec
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import specs_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub, add_ControlServicer_to_server
from shoal.errors import InvalidArgument, SwarmError, Unimplemented
from shoal.model.enums import MountType, TaskState, UpdateState
from shoal.model.files import FILES_BYTES_MAX, FileRow, config_path, secret_path
from shoal.model.objects import Config, Secret, Service
from shoal.model.specs import ConfigSpec, ContainerSpec, SecretSpec, TaskSpec
from shoal.model.types import Annotations, Driver, FileReference, FileRotation, Mount, UpdateStatus
from shoal.security.grpc_tls import local_channel
from shoal.wire.objects import to_pb
from tests.support.managing import HandClock, a_store, put_now, refusal, served
from tests.support.planning import Cell, a_service, a_task

BAD, LATER = InvalidArgument, Unimplemented
NAME_RULE = "invalid name, only 64 "
DATA = b"hunter2-hunter2"
GO = Driver("golang")


def a_secret(name: str = "db", data: bytes = DATA, **fields: object) -> Secret:
    spec = SecretSpec(annotations=Annotations(name), data=data).replaced(**fields)
    return Secret(id=f"id-{name}", spec=spec)


def a_config(name: str = "site", data: bytes = DATA, **fields: object) -> Config:
    spec = ConfigSpec(annotations=Annotations(name), data=data).replaced(**fields)
    return Config(id=f"id-{name}", spec=spec)


@pytest.mark.parametrize(
    ("row", "error", "text"),
    [
        (a_secret(""), BAD, "name must be provided"),
        (a_secret("a" * 65), BAD, NAME_RULE),
        (a_secret("-a"), BAD, NAME_RULE),
        (a_secret("a."), BAD, NAME_RULE),
        (a_secret("a b"), BAD, NAME_RULE),
        (a_secret(data=b""), BAD, "secret data must be larger than 0 and less than 512000"),
        (a_secret(data=b"x" * 512_000), BAD, "secret data must be larger than 0 and less than"),
        (a_config(data=b""), BAD, "config data must be larger than 0 and less than 1024000"),
        (a_config(data=b"x" * 1_024_000), BAD, "config data must be larger than 0 and less"),
        (a_secret(driver=Driver("nosuch")), LATER, 'plugin "nosuch" not found'),
        (a_secret(templating=Driver("jinja")), BAD, "template driver: 'jinja' must be golang"),
        (a_secret(templating=Driver("golang", {"a": "b"})), BAD, "template driver: option 'a'"),
        (a_secret(data=b"{{range .}}", templating=GO), BAD, "template: '{{range .}}' is unknown"),
        (a_config(annotations=Annotations("c", {"a b": ""})), BAD, "config labels: 'a b' must"),
    ],
)
def test_what_cannot_be_kept_is_refused(row: FileRow, error: type[SwarmError], text: str) -> None:
    with pytest.raises(error) as refused:
        file_spec(row)
    assert refused.value.message.startswith(text)


def test_the_largest_ones_and_the_longest_names_are_taken() -> None:
    file_spec(a_secret("a" * 64, b"x" * 511_999))
    file_spec(a_config("a._-b", b"\xff" * 1_023_999))
    file_spec(a_secret(data=b"{{not a template"))


def ref(target: str = "db", **fields: object) -> FileReference:
    return FileReference(name="db", target=target, mode=0o444).replaced(**fields)


def holding(*secrets: FileReference, configs: tuple[FileReference, ...] = ()) -> ContainerSpec:
    return ContainerSpec(image="a", secrets=secrets, configs=configs)


MOUNTED = Mount(type=MountType.TMPFS, target="/run/secrets/db")


@pytest.mark.parametrize(
    ("container", "error", "text"),
    [
        (
            holding(ref("/etc/db")).replaced(file_rotation=FileRotation()),
            BAD,
            "secret db: its target /etc/db is not below /run/secrets or /run/configs",
        ),
        (
            holding(ref()).replaced(file_rotation=FileRotation("SIGKILL")),
            BAD,
            "secret rotation: signal 'SIGKILL' is none that a program can be sent and catch",
        ),
        (
            holding(ref()).replaced(
                file_rotation=FileRotation(), mounts=(MOUNTED.replaced(target="/run/secrets/x"),)
            ),
            BAD,
            "secret rotation: the mount at /run/secrets/x cannot be below",
        ),
        (holding(FileReference(target="x")), BAD, "malformed secret reference"),
        (holding(ref("")), BAD, "malformed file secret reference, invalid target file name"),
        (
            holding(ref(), ref(name="other")),
            BAD,
            "secret references 'db' and 'other' have a conflicting target: 'db'",
        ),
        (holding(ref("../db")), BAD, "secret db: the target '../db' must be the path of a file"),
        (holding(ref("/")), BAD, "secret db: the target '/' must be the path of a file"),
        (holding(ref("a//b")), BAD, "secret db: the target 'a//b' must be the path of a file"),
        (holding(ref("a" * 600)), BAD, "secret db: the target has more than"),
        (holding(ref(uid="root")), BAD, "secret db: uid 'root' must be a number"),
        (holding(ref(gid="4294967295")), BAD, "secret db: gid '4294967295' must be a number"),
        (holding(ref(mode=0o4755)), BAD, "secret db: mode 4755 must be from 0 to 777"),
        (holding(configs=(ref(runtime=True),)), LATER, "config db: credential specs exist on"),
        (
            holding(ref("/etc/x"), configs=(ref("etc/x"),)),
            BAD,
            "config db: its target /etc/x is that of secret db, too",
        ),
        (holding(ref("a"), ref("a/b")), BAD, "secret db: its target /run/secrets/a is a file"),
        (
            holding(ref()).replaced(mounts=(MOUNTED,)),
            BAD,
            "secret db: its target /run/secrets/db is that of a mount, too",
        ),
        (holding(*(ref(f"s{n}") for n in range(257))), BAD, "secrets and configs: 257, at most"),
    ],
)
def test_references_that_cannot_be_files_are_refused(
    container: ContainerSpec, error: type[SwarmError], text: str
) -> None:
    with pytest.raises(error) as refused:
        file_references(container)
    assert refused.value.message.startswith(text)


def test_where_targets_are() -> None:
    assert [secret_path(ref(t)) for t in ("db", "a/b", "/etc/x")] == [
        "/run/secrets/db",
        "/run/secrets/a/b",
        "/etc/x",
    ]
    assert [config_path(ref(t)) for t in ("db", "/etc/x")] == ["/db", "/etc/x"]
    file_references(holding(ref(uid="33", gid="0", mode=0), ref("b"), configs=(ref(),)))


def using(container: ContainerSpec, name: str = "web") -> Service:
    return a_service(name, task=TaskSpec(runtime=container))


def test_references_are_stored_with_id_and_name() -> None:
    cell = Cell([a_secret(), a_config()])
    by_name = holding(ref(), configs=(FileReference(id="id-site", target="c"),))
    stored = with_file_ids(cell.tables, using(by_name).spec)
    assert isinstance(stored.task.runtime, ContainerSpec)
    assert [(r.id, r.name) for r in stored.task.runtime.secrets] == [("id-db", "db")]
    assert [(r.id, r.name) for r in stored.task.runtime.configs] == [("id-site", "site")]
    assert with_file_ids(cell.tables, stored) == stored


@pytest.mark.parametrize(
    ("container", "text"),
    [
        (holding(ref(name="no")), "secret not found: no"),
        (holding(ref(name="no"), ref("b", name="nor")), "secrets not found: no, nor"),
        (holding(ref(id="id-site")), "secret not found: db"),
        (holding(ref(id="id-d")), "secret not found: db"),
        (holding(configs=(ref(),)), "config not found: db"),
        (
            holding(ref("t", name="template")),
            "secret template: its template asks for config 'conf': give the service a config",
        ),
        (
            holding(*(ref(f"s{n}", name="big") for n in range(40))),
            f"secrets and configs: 20000000 bytes together, at most {FILES_BYTES_MAX}",
        ),
    ],
)
def test_references_to_what_is_not_there_are_refused(container: ContainerSpec, text: str) -> None:
    template = a_secret("template", b'{{config "conf"}}', templating=GO)
    cell = Cell([a_secret(), a_config(), template, a_secret("big", b"x" * 500_000)])
    with pytest.raises(InvalidArgument) as refused:
        with_file_ids(cell.tables, using(container).spec)
    assert refused.value.message.startswith(text)


def test_one_in_use_is_not_removed_and_its_services_are_named() -> None:
    rows = [a_secret(), a_config()]
    held = holding(ref(id="id-db"))
    cell = Cell([*rows, using(held, "web"), using(held, "api")])
    with pytest.raises(InvalidArgument) as refused:
        remove_file(cell.tables, Secret, "db")
    text = "secret 'db' is in use by the following services: api, web"
    assert refused.value.message == text
    assert remove_file(cell.tables, Config, "site")
    cell.remove(using(held, "api"))
    with pytest.raises(InvalidArgument, match="in use by the following service: web"):
        remove_file(cell.tables, Secret, "db")


def test_one_that_an_update_may_go_back_to_is_not_removed() -> None:
    before = using(holding(ref(id="id-db"))).spec
    service = using(holding()).replaced(previous_spec=before)
    cell = Cell([a_secret(), service])
    assert remove_file(cell.tables, Secret, "db")
    for state in (UpdateState.UPDATING, UpdateState.PAUSED):
        cell.put(service.replaced(update_status=UpdateStatus(state=state)))
        with pytest.raises(InvalidArgument, match="in use by the following service: web"):
            remove_file(cell.tables, Secret, "db")
    cell.put(service.replaced(update_status=UpdateStatus(state=UpdateState.COMPLETED)))
    assert remove_file(cell.tables, Secret, "db")


def test_one_that_a_wanted_task_still_has_is_not_removed() -> None:
    task = a_task("t1", spec=TaskSpec(runtime=holding(ref(id="id-db"))))
    cell = Cell([a_secret(), using(holding()), task])
    with pytest.raises(InvalidArgument, match="in use by the following service: web"):
        remove_file(cell.tables, Secret, "db")
    cell.put(task.with_desired_state(TaskState.SHUTDOWN))
    assert remove_file(cell.tables, Secret, "db")
    cell.put(a_task("t2", spec=task.spec, state=TaskState.FAILED))
    assert remove_file(cell.tables, Secret, "db")


def test_what_is_logged_of_a_secret_holds_no_data() -> None:
    assert "hunter2" not in repr(a_secret())
    assert "hunter2" not in str(Cell([a_secret()]).tables.secrets.resolve("db"))


@pytest.fixture
async def control(tmp_path) -> AsyncIterator[ControlStub]:
    clock = HandClock()
    store, proposer = a_store([], clock)
    put_now(store, proposer, a_service("web"))

    def add(server: grpc.aio.Server) -> None:
        add_ControlServicer_to_server(ControlServer(store, clock), server)

    async with served(add, tmp_path / "manager.sock") as at, local_channel(at.socket_path) as to:
        yield ControlStub(to)


async def test_secrets_are_made_shown_labelled_and_removed_without_their_data(control) -> None:
    spec = to_pb(a_secret().spec, specs_pb2.SecretSpec)
    made = (await control.CreateSecret(pb.CreateSecretRequest(spec=spec))).secret
    assert (made.spec.annotations.name, made.spec.data) == ("db", b"")
    text = await refusal(control.CreateSecret(pb.CreateSecretRequest(spec=spec)))
    assert text == "ALREADY_EXISTS secret db already exists"
    got = (await control.GetSecret(pb.GetSecretRequest(secret="db"))).secret
    assert got == made
    listed = await control.ListSecrets(pb.ListSecretsRequest(filters=pb.Filters(names=["d"])))
    assert list(listed.secrets) == [made]

    spec.annotations.labels["tier"] = "back"
    for data in (b"", DATA):
        spec.data = data
        request = pb.UpdateSecretRequest(secret=made.id, version=got.meta.version, spec=spec)
        got = (await control.UpdateSecret(request)).secret
        assert (got.spec.annotations.labels["tier"], got.spec.data) == ("back", b"")
    assert "update out of sequence" in await refusal(
        control.UpdateSecret(
            pb.UpdateSecretRequest(secret="db", version=made.meta.version, spec=spec)
        )
    )
    spec.data = b"other"
    other = pb.UpdateSecretRequest(secret="db", spec=spec)
    text = await refusal(control.UpdateSecret(other))
    assert text == "INVALID_ARGUMENT only updates to Labels are allowed"
    await control.RemoveSecret(pb.RemoveSecretRequest(secret="db"))
    text = await refusal(control.GetSecret(pb.GetSecretRequest(secret="db")))
    assert text == "NOT_FOUND secret db not found"
    nothing = await refusal(control.CreateSecret(pb.CreateSecretRequest()))
    assert nothing == "INVALID_ARGUMENT spec: must be given"


async def test_a_rotation_shows_no_data_and_names_the_services_that_are_behind(control) -> None:
    spec = to_pb(a_secret().spec, specs_pb2.SecretSpec)
    made = (await control.CreateSecret(pb.CreateSecretRequest(spec=spec))).secret
    service = to_pb(using(holding(ref()), "api").spec, specs_pb2.ServiceSpec)
    user = (await control.CreateService(pb.CreateServiceRequest(spec=service))).service
    request = pb.RotateSecretRequest(secret="db", version=made.meta.version, data=b"hunter3")
    answer = await control.RotateSecret(request)
    assert (answer.secret.spec.annotations.name, answer.secret.revision) == ("db", 2)
    assert b"hunter" not in answer.SerializeToString()
    assert list(answer.service_ids) == [user.id]
    former = (await control.GetSecret(pb.GetSecretRequest(secret=made.id))).secret
    assert former.spec.annotations.name == "db@1"
    assert "update out of sequence" in await refusal(control.RotateSecret(request))
    config = to_pb(a_config().spec, specs_pb2.ConfigSpec)
    await control.CreateConfig(pb.CreateConfigRequest(spec=config))
    rotated = await control.RotateConfig(pb.RotateConfigRequest(config="site", data=b"new"))
    assert (rotated.config.spec.data, list(rotated.service_ids)) == (b"new", [])


async def test_configs_of_the_largest_size_are_shown_with_their_data(control) -> None:
    data = b"x" * 1_023_999
    for name in ("one", "two", "three", "four"):
        spec = to_pb(a_config(name, data).spec, specs_pb2.ConfigSpec)
        assert (await control.CreateConfig(pb.CreateConfigRequest(spec=spec))).config.spec == spec
    request, found = pb.ListConfigsRequest(), []
    while True:
        answer = await control.ListConfigs(request)
        found += [config.spec.annotations.name for config in answer.configs]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert sorted(found) == ["four", "one", "three", "two"]
    one = (await control.GetConfig(pb.GetConfigRequest(config="one"))).config
    assert one.spec.data == data
    one.spec.annotations.labels["a"] = "b"
    one.spec.data = b""
    changed = await control.UpdateConfig(pb.UpdateConfigRequest(config="one", spec=one.spec))
    assert (changed.config.spec.annotations.labels["a"], len(changed.config.spec.data)) == (
        "b",
        len(data),
    )
    await control.RemoveConfig(pb.RemoveConfigRequest(config="one"))
    text = await refusal(control.GetConfig(pb.GetConfigRequest(config="one")))
    assert text == "NOT_FOUND config one not found"
