"""The pure parts: restarts, health, words, names, mounts, ports, updates, filters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.containers import (
    listing,
    mounts,
    names,
    networking,
    restart,
    selection,
    starts,
    updates,
)
from engine.containers.config import container_config, parse_security, supposed_ground
from engine.containers.container import newer
from engine.containers.defaults import command_of, with_host_defaults
from engine.containers.inspect import time_text
from engine.containers.requests import (
    EndpointConfig,
    HealthConfig,
    HostConfig,
    HostPort,
    NetworkingConfig,
    RestartPolicy,
    UpdateRequest,
)
from engine.http.errors import Refused
from engine.http.filters import Filters
from shoal.clock import NS_PER_S
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, SwarmError, Unimplemented
from shoal.model.types import HealthCheck
from tests.unit.engine.containers.asking import ID, container_of, record_of
from worker.health.core import HEALTHY, STARTING, UNHEALTHY, Health, Probe, judged
from worker.images.model import ImageConfig
from worker.runtime.api import ContainerStatus

S = NS_PER_S


@pytest.mark.parametrize(
    ("name", "count", "code", "restarts", "stopped", "again"),
    [
        ("no", 0, 1, 0, False, False),
        ("", 0, 1, 0, False, False),
        ("always", 0, 0, 9, False, True),
        ("always", 0, 1, 0, True, False),
        ("unless-stopped", 0, 0, 0, False, True),
        ("unless-stopped", 0, 0, 0, True, False),
        ("on-failure", 0, 1, 99, False, True),
        ("on-failure", 2, 1, 1, False, True),
        ("on-failure", 2, 1, 2, False, False),
        ("on-failure", 2, 0, 0, False, False),
    ],
)
def test_restart_policies(name, count, code, restarts, stopped, again):
    policy = RestartPolicy(name=name, maximum_retry_count=count)
    found = restart.wanted(policy, exit_code=code, restarts=restarts, manually_stopped=stopped)
    assert found is again


def test_the_node_starts_what_was_stopped_only_if_it_is_to_run_always():
    wanted = restart.wanted_at_node_start
    for name, again in (("always", True), ("unless-stopped", False), ("no", False)):
        assert wanted(RestartPolicy(name=name), exit_code=0, manually_stopped=True) is again


def test_pauses_double_up_to_a_minute_and_begin_anew_after_a_long_run():
    pauses, last = [], 0.0
    for _ in range(12):
        last = restart.next_pause_s(last, 0.5)
        pauses.append(last)
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == 60.0
    assert restart.next_pause_s(60.0, 10.0) == 0.1


def probe(code: int) -> Probe:
    return Probe(1, 2, code, "")


def test_health_needs_as_many_failures_as_it_has_retries():
    health = Health()
    for _ in range(2):
        health = judged(health, probe(1), in_start_period=False, retries=3)
        assert health.status == STARTING
    health = judged(health, probe(1), in_start_period=False, retries=3)
    assert (health.status, health.failing_streak) == (UNHEALTHY, 3)
    health = judged(health, probe(0), in_start_period=False, retries=3)
    assert (health.status, health.failing_streak) == (HEALTHY, 0)


def test_failures_in_the_start_period_do_not_count_until_it_was_healthy_once():
    health = judged(Health(), probe(1), in_start_period=True, retries=1)
    assert (health.status, health.failing_streak) == (STARTING, 0)
    health = judged(health, probe(0), in_start_period=True, retries=1)
    assert judged(health, probe(1), in_start_period=True, retries=1).status == UNHEALTHY


@given(st.lists(st.integers(-1, 3), max_size=30), st.integers(1, 5))
def test_health_keeps_its_last_five_checks(codes, retries):
    health = Health()
    for code in codes:
        health = judged(health, probe(code), in_start_period=False, retries=retries)
    assert [one.exit_code for one in health.log] == codes[-5:]
    assert (health.status == HEALTHY) == (0 in codes and health.failing_streak < retries)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
        (119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"),
        (5400, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"), (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"), (60 * 86400, "2 months"), (800 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_durations_as_people_say_them(seconds, text):
    assert listing.ago(seconds * S) == text


def test_words_of_each_state():
    running = container_of("running", started_at_ns=10 * S)
    assert listing.status_text(running, 15 * S) == "Up 5 seconds"
    running.health = Health()
    assert listing.status_text(running, 15 * S) == "Up 5 seconds (health: starting)"
    running.health = Health(UNHEALTHY)
    assert listing.status_text(running, 15 * S) == "Up 5 seconds (unhealthy)"
    paused = container_of("running", started_at_ns=10 * S, paused=True)
    assert listing.status_text(paused, 15 * S) == "Up 5 seconds (Paused)"
    ended = container_of("exited", started_at_ns=1, finished_at_ns=10 * S, exit_code=3)
    assert listing.status_text(ended, 11 * S) == "Exited (3) 1 second ago"
    ended.restarting = True
    assert listing.status_text(ended, 11 * S) == "Restarting (3) 1 second ago"
    ended.record = ended.record.replaced(dead=True)
    assert listing.status_text(ended, 11 * S) == "Dead"
    assert listing.status_text(container_of(), 11 * S) == "Created"


def test_times_as_go_prints_them():
    assert time_text(0) == "0001-01-01T00:00:00Z"
    assert time_text(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert time_text(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"


def test_old_news_of_the_runtime_is_not_believed():
    started = ContainerStatus(id=ID, state="running", started_at_ns=5)
    ended = ContainerStatus(id=ID, state="exited", started_at_ns=5, finished_at_ns=6)
    again = ContainerStatus(id=ID, state="running", started_at_ns=7)
    assert newer(ended, started) is ended
    assert newer(started, ended) is ended
    assert newer(ended, again) is again
    assert newer(again, ended) is again


@pytest.mark.parametrize("name", ["u", "-x", "a b", "/", "", "ä1", "x" + "\n"])
def test_names_docker_refuses(name):
    with pytest.raises(InvalidArgument, match="Invalid container name"):
        names.check_name(name)


def test_invented_names_are_valid_and_free():
    taken: set[str] = set()
    for _ in range(300):
        name = names.invent(taken)
        assert name not in taken
        taken.add(names.check_name(name))


def test_finding_by_id_name_and_prefix():
    known = ("aa1", "aa2", "bb1")
    by_name = {"web": "aa1", "bb": "aa2"}
    assert names.find("aa1", known, by_name) == "aa1"
    assert names.find("/web", known, by_name) == "aa1"
    assert names.find("bb", known, by_name) == "aa2"
    assert names.find("bb1", known, by_name) == "bb1"
    with pytest.raises(InvalidArgument, match="Multiple IDs found with provided prefix: aa"):
        names.find("aa", known, by_name)
    for missing in ("", "zz"):
        with pytest.raises(NotFound, match=f"No such container: {missing}"):
            names.find(missing, known, by_name)


def test_command_of_request_and_image():
    image = ImageConfig(cmd=("serve",), entrypoint=("/init",), env=("A=1", "PATH=/bin"))
    assert command_of(record_of(image=image, cmd=None).config) == ("/init", "serve")
    assert command_of(record_of(image=image, cmd=["x"]).config) == ("/init", "x")
    assert command_of(record_of(image=image, cmd=None, entrypoint=["e"]).config) == ("e",)
    assert command_of(record_of(image=image, cmd=["x"], entrypoint=[""]).config) == ("x",)
    assert record_of(image=image, env=["A=2", "B"]).config.env == ["A=2", "B", "PATH=/bin"]
    with pytest.raises(InvalidArgument, match="no command specified"):
        record_of(cmd=None)


def test_an_image_health_check_fills_what_was_not_said():
    image = ImageConfig(healthcheck=HealthCheck(test=("CMD", "x"), interval_ns=2 * S, retries=4))
    check = record_of(image=image, healthcheck=HealthConfig(retries=9)).config.healthcheck
    assert (check.test, check.interval, check.retries) == (["CMD", "x"], 2 * S, 9)
    none = record_of(image=image, healthcheck=HealthConfig(test=["NONE"])).config.healthcheck
    assert none.test == ["NONE"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:b:c:d", "invalid volume specification"),
        ("/a:b", "mount path must be absolute"),
        ("/a:/", "destination can't be '/'"),
        ("/a:/b:xx", "invalid mode: xx"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        ("../a:/b", "includes invalid characters for a local volume name"),
        ("v1:/b:rshared", "invalid mode: rshared"),
    ],
)
def test_binds_docker_refuses(text, message):
    with pytest.raises(InvalidArgument, match=message):
        mounts.parse_bind(text)


def test_binds():
    bind = mounts.parse_bind("/srv/:/data:ro,rslave")
    assert (bind.kind, bind.source, bind.target) == ("bind", "/srv", "/data")
    assert (bind.read_only, bind.propagation, bind.create_source) == (True, "rslave", True)
    volume = mounts.parse_bind("v1:/data:nocopy")
    assert (volume.kind, volume.name, volume.copy, volume.anonymous) == (
        "volume",
        "v1",
        False,
        False,
    )
    assert mounts.parse_bind("/data").anonymous
    with pytest.raises(InvalidArgument, match="Duplicate mount point: /d"):
        record_of(HostConfig(binds=["/a:/d", "/b:/d/"]))


def test_volumes_of_the_image_give_way():
    image = ImageConfig(volumes=("/data", "/cache"))
    record = record_of(HostConfig(binds=["/srv:/data"], tmpfs={"/cache": ""}), image=image)
    assert [(one.kind, one.target) for one in record.mounts] == [("bind", "/data")]


def test_networks_of_a_request():
    asked = NetworkingConfig(endpoints_config={
        "default": EndpointConfig(mac_address="02:42:ac:11:00:77"), "other": None,
    })  # fmt: skip
    found = record_of(networking_config=asked).networks
    assert list(found) == ["bridge", "other"]
    assert found["bridge"].mac_address == "02:42:ac:11:00:77"
    assert list(record_of(HostConfig(network_mode="n1")).networks) == ["n1"]
    assert not record_of(HostConfig(network_mode="container:x")).networks
    with pytest.raises(InvalidArgument, match="hostname and the network mode"):
        record_of(HostConfig(network_mode="container:x"), hostname="h")


def test_published_ports():
    host = HostConfig(
        port_bindings={"80/tcp": [HostPort(host_port="8000-8002")], "53/udp": [HostPort()]},
        publish_all_ports=True,
    )
    record = record_of(host, exposed_ports={"80/tcp": {}, "99": {}})
    found = networking.port_bindings(record.config, record.host)
    assert [(one.container_port, one.protocol, one.host_port, one.host_port_end) for one in found] \
        == [(80, "tcp", 8000, 8002), (53, "udp", 0, 0), (99, "tcp", 0, 0)]  # fmt: skip
    assert set(record.config.exposed_ports) == {"80/tcp", "99/tcp", "53/udp"}
    with pytest.raises(InvalidArgument, match="invalid port specification"):
        record_of(HostConfig(port_bindings={"0/tcp": [HostPort()]}))


def test_what_is_relabelled_where_containers_have_labels():
    binds = ["/a:/a:z", "/b:/b:ro,Z", "/c:/c", "v1:/v1", "v2:/v2:Z"]
    record = record_of(HostConfig(binds=binds))
    found = container_config(record, supposed_ground(record, ("/layer",)))
    assert {mount.target: mount.relabel for mount in found.mounts} == {
        "/a": "shared", "/b": "private", "/c": "", "/v1": "shared", "/v2": "private",
    }  # fmt: skip


def test_security_options():
    found = parse_security(["no-new-privileges:true", "seccomp=unconfined", "label=disable"])
    assert (found.no_new_privileges, found.seccomp_profile, found.selinux_labels) == (
        True, "unconfined", ("disable",),
    )  # fmt: skip
    with pytest.raises(InvalidArgument, match="invalid --security-opt"):
        parse_security(["nonsense"])


def test_limits_docker_refuses():
    for host, message in (
        (HostConfig(memory=1024), "Minimum memory limit allowed is 6MB"),
        (HostConfig(memory_swap=64 << 20), "You should always set the Memory limit"),
        (HostConfig(memory=64 << 20, memory_swap=32 << 20), "Minimum memoryswap limit"),
        (HostConfig(nano_cpus=9 * S), "Range of CPUs is from 0.01 to 4.00"),
        (HostConfig(nano_cpus=S, cpu_quota=5000), "Nano CPUs and CPU Quota cannot both be set"),
        (HostConfig(cpuset_cpus="9"), "Requested CPUs are not available - requested 9"),
        (HostConfig(blkio_weight=5), "Range of blkio weight is from 10 to 1000"),
        (HostConfig(restart_policy=RestartPolicy(name="often")), "invalid restart policy 'often'"),
        (HostConfig(auto_remove=True, restart_policy=RestartPolicy(name="always")),
         "can't create 'AutoRemove' container with restart policy"),
        (HostConfig(oom_score_adj=2000), "range for oom score adj is"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=message):
            record_of(host)


def test_defaults_of_the_host_part():
    filled = with_host_defaults(HostConfig(memory=64 << 20, memory_swappiness=-1, pids_limit=-1))
    assert filled.memory_swap == 128 << 20
    assert filled.memory_swappiness is None
    assert filled.pids_limit is None
    assert filled.log_config.type == "json-file"


def test_updates_change_what_they_name():
    host = with_host_defaults(HostConfig(memory=64 << 20, cpu_shares=100))
    asked = UpdateRequest(memory=128 << 20, memory_swap=256 << 20, pids_limit=-1)
    changed = updates.merged(host, asked)
    assert (changed.memory, changed.memory_swap, changed.cpu_shares) == (128 << 20, 256 << 20, 100)
    resources = updates.runtime_resources(asked, changed)
    assert (resources.memory_bytes, resources.pids_max, resources.cpu_shares) == (
        128 << 20,
        0,
        None,
    )
    with pytest.raises(InvalidArgument, match="Memory limit should be smaller than already set"):
        updates.merged(host, UpdateRequest(memory=256 << 20))
    with pytest.raises(Unimplemented, match="KernelMemory"):
        updates.merged(host, UpdateRequest(kernel_memory=1))
    policy = UpdateRequest(restart_policy=RestartPolicy(name="always"))
    assert updates.runtime_resources(policy, host) is None


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ('exec: "x": executable file not found in $PATH', 400, 127),
        ('exec: "/x": stat /x: no such file or directory', 400, 127),
        ('exec: "/etc": is a directory', 400, 126),
        ("make cwd: read-only file system", 500, 128),
    ],
)
def test_why_a_start_failed(text, status, code):
    failure = starts.explain(FailedPrecondition(text), record_of())
    assert isinstance(failure, Refused)
    assert (failure.status, starts.exit_code(failure)) == (status, code)
    assert failure.message.endswith(f"unable to start container process: {text}: unknown")


def test_a_port_that_is_taken():
    text = "Bind for 0.0.0.0:8081 failed: port is already allocated"
    failure = starts.explain(FailedPrecondition(text), record_of())
    assert failure.message == (
        f"driver failed programming external connectivity on endpoint web ({ID}): {text}"
    )


def chosen(*containers, every=False, limit=0, **filters):
    known = selection.Known(
        lambda ref: next(one for one in containers if one.id == ref),
        lambda ref: (
            frozenset((containers[0].record.image_id,)) if ref == "busybox" else frozenset()
        ),
        lambda ref: ref,
    )
    wish = selection.Wish(Filters(filters), every, limit)
    return [one.id for one in selection.select(containers, wish, known)]


def test_lists():
    up = container_of("running", started_at_ns=5)
    down = container_of("exited", started_at_ns=4, finished_at_ns=5, exit_code=3)
    down.record = down.record.replaced(id="cd" * 32, name="job", created_at_ns=0)
    assert chosen(up, down) == [ID]
    assert chosen(up, down, every=True) == [ID, down.id]
    assert chosen(up, down, limit=1) == [ID]
    assert chosen(up, down, status=["exited"]) == [down.id]
    assert chosen(up, down, every=True, exited=["3"]) == [down.id]
    assert chosen(up, down, every=True, exited=["0"]) == []
    assert chosen(up, down, every=True, name=["jo"]) == [down.id]
    assert chosen(up, down, every=True, name=["^w.b$"]) == [ID]
    assert chosen(up, down, every=True, before=[ID]) == [down.id]
    assert chosen(up, down, every=True, since=[down.id]) == [ID]
    assert chosen(up, down, every=True, ancestor=["busybox"]) == [ID, down.id]
    assert chosen(up, down, every=True, ancestor=["other"]) == []
    assert chosen(up, down, every=True, network=["bridge"]) == [ID, down.id]
    assert chosen(up, down, every=True, health=["none"]) == [ID, down.id]
    for name, value in (("status", "odd"), ("health", "odd"), ("exited", "x")):
        with pytest.raises(InvalidArgument, match="invalid filter"):
            chosen(up, **{name: [value]})


@pytest.mark.parametrize(
    ("text", "moment_s"),
    [("10m", 400), ("1h0m1s", 1000 - 3601), ("1500ms", 998.5), ("77.5", 77.5),
     ("1970-01-01T00:01:00Z", 60)],
)  # fmt: skip
def test_moments_of_prunes(text, moment_s):
    assert selection.moment_ns(text, 1000 * S) == moment_s * S


def test_moments_nobody_understands():
    with pytest.raises(SwarmError, match="until"):
        selection.moment_ns("soon", 0)
