"""Masters of the containers' terminals, and what they write on its way into the log.

A terminal's output goes into the container's `stdout` FIFO, so that logger and attached clients
find it where that of every container is. The supervisor copies it, one page at a time and only when
the FIFO has room for it, so that a chunk is in nobody's hands for no longer than two system calls.
The keeper holds master and FIFO as well: with the last master the session would be hung up, with
the last writer of the FIFO the log would end.
"""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.runtime.lean.loop import Loop

    Ends = tuple[int, int]  # the master, and the FIFO's writing end

VARIABLE = "SHOAL_TERMINALS"  # `name=master:fifo,…`: handed to the next process of the pair
_CHUNK_BYTES = 4096  # a FIFO that can be written to takes as much in one piece
_QUIET_S = 0.02  # what the kernel still carries to the master of an ended session
_QUIET_TURNS = 50
_CLOSED_S = 0.2  # nobody has the terminal open; somebody may open it again


class Pump:
    """One terminal. Ends by itself once its container has ended and all it wrote is copied."""

    def __init__(self, loop: Loop, ends: Ends, on_end: Callable[[], None]) -> None:
        self.ends = ends
        self.master, self._sink = ends
        self._loop = loop
        self._on_end = on_end
        self._room = select.poll()
        self._room.register(self._sink, select.POLLOUT)
        self._ended = False
        self._quiet_turns = 0
        self._loop.watch(self.master, self._turn)

    def end(self) -> None:
        """The container has ended: copy what is left, then let go."""
        self._ended = True
        self._later(0)

    def close(self) -> None:
        """Let go now."""
        if self.master >= 0:
            self._loop.forget(self.master)
            self._loop.forget(self._sink)
            os.close(self.master)
            os.close(self._sink)
            self.master = -1

    def _turn(self, _: int = 0) -> None:
        if not self._room.poll(0):
            self._loop.forget(self.master)
            self._loop.watch(self._sink, self._resume, write=True)
            return
        try:
            data = os.read(self.master, _CHUNK_BYTES)
        except BlockingIOError:
            self._quiet()
        except OSError:  # nobody has the other side open
            self._hung_up()
        else:
            self._quiet_turns = 0
            os.write(self._sink, data)
            if self._ended:
                self._later(0)

    def _resume(self, _: int) -> None:
        self._loop.forget(self._sink)
        self._loop.watch(self.master, self._turn)
        if self._ended:
            self._later(0)

    def _quiet(self) -> None:
        if not self._ended:
            return
        self._quiet_turns += 1
        if self._quiet_turns > _QUIET_TURNS:
            self._finish()
        else:
            self._later(_QUIET_S)

    def _hung_up(self) -> None:
        if self._ended:
            self._finish()
            return
        self._loop.forget(self.master)
        self._later(_CLOSED_S)

    def _later(self, delay_s: float) -> None:
        self._loop.after(delay_s, self._again)

    def _again(self) -> None:
        if self.master >= 0:
            self._loop.watch(self.master, self._turn)
            self._turn()

    def _finish(self) -> None:
        self.close()
        self._on_end()


class Terminals:
    """The pumps by container."""

    def __init__(self, loop: Loop, on_end: Callable[[str], None]) -> None:
        """on_end: called when a terminal is not needed any more."""
        self._loop = loop
        self._on_end = on_end
        self._pumps: dict[str, Pump] = {}

    def add(self, name: str, ends: Ends) -> None:
        """Copy what this master has from now on."""
        self.release(name)
        self._pumps[name] = Pump(self._loop, ends, lambda: self._ended(name))

    def master(self, name: str) -> int:
        """The container's master, -1 when it has none."""
        pump = self._pumps.get(name)
        return -1 if pump is None else pump.master

    def end(self, name: str) -> None:
        """The container has ended."""
        pump = self._pumps.get(name)
        if pump is not None:
            pump.end()

    def release(self, name: str) -> None:
        """Let go now."""
        pump = self._pumps.pop(name, None)
        if pump is not None:
            pump.close()

    def all(self) -> dict[str, Ends]:
        """Both ends of every terminal, by container."""
        return {name: pump.ends for name, pump in self._pumps.items()}

    def _ended(self, name: str) -> None:
        self._pumps.pop(name, None)
        self._on_end(name)


def open_ends(master: int, directory: str) -> Ends:
    """A master, and the FIFO its output goes to."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
    return master, os.open(f"{directory}/stdout", flags)


def lend(terminals: dict[str, Ends]) -> str:
    """Let them survive the next execve; returns what to put into `VARIABLE`."""
    for fd in _descriptors(terminals):
        os.set_inheritable(fd, True)
    return ",".join(f"{name}={master}:{fifo}" for name, (master, fifo) in terminals.items())


def take_back(terminals: dict[str, Ends]) -> None:
    """Nobody else is to inherit them."""
    for fd in _descriptors(terminals):
        os.set_inheritable(fd, False)


def inherit() -> dict[str, Ends]:
    """What the process before has left."""
    terminals = {}
    for entry in os.environ.pop(VARIABLE, "").split(","):
        name, separator, fds = entry.partition("=")
        if separator:
            master, _, fifo = fds.partition(":")
            terminals[name] = int(master), int(fifo)
    take_back(terminals)
    return terminals


def _descriptors(terminals: dict[str, Ends]) -> list[int]:
    return [fd for ends in terminals.values() for fd in ends]
