"""What becomes of delivered content, without a kernel: templates, ids, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import InvalidArgument, Unavailable
from shoal.model.objects import Config, Secret
from shoal.model.specs import ConfigSpec, SecretSpec
from shoal.model.types import Annotations, Driver, FileReference
from tests.unit.worker.agent.support import FACTS, a_task, task_id
from worker.agent.files import File, TaskFiles
from worker.runtime.api import IdMap, IdRange

GO = Driver("golang")
MAP = IdMap(uids=(IdRange(0, 100_000, 10), IdRange(10, 500, 5)), gids=(IdRange(0, 200_000, 99),))


def secret(data: bytes, *, templating: Driver | None = None) -> Secret:
    spec = SecretSpec(annotations=Annotations("db"), data=data, templating=templating)
    return Secret(id="s1", spec=spec)


def config(data: bytes, *, templating: Driver | None = GO) -> Config:
    spec = ConfigSpec(annotations=Annotations("site"), data=data, templating=templating)
    return Config(id="c1", spec=spec)


def made(files: TaskFiles, *rows: Secret | Config, env: tuple[str, ...] = ()) -> list[File]:
    """The files that a task with a secret and a config would get."""
    files.contents.deliver(rows)
    reference = FileReference(name="db", target="key", mode=0o400)
    wanted = {type(row): (reference.replaced(id=row.id),) for row in rows}
    task = a_task(secrets=wanted.get(Secret, ()), configs=wanted.get(Config, ()), env=env)
    return files.files_for(task)


@pytest.fixture
def files(tmp_path: Path) -> TaskFiles:
    return TaskFiles(tmp_path / "files", FACTS)


def test_bytes_stay_as_they_are_unless_they_are_a_template(files: TaskFiles) -> None:
    plain = secret(b"{{.Task.ID}}\\xff")
    found = made(files, plain)
    assert [one.content for one in found] == [plain.spec.data]
    assert repr(found) == f"[File('/run/secrets/key', {len(plain.spec.data)} bytes)]"
    text = b'\xff{{.Task.ID}} {{secret "key"}} {{env "B"}}|{{env "NO"}}'
    found = made(files, secret(b"\x00\xfe{{"), config(text), env=("B=1", "B={{.Task.Slot}}=x"))
    assert found[1].content == b"\xff" + task_id().encode() + b" \x00\xfe{{ 1=x|"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{{secret "no"}}', "config db: secret target no not found"),
        (b"{{.No}}", "config db: template: '{{.No}}' is unknown"),
        (b'{{secret "key"}}' * 3, "config db: template: its text is longer than 1024000"),
    ],
)
def test_a_template_that_cannot_be_expanded_is_named(
    files: TaskFiles, text: bytes, error: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        made(files, secret(b"x" * 400_000), config(text))
    assert refused.value.message.startswith(error)
    with pytest.raises(InvalidArgument, match="config db: template driver jinja is unknown"):
        made(files, config(b"x", templating=Driver("jinja")))


def test_ids_are_those_of_the_user_namespace(tmp_path: Path) -> None:
    files = TaskFiles(tmp_path, FACTS, MAP)
    files.contents.deliver([secret(b"x")])

    def owner(uid: str, gid: str) -> tuple[int, int]:
        reference = FileReference(id="s1", name="db", target="key", uid=uid, gid=gid)
        (file,) = files.files_for(a_task(secrets=(reference,)))
        return file.uid, file.gid

    assert owner("", "") == (100_000, 200_000)
    assert owner("9", "98") == (100_009, 200_098)
    assert owner("14", "0") == (504, 200_000)
    for uid, gid, text in (("15", "0", "secret db: uid 15"), ("0", "99", "secret db: gid 99")):
        with pytest.raises(InvalidArgument, match=f"{text} is none that containers of this node"):
            owner(uid, gid)


def test_content_is_there_from_its_delivery_until_it_is_taken_back(files: TaskFiles) -> None:
    contents, reference = files.contents, FileReference(id="s1", name="db")
    for take_back in (
        lambda: contents.withdraw([(Secret, "s1"), (Secret, "never")]),
        lambda: contents.keep_only({(Config, "s1"), (Config, "c1")}),
    ):
        with pytest.raises(Unavailable, match="secret db has not arrived from the managers yet"):
            contents.get(Secret, reference)
        contents.deliver([secret(b"x"), config(b"y")])
        assert contents.get(Secret, reference).spec.data == b"x"
        with pytest.raises(Unavailable, match="config db has not arrived"):
            contents.get(Config, reference)
        take_back()
    assert contents.get(Config, reference.replaced(id="c1")).spec.data == b"y"


async def test_a_task_without_files_costs_nothing(files: TaskFiles, tmp_path: Path) -> None:
    assert await files.make(a_task()) == ()
    await files.remove(task_id())
    await files.keep_only(())
    assert not (tmp_path / "files").exists()
