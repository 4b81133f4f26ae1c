"""Commands against a daemon: requests that arrive, texts that are printed, exit codes."""

from __future__ import annotations

import json
import re

import pytest

from shoal.api.v1 import control_pb2, logs_pb2, node_pb2, types_pb2
from shoal.model.enums import NodeAvailability, TaskState, UpdateState
from shoal.model.specs import ServiceSpec
from shoal.model.types import NetworkKey
from shoal.security.root import RootCA
from shoal.wire.objects import from_pb
from tests.unit.swarmctl.conftest import run
from tests.unit.swarmctl.rows import NODE_A, NODE_B

AT_ONCE = ("--update-monitor", "0s", "--rollback-monitor", "0s")
CREATE = ("service", "create", "--name", "web", "--replicas", "2", *AT_ONCE)


def last(daemon, kind):
    return [request for request in daemon.state.requests if isinstance(request, kind)][-1]


def create(daemon, *flags):
    result = run(*CREATE, *flags, "web:1", "httpd", "-f", host=daemon.address)
    assert result.exit_code == 0, result.output
    return result


def test_init_carries_every_flag_and_prints_the_join_command(daemon):
    result = run(
        "init", "--advertise-addr", "192.0.2.1", "--listen-addr", "0.0.0.0:2377",
        "--availability", "drain", "--data-path-addr", "eth1", "--data-path-port", "7790",
        "--task-history-limit", "-1", "--dispatcher-heartbeat", "2s", "--cert-expiry", "48h",
        "--snapshot-interval", "500", "--ingress-pool", "10.64.0.0/12",
        "--default-addr-pool", "10.20.0.0/16", "--default-addr-pool", "172.16.0.0/12",
        "--default-addr-pool-mask-length", "26", host=daemon.address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"current node ({NODE_A}) is now a manager" in result.output
    assert "swarmctl join --token SWMTKN-1-root-worker 192.0.2.1:2377" in result.output
    assert last(daemon, node_pb2.InitRequest) == node_pb2.InitRequest(
        advertise_address="192.0.2.1",
        listen_address="0.0.0.0:2377",
        availability=2,
        data_path_address="eth1",
        data_path_port=7790,
        task_history_retention_limit=-1,
        dispatcher_heartbeat_period_ns=2_000_000_000,
        node_certificate_validity_ns=48 * 3600 * 1_000_000_000,
        snapshot_interval=500,
        ingress_pool="10.64.0.0/12",
        default_address_pools=["10.20.0.0/16", "172.16.0.0/12"],
        default_address_pool_mask_length=26,
    )


def test_init_leaves_unset_what_was_not_given(daemon):
    assert run("init", host=daemon.address).exit_code == 0
    assert last(daemon, node_pb2.InitRequest) == node_pb2.InitRequest()


def test_join_carries_addresses_and_token(daemon):
    result = run(
        "join", "--token", "T", "192.0.2.1:2377", "192.0.2.2:2377", "--availability", "pause",
        host=daemon.address,
    )  # fmt: skip
    assert result.output == "This node joined a swarm as a worker.\n"
    assert last(daemon, node_pb2.JoinRequest) == node_pb2.JoinRequest(
        remote_addresses=["192.0.2.1:2377", "192.0.2.2:2377"], token="T", availability=1
    )


def test_join_token_shows_and_rotates(daemon):
    shown = run("join-token", "worker", host=daemon.address)
    assert "swarmctl join --token SWMTKN-1-root-worker 192.0.2.1:2377" in shown.output
    quiet = run("join-token", "manager", "-q", "--rotate", host=daemon.address)
    assert quiet.output == "SWMTKN-1-root-manager-new\n"
    assert not last(daemon, control_pb2.UpdateClusterRequest).rotate_worker_token


def test_join_token_takes_docker_flags_before_the_role(daemon):
    quiet = run("join-token", "--rotate", "-q", "worker", host=daemon.address)
    assert quiet.output == "SWMTKN-1-root-worker-new\n"
    wrong = run("join-token", "--rotate", "ls", host=daemon.address)
    assert wrong.exit_code == 2
    assert "go with `worker` or `manager`" in wrong.output


def test_join_tokens_with_limits(daemon):
    made = run(
        "join-token", "create", "ci", "--ttl", "1h", "--uses", "3", "--label", "zone=a",
        "--role", "worker", host=daemon.address,
    )  # fmt: skip
    assert "Join token ci created." in made.output
    assert "swarmctl join --token SWMTKN-1-root-ci 192.0.2.1:2377" in made.output
    assert last(daemon, control_pb2.CreateJoinTokenRequest) == control_pb2.CreateJoinTokenRequest(
        name="ci", ttl_ns=3600 * 10**9, uses=3, labels={"zone": "a"}
    )
    run("join-token", "create", "-q", "open", "--role", "manager", host=daemon.address)
    table = run("join-token", "ls", host=daemon.address).output.splitlines()
    assert table[0].split() == ["NAME", "ROLE", "USES", "LEFT", "EXPIRES", "LABELS"]
    assert table[1].split() == ["ci", "worker", "3", "in", "59", "minutes", "zone=a"]
    assert table[2].split() == ["open", "manager", "any", "never"]
    assert run("join-token", "ls", "-q", host=daemon.address).output == "ci\nopen\n"
    template = run("join-token", "ls", "--format", "{{.Token}}", host=daemon.address)
    assert template.output.splitlines()[0] == "SWMTKN-1-root-ci"
    removed = run("join-token", "rm", "ci", "nobody", host=daemon.address)
    assert removed.exit_code != 0
    assert "ci\n" in removed.output
    assert "join token nobody not found" in removed.output
    assert run("join-token", "ls", "-q", host=daemon.address).output == "open\n"


def test_ca_shows_and_rotates(daemon, tmp_path):
    root = RootCA.create(now_ns=1_800_000_000 * 10**9)
    (tmp_path / "crt").write_bytes(root.certificate_pem)
    (tmp_path / "key").write_bytes(root.key_pem)
    files = ("--ca-cert", str(tmp_path / "crt"), "--ca-key", str(tmp_path / "key"))
    rotated = run("ca", "--rotate", *files, host=daemon.address)
    assert rotated.exit_code == 0
    assert "1 of 2 nodes have renewed, missing: " in rotated.output
    assert root.certificate_pem.decode() in rotated.output
    assert last(daemon, control_pb2.RotateRootCaRequest) == control_pb2.RotateRootCaRequest(
        ca_certificate=root.certificate_pem, ca_key=root.key_pem
    )
    assert run("ca", host=daemon.address).output == root.certificate_pem.decode()
    quiet = run("ca", "--rotate", "-d", host=daemon.address)
    assert quiet.output == ""
    assert "--rotate" in run("ca", *files, host=daemon.address).output
    missing = run("ca", "--rotate", "--ca-cert", "/nonexistent", host=daemon.address)
    assert "/nonexistent: No such file" in missing.output


def test_ca_sets_the_expiry_with_the_rotation(daemon):
    run("ca", "--rotate", "--cert-expiry", "48h", "-q", host=daemon.address)
    spec = last(daemon, control_pb2.UpdateClusterRequest).spec
    assert spec.ca.node_certificate_validity_ns == 48 * 3600 * 10**9


def test_external_authorities_are_carried_by_init_update_and_rotation(daemon, tmp_path):
    root = RootCA.create(now_ns=1_800_000_000 * 10**9).certificate_pem
    (tmp_path / "crt").write_bytes(root)
    text = f"protocol=cfssl,url=https://ca:8888,cacert={tmp_path / 'crt'}"
    full = types_pb2.ExternalCa(protocol="cfssl", url="https://ca:8888", ca_certificate=root)
    bare = types_pb2.ExternalCa(protocol="cfssl", url="https://ca/sign")

    made = run("init", "--external-ca", text, host=daemon.address)
    assert list(last(daemon, node_pb2.InitRequest).external_cas) == [full]
    assert "swarmctl join --token" not in made.output, "that token ends with the first root"
    assert "becomes the swarm's" in made.output

    flags = ("--external-ca", text, "--external-ca", "protocol=cfssl,url=https://ca/sign")
    assert run("cluster", "update", *flags, host=daemon.address).exit_code == 0
    sent = last(daemon, control_pb2.UpdateClusterRequest).spec.ca.external_cas
    assert list(sent) == [full, bare]
    (shown,) = json.loads(run("cluster", "inspect", host=daemon.address).output)
    assert [one["URL"] for one in shown["Spec"]["CAConfig"]["ExternalCAs"]] == [full.url, bare.url]
    pretty = run("cluster", "inspect", "--pretty", host=daemon.address).output
    assert "cfssl https://ca:8888" in pretty
    run("cluster", "update", "--external-ca", "none", host=daemon.address)
    assert not last(daemon, control_pb2.UpdateClusterRequest).spec.ca.external_cas

    rotation = ("ca", "--rotate", "-d", "--external-ca", "protocol=cfssl,url=https://ca/sign")
    refused = run(*rotation, host=daemon.address)
    assert "requires --ca-cert" in refused.output
    run(*rotation, "--ca-cert", str(tmp_path / "crt"), host=daemon.address)
    assert last(daemon, control_pb2.RotateRootCaRequest) == control_pb2.RotateRootCaRequest(
        ca_certificate=root, external_cas=[bare]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url=https://ca", "needs a protocol= parameter"),
        ("protocol=cfssl", "needs a url= parameter"),
        ("protocol=acme,url=https://ca", "unrecognized external CA protocol acme"),
        ("protocol=cfssl,url=https://ca,profile=x", "profile: unknown"),
        ("protocol=cfssl,url=https://ca,cacert=/nonexistent", "No such file"),
        ("protocol=cfssl,url", "url needs a value"),
    ],
)
def test_a_malformed_external_authority_is_a_usage_error(daemon, text, said):
    result = run("cluster", "update", "--external-ca", text, host=daemon.address)
    assert result.exit_code == 2
    assert said in result.output


def test_leave_info_version(daemon):
    assert run("leave", "--force", host=daemon.address).output == "Node left the swarm.\n"
    assert last(daemon, node_pb2.LeaveRequest).force
    text = run("info", host=daemon.address).output
    assert f" NodeID: {NODE_A}\n" in text
    assert " worker: 12\n" in text
    form = run("info", "-f", "{{.Swarm.LocalNodeState}} {{.NCPU}}", host=daemon.address)
    assert form.output == "active 2\n"
    assert run("version", host=daemon.address).output == "Client: 0.1.0\nServer: 9.9.9\n"


def test_node_ls_reads_all_pages_and_marks_itself(daemon):
    lines = run("node", "ls", host=daemon.address).output.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == [NODE_A, "*", "alpha", "Ready", "Active", "Leader", "0.1.0"]
    assert lines[2].split()[:4] == [NODE_B, "beta", "Down", "Drain"]
    assert run("node", "ls", "-q", host=daemon.address).output == f"{NODE_A}\n{NODE_B}\n"


def test_node_filters_are_sent(daemon):
    run("node", "ls", "-f", "role=worker", "-f", "node.label=a=b", host=daemon.address)
    filters = last(daemon, control_pb2.ListNodesRequest).filters
    assert list(filters.roles) == [0]
    assert list(filters.node_labels) == ["a=b"]
    bad = run("node", "ls", "-f", "color=red", host=daemon.address)
    assert bad.exit_code == 2
    assert "the keys are id, name" in bad.stderr


def test_node_update_changes_only_what_was_given(daemon):
    flags = ("--availability", "drain", "--label-add", "zone=z1", "--label-rm", "rack")
    assert run("node", "update", *flags, "alpha", host=daemon.address).output == "alpha\n"
    spec = daemon.state.nodes[NODE_A].spec
    assert spec.availability is NodeAvailability.DRAIN
    assert dict(spec.annotations.labels) == {"zone": "z1"}
    gone = run("node", "update", "--label-rm", "rack", "alpha", host=daemon.address)
    assert gone.exit_code == 6


def test_node_inspect_self_rm_and_missing(daemon):
    form = run("node", "inspect", "self", "-f", "{{.Description.Hostname}}", host=daemon.address)
    assert form.output == "alpha\n"
    some = run("node", "inspect", "nosuch", "beta", host=daemon.address)
    assert some.exit_code == 3
    assert json.loads(some.stdout)[0]["ID"] == NODE_B
    assert some.stderr == "Error: node nosuch not found\n"
    removed = run("node", "rm", "beta", "--force", host=daemon.address)
    assert removed.output == "beta\n"
    assert last(daemon, control_pb2.RemoveNodeRequest).force


def test_node_inspect_shows_the_keys_of_encrypted_networks(daemon):
    node = daemon.state.nodes[NODE_A]
    keys = (NetworkKey(4, bytes(32)),)
    daemon.state.nodes[NODE_A] = node.replaced(
        description=node.description.replaced(network_keys=keys)
    )
    shown = json.loads(run("node", "inspect", NODE_A, NODE_B, host=daemon.address).stdout)
    assert shown[0]["Description"]["NetworkKeys"] == [
        {"Generation": 4, "PublicKey": "A" * 43 + "="}
    ]
    assert "NetworkKeys" not in shown[1]["Description"]


def test_service_create_waits_until_tasks_run(daemon):
    output = create(daemon).output.splitlines()
    assert output[0].startswith("svc")
    assert output[1] == "overall progress: 0 out of 2 tasks"
    assert "1/2: pending" in output
    assert output[-1] == "verify: Service web converged"
    request = last(daemon, control_pb2.CreateServiceRequest)
    spec = from_pb(request.spec, ServiceSpec)
    assert spec.task.runtime.args == ("httpd", "-f")


def test_service_create_with_a_watch(watched_daemon):
    assert "converged" in create(watched_daemon).output


def test_service_create_verifies_for_the_monitor_period(daemon):
    output = run(
        "service", "create", "--name", "web", "--update-monitor", "150ms", "web:1",
        host=daemon.address,
    ).output  # fmt: skip
    assert "verify: Waiting 1 seconds to verify that tasks are stable..." in output


def test_service_create_detached_and_quiet(daemon):
    daemon.state.looks_to_run = 10**9
    detached = run("service", "create", "-d", "--name", "a", "web:1", host=daemon.address)
    assert detached.output.count("\n") == 1
    daemon.state.looks_to_run = 1
    quiet = run(
        "service", "create", "-q", "--name", "b", "--update-monitor", "0s", "web:1",
        host=daemon.address,
    )  # fmt: skip
    assert quiet.output.count("\n") == 1


def test_service_names_conflict(daemon):
    create(daemon)
    again = run(*CREATE, "web:1", host=daemon.address)
    assert again.exit_code == 4
    assert again.stderr == "Error: service web already exists\n"


def test_a_task_that_fails_for_good_ends_the_wait(daemon):
    daemon.state.looks_to_run = 10**9
    put = daemon.state.put_service

    def fail(service):
        put(service)
        for key, task in daemon.state.tasks.items():
            status = task.status.replaced(state=TaskState.REJECTED, error="no such image: x")
            daemon.state.tasks[key] = task.replaced(status=status, node_id=NODE_A)
        return service

    daemon.state.put_service = fail
    result = run(*CREATE, "--restart-condition", "none", "x", host=daemon.address)
    assert result.exit_code == 1
    assert "no such image: x" in result.stderr


def test_service_endpoints(daemon):
    create(daemon, "-p", "8080:80")
    lines = run("service", "endpoints", "web", host=daemon.address).output.splitlines()
    assert lines[0].split() == [
        "TASK", "PORT", "MODE", "NETWORK", "NODE", "ADDRESS", "STATE", "WAITS", "FOR",
    ]  # fmt: skip
    assert lines[1].split()[1:] == ["8080->80/tcp", "ingress", "alpha", "10.240.4.2", "ready"]
    assert lines[2].split()[1:] == [
        "8080->80/tcp", "ingress", "alpha", "10.240.4.2", "draining", "alpha",
    ]  # fmt: skip
    assert lines[3].split()[1:] == ["overlay", "back", "alpha", "10.0.1.2,", "fd00::2", "ready"]
    form = ("--format", "{{.Node}} {{.Acknowledged}} {{.Behind}} {{.Connected}} {{.Problem}}")
    shown = run("service", "endpoints", "--nodes", *form, "web", host=daemon.address).output
    assert shown == "alpha 7 2 yes port 8080/tcp is in use\ngone never  no \n"
    assert run("service", "endpoints", "db", host=daemon.address).exit_code == 3


def test_service_explain(daemon):
    create(daemon)
    shown = run("service", "explain", "web", host=daemon.address).output
    assert shown.splitlines() == [
        "web: 1 of 4 tasks run",
        "",
        "3 tasks pending for about a minute: no suitable node",
        "  t1, t2, 1 more",
        "  NODE    FILTER       REASON",
        "  alpha   host port    port 80/tcp is in use",
        "          constraint   node.role==x: the node has none",
        "  beta    -            would do: a task is placed in a moment",
        "",
        "Nodes without a task:",
        "  NODE    FILTER       REASON",
        "  gamma   constraint   node.role==x: the node has none",
        "",
        "Update:",
        "  slot 1: waits",
        "",
        "Failures of the tasks that are kept:",
        "  2 times exit 7: the last about a minute ago on alpha",
        "",
        "Left out: 0 tasks and 5 lines of nodes, what is missing here is more than an answer holds",
    ]
    form = ("--format", "{{range .Waiting}}{{.State}} {{.Count}}{{end}} {{.DesiredTasks}}")
    assert run("service", "explain", *form, "web", host=daemon.address).output == "pending 3 4\n"
    assert run("service", "explain", "db", host=daemon.address).exit_code == 3


def test_service_ls_ps_inspect(daemon):
    create(daemon, "-p", "8080:80")
    line = run("service", "ls", host=daemon.address).output.splitlines()[1].split()
    assert line[1:5] == ["web", "replicated", "2/2", "web:1"]
    form = run("service", "ls", "--format", "{{.Name}} {{.Replicas}}", host=daemon.address)
    assert form.output == "web 2/2\n"
    rows = run("service", "ps", "web", host=daemon.address).output.splitlines()
    assert [row.split()[1] for row in rows] == ["NAME", "web.1", "web.2"]
    assert " alpha " in rows[1]
    ids = run("service", "ps", "-q", "--no-resolve", "web", host=daemon.address).output.split()
    assert ids == sorted(daemon.state.tasks)
    image = "{{.Spec.TaskTemplate.ContainerSpec.Image}}"
    assert run("service", "inspect", "web", "-f", image, host=daemon.address).output == "web:1\n"
    pretty = run("service", "inspect", "--pretty", "web", host=daemon.address).output
    assert "Service Mode:\tReplicated\n Replicas:\t2\n" in pretty
    missing = run("service", "ps", "nosuch", host=daemon.address)
    assert (missing.exit_code, missing.stdout) == (3, "")


def test_service_update_changes_only_what_was_given(daemon):
    create(daemon, "--env", "A=1", "--label", "l=1")
    result = run(
        "service", "update", "--env-add", "B=2", "--env-rm", "A", "--image", "web:2", "--force",
        "--publish-add", "8080:80", "web", host=daemon.address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == "Warning: a warning\n"
    assert "verify: Service web converged" in result.stdout
    spec = daemon.state.service("web").spec
    assert spec.task.runtime.env == ("B=2",)
    assert spec.task.runtime.image == "web:2"
    assert spec.task.runtime.args == ("httpd", "-f")
    assert spec.task.force_update == 1
    assert dict(spec.annotations.labels) == {"l": "1"}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (UpdateState.PAUSED, "service update paused: task failed"),
        (UpdateState.ROLLBACK_PAUSED, "service rollback paused: task failed"),
        (UpdateState.ROLLBACK_COMPLETED, "service rolled back: task failed"),
    ],
)
def test_an_update_that_did_not_work_fails(daemon, state, text):
    create(daemon)
    daemon.state.update_state = state
    result = run("service", "update", "--image", "web:2", "web", host=daemon.address)
    assert result.exit_code == 1
    assert result.stderr.endswith(f"Error: {text}\n")


def test_service_scale(daemon):
    create(daemon)
    result = run("service", "scale", "web=3", host=daemon.address)
    assert "web scaled to 3\noverall progress: " in result.stdout
    assert daemon.state.service("web").spec.mode.replicas == 3
    assert run("service", "scale", "web=x", host=daemon.address).exit_code == 2
    assert run("service", "scale", "web", host=daemon.address).exit_code == 2
    assert run("service", "scale", "-d", "nosuch=1", host=daemon.address).exit_code == 3


def test_service_rollback(daemon):
    create(daemon)
    assert run("service", "rollback", "web", host=daemon.address).exit_code == 6
    run("service", "update", "-d", "--image", "web:2", "web", host=daemon.address)
    daemon.state.update_state = UpdateState.ROLLBACK_COMPLETED
    assert run("service", "rollback", "-q", "web", host=daemon.address).exit_code == 0
    assert daemon.state.service("web").spec.task.runtime.image == "web:1"
    request = last(daemon, control_pb2.UpdateServiceRequest)
    assert request.rollback
    assert not request.HasField("spec")
    mixed = run("service", "update", "--rollback", "--image", "x", "web", host=daemon.address)
    assert mixed.exit_code == 2


def test_service_history_and_rollback_to_a_revision(daemon):
    create(daemon)
    flags = ("--image", "web:2", "--replicas", "5", "--restart-delay", "1s")
    run("service", "update", "-d", *flags, "web", host=daemon.address)
    lines = run("service", "history", "web", host=daemon.address).stdout.splitlines()
    assert lines[0].split() == ["REVISION", "CREATED", "CAUSE", "IMAGE", "CHANGED"]
    assert re.fullmatch(r"2 \* +.* ago +updated +web:2 +image, restart, replicas", lines[1])
    assert re.fullmatch(r"1 +.* ago +created +web:1 +", lines[2])
    shown = run("service", "history", "--revision", "1", "web", host=daemon.address)
    (found,) = json.loads(shown.stdout)
    assert found["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "web:1"
    gone = run("service", "history", "--revision", "7", "web", host=daemon.address)
    assert gone.exit_code == 3
    run("service", "rollback", "-d", "--to", "1", "web", host=daemon.address)
    request = last(daemon, control_pb2.UpdateServiceRequest)
    assert (request.rollback, request.rollback_to) == (True, 1)


def test_service_update_is_halted_and_resumed(daemon):
    create(daemon)
    halted = run("service", "update", "--pause", "web", host=daemon.address)
    assert (halted.exit_code, halted.stdout) == (0, "web\n"), "it does not wait for what it halts"
    assert not last(daemon, control_pb2.PauseServiceUpdateRequest).resume
    assert run("service", "update", "-q", "--resume", "web", host=daemon.address).exit_code == 0
    assert last(daemon, control_pb2.PauseServiceUpdateRequest).resume
    mixed = run("service", "update", "--pause", "--image", "x", "web", host=daemon.address)
    assert mixed.exit_code == 2


def test_service_rm_goes_on_after_a_failure(daemon):
    create(daemon)
    result = run("service", "rm", "nosuch", "web", host=daemon.address)
    assert (result.exit_code, result.stdout) == (3, "web\n")
    assert daemon.state.services == {}


def test_task_ls_and_inspect(daemon):
    create(daemon)
    run("service", "ps", "web", host=daemon.address)
    ids = run("task", "ls", "-q", "-f", "service=web", host=daemon.address).output.split()
    assert ids == sorted(daemon.state.tasks)
    form = run("task", "inspect", "-f", "{{.Slot}} {{.Status.State}}", ids[1], host=daemon.address)
    assert form.output == "2 running\n"
    on_node = run("node", "ps", "-q", host=daemon.address).output.split()
    assert on_node == ids


def test_logs_have_prefixes_and_keep_the_streams_apart(daemon):
    create(daemon)
    service_id, task_id = daemon.state.service("web").id, sorted(daemon.state.tasks)[0]
    origin = {"service_id": service_id, "node_id": NODE_A, "task_id": task_id}
    daemon.state.log_messages = [
        logs_pb2.SubscribeLogsMessage(
            messages=[
                {"context": origin, "timestamp_ns": 1, "stream": 1, "data": b"out\n"},
                {"context": origin, "timestamp_ns": 2, "stream": 2, "data": b"err"},
            ]
        ),
        logs_pb2.SubscribeLogsMessage(incomplete="node beta is down"),
    ]
    result = run("service", "logs", "--tail", "5", "-t", "web", host=daemon.address)
    prefix = f"web.1.{task_id[:12]}@alpha    | "
    assert result.stdout == f"1970-01-01T00:00:00.000000001Z {prefix}out\n"
    assert f"Z {prefix}err\n" in result.stderr
    assert "Warning: incomplete log stream: node beta is down\n" in result.stderr
    request = last(daemon, logs_pb2.SubscribeLogsRequest)
    assert list(request.selector.services) == [service_id]
    assert request.options.tail == 5
    raw = run("service", "logs", "--raw", task_id, host=daemon.address)
    assert raw.stdout == "out\n"
    assert list(last(daemon, logs_pb2.SubscribeLogsRequest).selector.tasks) == [task_id]
    assert not last(daemon, logs_pb2.SubscribeLogsRequest).options.HasField("tail")
    assert run("service", "logs", "nosuch", host=daemon.address).exit_code == 3


def test_image_commands_on_one_node(daemon, tmp_path):
    archive = tmp_path / "root.tar"
    archive.write_bytes(b"x" * 3_000_000)
    made = run("image", "import", str(archive), "web:1", "-c", "CMD sh", host=daemon.address)
    assert made.output == f"sha256:{'ab' * 32}\n"
    assert daemon.state.archives == [archive.read_bytes()]
    assert list(daemon.state.requests[-1].changes) == ["CMD sh"]
    piped = run("image", "load", host=daemon.address, stdin=b"archive")
    assert piped.output == "Loaded image: web:1\n"
    assert daemon.state.archives[-1] == b"archive"
    row = run("image", "ls", host=daemon.address).output.splitlines()[1].split()
    assert row[:3] == ["web", "1", "abababababab"]
    assert row[-1] == "1.99MB"
    form = run("image", "inspect", "-f", "{{.Config.Cmd}}", "web:1", host=daemon.address)
    assert form.output == "[sh]\n"
    removed = run("image", "rm", "nosuch", "web:1", host=daemon.address)
    assert removed.exit_code == 3
    assert removed.stdout.startswith("Untagged: web:1\nDeleted: sha256:")
    assert run("image", "load", "-i", "/nonexistent", host=daemon.address).exit_code == 2


def test_image_writes_go_to_every_node_of_the_context(daemon, watched_daemon, tmp_path):
    nodes = ["--node", f"n1={daemon.address}", "--node", f"n2={watched_daemon.address}"]
    assert run("context", "create", "lab", "--host", daemon.address, *nodes).exit_code == 0
    run("context", "use", "lab")
    archive = tmp_path / "root.tar"
    archive.write_bytes(b"layers")
    result = run("image", "import", str(archive), "web:1")
    digest = f"sha256:{'ab' * 32}"
    assert result.output == f"n1: {digest}\nn2: {digest}\n"
    only = run("image", "rm", "--node", "n2", "web:1")
    assert only.output.startswith("n2: Untagged: web:1\n")
    assert "web" in run("image", "ls").output
    assert "web" not in run("image", "ls", "--node", "n2").output
    half = run("image", "rm", "web:1")
    assert half.exit_code == 3
    assert half.stderr == "Error: n2: image web:1 not found\n"
    assert run("image", "load", stdin=b"x").exit_code == 2
    assert run("image", "ls", "--node", "n3").exit_code == 3
