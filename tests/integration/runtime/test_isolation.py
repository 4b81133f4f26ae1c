"""What a process sees inside: as under `docker run`."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from shoal.errors import FailedPrecondition
from tests.integration.runtime.site import Site, until
from tests.support.groups import V1
from worker.runtime.api import Device, Mount, Ulimit

pytestmark = pytest.mark.root
DEFAULT_CAPS = "00000000a80425fb"


async def _fields(site: Site, *names: str, **config: object) -> list[str]:
    _, output = await site.run("cat /proc/self/status", **config)
    values = dict(line.split(":\t", 1) for line in output.splitlines() if ":\t" in line)
    return [values[name].strip() for name in names]


async def test_default_privileges(site: Site):
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Umask")
    zero = "0000000000000000"
    expected = [zero, DEFAULT_CAPS, DEFAULT_CAPS, DEFAULT_CAPS, zero, "0", "2", "0022"]
    assert await _fields(site, *names) == expected


async def test_no_new_privileges_and_dropped_capabilities(site: Site):
    seen = await _fields(
        site, "CapBnd", "CapEff", "NoNewPrivs", "Seccomp",
        no_new_privileges=True, cap_drop=("ALL",), cap_add=("net_raw",),
    )  # fmt: skip
    assert seen == ["0000000000002000", "0000000000002000", "1", "2"]


async def test_non_root_has_no_capability_but_the_bounding_set(site: Site):
    names = ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd")
    seen = await _fields(site, *names, user="app")
    assert seen[:3] == ["1000\t1000\t1000\t1000", "1000\t1000\t1000\t1000", "1000 2000 2001"]
    assert seen[3:] == ["0000000000000000", "0000000000000000", DEFAULT_CAPS]


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", (), "0 0 0 /root"),
        ("app", (), "1000 1000 1000 2000 2001 /home/app"),
        ("1000", ("wheel", "77"), "1000 1000 77 1000 2000 2001 /home/app"),
        ("app:media", (), "1000 2000 2000 /home/app"),
        ("4242", (), "4242 0 0 /"),
        ("4242:99", (), "4242 99 99 /"),
    ],
)
async def test_user_lookup(site: Site, user, groups, expected):
    _, output = await site.run(
        'echo $(id -u) $(id -g) $(grep Groups: /proc/self/status | cut -f2) "$HOME"; '
        "echo again > /dev/stderr",
        user=user,
        groups=groups,
    )
    assert sorted(output.splitlines()) == sorted([expected, "again"])


async def test_unknown_user_is_refused(site: Site):
    config = site.config("true", user="nobody-here")
    await site.runtime.create(config)
    with pytest.raises(Exception, match="unable to find user nobody-here"):
        await site.runtime.start(config.id)


async def test_namespaces_are_the_containers_own(site: Site):
    kinds = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
    _, output = await site.run("; ".join(f"readlink /proc/self/ns/{k}" for k in kinds))
    inside = output.split()
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert len(inside) == len(kinds)
    assert not set(inside) & set(outside)


async def test_host_network_on_request(site: Site):
    _, output = await site.run("readlink /proc/self/ns/net", netns_path="host")
    assert output.strip() == os.readlink("/proc/self/ns/net")


async def test_loopback_is_up_and_pid_is_one(site: Site):
    _, output = await site.run("ping -c 1 -W 2 127.0.0.1 >/dev/null && echo up; echo $$; hostname")
    assert output.splitlines()[:2] == ["up", "1"]


async def test_environment_order(site: Site):
    config = site.config("env", env=("B=2", "A=1", "PATH=/bin", "GONE"), hostname="web")
    await site.runtime.create(config)
    await site.runtime.start(config.id)
    await site.runtime.wait(config.id)
    output = await site.output(config.id)
    assert output.splitlines() == ["PATH=/bin", "HOSTNAME=web", "B=2", "A=1", "HOME=/root"]


async def test_forbidden_calls_are_refused_by_seccomp(site: Site):
    _, output = await site.run(
        "unshare -m true 2>&1; mount -t tmpfs x /tmp 2>&1; "
        "mknod /tmp/mem c 1 1 && cat /tmp/mem 2>&1 | head -c 100"
    )
    assert output.count("Operation not permitted") == 2
    assert "mount: permission denied" in output


async def test_masked_and_read_only_paths(site: Site):
    _, output = await site.run(
        "wc -c < /proc/keys; ls /sys/firmware | wc -l; "
        "echo 1 > /proc/sys/kernel/printk; echo c > /proc/sysrq-trigger; mkdir /sys/x; "
        "echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes"
    )
    assert output.splitlines()[:2] == ["0", "0"]
    assert output.count("Read-only file system") >= 2
    assert output.count("Read-only") + output.count("nonexistent") >= 3


async def test_read_only_root_with_a_tmpfs(site: Site):
    _, output = await site.run(
        "touch /x; touch /scratch/y && echo scratch; stat -f -c %T /scratch; "
        "stat -c %a /scratch; df -k /scratch | tail -1 | awk '{print $2}'",
        read_only=True,
        mounts=(Mount(target="/scratch", kind="tmpfs", tmpfs_size_bytes=1 << 20),),
    )
    assert "Read-only file system" in output
    assert [line for line in output.splitlines() if "x:" not in line] == [
        "scratch", "tmpfs", "1777", "1024",
    ]  # fmt: skip


async def test_binds(site: Site, tmp_path):
    (tmp_path / "file").write_text("content\n")
    mounts = (
        Mount(target="/mnt/new/dir", source=str(tmp_path)),
        Mount(target="/ro", source=str(tmp_path), read_only=True),
        Mount(target="/etc/one", source=str(tmp_path / "file"), read_only=True),
    )
    _, output = await site.run(
        "cat /etc/one; echo made > /mnt/new/dir/made; cat /ro/made; touch /ro/no", mounts=mounts
    )
    assert output.startswith("content\nmade\n")
    assert "Read-only file system" in output
    assert (tmp_path / "made").read_text() == "made\n"


async def test_a_symlink_in_the_image_leads_nowhere_outside(site: Site, tmp_path):
    target = f"shoal-escape-{os.path.basename(site.directory)}"
    mount = Mount(target=f"/escape/{target}", source=str(tmp_path))
    _, output = await site.run(f"ls -d /{target}", mounts=(mount,))
    assert output == f"/{target}\n"
    assert not os.path.exists(f"/{target}")


async def test_name_files(site: Site):
    _, output = await site.run(
        "cat /etc/hostname; tail -1 /etc/hosts; cat /etc/resolv.conf; ls /.dockerenv; "
        "readlink /etc/mtab",
        hostname="web",
        hosts=(("10.0.0.2", "db"),),
        dns_servers=("127.0.0.11",),
        dns_search=("shoal.internal",),
        dns_options=("ndots:0",),
    )
    assert output.splitlines() == [
        "web", "10.0.0.2\tdb", "search shoal.internal", "nameserver 127.0.0.11",
        "options ndots:0", "/.dockerenv", "/proc/mounts",
    ]  # fmt: skip


async def test_working_directory_is_made(site: Site):
    _, output = await site.run("pwd; stat -c '%U %a' .", cwd="/srv/a/b", user="app")
    assert output.splitlines() == ["/srv/a/b", "root 755"]


async def test_sysctl_ulimit_and_oom_score(site: Site):
    _, output = await site.run(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/core/somaxconn; "
        "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj",
        sysctls=(("net.core.somaxconn", "333"),),
        ulimits=(Ulimit("nofile", 100, 200),),
        oom_score_adj=500,
    )
    assert output.split() == ["0", "333", "100", "200", "500"]


async def test_too_high_ulimit_is_clamped(site: Site):
    status, output = await site.run("ulimit -n", ulimits=(Ulimit("nofile", -1, -1),))
    assert status.exit_code == 0
    assert output.strip()


async def test_few_descriptors_are_enough_to_start_with(site: Site):
    """The limit is the program's: what starts it has more open."""
    limits = (Ulimit("nofile", 5, 5),)
    status, output = await site.run(
        "ulimit -n", ulimits=limits, oom_score_adj=7, user="5", no_new_privileges=True
    )
    assert (status.exit_code, output) == (0, "5\n")


async def test_limits_reach_the_cgroup(site: Site):
    _, output = await site.run(
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us "
        "cpu/cpu.cfs_period_us"
        if V1
        else "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max",
        memory_bytes=64 << 20,
        pids_max=33,
        nano_cpus=500_000_000,
    )
    assert output.split() == [str(64 << 20), "33", "50000", "100000"]


async def test_pids_limit_holds(site: Site):
    _, output = await site.run(
        "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo all", pids_max=5
    )
    assert "all" not in output or "can't fork" in output


async def test_out_of_memory_is_told(site: Site):
    status, _ = await site.run("x=a; while :; do x=$x$x; done", memory_bytes=16 << 20)
    assert status.exit_code == 137
    assert status.oom_killed


async def test_devices(site: Site):
    _, output = await site.run(
        "ls /dev | tr '\\n' ' '; stat -c '%a %t,%T' /dev/null /dev/loopy; "
        "echo x > /dev/null && head -c 2 /dev/zero | wc -c; "
        "mknod /tmp/null c 1 3 && echo y > /tmp/null && echo usable",
        devices=(Device("/dev/kmsg", "/dev/loopy", "r"),),
    )
    names, *rest = output.split("\n")
    for name in ("fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "tty", "zero"):
        assert name in names.split()
    assert "1,3" in output
    assert "1,b" in output
    assert rest[-3:-1] == ["2", "usable"]


async def test_many_layers(site: Site, tmp_path):
    layers = []
    for index in range(120):
        layer = tmp_path / f"layer-with-a-rather-long-name-{index}"
        layer.mkdir()
        (layer / f"f{index}").touch()
        layers.append(str(layer))
    config = site.config("sh", "-c", "ls / | grep -c '^f[0-9]'")
    config = type(config)(id=config.id, args=config.args, layers=(*layers, site.image_dir))
    await site.runtime.create(config)
    await site.runtime.start(config.id)
    await site.runtime.wait(config.id)
    assert await site.output(config.id) == "120\n"


async def test_the_interpreter_cannot_be_written_through_a_container(site: Site):
    flags = os.statvfs(f"/proc/{site.pid_of('supervisor')}/exe").f_flag
    assert flags & os.ST_RDONLY


@pytest.mark.parametrize("number", [4, 5, 6, 7, 8, 9, 10, 12, 15])
async def test_no_descriptor_of_the_host_is_left_to_stand_on(site: Site, number):
    config = site.config("sh", "-c", "pwd; ls /proc/self/fd", cwd=f"/proc/self/fd/{number}")
    await site.runtime.create(config)
    with pytest.raises(FailedPrecondition, match="cwd"):
        await site.runtime.start(config.id)


async def test_the_program_inherits_three_descriptors(site: Site):
    _, output = await site.run("for f in /proc/$$/fd/*; do readlink $f; done")
    names = output.splitlines()
    assert names[0] == "/dev/null"
    assert [os.path.basename(name) for name in names[1:]] == ["stdout", "stderr"]


async def test_joins_a_given_network_namespace(site: Site):
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        own = os.readlink("/proc/self/ns/net")
        path = f"/proc/{holder.pid}/ns/net"
        await until(lambda: os.readlink(path) != own)
        _, output = await site.run(
            "readlink /proc/self/ns/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
            netns_path=path,
        )
        assert output.split() == [os.readlink(path), "0"]
    finally:
        holder.kill()
        holder.wait()


async def test_no_signal_is_ignored_though_the_daemon_ignores_some(site: Site):
    await site.runtime.shutdown()
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        await site.runtime.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    config = site.config("grep", "SigIgn", "/proc/self/status")  # shells ignore some of their own
    await site.runtime.create(config)
    await site.runtime.start(config.id)
    await site.runtime.wait(config.id)
    ignored = int((await site.output(config.id)).split()[1], 16)
    assert not any(ignored & 1 << number - 1 for number in (*numbers, signal.SIGPIPE)), hex(ignored)
