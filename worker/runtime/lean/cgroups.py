"""Control groups of containers, on version 1 hierarchies, version 2, and the mix of both.

One driver per version with the same verbs. Invariants: a container's directory is
`<parent>/<id>` in every hierarchy used; `create` either makes all of them with all limits set or
none; `remove` never reports success while a directory is left. Refuses limits the kernel has no
controller for, with the controller's name.
"""

from __future__ import annotations

import os

from worker.runtime.lean import delegation, devices_bpf, files, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_V1_NEEDED = ("cpu", "cpuacct", "memory", "devices", "freezer", "pids")
_V1_ALSO = ("blkio", "cpuset")  # where mounted; cpuset is joined only to be limited by it
_V2_NEEDED = {"cpu", "memory", "pids"}
_V2_WANTED = ("cpu", "memory", "pids", "cpuset", "io")
_SWAP_FILE = "memory.memsw.limit_in_bytes"
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


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
            raise OSError(
                f"cgroup v1 controllers not mounted: {', '.join(missing)}; mount each below"
                " /sys/fs/cgroup, or boot with cgroup_no_v1=all for version 2"
            )
        used = (*_V1_NEEDED, *(c for c in _V1_ALSO if c in hierarchies))
        return V1(parent, {c: hierarchies[c] for c in used})
    if unified:
        return V2(parent, unified)
    raise OSError("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")


class _Placed:
    """Where the groups of containers are: below the node's own parent, or below one asked for."""

    def __init__(self, parent: str) -> None:
        self.parent = parent
        self.elsewhere: dict[str, str] = {}

    def place(self, container: str, parent: str) -> None:
        """The container's group is below `parent`; "" is the node's own."""
        self.elsewhere.pop(container, None)
        if parent and parent != self.parent:
            self.elsewhere[container] = parent

    def forget(self, container: str) -> None:
        """The container is removed."""
        self.elsewhere.pop(container, None)

    def group(self, container: str) -> str:
        """The container's group, from the root of a hierarchy."""
        return f"{self.elsewhere.get(container, self.parent).rstrip('/')}/{container}"


class V1(_Placed):
    """One directory per hierarchy; the child moves itself into each before it does anything."""

    version = 1

    def __init__(self, parent: str, hierarchies: dict[str, str]) -> None:
        """`hierarchies`: controller name -> mount point; comounted ones may share a mount."""
        super().__init__(parent)
        self.hierarchies = hierarchies
        self._make_parent(parent)

    def _make_parent(self, parent: str) -> None:
        for mountpoint in self.hierarchies.values():
            os.makedirs(mountpoint + parent, exist_ok=True)
        if "cpuset" in self.hierarchies:
            _inherit_cpuset(self.hierarchies["cpuset"], parent)

    def _mountpoint(self, controller: str) -> str:
        if controller not in self.hierarchies:
            raise OSError(95, f"cgroup v1 controller {controller} is not mounted", controller)
        return self.hierarchies[controller]

    def _directory(self, controller: str, container: str) -> str:
        return self._mountpoint(controller) + self.group(container)

    def paths(self, container: str) -> list[str]:
        """Every directory the container may have, each once."""
        group = self.group(container)
        return list(dict.fromkeys(mount + group for mount in self.hierarchies.values()))

    def joined(self, container: str) -> list[str]:
        """Every directory the container has."""
        return [path for path in self.paths(container) if os.path.isdir(path)]

    def to_join(self, container: str, resources: dict[str, Any]) -> list[str]:
        """The directories `create` makes."""
        return list(dict.fromkeys(path for _, path in self.views(container, resources)))

    def views(self, container: str, resources: dict[str, Any]) -> list[tuple[str, str]]:
        """(name under /sys/fs/cgroup, host directory) of what the container may read."""
        cpu = resources.get("cpu", {})
        limited = "cpus" in cpu or "mems" in cpu
        return [
            (c, mountpoint + self.group(container)) for c, mountpoint in self.hierarchies.items()
            if c != "cpuset" or limited
        ]  # fmt: skip

    def create(self, container: str, resources: dict[str, Any]) -> None:
        """Make the directories and set the limits of an OCI `linux.resources`."""
        writes = limits.v1_writes(resources)
        if container in self.elsewhere:
            self._make_parent(self.elsewhere[container])
        try:
            for path in self.to_join(container, resources):
                os.mkdir(path)
            if any(change.controller == "cpuset" for change in writes):
                _inherit_cpuset(self._mountpoint("cpuset"), self.group(container))
            self._write(container, writes)
            for rule in resources.get("devices", ()):
                verb = "allow" if rule["allow"] else "deny"
                path = self._directory("devices", container)
                write(f"{path}/devices.{verb}", device_rule(rule))
        except OSError:
            self.remove(container)
            raise

    def update(self, container: str, changes: dict[str, Any], merged: dict[str, Any]) -> None:
        """Change limits of a group that is in use: all of them or none.

        merged: the changes together with what is not changed beside them. Here each has a file.
        """
        del merged
        writes = limits.v1_writes(changes)
        if any(write.controller == "cpuset" for write in writes):
            self._enter_cpuset(container)
        before = [(w, _in_force(self._path(container, w))) for w in writes if self._has(w)]
        try:
            self._write(container, writes)
        except OSError:
            for change, value in reversed(before):
                _restore(self._path(container, change), value)
            raise

    def _path(self, container: str, change: limits.Write) -> str:
        return f"{self._directory(change.controller, container)}/{change.file}"

    def _has(self, change: limits.Write) -> bool:
        """Some kernels count no swap; a limit of it is nothing to write then."""
        if change.file != _SWAP_FILE:
            return True
        return os.path.exists(f"{self._mountpoint('memory')}{self.parent}/{change.file}")

    def _write(self, container: str, writes: list[limits.Write]) -> None:
        writes = [change for change in writes if self._has(change)]
        both = f"{self._directory('memory', container)}/{_SWAP_FILE}"
        if any(change.file == _SWAP_FILE for change in writes):
            writes = limits.in_order(writes, int(read(both)))
        for change in writes:
            write(self._path(container, change), change.value)

    def _enter_cpuset(self, container: str) -> None:
        """Containers join this hierarchy only when they are limited by it."""
        path = self._directory("cpuset", container)
        if not os.path.isdir(path):
            os.mkdir(path)
            _inherit_cpuset(self._mountpoint("cpuset"), self.group(container))
        while strangers := set(self.processes(container)) - set(_pids_in(path)):
            for pid in strangers:
                try:
                    write(f"{path}/cgroup.procs", pid)
                except ProcessLookupError:
                    continue

    def clone_target(self, container: str) -> str:
        """Nothing: version 1 has no way to be born in a group."""
        del container
        return ""

    def oom_kills(self, container: str) -> int:
        """How many times the kernel killed for memory in this group."""
        return _counter(f"{self._directory('memory', container)}/memory.oom_control", "oom_kill")

    def freeze(self, container: str, *, frozen: bool) -> None:
        """Pause or resume every process of the container."""
        word = "FROZEN" if frozen else "THAWED"
        write(f"{self._directory('freezer', container)}/freezer.state", word)

    def is_frozen(self, container: str) -> bool:
        """True once no process of the container runs any more."""
        return read(f"{self._directory('freezer', container)}/freezer.state").strip() == "FROZEN"

    def processes(self, container: str) -> list[int]:
        """Every process of the container, by its number on the host."""
        return _pids_in(self._directory("pids", container))

    def usage(self, container: str) -> Usage:
        """Read the counters. Raises: OSError when the group is gone."""
        memory = self._directory("memory", container)
        limit = int(read(f"{memory}/memory.limit_in_bytes"))
        used = int(read(f"{memory}/memory.usage_in_bytes"))
        cache = _counter(f"{memory}/memory.stat", "total_inactive_file")
        return Usage(
            int(read(f"{self._directory('cpuacct', container)}/cpuacct.usage")),
            max(0, used - cache),
            0 if limit > 1 << 60 else limit,
            int(read(f"{self._directory('pids', container)}/pids.current")),
        )

    def counters(self, container: str) -> dict[str, Any]:
        """Everything counted. Raises: OSError when the group is gone."""
        memory, cpu = (self._directory(c, container) for c in ("memory", "cpu"))
        account, pids = (self._directory(c, container) for c in ("cpuacct", "pids"))
        times, throttled = _table(f"{account}/cpuacct.stat"), _table(f"{cpu}/cpu.stat")
        limit = int(read(f"{memory}/memory.limit_in_bytes"))
        return {
            "cpu_usage_ns": int(read(f"{account}/cpuacct.usage")),
            "cpu_user_ns": times.get("user", 0) * _TICK_NS,
            "cpu_kernel_ns": times.get("system", 0) * _TICK_NS,
            "periods": throttled.get("nr_periods", 0),
            "throttled_periods": throttled.get("nr_throttled", 0),
            "throttled_ns": throttled.get("throttled_time", 0),
            "memory_usage_bytes": int(read(f"{memory}/memory.usage_in_bytes")),
            "memory_limit_bytes": 0 if limit > 1 << 60 else limit,
            "memory_stat": _table(f"{memory}/memory.stat"),
            "pids": int(read(f"{pids}/pids.current")),
            "pids_limit": _number_or_none(f"{pids}/pids.max"),
            "block_io": self._block_io(container),
        }

    def _block_io(self, container: str) -> list[tuple[int, int, str, int]]:
        if "blkio" not in self.hierarchies:
            return []
        found = []
        path = f"{self._directory('blkio', container)}/blkio.throttle.io_service_bytes"
        for line in _lines(path):
            words = line.split()
            if len(words) == 3 and words[1] in ("Read", "Write"):
                major, _, minor = words[0].partition(":")
                found.append((int(major), int(minor), words[1].lower(), int(words[2])))
        return found

    def remove(self, container: str) -> bool:
        """Remove what exists; False when a directory is still busy (call again later)."""
        return _remove_all(self.paths(container))


class V2(_Placed):
    """One directory in the unified tree; devices by an eBPF program; children born inside."""

    version = 2

    def __init__(self, parent: str, mountpoint: str) -> None:
        """Delegates controllers down to `parent`. Raises: OSError when it cannot."""
        super().__init__(parent)
        self._mountpoint = mountpoint
        offered = set(read(f"{mountpoint}/cgroup.controllers").split())
        missing = _V2_NEEDED - offered
        if missing:
            raise OSError(
                f"cgroup v2 controllers not available: {', '.join(sorted(missing))}; hierarchies of"
                " version 1 hold them (mount those, or boot with cgroup_no_v1=all), or the kernel"
                " has them disabled (cgroup_disable=)"
            )
        self._wanted = _delegation(offered)
        self._programs: dict[str, int] = {}
        self._make_parent(parent)

    def _make_parent(self, parent: str) -> None:
        path = self._mountpoint
        os.makedirs(path + parent, exist_ok=True)
        for part in ["", *parent.strip("/").split("/")]:
            path = f"{path}/{part}".rstrip("/")
            delegation.vacate(path)
            try:
                write(f"{path}/cgroup.subtree_control", self._wanted)
            except OSError:  # one we can do without cannot be given away here
                write(f"{path}/cgroup.subtree_control", _delegation(_V2_NEEDED))

    def _path(self, container: str) -> str:
        return self._mountpoint + self.group(container)

    def paths(self, container: str) -> list[str]:
        """The container's one directory."""
        return [self._path(container)]

    def joined(self, container: str) -> list[str]:
        """Nothing to join: children are born inside."""
        del container
        return []

    def to_join(self, container: str, resources: dict[str, Any]) -> list[str]:
        """Nothing, as well."""
        del container, resources
        return []

    def create(self, container: str, resources: dict[str, Any]) -> None:
        """Make the directory, set the limits and attach the device program."""
        path = self._path(container)
        writes = limits.v2_writes(resources)
        if container in self.elsewhere:
            self._make_parent(self.elsewhere[container])
        try:
            os.mkdir(path)
            for change in self._possible(container, writes):
                write(f"{path}/{change.file}", change.value)
            rules = resources.get("devices", [])
            if rules:
                self._attach_devices(path, rules)
        except OSError:
            self.remove(container)
            raise

    def _possible(self, container: str, writes: list[limits.Write]) -> list[limits.Write]:
        """What the files of this kernel can hold.

        Some count no swap: a limit of it is nothing to write then. Some share block devices out by
        `io.weight` alone.
        """
        path = self._path(container)
        if not os.path.exists(f"{path}/memory.swap.max"):
            writes = [w for w in writes if w.file != "memory.swap.max"]
        if not os.path.exists(f"{path}/{limits.BFQ_WEIGHT}"):
            writes = [limits.without_bfq(w) for w in writes]
        return writes

    def update(self, container: str, changes: dict[str, Any], merged: dict[str, Any]) -> None:
        """Change limits of a group that is in use: all of them or none.

        merged: the changes together with what is not changed beside them. Here files hold several
        values, or their difference.
        """
        del changes
        path = self._path(container)
        writes = self._possible(container, limits.v2_writes(merged))
        before = [(w.file, _in_force(f"{path}/{w.file}")) for w in writes]
        try:
            for change in writes:
                write(f"{path}/{change.file}", change.value)
        except OSError:
            for file, value in reversed(before):
                _restore(f"{path}/{file}", value)
            raise

    def _attach_devices(self, path: str, rules: list[dict[str, Any]]) -> None:
        key = ";".join(("+" if r["allow"] else "-") + device_rule(r) for r in rules)
        if key not in self._programs:
            self._programs[key] = devices_bpf.load(devices_bpf.assemble(rules))
        devices_bpf.attach(self._programs[key], path)

    def clone_target(self, container: str) -> str:
        """The directory a child can be born into."""
        return self._path(container)

    def views(self, container: str, resources: dict[str, Any]) -> list[tuple[str, str]]:
        """The unified tree from the container's group down."""
        del resources
        return [("", self._path(container))]

    def oom_kills(self, container: str) -> int:
        """How many times the kernel killed for memory in this group."""
        return _counter(f"{self._path(container)}/memory.events", "oom_kill")

    def freeze(self, container: str, *, frozen: bool) -> None:
        """Pause or resume every process of the container."""
        write(f"{self._path(container)}/cgroup.freeze", int(frozen))

    def is_frozen(self, container: str) -> bool:
        """True once no process of the container runs any more."""
        return _counter(f"{self._path(container)}/cgroup.events", "frozen") == 1

    def processes(self, container: str) -> list[int]:
        """Every process of the container, by its number on the host."""
        return _pids_in(self._path(container))

    def usage(self, container: str) -> Usage:
        """Read the counters. Raises: OSError when the group is gone."""
        path = self._path(container)
        limit = read(f"{path}/memory.max").strip()
        used = int(read(f"{path}/memory.current"))
        return Usage(
            _counter(f"{path}/cpu.stat", "usage_usec") * 1000,
            max(0, used - _counter(f"{path}/memory.stat", "inactive_file")),
            0 if limit == "max" else int(limit),
            int(read(f"{path}/pids.current")),
        )

    def counters(self, container: str) -> dict[str, Any]:
        """Everything counted. Raises: OSError when the group is gone."""
        path = self._path(container)
        cpu = _table(f"{path}/cpu.stat")
        return {
            "cpu_usage_ns": cpu.get("usage_usec", 0) * 1000,
            "cpu_user_ns": cpu.get("user_usec", 0) * 1000,
            "cpu_kernel_ns": cpu.get("system_usec", 0) * 1000,
            "periods": cpu.get("nr_periods", 0),
            "throttled_periods": cpu.get("nr_throttled", 0),
            "throttled_ns": cpu.get("throttled_usec", 0) * 1000,
            "memory_usage_bytes": int(read(f"{path}/memory.current")),
            "memory_limit_bytes": _number_or_none(f"{path}/memory.max"),
            "memory_stat": _table(f"{path}/memory.stat"),
            "pids": int(read(f"{path}/pids.current")),
            "pids_limit": _number_or_none(f"{path}/pids.max"),
            "block_io": _v2_block_io(f"{path}/io.stat"),
        }

    def remove(self, container: str) -> bool:
        """Remove what exists; False when the directory is still busy (call again later)."""
        return _remove_all(self.paths(container))


def _delegation(controllers: set[str]) -> str:
    return " ".join(f"+{name}" for name in _V2_WANTED if name in controllers)


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
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        _refuse_unknown(path)
        raise
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        reason = f"{error.strerror} (writing {value}){_hint(path)}"
        raise OSError(error.errno, reason, path) from None
    finally:
        os.close(fd)


def _in_force(path: str) -> str:
    """The value of a limit, to set it back to. Raises: OSError, naming a limit there is not."""
    try:
        return read(path).strip()
    except FileNotFoundError:
        _refuse_unknown(path)
        raise


def _refuse_unknown(path: str) -> None:
    if os.path.isdir(os.path.dirname(path)):
        raise OSError(95, "this kernel has no such limit", path) from None


def _hint(path: str) -> str:
    """What the kernel's number does not say."""
    above, _, name = path.rpartition("/")
    if name != "cpu.rt_runtime_us":
        return ""
    shared = read(f"{above.rpartition('/')[0]}/{name}").strip()
    return f": the groups of a group share its real time, and the one above has {shared} us"


def read(path: str) -> str:
    """Read a small kernel file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def _restore(path: str, value: str) -> None:
    try:
        write(path, value)
    except OSError as error:  # a list of devices cannot be written back as it is read
        files.complain(f"{path}: cannot be set back to {value!r}: {error}")


def _inherit_cpuset(mountpoint: str, path: str) -> None:
    """Give every directory down to `path` the processors and memory of the one above."""
    above = mountpoint
    for part in path.strip("/").split("/"):
        below = f"{above}/{part}"
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not read(f"{below}/{name}").strip():
                write(f"{below}/{name}", read(f"{above}/{name}").strip())
        above = below


def _pids_in(path: str) -> list[int]:
    fd = os.open(f"{path}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 65536):
            pieces.append(piece)
    finally:
        os.close(fd)
    return [int(pid) for pid in b"".join(pieces).split()]


def _lines(path: str) -> list[str]:
    try:
        return read(path).splitlines()
    except OSError:
        return []


def _table(path: str) -> dict[str, int]:
    """A file of `name number` lines."""
    pairs = (line.partition(" ") for line in _lines(path))
    return {name: int(value) for name, _, value in pairs if value.isdigit()}


def _counter(path: str, name: str) -> int:
    return _table(path).get(name, 0)


def _number_or_none(path: str) -> int:
    text = read(path).strip()
    return int(text) if text.isdigit() else 0


def _v2_block_io(path: str) -> list[tuple[int, int, str, int]]:
    found = []
    for line in _lines(path):
        number, *pairs = line.split()
        major, _, minor = number.partition(":")
        for pair in pairs:
            name, _, value = pair.partition("=")
            if name in ("rbytes", "wbytes"):
                operation = "read" if name == "rbytes" else "write"
                found.append((int(major), int(minor), operation, int(value)))
    return found


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
