"""The keeper: parent of last resort for everything that must outlive the daemons.

It is a child subreaper: when the supervisor dies, containers become the keeper's children, and it
records each one's wait status in `exits/<pid>.<start ticks>` before it reaps it. It restarts the
supervisor and the logger whenever they end, and holds the containers' stdio (see `holds`).
Does nothing else: no sockets, no cgroups, no parsing, so that there is little to die of.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import fcntl
import os
import select
import struct
import sys
import time

from worker.runtime.lean import files, terminals, tinyjson
from worker.runtime.lean.holds import Holds

LINK_FD = 3  # where a part finds its end of the pair
_PARTS = ("supervisor", "logger")
_RESTART_DELAY_MAX_S = 1.0
_SWEEP_MS = 500
_ANCILLARY_BYTES = 4096
_PASSED = len(files.STREAMS)  # as many as a terminal has ends


class Part:
    """One restarted process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0
        self.link: _socket.socket | None = None
        self.started_at_s = 0.0
        self.delay_s = 0.0
        self.unread = b""
        self.fds: list[int] = []  # received, not yet given to a container


class Keeper:
    """Owns the two parts and every inherited child."""

    def __init__(self, run_dir: str, state_dir: str) -> None:
        self.run_dir = run_dir
        self.state_dir = state_dir
        self.holds = Holds(f"{state_dir}/containers")
        self.terminals = terminals.inherit()
        self.parts = [Part(name) for name in _PARTS]
        self.stopping = False
        self._poll = select.poll()
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(wake_write)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.signal(_signal.SIGTERM, self._on_terminate)
        self._poll.register(self._wake_read, select.POLLIN)

    def _on_terminate(self, *_: object) -> None:
        self.stopping = True

    def run(self) -> None:
        """Keep both parts alive until SIGTERM, then end them and return."""
        for name in os.listdir(f"{self.state_dir}/containers"):
            self.holds.take(name)  # the supervisor tells which of them have ended
        for held in os.environ.pop(files.HELD_VARIABLE, "").split(","):
            if held:
                os.close(int(held))
        self._reap()
        while not self.stopping:
            self._start_missing()
            for fd, _ in self._poll.poll(self._timeout_ms()):
                if fd == self._wake_read:
                    os.read(fd, 4096)
                else:
                    self._on_link(fd)
            self._reap()
            self.holds.sweep()
        self._stop_parts()

    def _timeout_ms(self) -> int:
        waiting = [p.started_at_s + p.delay_s - time.monotonic() for p in self.parts if not p.pid]
        if waiting:
            return max(1, int(min(waiting) * 1000))
        return _SWEEP_MS if self.holds.draining else -1

    def _start_missing(self) -> None:
        now = time.monotonic()
        for part in self.parts:
            if not part.pid and now >= part.started_at_s + part.delay_s:
                self._start(part)

    def _start(self, part: Part) -> None:
        short_lived = time.monotonic() - part.started_at_s < 5
        part.delay_s = min(_RESTART_DELAY_MAX_S, max(0.05, part.delay_s * 2)) if short_lived else 0
        ours, theirs = _pair()
        part.link, part.unread = ours, b""
        self._poll.register(ours.fileno(), select.POLLIN)
        part.started_at_s = time.monotonic()
        environment = dict(os.environ)
        if part.name == "supervisor":
            environment[terminals.VARIABLE] = terminals.lend(self.terminals)
        part.pid = os.posix_spawn(
            sys.executable,
            [*sys.orig_argv[:-1], part.name],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), LINK_FD)],
            setsigdef=[_signal.SIGPIPE, _signal.SIGXFSZ],
        )
        theirs.close()
        terminals.take_back(self.terminals)
        files.write_atomically(f"{self.run_dir}/{part.name}.pid", _identity(part.pid))

    def _on_link(self, fd: int) -> None:
        part = next((p for p in self.parts if p.link is not None and p.link.fileno() == fd), None)
        if part is not None and self._read_link(part) is False:
            self._drop_link(part)

    def _read_link(self, part: Part) -> bool | None:
        """Carry out what the part has sent; False at end of file, None when there is no more."""
        if part.link is None:
            return False
        try:
            text, ancillary, _, _ = part.link.recvmsg(65536, _ANCILLARY_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return False
        for _, _, rights in ancillary:
            part.fds += struct.unpack(f"{len(rights) // 4}i", rights)
        *lines, part.unread = (part.unread + text).split(b"\n")
        for line in lines:
            self._obey(part, line.decode())
        return bool(text)

    def _obey(self, part: Part, line: str) -> None:
        name, fds = line[1:], []
        if line[0] in (files.HOLD, files.HOLD_TERMINAL):
            fds, part.fds = part.fds[:_PASSED], part.fds[_PASSED:]
        for fd in fds:
            os.set_inheritable(fd, False)
        if line[0] == files.HOLD:
            self._hold(name, fds)
        elif line[0] == files.DRAIN:
            self.holds.drain(name)
        elif line[0] == files.END_INPUT:
            self.holds.end_input(name)
        elif line[0] == files.HOLD_TERMINAL and len(fds) == _PASSED:
            self._drop_terminal(name)
            self.terminals[name] = fds[0], fds[1]
        elif line[0] == files.DROP_TERMINAL:
            self._drop_terminal(name)

    def _drop_terminal(self, name: str) -> None:
        for fd in self.terminals.pop(name, ()):
            os.close(fd)

    def _hold(self, name: str, fds: list[int]) -> None:
        self.holds.draining.discard(name)
        if fds:
            self.holds.keep(name, fds)
        else:
            self.holds.take(name)

    def _drop_link(self, part: Part) -> None:
        if part.link is not None:
            self._poll.unregister(part.link.fileno())
            part.link.close()
            part.link = None
            for fd in part.fds:
                os.close(fd)
            part.fds = []

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            self._reap_one(found)

    def _reap_one(self, found: os.waitid_result) -> None:
        pid = found.si_pid
        part = next((p for p in self.parts if p.pid == pid), None)
        if part is None:
            record_exit(self.state_dir, found)
        _, status = os.waitpid(pid, 0)
        if part is not None:
            part.pid = 0
            while self._read_link(part):
                continue  # its last words may carry pipes nobody else has open
            self._drop_link(part)
            if not self.stopping:
                files.complain(f"keeper: {part.name} ended with wait status {status}; restarting")

    def _stop_parts(self) -> None:
        for part in self.parts:  # the supervisor first: a keeper's death makes it a keeper
            if part.pid:
                os.kill(part.pid, _signal.SIGKILL)
                os.waitpid(part.pid, 0)
                part.pid = 0
            for suffix in (".pid", ".sock"):
                files.discard(f"{self.run_dir}/{part.name}{suffix}")
        os.unlink(f"{self.run_dir}/keeper.pid")


def record_exit(state_dir: str, found: os.waitid_result) -> None:
    """Write the wait status of a child that has ended and is not reaped yet."""
    pid = found.si_pid
    exited = found.si_code == os.CLD_EXITED
    status = found.si_status << 8 if exited else found.si_status
    path = files.exit_record(state_dir, pid, files.start_ticks(pid))
    record = {"status": status, "at_ns": time.time_ns()}
    try:
        files.write_atomically(path, tinyjson.dumps(record))
    except OSError as error:
        files.complain(f"keeper: cannot record the exit of {pid}: {error}")


def _pair() -> tuple[_socket.socket, _socket.socket]:
    kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    first, second = _socket.socketpair(_socket.AF_UNIX, kind, 0)
    return first, second


def _identity(pid: int) -> str:
    return f"{pid} {files.start_ticks(pid)}\n"


def main(run_dir: str, state_dir: str) -> None:
    """Run as the node's only keeper; a second one only sees its own children through."""
    lock = os.open(f"{run_dir}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _reap_until_childless(state_dir)
        return
    files.write_atomically(f"{run_dir}/keeper.pid", _identity(os.getpid()))
    Keeper(run_dir, state_dir).run()


def _reap_until_childless(state_dir: str) -> None:
    # A supervisor that became a keeper too late still is the parent of containers.
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is not None:
            record_exit(state_dir, found)
            os.waitpid(found.si_pid, 0)
