"""The bundle of a configuration: what is refused, and what equals Docker's defaults."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from worker.runtime import bundle, checking
from worker.runtime.api import ContainerConfig, IdMap, IdRange, Mount, Ulimit
from worker.runtime.lean import capabilities, tinyjson

AROUND = bundle.Surroundings(
    container_dir="/state/c", cgroup_path="/shoal/c", seccomp_program="/s.bpf", resolv_conf="x\n"
)


def _config(**fields) -> ContainerConfig:
    return ContainerConfig(**({"id": "c", "layers": ("/l",), "args": ("a",)} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "Upper"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": "../x"}, "id"),
        ({"args": ()}, "args"),
        ({"hostname": "h" * 65}, "hostname"),
        ({"layers": ()}, "layers"),
        ({"layers": ("a\nb",)}, "layers"),
        ({"cwd": "relative"}, "cwd"),
        ({"env": ("A=\0",)}, "zero byte"),
        ({"memory_bytes": 1 << 20}, "memory_bytes"),
        ({"log_max_files": 0}, "log_max_files"),
        ({"mounts": (Mount(target="rel", source="/x"),)}, "target"),
        ({"mounts": (Mount(target="/a/../b", source="/x"),)}, "target"),
        ({"mounts": (Mount(target="/a", source="x"),)}, "source"),
        ({"ulimits": (Ulimit("files", 1, 1),)}, "unknown limit"),
        ({"ulimits": (Ulimit("nofile", 5, 1),)}, "soft must not exceed hard"),
        ({"sysctls": (("kernel.panic", "1"),)}, "kernel.panic"),
        ({"cap_add": ("FLY",)}, "unknown capability"),
        ({"pid_mode": "private"}, "pid_mode"),
        ({"ipc_mode": "container:"}, "ipc_mode"),
        ({"uts_mode": "container:x"}, "uts_mode"),
        ({"cgroup_mode": "x"}, "cgroup_mode"),
        ({"cgroup_parent": "/a/../b"}, "cgroup_parent"),
        ({"device_rules": ("c 9 rwm",)}, "device cgroup rule"),
        ({"cpuset_cpus": "1-"}, "cpuset_cpus"),
        ({"memory_bytes": 64 << 20, "memory_swap_bytes": 32 << 20}, "memory_swap_bytes"),
        ({"network": "host", "sysctls": (("net.core.somaxconn", "1"),)}, "network mode host"),
        ({"ipc_mode": "host", "sysctls": (("kernel.shmmax", "1"),)}, "IPC mode host"),
        ({"mounts": (Mount(target="/proc/sys", source="/s"),)}, "inside /proc"),
        ({"mounts": (Mount(target="/t", kind="tmpfs", tmpfs_options=("x=1",)),)}, "x=1"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(InvalidArgument, match=message):
        checking.check(_config(**fields))


def test_an_init_runs_before_the_program():
    around = msgspec.structs.replace(AROUND, init_path="/usr/bin/tini-static")
    made = bundle.bundle_of(_config(init=True, args=("a", "b")), around)
    assert made["process"]["args"] == ["/sbin/docker-init", "--", "a", "b"]
    (mount,) = [m for m in made["mounts"] if m["destination"] == "/sbin/docker-init"]
    assert (mount["source"], mount["options"]) == ("/usr/bin/tini-static", ["bind", "ro"])


@given(st.lists(st.sampled_from(["ro", "rw", "exec", "noexec", "size=1", "size=2", "nosuid"])))
def test_of_mount_options_the_last_wins(options):
    found = bundle.merged(options)
    for words in (("ro", "rw"), ("exec", "noexec"), ("size=1", "size=2")):
        last = [option for option in options if option in words][-1:]
        assert [option for option in found if option in words] == last


@pytest.mark.parametrize(
    ("add", "drop", "mask"),
    [
        ((), (), 0xA80425FB),
        (("NET_ADMIN",), (), 0xA80435FB),
        ((), ("ALL",), 0),
        (("chown",), ("all",), 1),
        (("ALL",), (), (1 << 41) - 1),
        (("ALL",), ("CAP_CHOWN",), (1 << 41) - 2),
    ],
)
def test_capabilities(add, drop, mask):
    names = bundle.capabilities_of(_config(cap_add=add, cap_drop=drop))
    assert capabilities.mask_of(list(names)) == mask


def test_environment_replaces_and_removes():
    env = bundle.environment_of(_config(env=("PATH=/p", "X=1", "X=2", "HOSTNAME"), hostname="h"))
    assert env == ["PATH=/p", "X=2"]


def test_resources():
    resources = bundle.resources_of(
        _config(memory_bytes=8 << 20, nano_cpus=250_000_000, pids_max=9, cpu_shares=512), ()
    )
    assert resources["memory"] == {"limit": 8 << 20, "swap": 16 << 20}
    assert resources["cpu"] == {"period": 100_000, "quota": 25_000, "shares": 512}
    assert resources["pids"] == {"limit": 9}
    assert resources["devices"][0] == {"allow": False, "access": "rwm"}


def test_host_network_gets_no_namespace_and_no_sysctl():
    linux = bundle.bundle_of(_config(netns_path="host"), AROUND)["linux"]
    assert "network" not in [n["type"] for n in linux["namespaces"]]
    assert linux["sysctl"] == {}
    joined = bundle.bundle_of(_config(netns_path="/run/netns/x"), AROUND)["linux"]
    assert {"type": "network", "path": "/run/netns/x"} in joined["namespaces"]


def test_user_mounts_come_last_outer_before_inner():
    mounts = (Mount(target="/a/b", source="/x"), Mount(target="/a", kind="tmpfs"))
    targets = [m["destination"] for m in bundle.bundle_of(_config(mounts=mounts), AROUND)["mounts"]]
    assert targets[-2:] == ["/a", "/a/b"]
    assert targets[:7] == [
        "/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm",
    ]  # fmt: skip


def test_name_files():
    config = _config(hosts=(("10.0.0.1", "a"),), dns_servers=("1.1.1.1",), dns_options=("x",))
    files = bundle.files_of(config, AROUND)
    assert files["hosts"].endswith("\n10.0.0.1\ta\n")
    assert files["resolv.conf"] == "nameserver 1.1.1.1\noptions x\n"
    assert bundle.files_of(_config(), AROUND)["resolv.conf"] == "x\n"


def test_bundle_survives_our_json():
    content = bundle.bundle_of(_config(env=('A=ü"\\\n',)), AROUND)
    assert tinyjson.loads(tinyjson.dumps(content)) == content
    assert json.loads(tinyjson.dumps(content)) == content
    assert tinyjson.loads(json.dumps(content)) == content


def test_our_json_refuses_rubbish():
    for text in ("", "{", "{} x", "nope"):
        with pytest.raises(ValueError, match=r"."):
            tinyjson.loads(text)
    with pytest.raises(TypeError):
        tinyjson.dumps({"a": object()})


def test_a_mapping_is_in_the_bundle_and_reaches_what_is_stored_with_its_ids():
    ids = IdMap(uids=(IdRange(0, 5000, 100), IdRange(100, 9000, 7)), gids=(IdRange(0, 6000, 50),))
    mounts = (Mount("/volume", source="/v", own_ids=True), Mount("/bind", source="/b"))
    linux = bundle.bundle_of(_config(userns=ids), AROUND)["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"][1] == {"containerID": 100, "hostID": 9000, "size": 7}
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": 6000, "size": 50}]
    assert linux["sysctl"]["net.ipv4.ping_group_range"] == "0 49"
    for userns, marked in ((ids, {"/volume"}), (None, set())):
        entries = bundle.bundle_of(_config(userns=userns, mounts=mounts), AROUND)["mounts"]
        assert {m["destination"] for m in entries if "idmap" in m["options"]} == marked


def test_without_a_mapping_there_is_nothing_of_it():
    linux = bundle.bundle_of(_config(), AROUND)["linux"]
    assert {"type": "user"} not in linux["namespaces"]
    assert "uidMappings" not in linux
    assert linux["sysctl"]["net.ipv4.ping_group_range"] == "0 2147483647"
