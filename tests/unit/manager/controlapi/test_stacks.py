"""Deploying, rolling back and removing stacks, decided on one view."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from manager.controlapi.services import create_service, update_service
from manager.controlapi.stack_rows import Act, Deployment, remove_stack, revisions_of
from manager.controlapi.stacks import deploy_stack, roll_back_stack
from shoal.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SequenceConflict,
    Unimplemented,
)
from shoal.model.enums import DependencyCondition, TaskState
from shoal.model.objects import Secret
from shoal.model.specs import (
    ConfigSpec,
    ContainerSpec,
    NetworkSpec,
    ReplicatedMode,
    SecretSpec,
    ServiceSpec,
    StackSpec,
    TaskSpec,
)
from shoal.model.stacks import NAMESPACE_LABEL, REVISIONS_MAX
from shoal.model.types import (
    Annotations,
    Driver,
    FileReference,
    NetworkAttachment,
    NetworkAttachmentConfig,
    ServiceDependency,
)
from tests.support.planning import Cell, numbered_ids

IDS = numbered_ids("object")
LABELS = {NAMESPACE_LABEL: "st"}


def called(name: str, **labels: str) -> Annotations:
    return Annotations(name=f"st_{name}", labels={**LABELS, **labels})


def a_member(name: str, *, image: str = "nginx:1", on: tuple[str, ...] = ()) -> ServiceSpec:
    container = ContainerSpec(
        image=image,
        secrets=(FileReference(name="st_pw", target="pw"),),
        configs=(FileReference(name="st_conf", target="/c"),),
    )
    networks = (NetworkAttachmentConfig(target="st_net", aliases=(name,)),)
    return ServiceSpec(
        annotations=called(name),
        task=TaskSpec(runtime=container, networks=networks),
        mode=ReplicatedMode(replicas=1),
        depends_on=tuple(ServiceDependency(service=f"st_{one}") for one in on),
    )


def a_stack(*services: ServiceSpec, secret: bytes = b"s1", config: bytes = b"c1") -> StackSpec:
    return StackSpec(
        annotations=Annotations(name="st"),
        networks=(NetworkSpec(annotations=called("net"), driver=Driver(name="overlay")),),
        secrets=(SecretSpec(annotations=called("pw"), data=secret),),
        configs=(ConfigSpec(annotations=called("conf"), data=config),),
        services=services or (a_member("web", on=("db",)), a_member("db")),
    )


def deploy(cell: Cell, spec: StackSpec, *, prune: bool = False, version: int = 0) -> Deployment:
    done = deploy_stack(
        cell.tables, spec, prune=prune, version=version, ids=IDS, now_ns=cell.now_ns
    )
    cell.commit(done.changes)
    return done


def roll_back(cell: Cell, revision: int = 0) -> Deployment:
    done = roll_back_stack(cell.tables, "st", revision, version=0, ids=IDS, now_ns=cell.now_ns)
    cell.commit(done.changes)
    return done


def acts(done: Deployment) -> Iterator[tuple[str, str, Act]]:
    return ((one.kind, one.name, one.act) for one in done.steps)


def names(cell: Cell) -> list[str]:
    return sorted(one.spec.annotations.name for one in cell.tables.services)


def test_everything_is_made_at_once_in_the_order_of_dependencies():
    cell = Cell()
    done = deploy(cell, a_stack())
    assert list(acts(done)) == [
        ("network", "st_net", Act.CREATED),
        ("secret", "st_pw", Act.CREATED),
        ("config", "st_conf", Act.CREATED),
        ("service", "st_db", Act.CREATED),
        ("service", "st_web", Act.CREATED),
    ]
    assert done.revision == 1
    assert len(cell.commits) == 1
    runtime = cell.tables.services.resolve("st_web").spec.task.runtime
    assert isinstance(runtime, ContainerSpec)
    secret = cell.tables.secrets.get(runtime.secrets[0].id)
    assert secret is not None
    assert secret.spec.data == b"s1"


def test_deployed_again_it_changes_nothing():
    cell = Cell()
    deploy(cell, a_stack())
    again = deploy(cell, a_stack())
    assert again == Deployment()


def test_contents_are_not_kept_in_the_stack():
    cell = Cell()
    deploy(cell, a_stack(secret=b"hidden"))
    (stack,) = revisions_of(cell.tables, "st")
    assert stack.spec.secrets[0].data == b""
    assert stack.spec.configs[0].data == b""
    assert stack.secrets[0].id == cell.tables.secrets.resolve("st_pw").id


def test_another_content_rolls_the_services_that_see_it():
    cell = Cell()
    deploy(cell, a_stack())
    before = {one.id: one.spec_version for one in cell.tables.services}
    done = deploy(cell, a_stack(secret=b"s2"))
    assert ("secret", "st_pw", Act.ROTATED) in acts(done)
    assert all(before[one.id] != one.spec_version for one in cell.tables.services)
    assert done.revision == 2


def test_only_what_differs_is_updated():
    cell = Cell()
    deploy(cell, a_stack())
    web = a_member("web", image="nginx:2", on=("db",))
    done = deploy(cell, a_stack(web, a_member("db")))
    assert list(acts(done)) == [("service", "st_web", Act.UPDATED)]
    assert cell.tables.services.resolve("st_web").previous_spec is not None
    assert cell.tables.services.resolve("st_db").previous_spec is None


def test_what_others_changed_is_put_right_and_forced_updates_stay():
    cell = Cell()
    deploy(cell, a_stack())
    web = cell.tables.services.resolve("st_web")
    changed = web.spec.replaced(
        mode=ReplicatedMode(replicas=5), task=web.spec.task.replaced(force_update=3)
    )
    cell.commit(update_service(cell.tables, web.id, changed, version=0, now_ns=1))
    deploy(cell, a_stack())
    spec = cell.tables.services.resolve("st_web").spec
    assert spec.mode == ReplicatedMode(replicas=1)
    assert spec.task.force_update == 3


def test_services_that_are_not_named_any_more_go_only_when_that_is_wished():
    cell = Cell()
    deploy(cell, a_stack())
    deploy(cell, a_stack(a_member("db")))
    assert names(cell) == ["st_db", "st_web"]
    done = deploy(cell, a_stack(a_member("db")), prune=True)
    assert list(acts(done)) == [("service", "st_web", Act.REMOVED)]
    assert names(cell) == ["st_db"]


def test_back_to_an_earlier_revision_with_its_contents():
    cell = Cell()
    deploy(cell, a_stack(a_member("db")))
    deploy(cell, a_stack(a_member("db", image="nginx:2"), a_member("extra"), secret=b"s2"))
    done = roll_back(cell)
    assert done.revision == 3
    assert names(cell) == ["st_db"]
    runtime = cell.tables.services.resolve("st_db").spec.task.runtime
    assert isinstance(runtime, ContainerSpec)
    assert runtime.image == "nginx:1"
    assert cell.tables.secrets.resolve("st_pw").spec.data == b"s1"
    assert revisions_of(cell.tables, "st")[0].rolled_back_to == 1
    roll_back(cell, 2)
    assert names(cell) == ["st_db", "st_extra"]
    assert cell.tables.secrets.resolve("st_pw").spec.data == b"s2"


def test_ten_revisions_are_kept_and_their_contents():
    cell = Cell()
    for number in range(15):
        deploy(cell, a_stack(secret=f"s{number}".encode()))
    found = [one.revision for one in revisions_of(cell.tables, "st")]
    assert found == list(range(15, 5, -1))
    assert len(found) == REVISIONS_MAX
    kept = {one.spec.data for one in cell.tables.secrets}
    assert {f"s{number}".encode() for number in range(5, 15)} <= kept
    assert len(kept) <= REVISIONS_MAX + 3
    with pytest.raises(NotFound, match="revision 2 is not there, only 15, 14"):
        roll_back(cell, 2)
    roll_back(cell, 6)
    assert cell.tables.secrets.resolve("st_pw").spec.data == b"s5"


def test_a_content_that_somebody_removed_stops_a_rollback():
    cell = Cell()
    deploy(cell, a_stack())
    deploy(cell, a_stack(secret=b"s2"))
    former = next(one for one in cell.tables.secrets if one.spec.data == b"s1")
    cell.remove(former)
    with pytest.raises(FailedPrecondition, match="content that secret st_pw had at revision 1"):
        roll_back(cell)


def test_nothing_of_others_is_touched():
    cell = Cell()
    theirs = a_member("web").replaced(
        annotations=Annotations(name="st_web"), task=TaskSpec(runtime=ContainerSpec(image="x"))
    )
    cell.commit(create_service(cell.tables, theirs, service_id="theirs", now_ns=1))
    with pytest.raises(AlreadyExists, match="service st_web is there already"):
        deploy(cell, a_stack())
    cell = Cell(
        [Secret(id="theirs", spec=SecretSpec(annotations=Annotations(name="st_pw"), data=b"x"))]
    )
    with pytest.raises(AlreadyExists, match="secret st_pw is there already"):
        deploy(cell, a_stack())
    assert not cell.tables.stacks


def test_a_refusal_names_what_is_wrong():
    cell = Cell()
    no_image = a_member("web").replaced(task=TaskSpec(runtime=ContainerSpec()))
    cycle = (a_member("web", on=("db",)), a_member("db", on=("web",)))
    cases = [
        (a_stack(no_image), InvalidArgument, "image: must be given"),
        (a_stack(*cycle), InvalidArgument, "st_db -> st_web -> st_db is a cycle"),
        (a_stack(a_member("web", on=("no",))), InvalidArgument, "there is no service st_no"),
        (a_stack(a_member("web"), a_member("web")), InvalidArgument, "two services have the same"),
        (a_stack().replaced(services=()), InvalidArgument, "no services"),
        (a_stack().replaced(annotations=Annotations(name="a b")), InvalidArgument, "stack name"),
        (a_stack().replaced(annotations=Annotations(name="ot")), InvalidArgument, "must be ot"),
        (a_stack(*(a_member(f"s{n}") for n in range(101))), InvalidArgument, "at most 100"),
        (a_stack().replaced(source="x" * 300_000), InvalidArgument, "source: 300000 bytes"),
        (a_stack().replaced(networks=()), NotFound, "network st_net not found"),
        (a_stack().replaced(secrets=()), InvalidArgument, "secret not found: st_pw"),
        (a_stack().replaced(
            secrets=(SecretSpec(annotations=called("pw"), driver=Driver(name="vault")),)
        ), Unimplemented, "vault"),
    ]  # fmt: skip
    for spec, error, message in cases:
        with pytest.raises(error, match=message):
            deploy(cell, spec)
    assert not cell.tables.services


def test_completion_can_only_be_waited_for_where_there_is_one():
    db = a_member("db")
    wish = ServiceDependency(service="st_db", condition=DependencyCondition.COMPLETED)
    web = a_member("web").replaced(depends_on=(wish,))
    with pytest.raises(InvalidArgument, match="service st_db never completes"):
        deploy(Cell(), a_stack(web, db))


def test_a_version_that_is_not_the_newest_is_refused():
    cell = Cell()
    deploy(cell, a_stack())
    version = revisions_of(cell.tables, "st")[0].meta.version.index
    deploy(cell, a_stack(secret=b"s2"), version=version)
    with pytest.raises(SequenceConflict):
        deploy(cell, a_stack(secret=b"s3"), version=version)


def test_networks_stay_as_they_are_and_that_is_told():
    cell = Cell()
    deploy(cell, a_stack())
    other = NetworkSpec(annotations=called("net"), driver=Driver(name="overlay"), attachable=True)
    done = deploy(cell, a_stack().replaced(networks=(other,)))
    assert "network st_net has other settings" in done.warnings[0]
    assert list(done.steps) == []


def test_removal_takes_everything_and_networks_when_their_last_task_has_ended():
    from manager.orchestrator.reaper.networks import advance
    from manager.store.draft import Draft
    from tests.support.planning import a_task

    cell = Cell()
    deploy(cell, a_stack())
    deploy(cell, a_stack(secret=b"s2"))
    network = cell.tables.networks.resolve("st_net")
    web = cell.tables.services.resolve("st_web")
    held = (NetworkAttachment(network_id=network.id, addresses=("10.0.1.2/24",)),)
    task = a_task("t1", service_id=web.id, state=TaskState.RUNNING).replaced(networks=held)
    cell.put(task)
    changes, steps = remove_stack(cell.tables, "st")
    cell.commit(changes)
    assert {one.kind for one in steps} == {"service", "secret", "config", "network"}
    assert not cell.tables.services
    assert not cell.tables.secrets
    assert not cell.tables.stacks
    draft = Draft(cell.tables)
    advance(draft)
    assert draft.changes() == ()
    cell.report("t1", TaskState.SHUTDOWN)
    draft = Draft(cell.tables)
    advance(draft)
    cell.commit(draft.changes())
    assert not cell.tables.networks
    with pytest.raises(NotFound, match="nothing found in stack: st"):
        remove_stack(cell.tables, "st")


def test_a_network_that_is_asked_for_again_stays():
    from manager.orchestrator.reaper.networks import advance
    from manager.store.draft import Draft

    cell = Cell()
    deploy(cell, a_stack())
    network = cell.tables.networks.resolve("st_net")
    cell.put(network.replaced(pending_delete=True))
    draft = Draft(cell.tables)
    advance(draft)
    cell.commit(draft.changes())
    assert not cell.tables.networks.resolve("st_net").pending_delete
