"""Control groups of containers, on version 1 hierarchies, version 2, and the mix of both.

One driver per version with the same verbs. Invariants: a container's directory is
`<parent>/<id>` in every hierarchy used; `create` either makes all of them with all limits set or
none; `remove` never reports success while a directory is left. Refuses limits the kernel has no
controller for, with the controller's name.
"""

from __future__ import annotations

import os

from worker.runtime.lean import devices_bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CPU_PERIOD_US = 100_000
_V1_NEEDED = ("cpu", "cpuacct", "memory", "devices", "freezer", "pids")


class Usage:
    """What a container uses now. Nanoseconds and bytes; `memory_limit_bytes` 0 is no limit."""

    __slots__ = ("cpu_usage_ns", "memory_limit_bytes", "memory_usage_bytes", "pids")

    def __init__(self, cpu_usage_ns: int, usage_bytes: int, limit_bytes: int, pids: int) -> None:
        self.cpu_usage_ns = cpu_usage_ns
        self.memory_usage_bytes = usage_bytes
        self.memory_limit_bytes = limit_bytes
        self.pids = pids


def find_driver(parent: str, mountinfo: str) -> V1 | V2:
    """Choose the driver for this machine from the text of /proc/self/mountinfo.

    Raises: OSError when neither version offers the memory, cpu and pids controllers.
    """
    hierarchies: dict[str, str] = {}
    unified = ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        mountpoint = left.split()[4]
        kind, _, options = right.split()[:3]
        if kind == "cgroup":
            for controller in options.split(","):
                hierarchies.setdefault(controller, mountpoint)
        elif kind == "cgroup2":
            unified = unified or mountpoint
    if "memory" in hierarchies:
        missing = [c for c in _V1_NEEDED if c not in hierarchies]
        if missing:
            raise OSError(f"cgroup v1 controllers not mounted: {', '.join(missing)}")
        return V1(parent, {c: hierarchies[c] for c in _V1_NEEDED})
    if unified:
        return V2(parent, unified)
    raise OSError("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")


class V1:
    """One directory per hierarchy; the child moves itself into each before it does anything."""

    version = 1

    def __init__(self, parent: str, hierarchies: dict[str, str]) -> None:
        """`hierarchies`: controller name -> mount point; comounted ones may share a mount."""
        self.parent = parent
        self.hierarchies = hierarchies
        self._roots = {c: m + parent for c, m in hierarchies.items()}
        for root in self._roots.values():
            os.makedirs(root, exist_ok=True)

    def paths(self, container: str) -> list[str]:
        """Every directory of the container, each once."""
        return list(dict.fromkeys(f"{root}/{container}" for root in self._roots.values()))

    def create(self, container: str, resources: dict[str, Any]) -> None:
        """Make the directories and set the limits of an OCI `linux.resources`."""
        try:
            for path in self.paths(container):
                os.mkdir(path)
            self._limit(container, resources)
        except OSError:
            self.remove(container)
            raise

    def _limit(self, container: str, resources: dict[str, Any]) -> None:
        cpu = resources.get("cpu", {})
        memory = resources.get("memory", {})
        pids = resources.get("pids", {})
        directory = {c: f"{root}/{container}" for c, root in self._roots.items()}
        if cpu.get("quota"):
            write(f"{directory['cpu']}/cpu.cfs_period_us", cpu["period"])
            write(f"{directory['cpu']}/cpu.cfs_quota_us", cpu["quota"])
        if cpu.get("shares"):
            write(f"{directory['cpu']}/cpu.shares", cpu["shares"])
        if memory.get("limit"):
            write(f"{directory['memory']}/memory.limit_in_bytes", memory["limit"])
            total = f"{directory['memory']}/memory.memsw.limit_in_bytes"
            if memory.get("swap") and os.path.exists(total):
                write(total, memory["swap"])
        if memory.get("reservation"):
            write(f"{directory['memory']}/memory.soft_limit_in_bytes", memory["reservation"])
        if pids.get("limit"):
            write(f"{directory['pids']}/pids.max", pids["limit"])
        for rule in resources.get("devices", ()):
            verb = "allow" if rule["allow"] else "deny"
            write(f"{directory['devices']}/devices.{verb}", device_rule(rule))

    def clone_target(self, container: str) -> str:
        """Nothing: version 1 has no way to be born in a group."""
        del container
        return ""

    def views(self, container: str) -> list[tuple[str, str]]:
        """(name under /sys/fs/cgroup, host directory) of what the container may read."""
        return [(c, f"{root}/{container}") for c, root in self._roots.items()]

    def oom_kills(self, container: str) -> int:
        """How many times the kernel killed for memory in this group."""
        return _counter(f"{self._roots['memory']}/{container}/memory.oom_control", "oom_kill")

    def freeze(self, container: str, *, frozen: bool) -> None:
        """Pause or resume every process of the container."""
        word = "FROZEN" if frozen else "THAWED"
        write(f"{self._roots['freezer']}/{container}/freezer.state", word)

    def is_frozen(self, container: str) -> bool:
        """True once no process of the container runs any more."""
        return read(f"{self._roots['freezer']}/{container}/freezer.state").strip() == "FROZEN"

    def usage(self, container: str) -> Usage:
        """Read the counters. Raises: OSError when the group is gone."""
        memory = f"{self._roots['memory']}/{container}"
        limit = int(read(f"{memory}/memory.limit_in_bytes"))
        used = int(read(f"{memory}/memory.usage_in_bytes"))
        cache = _counter(f"{memory}/memory.stat", "total_inactive_file")
        return Usage(
            int(read(f"{self._roots['cpuacct']}/{container}/cpuacct.usage")),
            max(0, used - cache),
            0 if limit > 1 << 60 else limit,
            int(read(f"{self._roots['pids']}/{container}/pids.current")),
        )

    def remove(self, container: str) -> bool:
        """Remove what exists; False when a directory is still busy (call again later)."""
        return _remove_all(self.paths(container))


class V2:
    """One directory in the unified tree; devices by an eBPF program; children born inside."""

    version = 2

    def __init__(self, parent: str, mountpoint: str) -> None:
        """Delegates cpu, memory and pids down to `parent`. Raises: OSError when it cannot."""
        self.parent = parent
        self._root = mountpoint + parent
        offered = set(read(f"{mountpoint}/cgroup.controllers").split())
        missing = {"cpu", "memory", "pids"} - offered
        if missing:
            raise OSError(f"cgroup v2 controllers not available: {', '.join(sorted(missing))}")
        os.makedirs(self._root, exist_ok=True)
        path = mountpoint
        for part in ["", *parent.strip("/").split("/")]:
            path = f"{path}/{part}".rstrip("/")
            write(f"{path}/cgroup.subtree_control", "+cpu +memory +pids")
        self._programs: dict[str, int] = {}

    def paths(self, container: str) -> list[str]:
        """The container's one directory."""
        return [f"{self._root}/{container}"]

    def create(self, container: str, resources: dict[str, Any]) -> None:
        """Make the directory, set the limits and attach the device program."""
        path = f"{self._root}/{container}"
        try:
            os.mkdir(path)
            self._limit(path, resources)
        except OSError:
            self.remove(container)
            raise

    def _limit(self, path: str, resources: dict[str, Any]) -> None:
        cpu = resources.get("cpu", {})
        memory = resources.get("memory", {})
        pids = resources.get("pids", {})
        if cpu.get("quota"):
            write(f"{path}/cpu.max", f"{cpu['quota']} {cpu['period']}")
        if cpu.get("shares"):
            write(f"{path}/cpu.weight", 1 + (cpu["shares"] - 2) * 9999 // 262142)
        if memory.get("limit"):
            write(f"{path}/memory.max", memory["limit"])
            swap = f"{path}/memory.swap.max"
            if memory.get("swap") and os.path.exists(swap):
                write(swap, max(0, memory["swap"] - memory["limit"]))
        if memory.get("reservation"):
            write(f"{path}/memory.low", memory["reservation"])
        if pids.get("limit"):
            write(f"{path}/pids.max", pids["limit"])
        rules = resources.get("devices", [])
        if rules:
            self._attach_devices(path, rules)

    def _attach_devices(self, path: str, rules: list[dict[str, Any]]) -> None:
        key = ";".join(("+" if r["allow"] else "-") + device_rule(r) for r in rules)
        if key not in self._programs:
            self._programs[key] = devices_bpf.load(devices_bpf.assemble(rules))
        devices_bpf.attach(self._programs[key], path)

    def clone_target(self, container: str) -> str:
        """The directory a child can be born into."""
        return f"{self._root}/{container}"

    def views(self, container: str) -> list[tuple[str, str]]:
        """The unified tree from the container's group down."""
        return [("", f"{self._root}/{container}")]

    def oom_kills(self, container: str) -> int:
        """How many times the kernel killed for memory in this group."""
        return _counter(f"{self._root}/{container}/memory.events", "oom_kill")

    def freeze(self, container: str, *, frozen: bool) -> None:
        """Pause or resume every process of the container."""
        write(f"{self._root}/{container}/cgroup.freeze", int(frozen))

    def is_frozen(self, container: str) -> bool:
        """True once no process of the container runs any more."""
        return _counter(f"{self._root}/{container}/cgroup.events", "frozen") == 1

    def usage(self, container: str) -> Usage:
        """Read the counters. Raises: OSError when the group is gone."""
        path = f"{self._root}/{container}"
        limit = read(f"{path}/memory.max").strip()
        used = int(read(f"{path}/memory.current"))
        return Usage(
            _counter(f"{path}/cpu.stat", "usage_usec") * 1000,
            max(0, used - _counter(f"{path}/memory.stat", "inactive_file")),
            0 if limit == "max" else int(limit),
            int(read(f"{path}/pids.current")),
        )

    def remove(self, container: str) -> bool:
        """Remove what exists; False when the directory is still busy (call again later)."""
        return _remove_all(self.paths(container))


def is_empty(path: str) -> bool:
    """Whether this is a control group without processes of its own."""
    try:
        return not read(f"{path}/cgroup.procs")
    except OSError:
        return False


def remove_parent(parent: str, mountinfo: str) -> None:
    """Remove `parent` and its ancestors in every hierarchy, as far as they are empty."""
    for line in mountinfo.splitlines():
        if line.partition(" - ")[2].split()[0] not in ("cgroup", "cgroup2"):
            continue
        mountpoint, path = line.split()[4], parent
        while path not in ("", "/"):
            try:
                os.rmdir(mountpoint + path)
            except OSError:
                break
            path = path.rpartition("/")[0]


def device_rule(rule: dict[str, Any]) -> str:
    """An OCI device rule in the kernel's text form, for example `c 1:3 rwm`."""
    kind = rule.get("type", "a")
    major, minor = rule.get("major"), rule.get("minor")
    number = f"{'*' if major is None else major}:{'*' if minor is None else minor}"
    return "a" if kind == "a" else f"{kind} {number} {rule['access']}"


def write(path: str, value: object) -> None:
    """Write one value into a kernel file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (writing {value})", path) from None
    finally:
        os.close(fd)


def read(path: str) -> str:
    """Read a small kernel file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def _counter(path: str, name: str) -> int:
    try:
        text = read(path)
    except OSError:
        return 0
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _remove_all(paths: list[str]) -> bool:
    gone = True
    for path in paths:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError:
            gone = False
    return gone
