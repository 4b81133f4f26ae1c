"""What is told of changes of the cluster's objects."""

from __future__ import annotations

import pytest

from shoal.docker.events import cluster_event
from shoal.model.enums import ActionKind, NodeAvailability, NodeRole, NodeState, TaskState
from shoal.model.enums import UpdateState as Update
from shoal.model.objects import Cluster, Config, Network, Node, Secret, Service, Task
from shoal.model.specs import (
    ConfigSpec,
    ContainerSpec,
    GlobalMode,
    NetworkSpec,
    NodeSpec,
    ReplicatedMode,
    SecretSpec,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    Annotations,
    ContainerStatus,
    Meta,
    NodeDescription,
    NodeStatus,
    TaskStatus,
    UpdateStatus,
)

NAMED = Annotations(name="n")
META = Meta(created_at_ns=1, updated_at_ns=2)


def attributes(action: ActionKind, row, old=None) -> dict[str, str]:
    """What is said besides type, action and id."""
    found = cluster_event(action, row, old)
    assert found is not None
    return dict(found.attributes)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (Service(id="x", meta=META, spec=ServiceSpec(annotations=NAMED)), "service"),
        (Network(id="x", meta=META, spec=NetworkSpec(annotations=NAMED)), "network"),
        (Secret(id="x", meta=META, spec=SecretSpec(annotations=NAMED)), "secret"),
        (Config(id="x", meta=META, spec=ConfigSpec(annotations=NAMED)), "config"),
        (Node(id="x", meta=META, description=NodeDescription(hostname="n")), "node"),
    ],
)
def test_objects_are_created_changed_and_removed(row, kind):
    for action, name, time_ns in (
        (ActionKind.CREATE, "create", 1),
        (ActionKind.UPDATE, "update", 2),
        (ActionKind.REMOVE, "remove", 0),
    ):
        found = cluster_event(action, row, row)
        assert found is not None
        assert (found.type, found.action, found.actor, found.time_ns) == (kind, name, "x", time_ns)
        assert found.attributes == {"name": "n"}


def test_a_service_tells_what_of_it_changed():
    def service(replicas: int, image: str, state: Update | None) -> Service:
        return Service(
            spec=ServiceSpec(
                annotations=NAMED,
                mode=ReplicatedMode(replicas),
                task=TaskSpec(runtime=ContainerSpec(image=image)),
            ),
            update_status=None if state is None else UpdateStatus(state=state),
        )

    old, new = service(1, "a:1", None), service(2, "a:2", Update.ROLLBACK_STARTED)
    assert attributes(ActionKind.UPDATE, new, old) == {
        "name": "n",
        "replicas.old": "1", "replicas.new": "2",
        "image.old": "a:1", "image.new": "a:2",
        "updatestate.old": "", "updatestate.new": "rollback_started",
    }  # fmt: skip
    of_each_node = new.replaced(spec=new.spec.replaced(mode=GlobalMode()))
    assert attributes(ActionKind.UPDATE, of_each_node, new) == {"name": "n"}


def test_a_node_tells_its_role_availability_and_state():
    old = Node(spec=NodeSpec(annotations=NAMED))
    new = Node(
        spec=NodeSpec(annotations=NAMED, availability=NodeAvailability.DRAIN),
        role=NodeRole.MANAGER,
        status=NodeStatus(state=NodeState.READY),
    )
    assert attributes(ActionKind.UPDATE, new, old) == {
        "name": "n",
        "availability.old": "active", "availability.new": "drain",
        "role.old": "worker", "role.new": "manager",
        "state.old": "unknown", "state.new": "ready",
    }  # fmt: skip


def test_a_task_tells_where_it_stands_and_nothing_that_does_not_matter():
    old = Task(id="t", annotations=Annotations(name="web.1.t"), service_id="s", slot=1)
    status = TaskStatus(state=TaskState.FAILED, error="gone", container=ContainerStatus("c", 0, 3))
    new = old.replaced(status=status, node_id="m", service_annotations=Annotations(name="web"))
    assert attributes(ActionKind.UPDATE, new, old) == {
        "name": "web.1.t", "service": "web", "serviceID": "s", "nodeID": "m", "slot": "1",
        "state": "failed", "desiredState": "new", "error": "gone", "exitCode": "3",
        "state.old": "new", "state.new": "failed", "nodeID.old": "", "nodeID.new": "m",
    }  # fmt: skip
    assert cluster_event(ActionKind.UPDATE, new.replaced(meta=META), new) is None


def test_a_task_that_was_stopped_for_another_tells_for_which():
    old = Task(id="t", desired_state=TaskState.RUNNING)
    new = old.with_desired_state(TaskState.SHUTDOWN).replaced(stop_reason="preempted by db")
    told = attributes(ActionKind.UPDATE, new, old)
    assert (told["stopReason"], told["desiredState.new"]) == ("preempted by db", "shutdown")


def test_settings_and_former_contents_are_not_told():
    former = Secret(spec=SecretSpec(annotations=Annotations(name="pw@1")))
    assert cluster_event(ActionKind.CREATE, former, None) is None
    assert cluster_event(ActionKind.UPDATE, Cluster(), Cluster()) is None
