"""--plan and --check-version: which calls are planned, what is printed, exit codes."""

from __future__ import annotations

import json

import pytest

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import types_pb2
from swarmctl.exits import CONFLICT, FAILURE, NO_CHANGE, NOT_FOUND, OK, USAGE
from tests.unit.swarmctl.conftest import run
from tests.unit.swarmctl.rows import NODE_A, NODE_B

PAUSED = types_pb2.UPDATE_STATE_PAUSED
RUNNING, PENDING = types_pb2.TASK_STATE_RUNNING, types_pb2.TASK_STATE_PENDING
CHANGES = pb.PlanChangesResponse(
    answers=[pb.PlannedAnswer(service_id="web0")],
    waited_ns=12_500_000_000,
    services=[
        pb.ServicePlan(
            service_id="web0", name="web", version=42,
            fields=[pb.FieldChange(path="Image", old="web:1", new="web:2"),
                    pb.FieldChange(path="Env", new="A=1\n"), pb.FieldChange(path="Env", old="B=2")],
            made=[
                pb.PlannedTask(slot=1, node_id=NODE_A, hostname="alpha", state=RUNNING, batch=1,
                               replaces_task_id="oldtask000000000"),
                pb.PlannedTask(slot=2, node_id=NODE_B, state=RUNNING, batch=2,
                               waited_ns=5_000_000_000),
            ],
            stopped=[
                pb.PlannedTask(task_id="oldtask000000000", slot=1, hostname="beta", replaced=True),
                pb.PlannedTask(task_id="surplus", slot=7, hostname="beta"),
            ],
            counts=pb.PlannedCounts(created=1, replaced=1, stopped=1, batches=2),
            update_status=types_pb2.UpdateStatus(message="update completed"),
            warnings=["mind the gap"], tasks_left_out=3,
        )
    ],
    others=[
        pb.ServicePlan(name="db", version=7, counts=pb.PlannedCounts(placed=1),
                       placed=[pb.PlannedTask(task_id="t9", slot=1, hostname="alpha")]),
    ],
)  # fmt: skip
TEXT = f"""\
web: 1 task made, 1 task replaced, 1 task stopped, in 2 batches
  ~ Image: web:1 → web:2
  + Env: A=1
  - Env: B=2
  BATCH   SLOT      NODE                        IN PLACE OF            NOTE
  1       1         alpha                       oldtask00000 on beta
  2       2         {NODE_B}   -                      after 5 s
  slot 7 on beta stops (surplus)
  3 more tasks are not listed
  At the end: update completed
  Warning: mind the gap

On account of that:

db: 1 task placed
  slot 1 on alpha gets a node (t9)

Delays and monitoring alone take 12.5 s.
Planned from version 42 of web: --check-version 42 makes the change only if it is the same then
"""


@pytest.fixture
def planned(daemon):
    """A daemon with a service that has changed once, and a plan for whatever it is asked."""
    create = ("service", "create", "-d", "--name", "web", "--replicas", "2", "web:1")
    for command in (create, ("service", "update", "-d", "--image", "web:2", "web")):
        assert run(*command, host=daemon.address).exit_code == OK
    daemon.state.plan = CHANGES
    daemon.state.requests.clear()
    return daemon


def calls_of(daemon) -> list[pb.PlannedCall]:
    (request,) = [one for one in daemon.state.requests if isinstance(one, pb.PlanChangesRequest)]
    writes = (pb.CreateServiceRequest, pb.UpdateServiceRequest, pb.RemoveServiceRequest)
    assert not any(isinstance(one, writes) for one in daemon.state.requests)
    return list(request.calls)


def test_a_plan_is_printed_and_nothing_is_done(planned):
    result = run("service", "update", "--plan", "--image", "web:3", "web", host=planned.address)
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines == [line.rstrip() for line in TEXT.splitlines()]
    assert result.exit_code == OK
    (call,) = calls_of(planned)
    assert call.update_service.spec.task.container.image == "web:3"
    service = planned.state.service("web")
    assert call.update_service.version.index == service.meta.version.index


def test_every_command_plans_the_calls_that_it_would_make(planned):
    service = planned.state.service("web")
    for command in (("rollback", "web"), ("update", "--rollback", "web")):
        planned.state.requests.clear()
        run("service", command[0], "--plan", *command[1:], host=planned.address)
        (call,) = calls_of(planned)
        assert call.update_service.rollback
        assert not call.update_service.HasField("spec")
    planned.state.requests.clear()
    run("service", "scale", "--plan", "web=5", f"{service.id}=6", host=planned.address)
    modes = [call.update_service.spec.replicated.replicas for call in calls_of(planned)]
    assert modes == [5, 6]
    planned.state.requests.clear()
    run("service", "rm", "--plan", "web", "other", host=planned.address)
    assert [call.remove_service.service for call in calls_of(planned)] == ["web", "other"]
    planned.state.requests.clear()
    run("service", "create", "--plan", "--name", "new", "new:1", host=planned.address)
    (call,) = calls_of(planned)
    assert call.create_service.spec.annotations.name == "new"


def test_a_plan_for_programs(planned):
    command = ("service", "scale", "--plan", "--format", "json", "web=5")
    plan = json.loads(run(*command, host=planned.address).stdout)
    (web,) = plan["Services"]
    assert (web["Name"], web["Version"], web["Replaced"], web["Batches"]) == ("web", 42, 1, 2)
    assert web["Made"][0]["Hostname"] == "alpha"
    assert web["Fields"][0] == {"Path": "Image", "Old": "web:1", "New": "web:2"}
    assert plan["Others"][0]["PlacedTasks"][0]["ID"] == "t9"
    assert plan["WaitedNs"] == 12_500_000_000
    template = ("--format", "{{len .Services}}")
    result = run("service", "scale", "--plan", *template, "web=5", host=planned.address)
    assert result.stdout == "1\n"


def test_exit_codes_tell_change_from_none_and_from_what_would_wait(planned):
    command = ("service", "scale", "--plan", "web=5")
    planned.state.plan = pb.PlanChangesResponse(services=[pb.ServicePlan(name="web", version=42)])
    result = run(*command, host=planned.address)
    assert (result.exit_code, result.stdout) == (NO_CHANGE, "Nothing would change.\n")

    waiting = pb.WaitingTasks(
        count=2, reason="no suitable node", state=PENDING,
        nodes=[pb.NodeReasons(hostname="alpha",
                              reasons=[pb.FilterReason(filter="host_port", text="in use")])],
    )  # fmt: skip
    planned.state.plan = pb.PlanChangesResponse(services=[pb.ServicePlan(
        name="web", counts=pb.PlannedCounts(created=2, waiting=2),
        made=[pb.PlannedTask(slot=1, batch=1, state=PENDING, reason="no suitable node")],
        end=pb.ExplainServiceResponse(waiting=[waiting]),
    )])  # fmt: skip
    result = run(*command, host=planned.address)
    assert result.exit_code == FAILURE
    assert "web: new; 2 tasks made\n" in result.stdout
    assert "waits: no suitable node" in result.stdout
    assert "  2 tasks would wait: no suitable node\n" in result.stdout
    assert "host port   in use" in result.stdout

    for failing in (
        pb.ServicePlan(name="web", taken_back=True),
        pb.ServicePlan(name="web", update_status=types_pb2.UpdateStatus(state=PAUSED)),
    ):
        failing.fields.add(path="Image", old="web:1", new="web:2")
        planned.state.plan = pb.PlanChangesResponse(services=[failing])
        result = run(*command, host=planned.address)
        assert result.exit_code == FAILURE
        assert ("The update fails" in result.stdout) == failing.taken_back

    planned.state.plan = pb.PlanChangesResponse(
        broken_off="it takes too long", services=[pb.ServicePlan(name="web", removed=True)]
    )
    result = run(*command, host=planned.address)
    assert result.exit_code == FAILURE
    assert "web: removed; no task is made, replaced or stopped" in result.stdout
    assert "The plan is not whole: it takes too long." in result.stdout


def test_refusals_end_the_command_as_the_call_itself_would(planned):
    planned.state.plan = pb.PlanChangesResponse(answers=[
        pb.PlannedAnswer(code="sequence_conflict", refusal="read at version 1, now at 2"),
        pb.PlannedAnswer(code="not_found", refusal="service x not found"),
    ])  # fmt: skip
    result = run("service", "rm", "--plan", "web", "x", host=planned.address)
    assert result.exit_code == CONFLICT
    assert "Error: read at version 1, now at 2\nError: service x not found\n" in result.stderr


def test_an_old_version_is_refused(planned):
    version = planned.state.service("web").meta.version.index
    old, now = ("--check-version", str(version - 1)), ("--check-version", str(version))
    for command in (
        ("update", "-d", *old, "--image", "web:3", "web"),
        ("scale", "-d", *old, "web=7"),
        ("rollback", "-d", *old, "web"),
        ("rm", *old, "web"),
    ):
        result = run("service", *command, host=planned.address)
        assert result.exit_code == CONFLICT, command
        assert f"read at version {version - 1}, now at {version}" in result.stderr
    assert run("service", "scale", "-d", *now, "web=7", host=planned.address).exit_code == OK
    assert run("service", "rm", *now, "web", host=planned.address).exit_code == CONFLICT
    planned.state.plan = CHANGES
    planned.state.requests.clear()
    run("service", "rm", "--plan", *now, "web", host=planned.address)
    assert calls_of(planned)[0].remove_service.version.index == version


def test_what_goes_with_no_other_flag_is_refused(planned):
    for command, text in (
        (("scale", "--format", "json", "web=1"), "goes with --plan only"),
        (("scale", "--check-version", "3", "a=1", "b=2"), "is that of one service, 2 are named"),
        (("rm", "--check-version", "3", "a", "b"), "is that of one service, 2 are named"),
        (("create", "--check-version", "3", "web:1"), "No such option"),
        (("rm", "--check-version", "0", "a"), "0 is not in the range"),
    ):
        result = run("service", *command, host=planned.address)
        assert result.exit_code == USAGE, command
        assert text in result.stderr
    result = run("service", "scale", "--plan", "nosuch=1", host=planned.address)
    assert result.exit_code == NOT_FOUND
