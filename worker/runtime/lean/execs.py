"""Further processes in running containers: `exec`.

The supervisor enters the container's pid namespace for the length of one clone, so the process is
its child and nothing is left in between. Its streams belong to the connection that asked for it:
the descriptors are passed on, and when the connection ends what is still written is read and
dropped, so that letting go never ends a process. A record on disk outlives the supervisor; of the
processes that have ended, each container keeps the last `ENDED_MAX`.

Refuses: a container that is paused, because the process could not be told from one that hangs.
"""

from __future__ import annotations

import os

from worker.runtime.lean import child, consoles, files, joining, linux, tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

    from worker.runtime.lean import loop
    from worker.runtime.lean.container import Container
    from worker.runtime.lean.supervisor import Supervisor

    Request = dict[str, Any]

ENDED_MAX = 256
_DIRECTORY = "execs"
_DROP_BYTES = 65536
_CLOSED_S = 0.2
LOST_ERROR = "exit status lost: the process ended while no process of the runtime was alive"
_JOINED = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWNET
_KEPT = ("id", "container", "pid", "start_ticks", "exit_code", "error")


class Exec:
    """One process. `exit_code` is None while it runs."""

    def __init__(self, record: dict[str, Any], container_dir: str) -> None:
        self.id: str = record["id"]
        self.container: str = record["container"]
        self.pid: int = record.get("pid", 0)
        self.start_ticks: int = record.get("start_ticks", 0)
        self.exit_code: int | None = record.get("exit_code")
        self.error: str = record.get("error", "")
        self.path = f"{container_dir}/{_DIRECTORY}/{self.id}"
        # Not kept on disk:
        self.pidfd = -1
        self.status_fd = -1
        self.console: _socket.socket | None = None
        self.master = -1
        self.outputs: list[int] = []  # our copies of what it writes to, the master among them
        self.passed: list[int] = []  # what the connection gets; closed once it has them
        self.asked: tuple[loop.Client, Request] | None = None
        self.is_child = False
        self.waiters: list[tuple[loop.Client, Request]] = []

    def record(self) -> dict[str, Any]:
        """What is on disk, and what callers see."""
        return {name: getattr(self, name) for name in _KEPT}

    def save(self) -> None:
        """Replace the record; its directory is made with the container's first."""
        try:
            files.write_atomically(self.path, tinyjson.dumps(self.record()))
        except FileNotFoundError:
            os.mkdir(os.path.dirname(self.path), 0o700)
            files.write_atomically(self.path, tinyjson.dumps(self.record()))


class Execs:
    """All of them, by id."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = supervisor.loop
        self._execs: dict[str, Exec] = {}
        self._ended: dict[str, list[Exec]] = {}

    # Start-up and end of a container -----------------------------------------------------------

    def adopt(self, container: Container) -> None:
        """Take over what an earlier supervisor has started."""
        try:
            names = os.listdir(f"{container.directory}/{_DIRECTORY}")
        except FileNotFoundError:
            return
        for name in names:
            record = files.read_record(f"{container.directory}/{_DIRECTORY}/{name}")
            if record is None:
                continue
            process = self._execs[record["id"]] = Exec(record, container.directory)
            if process.exit_code is not None:
                self._keep(process)
            elif files.is_alive(process.pid, process.start_ticks):
                process.pidfd = os.pidfd_open(process.pid)
                self._watch(process)
            else:
                self._end_inherited(process)

    def expected_exits(self) -> set[str]:
        """Names of the exit records that are still to be read."""
        return {f"{e.pid}.{e.start_ticks}" for e in self._execs.values() if e.exit_code is None}

    def forget(self, container: str) -> None:
        """The container is removed."""
        for process in self._ended.pop(container, ()):
            self._execs.pop(process.id, None)

    # Requests ---------------------------------------------------------------------------------

    def start(self, client: loop.Client, request: Request) -> None:
        """Clone the process; the reply is sent when its program runs, or cannot."""
        container = self._supervisor.running(request)
        if container.paused:
            raise self._refused(f"container {container.id} is paused, unpause it before exec")
        if request["exec"] in self._execs:
            raise self._supervisor.refused("already_exists", f"exec {request['exec']} exists")
        bundle = tinyjson.loads(files.read_text(f"{container.directory}/{files.BUNDLE_FILE}"))
        process = Exec({"id": request["exec"], "container": container.id}, container.directory)
        theirs: list[int] = []
        try:
            self._clone(container, process, bundle, request, theirs)
            process.start_ticks = files.start_ticks(process.pid)
            process.save()
        except OSError:
            self._undo(process)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        process.is_child = True
        process.asked = client, request
        self._execs[process.id] = process
        self._loop.watch(process.status_fd, lambda _: self._on_status(process))
        self._watch(process)

    def status(self, client: loop.Client, request: Request) -> None:
        """The process as it is."""
        self._reply(client, request, self._find(request))

    def wait(self, client: loop.Client, request: Request) -> None:
        """Reply when it has ended."""
        process = self._find(request)
        if process.exit_code is None:
            process.waiters = [w for w in process.waiters if w[0].open]
            process.waiters.append((client, request))
        else:
            self._reply(client, request, process)

    def resize(self, client: loop.Client, request: Request) -> None:
        """Change the size of its terminal."""
        process = self._find(request)
        if process.master < 0:
            raise self._refused(f"exec {process.id} has no running terminal")
        consoles.set_size(process.master, request["height"], request["width"])
        self._reply(client, request, process)

    def _find(self, request: Request) -> Exec:
        process = self._execs.get(request["exec"])
        if process is None:
            raise self._supervisor.refused("not_found", f"exec {request['exec']} does not exist")
        return process

    def _refused(self, message: str) -> Exception:
        return self._supervisor.refused("failed_precondition", message)

    def _reply(self, client: loop.Client, request: Request, process: Exec) -> None:
        client.send({"seq": request["seq"], "result": process.record()})

    # One start --------------------------------------------------------------------------------

    def _clone(
        self,
        container: Container,
        process: Exec,
        bundle: dict[str, Any],
        request: Request,
        theirs: list[int],
    ) -> None:
        """theirs: gets every descriptor that only the child needs."""
        driver = self._supervisor.driver
        join = joining.Join()
        join.bundle = bundle | {"process": request["process"]}
        join.bundle["annotations"] = bundle["annotations"] | request["annotations"]
        join.pidfd, join.namespaces = container.pidfd, _namespaces(bundle)
        seccomp = bundle["annotations"].get("dev.shoal.seccomp", "")
        join.seccomp = self._supervisor.seccomp_program(seccomp)
        join.size = request.get("size")
        join.console_fd, join.stdio_fds = -1, (-1, -1, -1)
        if request["tty"]:
            process.console, link = consoles.pair()
            join.console_fd = link.detach()
            theirs.append(join.console_fd)
        else:
            join.stdio_fds = _pipes(process, request, theirs)
        process.status_fd, join.status_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        theirs.append(join.status_fd)
        group_fd = -1
        join.cgroup_paths = driver.joined(container.id)
        if driver.version == 2:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            group_fd = os.open(driver.clone_target(container.id), flags)
            theirs.append(group_fd)
        join.close_fds = []  # all others are closed on exec, and before the directory is entered
        own_pids = self._supervisor.own_pids
        pid, pidfd = linux.clone_beside(container.pidfd, own_pids, 0, cgroup_fd=group_fd)
        if pid == 0:
            joining.run(join)
        process.pid, process.pidfd = pid, pidfd

    def _undo(self, process: Exec) -> None:
        if process.pidfd >= 0:
            linux.kill_and_reap(process.pidfd)
            os.close(process.pidfd)
        self._close_streams(process)
        if process.status_fd >= 0:
            os.close(process.status_fd)

    def _on_status(self, process: Exec) -> None:
        try:
            text = os.read(process.status_fd, 4096)
        except BlockingIOError:
            return
        self._loop.forget(process.status_fd)
        os.close(process.status_fd)
        process.status_fd = -1
        if text:
            failure = tinyjson.loads(text.decode())
            process.error = failure["error"]
            return  # answered when the process has been reaped
        self._hand_over(process)

    def _hand_over(self, process: Exec) -> None:
        """The program runs: pass its streams on."""
        if process.console is not None:
            process.master = consoles.receive(process.console)
            process.outputs = [process.master]
            process.passed = [os.dup(process.master)]
        if process.asked is None:
            return
        (client, request), process.asked = process.asked, None
        client.send({"seq": request["seq"], "result": process.record()}, process.passed)
        if client.open:
            client.on_close.append(lambda _: self._drop_output(process))
        else:
            self._drop_output(process)
        self._close_passed(process)

    # What nobody reads ------------------------------------------------------------------------

    def _drop_output(self, process: Exec) -> None:
        """Nobody is attached any more: the process must not wait for a reader."""
        for fd in process.outputs:
            os.set_blocking(fd, False)
            self._loop.watch(fd, lambda _, fd=fd: self._drop(process, fd))  # type: ignore[misc]

    def _drop(self, process: Exec, fd: int) -> None:
        try:
            data = os.read(fd, _DROP_BYTES)
        except BlockingIOError:
            return
        except OSError:  # a terminal nobody has open; somebody may open it again
            self._loop.forget(fd)
            self._loop.after(_CLOSED_S, lambda: self._drop_again(process, fd))
            return
        if not data:
            self._loop.forget(fd)
            process.outputs.remove(fd)
            os.close(fd)

    def _drop_again(self, process: Exec, fd: int) -> None:
        if fd in process.outputs:
            self._loop.watch(fd, lambda _: self._drop(process, fd))

    # The end ----------------------------------------------------------------------------------

    def _watch(self, process: Exec) -> None:
        self._loop.watch(process.pidfd, lambda _: self._on_exit(process))

    def _on_exit(self, process: Exec) -> None:
        self._loop.forget(process.pidfd)
        if not process.is_child:
            self._supervisor.await_exit(process, lambda: self._end_inherited(process))
            return
        if process.status_fd >= 0:
            self._on_status(process)
        _, wait_status = os.waitpid(process.pid, os.WNOHANG)
        self._end(process, files.code_of(wait_status))

    def _end_inherited(self, process: Exec) -> None:
        path = files.exit_record(self._supervisor.state_dir, process.pid, process.start_ticks)
        wait_status = self._supervisor.inherited_status(process)
        if wait_status is None:
            process.error = LOST_ERROR
        self._end(process, 255 if wait_status is None else files.code_of(wait_status))
        files.discard(path)

    def _end(self, process: Exec, code: int) -> None:
        process.exit_code = child.NOT_EXECUTABLE if process.error and code == 128 else code
        if process.pidfd >= 0:
            os.close(process.pidfd)
            process.pidfd = -1
        try:
            process.save()
        except OSError as error:  # removed with its container, or a full disk
            files.complain(f"exec {process.id}: cannot record the exit: {error}")
        if process.asked is not None:
            (client, request), process.asked = process.asked, None
            self._reply(client, request, process)
        self._close_streams(process)
        waiters, process.waiters = process.waiters, []
        for client, request in waiters:
            self._reply(client, request, process)
        self._keep(process)

    def _close_streams(self, process: Exec) -> None:
        self._close_passed(process)
        for fd in process.outputs:
            self._loop.forget(fd)
            os.close(fd)
        process.outputs, process.master = [], -1
        if process.console is not None:
            process.console.close()
            process.console = None

    def _close_passed(self, process: Exec) -> None:
        for fd in process.passed:
            os.close(fd)
        process.passed = []

    def _keep(self, process: Exec) -> None:
        ended = self._ended.setdefault(process.container, [])
        ended.append(process)
        if len(ended) > ENDED_MAX:
            oldest = ended.pop(0)
            self._execs.pop(oldest.id, None)
            files.discard(oldest.path)


def _namespaces(bundle: dict[str, Any]) -> int:
    kinds = {entry["type"] for entry in bundle["linux"]["namespaces"]}
    joined = _JOINED | linux.CLONE_NEWCGROUP
    return joined | linux.CLONE_NEWUSER if "user" in kinds else joined


def _pipes(process: Exec, request: Request, theirs: list[int]) -> tuple[int, int, int]:
    """Standard streams of the child; ours are noted in the order in, out, error."""
    fds = [-1, -1, -1]
    if request["stdin"]:
        fds[0], ours = os.pipe2(os.O_CLOEXEC)
        process.passed.append(ours)
    for number, name in enumerate(files.STREAMS, 1):
        if request[name]:
            ours, fds[number] = os.pipe2(os.O_CLOEXEC)
            process.passed.append(ours)
            process.outputs.append(os.dup(ours))
    theirs += [fd for fd in fds if fd >= 0]
    return fds[0], fds[1], fds[2]
