"""From task and image to the container's configuration: Docker's rules and what is refused."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.enums import MountPropagation, MountRecursive, MountType
from shoal.model.types import (
    DeviceMapping,
    DnsConfig,
    Driver,
    GenericResource,
    HealthCheck,
    Mount,
    Privileges,
    Ulimit,
)
from tests.support.fakes import an_image
from tests.unit.worker.agent.support import FACTS, a_task, task_id
from worker.agent.container import IMAGE_ID_LABEL, container_config
from worker.images.model import ImageConfig
from worker.network.api import Attachment
from worker.runtime.api import Device
from worker.runtime.bundle import environment_of

LINK = Attachment("t", "/run/netns/t", "10.1.0.7", "10.1.0.1", "eth0")


def config(
    image=None, *, attachment=None, log_driver=None, volumes=None, assigned=(), pooled=(), **spec
):
    task = a_task(**spec).replaced(assigned_generic_resources=assigned)
    if log_driver is not None:
        task = task.replaced(log_driver=log_driver)
    image = an_image(image or ImageConfig(cmd=("serve",)), image_id="sha256:abc")
    return container_config(
        task, image, ("/top", "/bottom"), attachment, FACTS, volumes=volumes or {}, devices=pooled
    )


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "result"),
    [
        (None, ("serve",), (), (), ("serve",)),
        (("/run",), ("serve",), (), (), ("/run", "serve")),
        (("/run",), None, (), (), ("/run",)),
        (("/run",), ("serve",), (), ("x",), ("/run", "x")),
        (None, ("serve",), (), ("x", "y"), ("x", "y")),
        (("/run",), ("serve",), ("/own",), (), ("/own",)),
        (("/run",), ("serve",), ("/own", "-a"), ("x",), ("/own", "-a", "x")),
        ((), (), ("/own",), (), ("/own",)),
    ],
)
def test_entrypoint_and_command(entrypoint, cmd, command, args, result):
    image = ImageConfig(entrypoint=entrypoint, cmd=cmd)
    assert config(image, command=command, args=args).args == result


def test_no_command_anywhere_is_refused():
    with pytest.raises(InvalidArgument, match="no command specified"):
        config(ImageConfig())


def test_the_service_overrides_the_image():
    image = ImageConfig(
        cmd=("serve",), env=("PATH=/image", "A=1", "B=2"), user="app", working_dir="/srv",
        stop_signal="SIGINT",
    )  # fmt: skip
    plain = config(image)
    assert (plain.user, plain.cwd, plain.stop_signal) == ("app", "/srv", "SIGINT")
    own = config(image, env=("A=9", "B"), user="root", dir="/", stop_signal="SIGQUIT")
    assert (own.user, own.cwd, own.stop_signal) == ("root", "/", "SIGQUIT")
    assert environment_of(own) == [
        "PATH=/image", f"HOSTNAME={task_id()[:12]}", "A=9",
    ]  # fmt: skip


def test_defaults_where_neither_says_anything():
    made = config()
    assert (made.cwd, made.user, made.stop_signal, made.stop_grace_s) == ("/", "", "SIGTERM", 10.0)
    assert made.hostname == task_id()[:12]
    assert (made.log_max_size_bytes, made.log_max_files) == (10 << 20, 3)
    assert made.layers == ("/top", "/bottom")


def test_everything_else_is_passed_on():
    made = config(
        stop_grace_period_ns=1_500_000_000, groups=("wheel",), read_only=True,
        dns=DnsConfig(nameservers=("1.1.1.1",), search=("lan",), options=("ndots:1",)),
        ulimits=(Ulimit(name="nofile", soft=10, hard=20),), capability_add=("NET_ADMIN",),
        capability_drop=("CHOWN",), sysctls={"net.b": "2", "net.a": "1"}, oom_score_adj=7,
        privileges=Privileges(no_new_privileges=True),
    )  # fmt: skip
    assert made.stop_grace_s == 1.5
    assert made.groups == ("wheel",)
    assert made.read_only
    assert made.no_new_privileges
    assert (made.dns_servers, made.dns_search, made.dns_options) == (
        ("1.1.1.1",), ("lan",), ("ndots:1",),
    )  # fmt: skip
    assert [(u.name, u.soft, u.hard) for u in made.ulimits] == [("nofile", 10, 20)]
    assert (made.cap_add, made.cap_drop) == (("NET_ADMIN",), ("CHOWN",))
    assert made.sysctls == (("net.a", "1"), ("net.b", "2"))
    assert made.oom_score_adj == 7


def test_env_hostname_and_mounts_are_templates():
    made = config(
        env=("WHO={{.Service.Name}}-{{.Task.Slot}}",),
        hostname="{{.Node.Hostname}}-{{.Task.Slot}}",
        mounts=(Mount(source="/srv/{{.Task.Slot}}", target="/data/{{.Service.Name}}"),),
    )
    assert "WHO=front-1" in made.env
    assert made.hostname == "alpha-1"
    assert (made.mounts[0].source, made.mounts[0].target) == ("/srv/1", "/data/front")


def test_a_task_finds_the_generic_resources_it_was_given_in_its_environment():
    given = (GenericResource(kind="gpu", named_value="U1"), GenericResource("apple", count=2))
    image = ImageConfig(cmd=("serve",), env=("A=1",))
    made = config(image, env=("B=2", "DOCKER_RESOURCE_GPU=all"), assigned=given)
    environment = dict(one.split("=", 1) for one in environment_of(made))
    assert environment["DOCKER_RESOURCE_GPU"] == "U1"
    assert environment["DOCKER_RESOURCE_APPLE"] == "2"
    assert (environment["A"], environment["B"]) == ("1", "2")


def test_devices_are_those_of_the_resources_and_of_the_service():
    wished = DeviceMapping("/dev/kvm", "/dev/vm", "rw"), DeviceMapping("/dev/b", "/dev/a")
    made = config(devices=wished, pooled=(DeviceMapping("/dev/nvidia0"), DeviceMapping("/dev/a")))
    assert made.devices == (
        Device("/dev/nvidia0", "/dev/nvidia0"),
        Device("/dev/b", "/dev/a"),
        Device("/dev/kvm", "/dev/vm", "rw"),
    )


def test_hosts_of_the_spec_come_first_then_the_task_itself():
    made = config(hosts=("10.0.0.1 db db.lan", "10.0.0.2 cache"), attachment=LINK, hostname="me")
    assert made.hosts == (
        ("10.0.0.1", "db"), ("10.0.0.1", "db.lan"), ("10.0.0.2", "cache"), ("10.1.0.7", "me"),
    )  # fmt: skip
    assert made.netns_path == "/run/netns/t"


def test_mounts():
    made = config(
        mounts=(
            Mount(source="/a", target="/b", read_only=True, propagation=MountPropagation.RSLAVE),
            Mount(source="/c", target="/d", recursive=MountRecursive.DISABLED),
            Mount(type=MountType.TMPFS, target="/t", tmpfs_size_bytes=9, tmpfs_mode=0o700),
            Mount(type=MountType.TMPFS, target="/u"),
        )
    ).mounts
    assert (made[0].kind, made[0].read_only, made[0].propagation) == ("bind", True, "rslave")
    assert (made[0].recursive, made[1].recursive) == (True, False)
    assert (made[2].kind, made[2].tmpfs_size_bytes, made[2].tmpfs_mode) == ("tmpfs", 9, 0o700)
    assert made[3].tmpfs_mode == 0o1777


@pytest.mark.parametrize(
    ("options", "size_bytes", "files"),
    [
        ({"max-size": "10m"}, 10 << 20, 3),
        ({"max-size": "64K"}, 64 << 10, 3),
        ({"max-size": "1.5GiB"}, 3 << 29, 3),
        ({"max-size": "8192"}, 8192, 3),
        ({"max-size": "8192b", "max-file": "5"}, 8192, 5),
        ({"max-size": "2mb"}, 2 << 20, 3),
        ({"max-file": "1"}, 10 << 20, 1),
    ],
)
def test_log_options(options, size_bytes, files):
    made = config(log_driver=Driver(name="json-file", options=options))
    assert (made.log_max_size_bytes, made.log_max_files) == (size_bytes, files)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max-size": "10x"}, "max-size"),
        ({"max-size": "-1"}, "max-size"),
        ({"max-size": "0"}, "max-size"),
        ({"max-size": "1k"}, "from 4k"),
        ({"max-size": "9999999t"}, "max-size"),
        ({"max-file": "0"}, "max-file"),
        ({"max-file": "²"}, "max-file"),
        ({"mode": "non-blocking"}, "'mode' is unknown"),
    ],
)
def test_log_options_that_would_be_wrong_or_ignored_are_refused(options, named):
    with pytest.raises(InvalidArgument, match=named):
        config(log_driver=Driver(options=options))


def test_another_log_driver_is_refused():
    with pytest.raises(Unimplemented, match="gelf"):
        config(log_driver=Driver(name="gelf"))


def test_what_other_log_drivers_tell_the_logger():
    assert config().log == {}
    assert config(log_driver=Driver(name="none")).log["files"] is False
    local = config(log_driver=Driver(name="local", options={"max-size": "1m"})).log
    assert (local["max_size_bytes"], local["files"]) == (1_000_000, True)
    options = {"syslog-address": "udp://192.0.2.1:514", "tag": "{{.Name}}"}
    sink = config(log_driver=Driver(name="syslog", options=options)).log["sink"]
    assert f".{task_id()}" in str(sink)
    with pytest.raises(InvalidArgument):
        config(log_driver=Driver(name="syslog", options={"syslog-address": "x"}))


@pytest.mark.parametrize(
    ("named", "spec"),
    [
        ("isolation", {"isolation": "hyperv"}),
        ("seccomp", {"privileges": Privileges(seccomp_mode="odd")}),
        ("apparmor", {"privileges": Privileges(apparmor_mode="odd")}),
        ("mount type cluster", {"mounts": (Mount(type=MountType.CLUSTER, target="/v"),)}),
        ("mount type image", {"mounts": (Mount(type=MountType.IMAGE, target="/v"),)}),
        ("bind-recursive", {"mounts": (Mount(target="/v", recursive=MountRecursive.READONLY),)}),
        ("subpath", {"mounts": (Mount(target="/v", subpath="x"),)}),
        ("tmpfs options", {"mounts": (Mount(target="/v", tmpfs_options="x"),)}),
        ("creating the source", {"mounts": (Mount(target="/v", create_source=True),)}),
    ],
)
def test_wishes_that_would_be_ignored_are_refused(named, spec):
    with pytest.raises(Unimplemented, match=named):
        config(**spec)


def test_a_terminal_an_init_and_an_open_input_are_the_runtimes_to_give():
    made = config(tty=True, open_stdin=True, init=True)
    assert (made.tty, made.open_stdin, made.init) == (True, True, True)
    assert made.env[0] == "TERM=xterm"
    plain = config(init=False)
    assert (plain.tty, plain.open_stdin, plain.init) == (False, False, False)
    assert "TERM=xterm" not in plain.env


def test_confinement_is_in_the_words_of_containers():
    made = config(privileges=Privileges(seccomp_mode="unconfined", apparmor_mode="disabled"))
    assert (made.seccomp_profile, made.apparmor_profile) == ("unconfined", "unconfined")
    made = config(privileges=Privileges(seccomp_mode="custom", seccomp_profile=b'{"a": 1}'))
    assert (made.seccomp_profile, made.apparmor_profile) == ('{"a": 1}', "")
    made = config(privileges=Privileges(selinux_user="u", selinux_level="s0:c1,c2"))
    assert made.selinux_labels == ("user:u", "level:s0:c1,c2")
    made = config(privileges=Privileges(selinux_disable=True, seccomp_mode="default"))
    assert (made.selinux_labels, made.seccomp_profile) == (("disable",), "")


def test_a_health_check_that_is_switched_off_is_none():
    assert config(health_check=HealthCheck(test=("NONE",)))


def test_labels_say_whose_container_it_is_and_cannot_be_forged():
    made = config(labels={"mine": "1", IMAGE_ID_LABEL: "sha256:forged"})
    assert made.labels["mine"] == "1"
    assert made.labels[IMAGE_ID_LABEL] == "sha256:abc"
    assert made.labels["com.docker.swarm.task"] == ""  # as Docker, and its clients look for it
    assert made.labels["com.docker.swarm.task.name"] == f"front.1.{task_id()}"


def test_on_overlay_networks_the_nodes_resolver_asks_the_others():
    link = msgspec.structs.replace(
        LINK, overlay_addresses=("10.5.0.3", "fd05::3"), search=("node.lan",)
    )
    made = config(attachment=link, hostname="me", dns=DnsConfig(nameservers=("9.9.9.9",)))
    assert made.dns_servers == ("127.0.0.11",)
    assert (made.dns_search, made.dns_options) == (("node.lan",), ("ndots:0",))
    assert made.hosts == (("10.5.0.3", "me"), ("fd05::3", "me"))
    own = DnsConfig(search=("own.lan",), options=("ndots:2", "rotate"))
    made = config(attachment=link, dns=own)
    assert (made.dns_search, made.dns_options) == (("own.lan",), ("ndots:2", "rotate"))
    assert config(attachment=LINK).dns_servers == ()
