"""Rows to messages and back: nothing lost, nothing unknown let in, no drift."""

from __future__ import annotations

import contextlib
from enum import IntEnum
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.api.v1 import objects_pb2, specs_pb2, types_pb2
from shoal.errors import InvalidArgument, InvariantViolation
from shoal.ids import new_id
from shoal.model import objects, specs
from shoal.model.enums import ActionKind, TaskState
from shoal.model.objects import Node, Service, StoreAction, StoreEntry, Task
from shoal.model.row import Row
from shoal.model.types import (
    Annotations,
    Endpoint,
    NodeIngress,
    Resources,
    RestartPolicy,
    TaskStatus,
)
from shoal.wire import codec
from shoal.wire.codec import Codec
from shoal.wire.objects import (
    CODEC,
    WRAPPERS,
    entry_from_bytes,
    entry_to_bytes,
    from_pb,
    object_from_bytes,
    object_from_pb,
    object_to_bytes,
    to_pb,
)
from tests.unit.shoal.wire.rows import rows_of

OBJECTS = [
    objects.Node, objects.Service, objects.Task, objects.Network, objects.Cluster, objects.Secret,
    objects.Config,
]  # fmt: skip
ROWS = sorted(CODEC._rows)
EMPTY_ENDPOINT = Endpoint()
SLOW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("name", ROWS)
@SLOW
@given(data=st.data())
def test_every_row_comes_back_as_it_went(name, data):
    row, message = CODEC._rows[name], CODEC._messages[name]
    value = data.draw(rows_of(row))
    sent = to_pb(value, message).SerializeToString()
    assert from_pb(message.FromString(sent), row) == value


@pytest.mark.parametrize("row", OBJECTS)
@SLOW
@given(data=st.data())
def test_every_object_comes_back_from_a_record(row, data):
    value = data.draw(rows_of(row))
    assert object_from_bytes(object_to_bytes(value)) == value


@SLOW
@given(data=st.data(), kind=st.sampled_from(ActionKind), time_ns=st.integers(0, 2**63 - 1))
def test_entries_come_back_as_they_went(data, kind, time_ns):
    entry = StoreEntry(
        actions=tuple(
            StoreAction(object=data.draw(rows_of(row)), kind=kind, expected_version=number)
            for number, row in enumerate((Task, Service, Node))
        ),
        proposed_at_ns=time_ns,
    )
    assert entry_from_bytes(entry_to_bytes(entry)) == entry


@given(rows_of(TaskStatus))
@settings(max_examples=50, deadline=None)
def test_equal_rows_are_equal_bytes(status):
    again = status.replaced()
    assert (
        to_pb(status, types_pb2.TaskStatus).SerializeToString()
        == to_pb(again, types_pb2.TaskStatus).SerializeToString()
    )


def test_presence_is_kept():
    """An empty policy is not the same as none, 0 not the same as unset."""
    for policy in (None, RestartPolicy(), RestartPolicy(delay_ns=0), RestartPolicy(delay_ns=1)):
        spec = specs.TaskSpec(restart=policy)
        assert from_pb(to_pb(spec, specs_pb2.TaskSpec), specs.TaskSpec) == spec
    for ingress in (None, NodeIngress()):
        assert from_pb(to_pb(Node(ingress=ingress), objects_pb2.Node), Node).ingress == ingress


def test_every_message_of_the_model_has_a_row():
    messages = {
        name
        for module in (types_pb2, specs_pb2, objects_pb2)
        for name in module.DESCRIPTOR.message_types_by_name
    }
    assert messages - set(ROWS) == WRAPPERS


@pytest.mark.parametrize("name", ROWS)
def test_every_field_of_a_message_is_mapped(name):
    """The codec checks names at import; here each field is really written and read."""
    converter = CODEC.converter(name)
    descriptor = converter.message.DESCRIPTOR
    plain = [f.name for f in descriptor.fields if not _in_real_oneof(f)]
    oneofs = [o.name for o in descriptor.oneofs if not o.name.startswith("_")]
    written = [*converter.scalars, *converter.optionals, *(part for part, _ in converter.parts)]
    assert sorted(written) == sorted([*plain, *oneofs])
    assert set(converter.reads) == {field.number for field in descriptor.fields}
    assert {read.name for read in converter.reads.values()} == set(written)


def test_what_tasks_have_in_common_is_one_row():
    spec = specs.TaskSpec(runtime=specs.ContainerSpec(image="a"))
    sent = [object_to_bytes(Task(id=name, spec=spec)) for name in ("one", "two")]
    one, two = (object_from_bytes(data) for data in sent)
    assert one.spec == two.spec == spec
    assert one.spec is two.spec


def test_rows_that_were_shared_and_forgotten_are_not_mixed_up(monkeypatch):
    monkeypatch.setattr(codec, "SHARED_MAX", 2)
    for round_ in range(3):
        for number in range(10):
            image = f"image-{number % (round_ + 3)}"
            spec = specs.TaskSpec(runtime=specs.ContainerSpec(image=image))
            came = object_from_bytes(object_to_bytes(Task(id=f"{number}", spec=spec)))
            assert came.spec == spec
    assert object_from_bytes(object_to_bytes(Task())) == Task()


def test_an_empty_shared_part_is_still_there():
    for _ in range(2):
        message = to_pb(Task(endpoint=EMPTY_ENDPOINT), objects_pb2.Task)
        assert message.HasField("endpoint")
        assert not message.HasField("spec")


def _in_real_oneof(field: Any) -> bool:
    oneof = field.containing_oneof
    return oneof is not None and not oneof.name.startswith("_")


# -- the trust boundary ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "row", "named"),
    [
        (objects_pb2.Task(desired_state=77), Task, "desired_state: 77 is not a TaskState"),
        (types_pb2.TaskStatus(state=1), TaskStatus, "state: 1 is not a TaskState"),
        (objects_pb2.Node(role=9), Node, "role: 9 is not a NodeRole"),
    ],
)
def test_unknown_enum_values_are_refused_with_the_name_of_the_field(message, row, named):
    with pytest.raises(InvalidArgument, match=named):
        from_pb(message, row)


def test_unknown_enum_values_are_found_at_any_depth():
    message = objects_pb2.Object()
    message.service.spec.endpoint.ports.add(protocol=5)
    with pytest.raises(InvalidArgument, match="protocol: 5 is not a PortProtocol"):
        object_from_pb(message)


def test_an_action_of_an_unknown_kind_is_refused():
    message = objects_pb2.StoreEntry()
    message.actions.add(kind=42).object.node.id = "n"
    with pytest.raises(InvalidArgument, match="kind: 42 is not an ActionKind"):
        entry_from_bytes(message.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x0a\x05ab"])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(InvalidArgument, match="object"):
        object_from_bytes(data)


def test_what_is_no_entry_is_refused():
    with pytest.raises(InvalidArgument, match="log entry"):
        entry_from_bytes(b"\xff")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    for read in (object_from_bytes, entry_from_bytes):
        with contextlib.suppress(InvalidArgument):  # and nothing else
            read(data)


@pytest.mark.parametrize(
    ("row", "message", "named"),
    [
        (Resources(nano_cpus=2**63), types_pb2.Resources, "nano_cpus"),
        (NodeIngress(index=-1), types_pb2.NodeIngress, "index"),
        (Annotations(name="\ud800"), types_pb2.Annotations, "name"),
        (Annotations(labels={"\ud800": ""}), types_pb2.Annotations, "labels"),
        (Annotations(labels={"a": "\ud800"}), types_pb2.Annotations, "labels"),
        (specs.ContainerSpec(env=("\ud800",)), specs_pb2.ContainerSpec, "env"),
    ],
)
def test_what_does_not_fit_the_wire_is_refused_with_the_name_of_the_field(row, message, named):
    with pytest.raises(InvalidArgument, match=named):
        to_pb(row, message)


def test_unknown_fields_of_a_newer_version_are_passed_over():
    newer = (
        to_pb(Annotations(name="x"), types_pb2.Annotations).SerializeToString() + b"\xf8\x07\x01"
    )
    assert from_pb(types_pb2.Annotations.FromString(newer), Annotations) == Annotations(name="x")


# -- drift -------------------------------------------------------------------------------------


class Colour(IntEnum):
    """An enum of nobody."""

    RED = 0


class Complete(Row, frozen=True):
    """Fits the made-up message."""

    id: str = ""
    count: int = 0
    colour: Colour = Colour.RED


class Lacking(Row, frozen=True):
    """Does not know `count`."""

    id: str = ""
    colour: Colour = Colour.RED


class Excessive(Row, frozen=True):
    """Has a field that the message has not."""

    id: str = ""
    count: int = 0
    colour: Colour = Colour.RED
    extra: str = ""


def made_up_message():
    file = descriptor_pb2.FileDescriptorProto(
        name=f"made_up_{new_id()}.proto", package=f"made_up_{new_id()}", syntax="proto3"
    )
    enum = file.enum_type.add(name="Colour")
    enum.value.add(name="RED", number=0)
    message = file.message_type.add(name="Thing")
    kinds = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="id", number=1, type=kinds.TYPE_STRING, label=1)
    message.field.add(name="count", number=2, type=kinds.TYPE_INT64, label=1)
    message.field.add(
        name="colour", number=3, type=kinds.TYPE_ENUM, label=1,
        type_name=f".{file.package}.Colour",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Thing"))


def codec_for(row):
    return Codec({"Thing": row}, {"Thing": made_up_message()})


def test_a_row_that_fits_is_compiled():
    codec = codec_for(Complete)
    message = codec.converter("Thing").message()
    codec.converter("Thing").to_pb(Complete(id="a", count=2), message)
    assert codec.converter("Thing").from_pb(message) == Complete(id="a", count=2)


@pytest.mark.parametrize(
    ("row", "named"), [(Lacking, "field='count'"), (Excessive, "fields={'extra'}")]
)
def test_drift_is_an_error_at_import(row, named):
    with pytest.raises(InvariantViolation, match=named):
        codec_for(row)


def test_every_state_of_the_model_has_its_number_on_the_wire():
    wire = {value.number for value in types_pb2.DESCRIPTOR.enum_types_by_name["TaskState"].values}
    assert wire == {int(state) for state in TaskState}
