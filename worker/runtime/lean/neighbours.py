"""What the supervisor says to keeper and logger; neither answers.

The keeper is told through the pair it shares with us, with the descriptors it is to hold; the
logger by a datagram, again and again while it is being restarted.
"""

from __future__ import annotations

import _socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Neighbours:
    """Both of them."""

    def __init__(self, run_dir: str, keeper_fd: int) -> None:
        self.keeper = _socket.socket(fileno=keeper_fd)
        self._logger_path = f"{run_dir}/logger.sock"
        kind = _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        self._logger = _socket.socket(_socket.AF_UNIX, kind, 0)
        self.unsent: set[str] = set()

    def tell_keeper(self, letter: str, name: str, fds: Sequence[int] = ()) -> None:
        """One line of what the keeper understands; see `files`."""
        rights = struct.pack(f"{len(fds)}i", *fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
        try:
            self.keeper.sendmsg([f"{letter}{name}\n".encode()], ancillary)
        except OSError:
            return  # a dead keeper is noticed by its hang-up; the next one scans

    def tell_logger(self, name: str) -> None:
        """A container has started, ended or been removed."""
        try:
            self._logger.sendto(name.encode(), self._logger_path)
        except OSError:
            self.unsent.add(name)
        else:
            self.unsent.discard(name)

    def tell_logger_again(self) -> None:
        """What it has not taken."""
        for name in sorted(self.unsent):
            self.tell_logger(name)
