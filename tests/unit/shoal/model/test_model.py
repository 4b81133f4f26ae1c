"""Rows are frozen values without cycles; ladders only rise; defaults live outside the specs."""

from __future__ import annotations

import inspect
import itertools
import types as python_types
from collections.abc import Mapping
from enum import IntEnum
from typing import Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvariantViolation
from shoal.model import defaults, enums, objects, plan, specs, types
from shoal.model.enums import ActionKind, RestartCondition, TaskState
from shoal.model.objects import Cluster, Node, Service, Task
from shoal.model.plan import create, remove, update
from shoal.model.row import Row
from shoal.model.specs import (
    ClusterSpec,
    ContainerSpec,
    DispatcherConfig,
    NetworkAttachmentSpec,
    OrchestrationConfig,
    TaskSpec,
)
from shoal.model.types import RestartPolicy, TaskStatus, UpdateConfig

ROWS = sorted(
    {
        value
        for module in (types, specs, objects, plan)
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Row) and value is not Row
    },
    key=lambda row: row.__name__,
)
STATES = st.sampled_from(TaskState)


@pytest.mark.parametrize("row", ROWS)
def test_rows_are_frozen_and_outside_the_collector(row):
    assert row.__struct_config__.frozen
    assert not row.__struct_config__.gc


def _parts(hint):
    origin = get_origin(hint)
    if origin is not None:
        if origin in {python_types.UnionType, Union, tuple} or issubclass(origin, Mapping):
            for argument in get_args(hint):
                yield from _parts(argument)
            return
        yield hint
        return
    if hint is not Ellipsis:
        yield hint


@pytest.mark.parametrize("row", ROWS)
def test_rows_hold_values_only(row):
    """No lists, no sets, nothing that could be changed or hold a cycle."""
    for name, hint in get_type_hints(row).items():
        for part in _parts(hint):
            allowed = part in {int, str, bool, bytes, float, type(None)} or issubclass(
                part, (Row, IntEnum)
            )
            assert allowed, f"{row.__name__}.{name}: {part}"


def test_rows_cannot_refer_to_themselves():
    """gc=False is safe for acyclic types alone."""
    refers = {
        row: {
            part
            for hint in get_type_hints(row).values()
            for part in _parts(hint)
            if isinstance(part, type) and issubclass(part, Row)
        }
        for row in ROWS
    }

    def visit(row, above):
        assert row not in above, f"{row.__name__} contains itself"
        for part in refers[row]:
            visit(part, above | {row})

    for row in ROWS:
        visit(row, frozenset())


def test_a_row_cannot_be_changed_and_its_copy_can():
    task = Task(id="a")
    with pytest.raises(AttributeError):
        task.slot = 3
    copy = task.replaced(slot=3)
    assert (task.slot, copy.slot, copy.id) == (0, 3, "a")
    assert copy.spec is task.spec, "equal parts are shared"


def test_a_field_that_does_not_exist_is_an_error():
    with pytest.raises(TypeError, match="slott"):
        Task().replaced(slott=3)


@given(STATES, STATES)
def test_a_status_only_rises(old, new):
    task = Task(status=TaskStatus(state=old))
    if new >= old:
        assert task.with_status(TaskStatus(state=new)).status.state is new
    else:
        with pytest.raises(InvariantViolation, match="goes down"):
            task.with_status(TaskStatus(state=new))


@given(STATES, STATES)
def test_a_wish_only_rises(old, new):
    task = Task(desired_state=old)
    if new >= old:
        assert task.with_desired_state(new).desired_state is new
    else:
        with pytest.raises(InvariantViolation, match="goes down"):
            task.with_desired_state(new)


def test_a_task_of_another_runtime_has_an_empty_container():
    assert Task(spec=TaskSpec(runtime=NetworkAttachmentSpec())).container == ContainerSpec()
    assert Task(spec=TaskSpec(runtime=ContainerSpec(image="web"))).container.image == "web"


def test_states_are_swarms():
    assert [(state.name, state.value) for state in TaskState] == [
        ("NEW", 0), ("PENDING", 64), ("ASSIGNED", 192), ("ACCEPTED", 256), ("PREPARING", 320),
        ("READY", 384), ("STARTING", 448), ("RUNNING", 512), ("COMPLETE", 576),
        ("SHUTDOWN", 640), ("FAILED", 704), ("REJECTED", 768), ("REMOVE", 800),
        ("ORPHANED", 832),
    ]  # fmt: skip


def test_the_zero_of_every_enum_is_a_member():
    """Unset on the wire reads as zero."""
    for name, value in inspect.getmembers(enums, inspect.isclass):
        if issubclass(value, IntEnum) and value is not IntEnum:
            assert 0 in set(value), name


def test_changes_say_what_they_do():
    node = Node(id="n")
    kinds = [change.kind for change in (create(node), update(node), remove(node))]
    assert kinds == [ActionKind.CREATE, ActionKind.UPDATE, ActionKind.REMOVE]
    assert all(change.object is node for change in (create(node), update(node), remove(node)))


# -- defaults ----------------------------------------------------------------------------------


def test_restart_defaults_fill_in_what_is_unset_and_keep_zero():
    assert defaults.restart_delay_ns(None) == 5_000_000_000
    assert defaults.restart_delay_ns(RestartPolicy()) == 5_000_000_000
    assert defaults.restart_delay_ns(RestartPolicy(delay_ns=0)) == 0
    assert defaults.restart_policy(None).condition is RestartCondition.ANY
    policy = RestartPolicy(condition=RestartCondition.NONE, max_attempts=3)
    assert defaults.restart_policy(policy) == policy.replaced(delay_ns=5_000_000_000)
    explicit = policy.replaced(delay_ns=0)
    assert defaults.restart_policy(explicit) is explicit


def test_update_defaults():
    assert defaults.update_config(None) == UpdateConfig(
        parallelism=1, monitor_ns=5_000_000_000, progress_deadline_ns=600_000_000_000
    )
    everything_at_once = UpdateConfig(parallelism=0, monitor_ns=0, progress_deadline_ns=0)
    assert defaults.update_config(everything_at_once) is everything_at_once


def test_container_and_cluster_defaults():
    assert defaults.stop_grace_period_ns(ContainerSpec()) == 10_000_000_000
    assert defaults.stop_grace_period_ns(ContainerSpec(stop_grace_period_ns=0)) == 0
    assert defaults.task_history_retention_limit(None) == 5
    assert defaults.task_history_retention_limit(Cluster()) == 5
    spec = ClusterSpec(
        orchestration=OrchestrationConfig(task_history_retention_limit=0),
        dispatcher=DispatcherConfig(heartbeat_period_ns=1),
    )
    assert defaults.task_history_retention_limit(Cluster(spec=spec)) == 0
    assert defaults.heartbeat_period_ns(Cluster(spec=spec)) == 1
    assert defaults.heartbeat_period_ns(None) == defaults.HEARTBEAT_PERIOD_NS


def test_defaults_are_not_written_into_a_spec():
    """A spec reads back as the user wrote it."""
    for row in (RestartPolicy, UpdateConfig, ContainerSpec, OrchestrationConfig, DispatcherConfig):
        values = {f.name: getattr(row(), f.name) for f in msgspec.structs.fields(row)}
        assert {value for name, value in values.items() if name.endswith("_limit")} <= {None}
    assert Service().spec.update is None
    assert Task().spec.restart is None


def test_wanted_and_terminal():
    for desired, state in itertools.product(TaskState, TaskState):
        task = Task(desired_state=desired, status=TaskStatus(state=state))
        assert defaults.is_terminal(task) == (state > TaskState.RUNNING)
        assert defaults.is_wanted(task) == (desired <= TaskState.COMPLETE)
