"""Rotation: another content under a name, who is to be updated, and what is kept of before."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from manager.controlapi.file_rotation import followers, formers_of, rotate_file
from manager.controlapi.files import remove_file, update_file, with_file_ids
from manager.controlapi.services import roll_back_service, update_service
from shoal.errors import InvalidArgument, NotFound, SequenceConflict, SwarmError
from shoal.model.files import FileRow
from shoal.model.objects import Config, Secret, Service
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import FileReference
from tests.support.planning import Cell, a_service
from tests.unit.manager.controlapi.test_files import a_config, a_secret


def naming(*names: str, service: str = "web") -> Service:
    secrets = tuple(FileReference(name=name, target=f"t{n}") for n, name in enumerate(names))
    return a_service(service, task=TaskSpec(runtime=ContainerSpec(image="a", secrets=secrets)))


def put(cell: Cell, service: Service) -> None:
    cell.put(service.replaced(spec=with_file_ids(cell.tables, service.spec)))


def rotate(cell: Cell, data: bytes, new_id: str, name: str = "db", version: int = 0) -> None:
    cell.commit(rotate_file(cell.tables, Secret, name, data, version=version, new_id=new_id))


def contents(cell: Cell) -> dict[str, bytes]:
    return {row.spec.annotations.name: row.spec.data for row in cell.tables.secrets}


def seen(cell: Cell, service: str = "web") -> list[bytes]:
    """What the tasks of the service see."""
    runtime = cell.tables.services.resolve(service).spec.task.runtime
    assert isinstance(runtime, ContainerSpec)
    rows = [cell.tables.secrets.get(one.id) for one in runtime.secrets]
    return [row.spec.data for row in rows if row is not None]


def follow(cell: Cell, service: Service) -> None:
    """As `swarmctl secret update` does: the same names, resolved anew."""
    container = service.spec.task.runtime
    assert isinstance(container, ContainerSpec)
    secrets = tuple(one.replaced(id="") for one in container.secrets)
    task = service.spec.task.replaced(runtime=container.replaced(secrets=secrets))
    spec = service.spec.replaced(task=task)
    cell.commit(update_service(cell.tables, service.id, spec, version=0, now_ns=1))


def test_a_name_gets_another_content_and_services_follow_when_they_are_updated() -> None:
    cell = Cell([a_secret("db", b"one", annotations=a_secret().spec.annotations)])
    put(cell, naming("db"))
    rotate(cell, b"two", "id-2")
    assert contents(cell) == {"db@1": b"one", "db": b"two"}
    assert cell.tables.secrets.resolve("db").revision == 2
    assert seen(cell) == [b"one"], "nothing was asked of the service yet"
    (service,) = followers(cell.tables, Secret, "db")
    follow(cell, service)
    assert seen(cell) == [b"two"]
    assert followers(cell.tables, Secret, "db") == []
    cell.commit(roll_back_service(cell.tables, "web", version=0, now_ns=1))
    assert seen(cell) == [b"one"], "a rollback gives back what was"
    assert [one.id for one in followers(cell.tables, Secret, "db")] == ["web"]


def test_former_contents_go_when_no_service_can_come_back_to_them() -> None:
    cell = Cell([a_secret("db", b"one")])
    put(cell, naming("db"))
    for number, data in enumerate((b"two", b"three", b"four"), start=2):
        rotate(cell, data, f"id-{number}")
        follow(cell, followers(cell.tables, Secret, "db")[0])
    assert contents(cell) == {"db@2": b"two", "db@3": b"three", "db": b"four"}
    rotate(cell, b"five", "id-5")
    assert contents(cell) == {"db@3": b"three", "db@4": b"four", "db": b"five"}


def test_the_same_content_changes_nothing_but_tells_who_is_behind() -> None:
    cell = Cell([a_secret("db", b"one")])
    put(cell, naming("db"))
    rotate(cell, b"two", "id-2")
    assert rotate_file(cell.tables, Secret, "db", b"two", version=0, new_id="x") == []
    assert [one.id for one in followers(cell.tables, Secret, "db")] == ["web"]


def test_who_names_a_former_content_stays_with_it() -> None:
    cell = Cell([a_secret("db", b"one")])
    rotate(cell, b"two", "id-2")
    assert contents(cell) == {"db@1": b"one", "db": b"two"}
    put(cell, naming("db@1", "db"))
    assert seen(cell) == [b"one", b"two"]
    assert followers(cell.tables, Secret, "db") == []
    with pytest.raises(
        InvalidArgument, match="secret 'db' is in use by the following service: web"
    ):
        remove_file(cell.tables, Secret, "db")


@pytest.mark.parametrize(
    ("name", "data", "version", "error", "text"),
    [
        ("no", b"x", 0, NotFound, "secret no not found"),
        ("db@1", b"x", 0, InvalidArgument, "secret db@1 is a former content: rotate secret db"),
        ("db", b"", 0, InvalidArgument, "secret data must be larger than 0"),
        ("db", b"x" * 512_000, 0, InvalidArgument, "secret data must be larger than 0"),
        ("db", b"x", 1, SequenceConflict, "secret: update out of sequence"),
    ],
)
def test_rotations_that_are_refused(
    name: str, data: bytes, version: int, error: type[SwarmError], text: str
) -> None:
    cell = Cell([a_secret("db", b"one")])
    rotate(cell, b"two", "id-2")
    with pytest.raises(error) as refused:
        rotate_file(cell.tables, Secret, name, data, version=version, new_id="x")
    assert refused.value.message.startswith(text)


def test_two_contents_must_fit_into_one_entry() -> None:
    cell = Cell([a_config("big", b"x" * 1_000_000), a_secret("db", b"x" * 511_999)])
    with pytest.raises(InvalidArgument, match="config big: the contents before and after"):
        rotate_file(cell.tables, Config, "big", b"y" * 1_000_000, version=0, new_id="x")
    rotate(cell, b"y" * 511_999, "id-2")


def test_labels_of_former_contents_stay() -> None:
    cell = Cell([a_secret("db", b"one")])
    rotate(cell, b"two", "id-2")
    spec = cell.tables.secrets.resolve("db@1").spec
    with pytest.raises(InvalidArgument, match="db@1 is a former content"):
        update_file(cell.tables, Secret, "db@1", spec, version=0)
    cell.commit(remove_file(cell.tables, Secret, "db"))
    assert contents(cell) == {}


class Rotating(RuleBasedStateMachine):
    """Any order of rotations, updates, rollbacks and removals, against what services must see."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell([a_secret("db", b"0")])
        self.number = 0
        put(self.cell, naming("db", service="a"))
        put(self.cell, naming("db", service="b"))
        self.content = b"0"
        self.sees = {"a": [b"0"], "b": [b"0"]}

    @rule()
    def rotate(self) -> None:
        self.number += 1
        self.content = str(self.number).encode()
        rotate(self.cell, self.content, f"id-{self.number}")

    @rule(name=st.sampled_from("ab"))
    def update(self, name: str) -> None:
        follow(self.cell, self.cell.tables.services.resolve(name))
        self.sees[name].append(self.content)

    @rule(name=st.sampled_from("ab"))
    def roll_back(self, name: str) -> None:
        if len(self.sees[name]) > 1:
            self.cell.commit(roll_back_service(self.cell.tables, name, version=0, now_ns=1))
            self.sees[name] = [self.sees[name][-1], self.sees[name][-2]]

    @rule()
    def remove(self) -> None:
        with pytest.raises(InvalidArgument, match="in use by the following services: a, b"):
            remove_file(self.cell.tables, Secret, "db")

    @invariant()
    def services_see_what_they_were_given(self) -> None:
        for name, history in self.sees.items():
            assert seen(self.cell, name) == history[-1:]
        behind = [one.id for one in followers(self.cell.tables, Secret, "db")]
        assert behind == [name for name in "ab" if self.sees[name][-1] != self.content]
        assert self.cell.tables.secrets.resolve("db").spec.data == self.content
        kept: list[FileRow] = formers_of(self.cell.tables, Secret, "db")
        assert len(kept) <= 5, "two contents of each service, and the last one"


TestRotating = Rotating.TestCase
TestRotating.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
