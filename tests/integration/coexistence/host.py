"""A machine for a test: network, mounts and processes of its own, and a client outside of it.

Whatever is started on it ends with it, and what it does to rules, routes, links and settings is
seen by nobody else. What it looks like can be written down and compared: these tests are for that.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.patience import FACTOR

DEADLINE_S = 60.0 * FACTOR
ADDRESS = "192.0.2.1"
CLIENT = "192.0.2.100"
_OUTSIDE = "outside"
_CGROUPS = Path("/sys/fs/cgroup")

# A /run of its own for names of namespaces and sockets; a /sys that shows its own devices.
_BOOT = f"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/netns /run/lock /run/stage
mount --rbind /sys/fs/cgroup /run/stage
mount -t sysfs sysfs /sys
mount --move /run/stage /sys/fs/cgroup
rmdir /run/stage
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
ip netns add {_OUTSIDE}
ip link add eth0 type veth peer name eth0 netns {_OUTSIDE}
ip address add {ADDRESS}/24 dev eth0
ip link set eth0 up
ip -n {_OUTSIDE} address add {CLIENT}/24 dev eth0
ip -n {_OUTSIDE} link set eth0 up
ip -n {_OUTSIDE} link set lo up
echo 0 >/proc/sys/net/ipv4/ip_forward
: >"$1/booted"
exec sleep infinity
"""
_COUNTS = re.compile(r"\[\d+:\d+\]|^#.*$", re.MULTILINE)
_VOLATILE = re.compile(r"conf/|neigh/|nf_conntrack_count|/route/flush")
"""Settings that belong to a device, which comes and goes, or count."""


class Started:
    """A program that runs on a host."""

    def __init__(self, host: Host, note: Path, process: subprocess.Popen[bytes]) -> None:
        self._host = host
        self._note = note
        self._process = process

    def end(self) -> None:
        """Ask it to, and wait."""
        self._host.run("kill", self._note.read_text().strip(), check=False)
        self._process.wait(DEADLINE_S)


class Host:
    """Close it."""

    def __init__(self) -> None:
        self.name = f"host-{secrets.token_hex(4)}"
        self.base = Path("/dev/shm", f"shoal-{self.name}")
        self.base.mkdir(mode=0o700)
        self.cgroup = f"/{self.base.name}"
        self.environment = {
            **os.environ,
            "SHOAL_CONFIG_DIR": str(self.base / "config"),
            "SHOAL_LAB_DIR": str(self.base / "lab"),
            "NO_COLOR": "1",
            "DOCKER_BUILDKIT": "0",
        }
        with (self.base / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child",
                    "--mount-proc", "sh", "-c", _BOOT, "sh", str(self.base),
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        eventually("the host is there", (self.base / "booted").exists)
        (self._pid,) = map(int, self._children())
        self._inherited = set(self._mounts())

    def run(
        self, *words: str, check: bool = True, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host to its end."""
        done = subprocess.run(
            self.inside(*words), input=text, capture_output=True, text=True, check=False,
            timeout=2 * DEADLINE_S, env=self.environment,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, name: str, *words: str) -> Started:
        """Start a program on the host; its output goes to a file of that name."""
        note = self.base / f"{name}.pid"
        noting = ("sh", "-c", 'echo $$ >"$0"; exec "$@"', str(note), *words)
        with (self.base / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.inside(*noting), stdout=log, stderr=log, env=self.environment
            )
        return Started(self, note, process)

    def inside(self, *words: str) -> list[str]:
        """The command line that runs a program on the host."""
        return ["nsenter", "-t", str(self._pid), "--net", "--mount", "--pid", "--", *words]

    def swarmctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run swarmctl on the host."""
        return self.run(sys.executable, "-P", "-m", "swarmctl", *words, check=check)

    def ask(self, url: str, *, outside: bool = True) -> str:
        """Fetch a page, from the client or from the host; "" when there is no answer."""
        where = ["ip", "netns", "exec", _OUTSIDE] if outside else []
        return self.run(
            *where, "curl", "-sS", "-m", "3", "--noproxy", "*", url, check=False
        ).stdout.strip()

    def picture(self) -> dict[str, Any]:
        """What a user of the machine could notice: rules, routes, devices, settings, namespaces."""

        def told(*words: str) -> Any:
            return json.loads(self.run("ip", "-j", *words).stdout or "[]")

        rules = json.loads(self.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
        found: dict[str, Any] = {
            "nft": _without_counts(rules),
            "iptables": _COUNTS.sub("", self.run("iptables-save").stdout),
            "ip6tables": _COUNTS.sub("", self.run("ip6tables-save").stdout),
            "links": [(one["ifname"], one["flags"], one["mtu"]) for one in told("link")],
            "namespaces": sorted(one["name"] for one in told("netns")),
            "mounts": sorted(set(self._mounts()) - self._inherited),
            "settings": dict(self._settings()),
            "cgroups": sorted(self._cgroups()),
        }
        for family in ("-4", "-6"):
            routes = told(family, "route", "show", "table", "all")
            # The kernel has anycast routes while it forwards IPv6, as documented for a node.
            found[f"routes {family}"] = [one for one in routes if one.get("type") != "anycast"]
            found[f"rules {family}"] = told(family, "rule")
        return found

    def quiet(self) -> dict[str, Any]:
        """The picture once nothing changes any more."""
        seen: list[dict[str, Any]] = [self.picture()]

        def same() -> bool:
            seen.append(self.picture())
            return seen[-1] == seen[-2]

        eventually("nothing changes", same)
        return seen[-1]

    def changed(self, before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What the picture shows differently than it did, with what it was and what it is."""
        after = self.quiet()
        return {
            key: (_only(before[key], after[key]), _only(after[key], before[key]))
            for key in before
            if before[key] != after[key]
        }

    def close(self) -> None:
        """End everything on it and take away what it left."""
        os.kill(self._pid, signal.SIGKILL)
        self._process.wait(DEADLINE_S)
        eventually("control groups are empty", lambda: all(map(_remove, self._own_cgroups())))
        shutil.rmtree(self.base)

    def _children(self) -> list[str]:
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def _mounts(self) -> list[str]:
        lines = self.run("cat", "/proc/1/mountinfo").stdout.splitlines()
        return [line.split(" ", 2)[2] for line in lines]

    def _settings(self) -> Iterator[tuple[str, str]]:
        lines = self.run("sysctl", "-a", "--pattern", "^net[.]", check=False).stdout.splitlines()
        for line in lines:
            name, _, value = line.partition(" = ")
            if not _VOLATILE.search(name.replace(".", "/")):
                yield name, value

    def _own_cgroups(self) -> list[Path]:
        """Of this host: named after it, or the lab's."""
        return [
            path
            for name in (self.base.name, f"shoal-lab/{self.name}")
            for path in (*_CGROUPS.glob(name), *_CGROUPS.glob(f"*/{name}"))
        ]

    def _cgroups(self) -> Iterator[str]:
        for top in self._own_cgroups():
            yield from (place for place, _, _ in os.walk(top))


def eventually(what: str, probe: Callable[[], object]) -> None:
    """Poll until true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not probe():
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.1)


def _remove(top: Path) -> bool:
    """Whether it is gone; its processes have been killed."""
    for place, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(place)
        except OSError:
            return False
    return True


def _only(these: Any, those: Any) -> Any:
    """The part of these that is not in those."""
    if isinstance(these, str):
        return _only(these.splitlines(), those.splitlines())
    if isinstance(these, dict):
        return {key: value for key, value in these.items() if those.get(key) != value}
    return [one for one in these if one not in those]


def _without_counts(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: _without_counts(inner)
            for key, inner in value.items()
            if key not in ("handle", "packets", "bytes", "metainfo")
        }
    return [_without_counts(one) for one in value] if isinstance(value, list) else value
