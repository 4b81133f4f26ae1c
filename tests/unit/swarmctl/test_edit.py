"""Specs edited by flags: every flag reaches its field, and nothing else changes."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.model.enums import (
    DisconnectAction,
    EndpointMode,
    FailureAction,
    PlacementStrategy,
    RestartCondition,
    ReturnAction,
    UpdateOrder,
)
from shoal.model.specs import ContainerSpec, GlobalMode, ServiceSpec
from shoal.model.types import DisconnectPolicy, Driver, FileRotation, HealthCheck, PortConfig
from swarmctl.commands.service_write import create_service, flags_of, update_service
from swarmctl.edit.container import edit_capabilities, edit_container
from swarmctl.edit.lists import merged
from swarmctl.edit.modes import scaled
from swarmctl.edit.service import edit_service
from swarmctl.parsing.files import parse_rotation
from tests.unit.swarmctl.rows import a_spec

# Flag of create, value, path to the field and what must be there.
CREATED = [
    ("--name", "x", "annotations.name", "x"),
    ("--label", "a=1", "annotations.labels", {"a": "1"}),
    ("--ttl-after-finish", "2m", "ttl_after_finish_ns", 120_000_000_000),
    ("--container-label", "a=1", "task.runtime.labels", {"a": "1"}),
    ("--env", "A=1", "task.runtime.env", ("A=1",)),
    ("--group", "adm", "task.runtime.groups", ("adm",)),
    ("--host", "db:192.0.2.7", "task.runtime.hosts", ("192.0.2.7 db",)),
    ("--dns", "192.0.2.53", "task.runtime.dns.nameservers", ("192.0.2.53",)),
    ("--dns-search", "a.test", "task.runtime.dns.search", ("a.test",)),
    ("--dns-option", "ndots:2", "task.runtime.dns.options", ("ndots:2",)),
    ("--sysctl", "net.x=1", "task.runtime.sysctls", {"net.x": "1"}),
    ("--health-cmd", "up", "task.runtime.health_check.test", ("CMD-SHELL", "up")),
    ("--health-interval", "2s", "task.runtime.health_check.interval_ns", 2_000_000_000),
    ("--health-timeout", "2s", "task.runtime.health_check.timeout_ns", 2_000_000_000),
    ("--health-retries", "2", "task.runtime.health_check.retries", 2),
    ("--health-start-period", "2s", "task.runtime.health_check.start_period_ns", 2_000_000_000),
    ("--health-start-interval", "2s", "task.runtime.health_check.start_interval_ns", 2_000_000_000),
    ("--no-healthcheck", None, "task.runtime.health_check.test", ("NONE",)),
    ("--tty", None, "task.runtime.tty", True),
    ("--open-stdin", None, "task.runtime.open_stdin", True),
    ("--init", None, "task.runtime.init", True),
    ("--isolation", "default", "task.runtime.isolation", "default"),
    ("--hostname", "h", "task.runtime.hostname", "h"),
    ("--workdir", "/w", "task.runtime.dir", "/w"),
    ("--user", "1:2", "task.runtime.user", "1:2"),
    ("--entrypoint", "sh -c", "task.runtime.command", ("sh", "-c")),
    ("--stop-signal", "SIGINT", "task.runtime.stop_signal", "SIGINT"),
    ("--secret-rotation", "signal=hup", "task.runtime.file_rotation", FileRotation("SIGHUP")),
    ("--stop-grace-period", "3s", "task.runtime.stop_grace_period_ns", 3_000_000_000),
    ("--drain-timeout", "30s", "drain_timeout_ns", 30_000_000_000),
    ("--listen-timeout", "1m", "task.listen_timeout_ns", 60_000_000_000),
    ("--oom-score-adj", "-5", "task.runtime.oom_score_adj", -5),
    ("--read-only", None, "task.runtime.read_only", True),
    ("--no-new-privileges", None, "task.runtime.privileges.no_new_privileges", True),
    ("--cap-add", "net_admin", "task.runtime.capability_add", ("CAP_NET_ADMIN",)),
    ("--cap-drop", "ALL", "task.runtime.capability_drop", ("ALL",)),
    ("--ulimit", "nofile=1:2", "task.runtime.ulimits.0.hard", 2),
    ("--mount", "type=tmpfs,target=/t", "task.runtime.mounts.0.target", "/t"),
    ("--constraint", "node.role==worker", "task.placement.constraints", ("node.role==worker",)),
    (
        "--placement-pref",
        "spread=node.labels.a",
        "task.placement.preferences.0.spread_descriptor",
        "node.labels.a",
    ),
    ("--replicas-max-per-node", "2", "task.placement.max_replicas", 2),
    ("--placement-strategy", "binpack", "task.placement.strategy", PlacementStrategy.BINPACK),
    ("--network", "name=n,alias=a", "task.networks.0.aliases", ("a",)),
    ("--endpoint-mode", "dnsrr", "endpoint.mode", EndpointMode.DNSRR),
    ("--replicas", "7", "mode.replicas", 7),
    ("--limit-cpu", "0.5", "task.resources.limits.nano_cpus", 500_000_000),
    ("--limit-memory", "64m", "task.resources.limits.memory_bytes", 64 << 20),
    ("--limit-pids", "9", "task.resources.limits.pids", 9),
    ("--reserve-cpu", "1", "task.resources.reservations.nano_cpus", 1_000_000_000),
    ("--reserve-memory", "1g", "task.resources.reservations.memory_bytes", 1 << 30),
    ("--generic-resource", "gpu=2", "task.resources.reservations.generic.0.count", 2),
    ("--device", "/dev/a:/dev/b:r", "task.runtime.devices.0.container_path", "/dev/b"),
    ("--priority", "-5", "priority", -5),
    ("--disruption-budget", "2", "disruption_budget", 2),
    ("--restart-condition", "on-failure", "task.restart.condition", RestartCondition.ON_FAILURE),
    ("--restart-delay", "1s", "task.restart.delay_ns", 1_000_000_000),
    ("--restart-max-attempts", "3", "task.restart.max_attempts", 3),
    ("--restart-backoff", "2", "task.restart.backoff_factor", 2.0),
    ("--restart-backoff-max", "1m", "task.restart.backoff_max_ns", 60_000_000_000),
    ("--restart-window", "1m", "task.restart.window_ns", 60_000_000_000),
    ("--disconnect-action", "wait", "task.disconnect.action", DisconnectAction.WAIT),
    ("--disconnect-wait", "1m", "task.disconnect.wait_ns", 60_000_000_000),
    ("--on-return", "keep-original", "task.disconnect.on_return", ReturnAction.KEEP_ORIGINAL),
    ("--update-parallelism", "0", "update.parallelism", 0),
    ("--update-delay", "1s", "update.delay_ns", 1_000_000_000),
    ("--update-failure-action", "rollback", "update.failure_action", FailureAction.ROLLBACK),
    ("--update-monitor", "1s", "update.monitor_ns", 1_000_000_000),
    ("--update-max-failure-ratio", "0.5", "update.max_failure_ratio", 0.5),
    ("--update-progress-deadline", "2m", "update.progress_deadline_ns", 120_000_000_000),
    ("--update-order", "start-first", "update.order", UpdateOrder.START_FIRST),
    ("--rollback-parallelism", "2", "rollback.parallelism", 2),
    ("--rollback-delay", "1s", "rollback.delay_ns", 1_000_000_000),
    ("--rollback-failure-action", "continue", "rollback.failure_action", FailureAction.CONTINUE),
    ("--rollback-monitor", "1s", "rollback.monitor_ns", 1_000_000_000),
    ("--rollback-max-failure-ratio", "1", "rollback.max_failure_ratio", 1.0),
    ("--rollback-progress-deadline", "0s", "rollback.progress_deadline_ns", 0),
    ("--rollback-order", "start-first", "rollback.order", UpdateOrder.START_FIRST),
    ("--publish", "8080:80", "endpoint.ports.0.published_port", 8080),
    ("--log-opt", "max-size=1m", "task.log_driver.options", {"max-size": "1m"}),
    ("--log-driver", "local", "task.log_driver", Driver(name="local")),
]
# Flags of create that are tested elsewhere, or are no part of the spec.
ELSEWHERE = {
    "--env-file", "--detach", "--quiet", "--with-registry-auth", "--mode", "--max-concurrent",
    "--config", "--secret", "--plan", "--format",
}  # fmt: skip


def reached(spec, path):
    for name in path.split("."):
        spec = spec[int(name)] if name.isdigit() else getattr(spec, name)
    return spec


def parsed(command: click.Command, *arguments: str) -> dict[str, object]:
    """The flags as a command gets them."""
    context = command.make_context("x", list(arguments))
    own = ("image", "arguments", "name", "rollback", "detach", "quiet")
    dropped = own if command is create_service else own[1:]
    kept = {key: value for key, value in context.params.items() if key not in dropped}
    if command is create_service and context.params["name"]:
        kept["name"] = context.params["name"]
    return flags_of(kept)


@pytest.mark.parametrize(("flag", "value", "path", "expected"), CREATED)
def test_every_flag_of_create_reaches_its_field(flag, value, path, expected):
    arguments = [flag] if value is None else [flag, value]
    spec = edit_service(a_spec(), parsed(create_service, *arguments, "web:1"))
    found = reached(spec, path)
    assert (dict(found) if isinstance(expected, dict) else found) == expected


def test_no_flag_of_create_is_left_out_of_the_table():
    tested = {flag for flag, *_ in CREATED} | ELSEWHERE
    offered = {
        parameter.opts[0]
        for parameter in create_service.params
        if isinstance(parameter, click.Option) and not parameter.hidden
    }
    assert {max(o.opts, key=len) for o in create_service.params if isinstance(o, click.Option)
            and not o.hidden} == tested, offered  # fmt: skip


def test_every_flag_of_create_has_its_like_in_update():
    names = {name for option in update_service.params for name in option.opts}
    for flag, *_ in CREATED:
        if flag != "--name":
            assert flag in names or {f"{flag}-add", f"{flag}-rm"} <= names, flag


@pytest.mark.parametrize(
    ("flags", "path", "expected"),
    [
        (["--env-add", "A=2", "--env-add", "C=3"], "task.runtime.env", ("A=2", "B=1", "C=3")),
        (["--env-rm", "A"], "task.runtime.env", ("B=1",)),
        (["--env-rm", "A", "--env-add", "A=9"], "task.runtime.env", ("B=1", "A=9")),
        (["--label-rm", "l"], "annotations.labels", {}),
        (["--publish-rm", "80"], "endpoint.ports", ()),
        (["--publish-rm", "8080:80", "--publish-add", "81"], "endpoint.ports.0.target_port", 81),
        (["--publish-rm", "80/udp"], "endpoint.ports.0.target_port", 80),
        (["--publish-rm", "target=80,mode=host"], "endpoint.ports.0.target_port", 80),
        (["--publish-rm", "8000-8009:78-87"], "endpoint.ports", ()),
        (
            ["--publish-add", "published=8080,target=80,sticky=true"],
            "endpoint.ports",
            (PortConfig(published_port=8080, target_port=80, sticky=True),),
        ),
        (["--publish-add", "8081-8083:81-83"], "endpoint.ports.3.published_port", 8083),
        (["--mount-rm", "/t"], "task.runtime.mounts", ()),
        (
            ["--mount-add", "type=tmpfs,target=/t,tmpfs-size=1m"],
            "task.runtime.mounts.0.tmpfs_size_bytes",
            1 << 20,
        ),
        (["--constraint-rm", "node.role==worker"], "task.placement.constraints", ()),
        (["--host-rm", "db:192.0.2.7"], "task.runtime.hosts", ()),
        (["--ulimit-rm", "nofile"], "task.runtime.ulimits", ()),
        (["--sysctl-rm", "net.x"], "task.runtime.sysctls", {}),
        (["--generic-resource-rm", "gpu"], "task.resources.reservations.generic", ()),
        (["--device-rm", "/dev/b"], "task.runtime.devices", ()),
        (["--disruption-budget", "none"], "disruption_budget", None),
        (["--placement-pref-rm", "spread=node.labels.a"], "task.placement.preferences", ()),
        (["--args", "a 'b c'"], "task.runtime.args", ("a", "b c")),
        (["--image", "web:3"], "task.runtime.image", "web:3"),
        (["--force"], "task.force_update", 1),
        (["--no-read-only"], "task.runtime.read_only", False),
        (["--new-privileges"], "task.runtime.privileges.no_new_privileges", False),
        (["--log-opt", "max-file=2"], "task.log_driver.options", {"max-file": "2"}),
        (["--log-driver", "none"], "task.log_driver", Driver(name="none")),
        (["--log-driver", "syslog", "--log-opt", "tag=x"], "task.log_driver",
         Driver(name="syslog", options={"tag": "x"})),
        (["--update-delay", "2s"], "update.parallelism", 1),
    ],
)  # fmt: skip
def test_update_flags(flags, path, expected):
    before = edit_service(
        a_spec(),
        parsed(
            create_service, "--env", "A=1", "--env", "B=1", "--label", "l=1", "--publish",
            "8080:80", "--mount", "type=tmpfs,target=/t", "--constraint", "node.role==worker",
            "--host", "db:192.0.2.7", "--ulimit", "nofile=1", "--sysctl", "net.x=1",
            "--device", "/dev/a:/dev/b", "--disruption-budget", "1",
            "--generic-resource", "gpu=1", "--placement-pref", "spread=node.labels.a",
            "--log-opt", "max-size=1m", "--read-only", "--no-new-privileges", "web:1",
        ),
    )  # fmt: skip
    found = reached(edit_service(before, parsed(update_service, *flags, "web")), path)
    assert (dict(found) if isinstance(expected, dict) else found) == expected


def test_no_flags_change_nothing():
    spec = a_spec()
    assert edit_service(spec, parsed(update_service, "web")) == spec
    assert edit_service(ServiceSpec(), {}) == ServiceSpec()


def test_env_files_go_before_env(tmp_path, monkeypatch):
    file = tmp_path / "env"
    file.write_text("A=1\nB=2\n")
    monkeypatch.delenv("SHOAL_TEST_UNSET", raising=False)
    flags = parsed(
        create_service, "--env", "A=9", "--env", "SHOAL_TEST_UNSET", "--env-file", str(file), "w"
    )
    assert edit_service(a_spec(), flags).task.runtime.env == ("A=9", "B=2")


@pytest.mark.parametrize("command", [create_service, update_service], ids=["create", "update"])
def test_what_is_of_windows_is_refused(command):
    with pytest.raises(click.UsageError, match="--credential-spec is of Windows"):
        command.make_context("x", ["--credential-spec", "x", "web:1"])


def test_mode_replicated_is_fine():
    create_service.make_context("x", ["--mode", "replicated", "web:1"])


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--limit-memory", "lots"), ("--publish", "x"), ("--restart-condition", "never"),
        ("--update-max-failure-ratio", "2"), ("--oom-score-adj", "2000"), ("--replicas", "-1"),
        ("--env-file", "/nonexistent"), ("--rollback-failure-action", "rollback"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_flag(flag, value):
    with pytest.raises(click.BadParameter) as caught:
        create_service.make_context("x", [flag, value, "web:1"])
    assert caught.value.param.opts[0] == flag


def test_adding_a_dropped_capability_undoes_the_drop():
    assert edit_capabilities((), ("CAP_CHOWN",), {"cap_add": ("chown",)}) == ((), ())
    assert edit_capabilities(("CAP_CHOWN",), (), {"cap_drop": ("CAP_CHOWN",)}) == ((), ())
    assert edit_capabilities((), (), {"cap_add": ("all",), "cap_drop": ("kill",)}) == (
        ("ALL",),
        ("CAP_KILL",),
    )


def test_replicas_need_replicated_mode():
    text = "can only be used with replicated or replicated-job mode"
    with pytest.raises(InvalidArgument, match=f"^replicas {text}$"):
        edit_service(a_spec(mode=GlobalMode()), {"replicas": 3})
    with pytest.raises(InvalidArgument, match=f"^web: scale {text}$"):
        scaled(GlobalMode(), 3, "web")


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_merged_lists_hold_each_key_once(current, add, remove):
    result = merged(current, add=add, remove=remove, key=lambda item: item)
    assert len(set(result)) == len(result)
    assert set(result) == (set(current) - set(remove)) | set(add)
    assert merged(result, add=add, key=lambda item: item) == result


def test_going_back_to_replace_drops_the_wait():
    waits = edit_service(
        a_spec(), {"disconnect_action": DisconnectAction.WAIT, "disconnect_wait": 60_000_000_000}
    )
    back = edit_service(waits, {"disconnect_action": DisconnectAction.REPLACE})
    assert back.task.disconnect == DisconnectPolicy()


def test_the_health_check_of_a_service():
    flags = parsed(
        create_service, "--health-cmd", "curl -f x", "--health-interval", "2s",
        "--health-timeout", "1s", "--health-retries", "4", "--health-start-period", "3s",
        "--health-start-interval", "500ms", "web:1",
    )  # fmt: skip
    made = edit_service(a_spec(), flags)
    assert made.task.runtime.health_check == HealthCheck(
        test=("CMD-SHELL", "curl -f x"),
        interval_ns=2_000_000_000,
        timeout_ns=1_000_000_000,
        retries=4,
        start_period_ns=3_000_000_000,
        start_interval_ns=500_000_000,
    )
    off = edit_service(made, parsed(update_service, "--no-healthcheck", "web"))
    assert off.task.runtime.health_check == HealthCheck(test=("NONE",))
    again = edit_service(off, parsed(update_service, "--health-retries", "5", "web"))
    assert again.task.runtime.health_check == HealthCheck(retries=5)
    image = edit_service(made, parsed(update_service, "--health-cmd", "", "web"))
    assert image.task.runtime.health_check.test == ()
    assert edit_service(a_spec(), {}).task.runtime.health_check is None
    both = parsed(create_service, "--no-healthcheck", "--health-retries", "2", "web:1")
    with pytest.raises(InvalidArgument, match="--no-healthcheck conflicts with --health"):
        edit_service(a_spec(), both)


@pytest.mark.parametrize(("text", "expected"), [("live", FileRotation()), ("restart", None)])
def test_how_contents_rotate_can_be_changed_back(text, expected):
    flags = {"secret_rotation": parse_rotation(text)}
    before = ContainerSpec(file_rotation=FileRotation("SIGHUP"))
    assert edit_container(before, flags).file_rotation == expected
    with pytest.raises(InvalidArgument, match="use restart, live or signal=SIGHUP"):
        parse_rotation(f"{text}=1")
