"""The supervisor: a single-threaded fork server that makes containers and records their ends.

Why one process for all: a monitor per container costs 1-2 MiB each, this one 14 KiB. It holds no
bytes of the containers' output. Invariants: a container's pid is on disk before its program can
start; its exit code is on disk before anybody is told. When the supervisor dies its children pass
to the keeper, which reaps and records them; the next supervisor watches them through pidfds. When
the keeper dies the supervisor turns itself into the keeper, so containers keep a parent that reaps.

Refuses: a second thread, any import outside the standard library, and to wait for anything.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import gc
import os
import select
import sys
import time

from worker.runtime.lean import cgroups, child, consoles, files, linux, loop, terminals, tinyjson
from worker.runtime.lean.container import EXIT_LOST, EXITED, RUNNING, Container
from worker.runtime.lean.execs import Execs
from worker.runtime.lean.foreign import Foreign
from worker.runtime.lean.holds import Holds
from worker.runtime.lean.interaction import Interaction
from worker.runtime.lean.launching import Launch
from worker.runtime.lean.neighbours import Neighbours
from worker.runtime.lean.refusals import Refused, refusal_of
from worker.runtime.lean.remains import Remains
from worker.runtime.lean.remapped import Remapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from worker.runtime.lean.execs import Exec

    Request = dict[str, Any]
    Process = Container | Exec
    Operation = Callable[["Supervisor", loop.Client, Request], None]

_RECORD_WAIT_S = 3.0  # how long an inherited child's exit record may take to appear
_RETRY_S = 0.02
_FREEZE_WAIT_S = 5.0
ORPHAN_ERROR = "exit status lost: the container ended while no process of the runtime was alive"
INTERRUPTED_ERROR = (
    "exit code 128: the supervisor died while it started the container, unless its program ends so"
)
REBOOT_ERROR = "exit status lost: the machine was restarted while the container ran"


class Supervisor:
    """All containers of one node, and the socket that serves them."""

    def __init__(self, run_dir: str, state_dir: str, cgroup_parent: str, keeper_fd: int) -> None:
        self.run_dir = run_dir
        self.state_dir = state_dir
        self.containers_dir = f"{state_dir}/containers"
        self.neighbours = Neighbours(run_dir, keeper_fd)
        self.loop = loop.Loop()
        self.holds = Holds(self.containers_dir)
        self.driver = cgroups.find_driver(cgroup_parent, files.read_text("/proc/self/mountinfo"))
        self.boot_id = files.boot_id()
        self.containers: dict[str, Container] = {}
        self.terminals = terminals.Terminals(self.loop, self._drop_terminal)
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self.execs = Execs(self)
        self.interaction = Interaction(self)
        self.foreign = Foreign(self)
        self.remapped = Remapped(self)
        self.remains = Remains(self)
        self._subscribers: list[loop.Client] = []
        self._seccomp: dict[str, bytes] = {}

    # Start-up ---------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over what an earlier supervisor left: running, ended and half-made containers."""
        inherited = terminals.inherit()
        for name in sorted(os.listdir(self.containers_dir)):
            directory = f"{self.containers_dir}/{name}"
            record = files.read_record(f"{directory}/{files.STATE_FILE}")
            if record is None:
                self._discard(name)  # its making was cut short
                continue
            container = self.containers[name] = Container(directory, record)
            self.driver.place(name, container.cgroup_parent)
            self.holds.take(name)
            if name in inherited:
                self.terminals.add(name, inherited.pop(name))
            self.execs.adopt(container)
            if container.state == RUNNING:
                self._adopt_running(container)
            elif container.state == EXITED:
                self._let_go(name)
            if container.state != RUNNING:
                self.foreign.clean_up(name)
                self.remains.drop_group(name)
        for name, ends in inherited.items():  # of containers that are not there any more
            for fd in ends:
                os.close(fd)
            self._drop_terminal(name)
        self.remains.drop_stale()
        self._sweep_holds()

    def _adopt_running(self, container: Container) -> None:
        if container.boot_id != self.boot_id:
            container.error = REBOOT_ERROR
            self.finish(container, EXIT_LOST)
        elif container.alive():
            self.watch_exit(container)
            self.announce(container.id)
        else:
            self._finish_inherited(container)

    # Create, start ----------------------------------------------------------------------------

    def create(self, client: loop.Client, request: Request) -> None:
        """Lay out the container's directory; nothing is mounted, no cgroup is made yet."""
        name = request["id"]
        if name in self.containers:
            raise Refused("already_exists", f"container {name} already exists")
        directory = f"{self.containers_dir}/{name}"
        container = Container(directory, {"id": name, "labels": request["labels"]})
        container.created_at_ns = time.time_ns()
        try:
            self._lay_out(directory, request)
            container.save()  # last: a directory without a record was never finished
        except (OSError, KeyError):
            self._discard(name)
            raise
        self.containers[name] = container
        self.reply(client, request, container)
        self._publish(container)

    def _lay_out(self, directory: str, request: Request) -> None:
        os.mkdir(directory, 0o710)
        for part in ("rootfs", "upper", "work", "logs"):
            os.mkdir(f"{directory}/{part}", 0o755)
        for stream in (files.INPUT, *files.STREAMS) if request["stdin"] else files.STREAMS:
            os.mkfifo(f"{directory}/{stream}", 0o600)
        for part, text in request["files"].items():
            files.write_new(f"{directory}/{part}", text, 0o644)
        text = tinyjson.dumps(request["bundle"])
        files.write_new(f"{directory}/{files.BUNDLE_FILE}", text)
        files.write_new(f"{directory}/log.conf", tinyjson.dumps(request["log"]))

    def _discard(self, name: str) -> str:
        """Move a container's directory to the trash, which the worker empties."""
        trash = f"{self.state_dir}/trash/{name}.{time.time_ns()}"
        os.rename(f"{self.containers_dir}/{name}", trash)
        return trash

    def start(self, client: loop.Client, request: Request) -> None:
        """Clone the child; the reply is sent when its program runs or has failed to."""
        container = self.find(request)
        if container.state == RUNNING or container.starting is not None:
            raise Refused("failed_precondition", f"container {container.id} is already running")
        bundle = tinyjson.loads(files.read_text(f"{container.directory}/{files.BUNDLE_FILE}"))
        container.cgroup_parent = bundle["annotations"].get("dev.shoal.cgroup-parent", "")
        launch = Launch(container, bundle, self.driver, self.own_pids, self.containers)
        try:
            if "dev.shoal.runtime" in bundle["annotations"]:
                self.foreign.start(container, bundle)
            elif "uidMappings" in bundle["linux"]:
                self.remapped.start(container, bundle)
            else:
                self._launch(container, launch, bundle["annotations"].get("dev.shoal.seccomp", ""))
        except (OSError, KeyError, ValueError) as error:
            raise self._failed_launch(container, launch, error) from None
        finally:
            launch.close()

        def answer(failure: str) -> None:
            if failure:
                self.refuse(client, request, Refused("failed_precondition", failure))
            else:
                self.reply(client, request, container)

        container.starting = answer

    def _launch(self, container: Container, launch: Launch, seccomp: str) -> None:
        self.reset_stdio(container.id)
        self.driver.place(container.id, container.cgroup_parent)
        pid = launch.clone(self.seccomp_program(seccomp))
        self.follow_start(container, launch, pid)

    def follow_start(self, container: Container, launch: Launch, pid: int) -> None:
        """Its first process is there, and waits for `go`: record it, then let it run."""
        self.record_start(container, pid)
        self.loop.watch(container.status_fd, lambda _: self._on_status(container))
        self.watch_exit(container)
        if launch.console is not None:
            self.loop.watch(launch.console.fileno(), lambda _: self._on_console(container, launch))
            return
        self.announce(container.id)  # first: from `go` on there may be output to keep
        launch.go()

    def _on_console(self, container: Container, launch: Launch) -> None:
        """The child has made its terminal, or has failed before."""
        assert launch.console is not None
        master = consoles.receive(launch.console)
        self.loop.forget(launch.console.fileno())
        launch.console.close()
        if master >= 0 and container.state == RUNNING:
            self.terminals.add(container.id, terminals.open_ends(master, container.directory))
            self.announce(container.id)
        elif master >= 0:
            os.close(master)
        launch.go()

    def _failed_launch(self, container: Container, launch: Launch, error: Exception) -> Refused:
        message = str(error)
        if isinstance(error, OSError):
            message = f"{error.filename or 'start'}: {error.strerror or error}"
        launch.undo()
        if launch.cloned:
            self.loop.forget(container.pidfd)
            container.close()
            self.close_status(container)
        container.started_at_ns = container.finished_at_ns = time.time_ns()
        container.state, container.exit_code = EXITED, child.SETUP_FAILED
        container.error = message
        container.save()
        self.remains.drop_group(container.id)
        self._let_go(container.id)
        self.neighbours.tell_logger(container.id)
        self._publish(container)
        return Refused("failed_precondition", message)

    def reset_stdio(self, name: str) -> None:
        """Fresh pipes for another run."""
        self.holds.release(name)
        for mark in (files.LOG_END_FILE, files.INPUT_END_FILE):
            files.discard(f"{self.containers_dir}/{name}/{mark}")
        self.holds.take(name)

    def record_start(self, container: Container, pid: int, *, is_child: bool = True) -> None:
        """Its first process is there: from now on it counts as running."""
        container.pid = pid
        container.start_ticks = files.start_ticks(pid)
        container.boot_id = self.boot_id
        container.started_at_ns = time.time_ns()
        container.finished_at_ns = container.exit_code = 0
        container.error, container.failure = "", None
        container.oom_killed = container.paused = False
        container.is_child = is_child
        container.state = RUNNING
        container.save()

    def seccomp_program(self, path: str) -> bytes:
        """The compiled filter at `path`; empty when there is none."""
        if path and path not in self._seccomp:
            if len(self._seccomp) >= 16:
                self._seccomp.clear()
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._seccomp[path] = os.read(fd, 1 << 19)
            os.close(fd)
        return self._seccomp.get(path, b"")

    def _on_status(self, container: Container) -> None:
        try:
            text = os.read(container.status_fd, 4096)
        except BlockingIOError:
            return
        self.close_status(container)
        if text:
            container.failure = tinyjson.loads(text.decode())
            return  # answered when the child has been reaped
        self.program_runs(container)

    def program_runs(self, container: Container) -> None:
        """Its start has succeeded."""
        self._answer_start(container, "")
        self.interaction.started(container)
        self._publish(container)

    def close_status(self, container: Container) -> None:
        """Nothing more is heard of its start."""
        self.loop.forget(container.status_fd)
        os.close(container.status_fd)
        container.status_fd = -1

    def _answer_start(self, container: Container, failure: str) -> None:
        answer, container.starting = container.starting, None
        if answer is not None:
            answer(failure)

    # The end of a container -------------------------------------------------------------------

    def watch_exit(self, container: Container) -> None:
        """Hear of the end of its first process."""
        self.loop.watch(container.pidfd, lambda _: self._on_exit(container))

    def _on_exit(self, container: Container) -> None:
        self.loop.forget(container.pidfd)
        if container.is_child:
            if container.status_fd >= 0:
                self._on_status(container)  # the reason of a failed start, if it is one
            _, wait_status = os.waitpid(container.pid, os.WNOHANG)
            self.finish(container, files.code_of(wait_status))
        elif container.status_fd >= 0:  # its start first, which is somebody else's to tell
            self.loop.after(_RETRY_S / 4, lambda: self._on_exit(container))
        else:
            self.await_exit(container, lambda: self._finish_inherited(container))

    def await_exit(self, process: Process, done: Callable[[], None], waited_s: float = 0) -> None:
        """Call `done` once it is known how somebody else's child ended, or not likely to be."""
        known = self.inherited_status(process) is not None
        if known or waited_s > _RECORD_WAIT_S:
            done()
        else:
            pause_s = _RETRY_S / 4
            self.loop.after(pause_s, lambda: self.await_exit(process, done, waited_s + pause_s))

    def inherited_status(self, process: Process) -> int | None:
        """The wait status of a process some other parent reaps: before it does, or after."""
        record = files.read_record(
            files.exit_record(self.state_dir, process.pid, process.start_ticks)
        )
        if record:
            return int(record["status"])
        status = files.zombie_status(process.pid, process.start_ticks)
        if status is None and process.pidfd >= 0:
            return linux.exit_status_of(process.pidfd)
        return status

    def _finish_inherited(self, container: Container) -> None:
        path = files.exit_record(self.state_dir, container.pid, container.start_ticks)
        record = files.read_record(path)
        wait_status = self.inherited_status(container)
        if wait_status is None:
            container.error = ORPHAN_ERROR
        code = EXIT_LOST if wait_status is None else files.code_of(wait_status)
        if code == child.SETUP_FAILED and not container.is_made:
            container.error = INTERRUPTED_ERROR
        self.finish(container, code, (record or {}).get("at_ns", 0))
        files.discard(path)
        self.loop.after(_RECORD_WAIT_S, lambda: files.discard(path))  # the keeper may be slower

    def finish(self, container: Container, code: int, at_ns: int = 0) -> None:
        """It has ended, or has failed to start: on disk first, then to everybody."""
        failure = container.failure
        container.close()
        container.exit_code = code
        if failure is not None:
            container.exit_code, container.error = failure["code"], failure["error"]
        container.oom_killed = self.driver.oom_kills(container.id) > 0
        container.finished_at_ns = at_ns or time.time_ns()
        container.state, container.paused, container.is_child = EXITED, False, False
        self._save_when_possible(container)
        self.remains.end_processes(container.id)
        self.foreign.clean_up(container.id)
        self.remains.drop_group(container.id)
        self._let_go(container.id)
        self.neighbours.tell_logger(container.id)
        self._answer_start(container, container.error or f"exited at once with code {code}")
        waiters, container.waiters = container.waiters, []
        for client, request in waiters:
            self.reply(client, request, container)
        self._publish(container)

    def _save_when_possible(self, container: Container) -> None:
        """A full disk must keep neither an end from those who wait for it, nor anybody frozen."""
        if self.containers.get(container.id) is not container:
            return
        try:
            container.save()
        except OSError as error:
            files.complain(f"{container.id}: its state cannot be recorded: {error}")
            self.loop.after(1.0, lambda: self._save_when_possible(container))

    def _sweep_holds(self) -> None:
        self.holds.sweep()
        self.neighbours.tell_logger_again()
        delay_s = 0.05 if self.neighbours.unsent else 0.5
        self.loop.after(delay_s, self._sweep_holds)

    # Neighbours -------------------------------------------------------------------------------

    def announce(self, name: str) -> None:
        """Tell keeper and logger that the container has live stdio."""
        self.neighbours.tell_logger(name)
        # With the descriptors themselves: in flight they keep the pipes alive even if we die now.
        self.neighbours.tell_keeper(files.HOLD, name, self.holds.of(name))
        if name in self.terminals.all():
            self.neighbours.tell_keeper(files.HOLD_TERMINAL, name, self.terminals.all()[name])

    def _let_go(self, name: str) -> None:
        """The container has ended: what it wrote is still to be read, no more."""
        self.holds.drain(name)
        self.terminals.end(name)
        self.neighbours.tell_keeper(files.DRAIN, name)

    def _drop_terminal(self, name: str) -> None:
        self.neighbours.tell_keeper(files.DROP_TERMINAL, name)

    def on_keeper(self, events: int) -> None:
        """The keeper is gone: become the keeper, with the same pid and the same children."""
        if events & (select.EPOLLHUP | select.EPOLLERR):
            files.complain("supervisor: the keeper died; taking its place")
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
            held = self.holds.all()
            for fd in held:
                os.set_inheritable(fd, True)
            os.environ[files.HELD_VARIABLE] = ",".join(str(fd) for fd in held)
            os.environ[terminals.VARIABLE] = terminals.lend(self.terminals.all())
            os.execv(sys.executable, [*sys.orig_argv[:-1], "keeper"])  # noqa: S606
        self.neighbours.keeper.recv(4096)

    # Requests ---------------------------------------------------------------------------------

    def on_request(self, client: loop.Client, request: Request) -> None:
        """Run one request; every request gets exactly one reply, `wait` a late one."""
        operation = _OPERATIONS.get(request.get("op", ""))
        try:
            if operation is None:
                raise Refused("unimplemented", f"unknown operation {request.get('op')}")
            operation(self, client, request)
        except Refused as refusal:
            self.refuse(client, request, refusal)
        except (OSError, KeyError, ValueError) as error:
            self.refuse(client, request, refusal_of(error))

    def refused(self, code: str, message: str) -> Refused:
        """What to raise for a request that cannot be carried out."""
        return Refused(code, message)

    def find(self, request: Request) -> Container:
        """The container a request is about. Raises: Refused."""
        container = self.containers.get(request["id"])
        if container is None:
            raise Refused("not_found", f"container {request['id']} does not exist")
        return container

    def running(self, request: Request) -> Container:
        """The same, while it runs. Raises: Refused."""
        container = self.find(request)
        if container.state != RUNNING or container.pidfd < 0:
            raise Refused("failed_precondition", f"container {container.id} is not running")
        return container

    def reply(self, client: loop.Client, request: Request, container: Container) -> None:
        """Answer with the container as it is."""
        client.send({"seq": request["seq"], "result": container.status()})

    def refuse(self, client: loop.Client, request: Request, refusal: Refused) -> None:
        """Answer with the reason why not."""
        client.send({"seq": request.get("seq"), "code": refusal.code, "error": str(refusal)})

    def _publish(self, container: Container) -> None:
        for client in list(self._subscribers):
            client.send({"event": container.status()})

    def status(self, client: loop.Client, request: Request) -> None:
        """One container."""
        self.reply(client, request, self.find(request))

    def list(self, client: loop.Client, request: Request) -> None:
        """Every container."""
        result = [c.status() for c in self.containers.values()]
        client.send({"seq": request["seq"], "result": result})

    def wait(self, client: loop.Client, request: Request) -> None:
        """Reply when the container has exited."""
        container = self.find(request)
        if container.state == RUNNING:
            container.waiters = [w for w in container.waiters if w[0].open]
            container.waiters.append((client, request))
        elif container.state == EXITED:
            self.reply(client, request, container)
        else:
            raise Refused("failed_precondition", f"container {container.id} was never started")

    def kill(self, client: loop.Client, request: Request) -> None:
        """Send a signal to the container's first process."""
        container = self.running(request)
        _signal.pidfd_send_signal(container.pidfd, request["signal"])
        if request["signal"] == 9 and container.paused:
            self.driver.freeze(container.id, frozen=False)  # the frozen do not die on version 1
        self.reply(client, request, container)

    def pause(self, client: loop.Client, request: Request) -> None:
        """Freeze or thaw every process of the container."""
        container = self.running(request)
        self.driver.freeze(container.id, frozen=request["paused"])
        container.paused = request["paused"]
        try:
            container.save()
        except OSError:
            if container.paused:
                self.driver.freeze(container.id, frozen=False)
                container.paused = False
                raise
            self._save_when_possible(container)
        self._publish(container)
        self._answer_pause(client, request, time.monotonic() + _FREEZE_WAIT_S)

    def _answer_pause(self, client: loop.Client, request: Request, deadline_s: float) -> None:
        container = self.find(request)
        settled = container.state != RUNNING or not request["paused"]
        if settled or self.driver.is_frozen(container.id):
            self.reply(client, request, container)
        elif time.monotonic() < deadline_s:
            self.loop.after(0.001, lambda: self._answer_pause(client, request, deadline_s))
        else:
            self.refuse(client, request, Refused("unavailable", "not yet frozen; still trying"))

    def stats(self, client: loop.Client, request: Request) -> None:
        """Counters of the container's control group."""
        usage = self.driver.usage(self.running(request).id)
        result = {name: getattr(usage, name) for name in usage.__slots__}
        client.send({"seq": request["seq"], "result": result})

    def remove(self, client: loop.Client, request: Request) -> None:
        """Forget an ended container; its directory goes to the trash, for the caller to empty."""
        container = self.find(request)
        if container.state == RUNNING or container.starting is not None:
            raise Refused("failed_precondition", f"container {container.id} is running; stop it")
        self.foreign.clean_up(container.id)
        trash = self._discard(container.id)
        self.holds.release(container.id)
        self.terminals.release(container.id)
        self.execs.forget(container.id)
        self.neighbours.tell_logger(container.id)
        del self.containers[container.id]
        self.remains.drop_group(container.id)
        client.send({"seq": request["seq"], "result": {"trash": trash}})
        for subscriber in list(self._subscribers):
            subscriber.send({"removed": container.id})

    def events(self, client: loop.Client, request: Request) -> None:
        """Reply with every container, then send each change."""
        self.list(client, request)
        self._subscribers.append(client)
        client.on_close.append(self._subscribers.remove)

    def ping(self, client: loop.Client, request: Request) -> None:
        """Who serves here."""
        result = {"pid": os.getpid(), "cgroup_version": self.driver.version}
        client.send({"seq": request["seq"], "result": result})


_OPERATIONS: dict[str, Operation] = {
    "create": Supervisor.create,
    "start": Supervisor.start,
    "status": Supervisor.status,
    "list": Supervisor.list,
    "wait": Supervisor.wait,
    "kill": Supervisor.kill,
    "pause": Supervisor.pause,
    "stats": Supervisor.stats,
    "remove": Supervisor.remove,
    "events": Supervisor.events,
    "ping": Supervisor.ping,
    "exec": lambda s, c, r: s.execs.start(c, r),
    "exec-status": lambda s, c, r: s.execs.status(c, r),
    "exec-wait": lambda s, c, r: s.execs.wait(c, r),
    "exec-resize": lambda s, c, r: s.execs.resize(c, r),
    "terminal": lambda s, c, r: s.interaction.terminal(c, r),
    "resize": lambda s, c, r: s.interaction.resize(c, r),
    "end-input": lambda s, c, r: s.interaction.end_input(c, r),
    "processes": lambda s, c, r: s.interaction.processes(c, r),
    "counters": lambda s, c, r: s.interaction.counters(c, r),
    "update": lambda s, c, r: s.interaction.update(c, r),
}


def main(run_dir: str, state_dir: str, cgroup_parent: str, keeper_fd: int) -> None:
    """Serve until killed. `keeper_fd`: our end of the pair shared with the keeper."""
    os.set_inheritable(keeper_fd, False)
    try:
        supervisor = Supervisor(run_dir, state_dir, cgroup_parent, keeper_fd)
        supervisor.adopt()
    except OSError as error:
        files.complain(f"supervisor: {error}")
        _leave_reason(run_dir, error)
        sys.exit(1 if error.errno != errno.EINTR else 2)
    files.discard(f"{run_dir}/{files.REFUSAL_FILE}")
    supervisor.loop.watch(keeper_fd, supervisor.on_keeper)
    loop.listen(supervisor.loop, f"{run_dir}/supervisor.sock", supervisor.on_request)
    gc.collect()
    gc.freeze()
    supervisor.loop.run()


def _leave_reason(run_dir: str, error: OSError) -> None:
    """For the worker, which finds nobody to ask."""
    reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    try:
        files.write_atomically(f"{run_dir}/{files.REFUSAL_FILE}", reason)
    except OSError as another:  # a full disk, likely the reason itself: the log has it
        files.complain(f"supervisor: {another}")
