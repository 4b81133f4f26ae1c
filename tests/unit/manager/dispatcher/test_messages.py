"""Messages of a stream: numbered without gaps, of bounded size, honest about their version."""

from __future__ import annotations

from manager.dispatcher.assignments import AssignmentDiff
from manager.dispatcher.endpoints import Member, PeerRow, PortKey, PortRow
from manager.dispatcher.messages import MESSAGE_BYTES_MAX, MessageWriter
from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.model.enums import PortProtocol, PublishMode, PublishPreference, PublishSource
from shoal.model.specs import ContainerSpec, TaskSpec
from tests.support.planning import a_task

PEER = PeerRow("n1", 3, "192.0.2.1", "10.240.12.0/22")
KEY = PortKey("web", PortProtocol.UDP, 53)
PORT = PortRow(
    "web",
    PortProtocol.UDP,
    53,
    5353,
    PublishMode.HOST,
    (Member("t", "n", "10.0.0.1"), Member("u", "n", "10.0.0.2", weight=3)),
    sticky=True,
    source=PublishSource.NODE,
    prefer=PublishPreference.LOCAL,
    address="192.0.2.1",
    interface="eth1",
)
GRPC_BYTES_MAX = 4 << 20


def numbers(messages) -> list[tuple[int, int]]:
    return [(message.applies_to, message.results_in) for message in messages]


def test_every_kind_of_change_is_said():
    diff = AssignmentDiff((a_task("t1"),), ("t2",), (PEER,), ("n2",), (PORT,), (KEY,))
    (message,) = MessageWriter().messages(diff, version=7, more=False)
    said = [(change.assignment.WhichOneof("item"), change.remove) for change in message.changes]
    assert said == [
        ("peer", False), ("port", False), ("task", False),
        ("task", True), ("port", True), ("peer", True),
    ]  # fmt: skip
    peer, port, task, no_task, no_port, no_peer = (c.assignment for c in message.changes)
    assert peer.peer == pb.PeerNode(
        node_id="n1", index=3, address="192.0.2.1", subnet="10.240.12.0/22"
    )
    assert (port.port.published_port, port.port.target_port) == (53, 5353)
    assert list(port.port.addresses) == ["10.0.0.1", "10.0.0.2"]
    assert list(port.port.weights) == [1, 3]
    assert (port.port.sticky, port.port.source, port.port.prefer) == (True, 1, 1)
    assert (port.port.address, port.port.interface) == ("192.0.2.1", "eth1")
    assert task.task.id == "t1"
    assert (no_task.task.id, no_peer.peer.node_id) == ("t2", "n2")
    assert no_port.port == pb.PublishedPort(service_id="web", protocol=1, published_port=53)


def test_the_set_is_complete_once_and_increments_count_on():
    writer = MessageWriter()
    one, two = AssignmentDiff(tasks=(a_task("t1"),)), AssignmentDiff(tasks=(a_task("t2"),))
    first = writer.messages(one, version=3, more=True)
    second = writer.messages(AssignmentDiff(), version=3, more=False)
    third = writer.messages(two, version=3, more=False)
    kinds = [message.kind for message in (*first, *second, *third)]
    assert kinds == [pb.ASSIGNMENTS_KIND_COMPLETE] * 2 + [pb.ASSIGNMENTS_KIND_INCREMENTAL]
    assert [message.more for message in (*first, *second, *third)] == [True, False, False]
    assert numbers([*first, *second, *third]) == [(0, 1), (1, 2), (2, 3)]


def test_an_empty_set_is_said_and_empty_increments_are_not():
    writer = MessageWriter()
    assert len(writer.messages(AssignmentDiff(), version=2, more=False)) == 1
    assert writer.messages(AssignmentDiff(), version=2, more=False) == []


def test_a_version_that_changes_nothing_for_the_node_is_said_so_that_it_acknowledges():
    writer = MessageWriter()
    writer.messages(AssignmentDiff(), version=2, more=False)
    (message,) = writer.messages(AssignmentDiff(), version=3, more=False)
    assert (message.endpoints_version, len(message.changes)) == (3, 0)
    assert numbers([message]) == [(1, 2)]


def test_what_is_too_large_for_one_message_is_split_and_named_at_the_end():
    spec = TaskSpec(runtime=ContainerSpec(image="x", env=("A=" + "x" * 250_000,)))
    tasks = tuple(a_task(f"t{number}", spec=spec) for number in range(40))
    for complete in (True, False):
        writer = MessageWriter()
        before = 0
        if not complete:
            writer.messages(AssignmentDiff(), version=1, more=False)
            before = 1
        messages = writer.messages(AssignmentDiff(tasks, peers=(PEER,)), version=9, more=False)
        assert len(messages) > 4
        assert all(len(m.SerializeToString()) < GRPC_BYTES_MAX for m in messages)
        assert max(m.ByteSize() for m in messages) > MESSAGE_BYTES_MAX
        assert sum(len(m.changes) for m in messages) == 41
        assert numbers(messages) == [(n, n + 1) for n in range(before, before + len(messages))]
        assert [m.endpoints_version for m in messages] == [before] * (len(messages) - 1) + [9]
        assert [m.more for m in messages[:-1]] == [complete] * (len(messages) - 1)
        assert not messages[-1].more
