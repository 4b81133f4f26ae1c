"""Fields that differ between two specs: what is shown of them, and that none is passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from manager.rehearsal.changes import TEXT_MAX, UNNAMED, FieldChange, field_changes
from shoal.model.row import Row
from shoal.model.specs import ContainerSpec, GenericRuntimeSpec, PullOptions, ServiceSpec, TaskSpec
from shoal.model.types import (
    Annotations,
    DisconnectPolicy,
    Driver,
    HealthCheck,
    PlacementPreference,
    RestartPolicy,
    UpdateConfig,
)
from tests.support.planning import a_port, a_service

RowT = TypeVar("RowT", bound=Row)
IMAGE = "TaskTemplate.ContainerSpec.Image"


def _container(**fields: object) -> ServiceSpec:
    return ServiceSpec(task=TaskSpec(runtime=ContainerSpec(image="a").replaced(**fields)))


def _paths(old: ServiceSpec | None, new: ServiceSpec | None) -> list[tuple[str, str, str]]:
    return [(one.path, one.old, one.new) for one in field_changes(old, new)]


def test_one_field_is_one_line() -> None:
    assert _paths(_container(), _container(image="b")) == [(IMAGE, "a", "b")]
    assert not field_changes(_container(), _container())


def test_of_lists_the_items_are_told_that_come_and_go() -> None:
    old, new = _container(env=("A=1", "B=2", "C=3")), _container(env=("C=3", "A=1", "D=4"))
    path = "TaskTemplate.ContainerSpec.Env"
    assert _paths(old, new) == [(path, "B=2", ""), (path, "", "D=4")]
    turned = _container(env=("C=3", "B=2", "A=1"))
    assert _paths(old, turned) == [(path, '["A=1", "B=2", "C=3"]', '["C=3", "B=2", "A=1"]')]
    assert _paths(_container(env=("A", "A")), _container(env=("A",))) == [(path, "A", "")]


def test_labels_keep_their_names() -> None:
    old = ServiceSpec(annotations=Annotations(labels={"a.b": "1", "c": "2"}))
    new = ServiceSpec(annotations=Annotations(labels={"a.b": "3"}))
    assert _paths(old, new) == [('Labels."a.b"', "1", "3"), ("Labels.c", "2", "")]


def test_a_new_service_has_all_its_fields_and_one_that_goes_loses_them() -> None:
    spec = a_service(ports=(a_port(80, 8080),)).spec
    made = field_changes(None, spec)
    assert FieldChange(IMAGE, "", "nginx:1") in made
    gone = field_changes(spec, None)
    assert [(one.path, one.old, one.new) for one in gone] == [
        (one.path, one.new, one.old) for one in made
    ]


def test_long_values_are_cut_and_credentials_not_shown() -> None:
    (change,) = field_changes(_container(), _container(image="b" * 9999))
    assert len(change.new) == TEXT_MAX
    old, new = (_container(pull_options=PullOptions(registry_auth=text)) for text in "xy")
    (change,) = field_changes(old, new)
    assert "x" not in (change.old, change.new)


def test_what_docker_has_no_name_for_has_ours() -> None:
    spec = _container()
    wish = PlacementPreference(avoid="node.role==manager")
    placement = spec.task.placement.replaced(preferences=(wish,))
    task = spec.task.replaced(restart=RestartPolicy(window_ns=1), placement=placement)
    assert len(field_changes(spec, spec.replaced(task=task))) >= 2


def test_no_field_is_passed_over() -> None:
    """Whatever single field of a spec is another one, something is said."""
    container = ContainerSpec(image="a")
    bare = ServiceSpec(task=TaskSpec(runtime=container))
    container = container.replaced(health_check=HealthCheck(test=("CMD", "true")), init=False)
    task = TaskSpec(runtime=container, restart=RestartPolicy(), disconnect=DisconnectPolicy(),
                    log_driver=Driver(name="local"), listen_timeout_ns=1)  # fmt: skip
    full = ServiceSpec(task=task, update=UpdateConfig(), rollback=UpdateConfig())
    for base in (bare, full):
        named = {path: field_changes(base, new) for path, new in _varied(base)}
        assert len(named) > 80
        silent = [path for path, changes in named.items() if not changes]
        unnamed = [path for path, changes in named.items() if UNNAMED in str(changes)]
        assert (silent, unnamed) == ([], [])


def test_what_is_not_shown_by_name_is_no_change_less() -> None:
    old, new = (ServiceSpec(task=TaskSpec(runtime=GenericRuntimeSpec("k", one))) for one in
                (b"1", b"2"))  # fmt: skip
    assert _paths(old, new) == [(UNNAMED, "", "(not shown)")]


def _varied(row: RowT) -> Iterator[tuple[str, RowT]]:
    """The row with each one of its fields, at any depth, given another value."""
    for name, hint in get_type_hints(type(row)).items():
        for path, value in _values(hint, getattr(row, name)):
            yield f"{name}{path}", row.replaced(**{name: value})


def _values(hint: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """Other values of a field, and what they vary."""
    kinds = [one for one in get_args(hint) or (hint,) if one is not type(None)]
    if get_origin(hint) is tuple:
        if issubclass(kinds[0], Row):
            yield "", (kinds[0](),)
        else:
            yield from (("", (one,)) for _, one in _values(kinds[0], None))
    elif get_origin(hint) is not None and issubclass(get_origin(hint), Mapping):
        yield "", {"key": "value"}
    elif isinstance(value, Row):
        yield from ((f".{path}", new) for path, new in _varied(value))
        yield from ((f": {kind.__name__}", kind()) for kind in kinds if type(value) is not kind)
    else:
        yield "", _scalar(kinds[0], value)


def _scalar(kind: Any, value: Any) -> Any:
    if issubclass(kind, Row):
        return kind()
    if issubclass(kind, IntEnum):
        return next(member for member in kind if member is not value)
    return {bool: not value, int: 7, float: 0.5, str: "another", bytes: b"another"}[kind]
