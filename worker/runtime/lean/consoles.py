"""Terminals of containers: the pair is made inside, its master is sent out.

The pair belongs to the container's own devpts, so that `tty` and `ps` inside can name it. Refuses a
multiplexer that is not one: whoever is root inside may have put something else in its place.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
import struct
import termios

from worker.runtime.lean import linux, rootfs

_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
_MULTIPLEXER = os.makedev(5, 2)
_RIGHTS_BYTES = 4


def open_pair(root_fd: int, console_fd: int) -> int:
    """Make a terminal below `root_fd`, send its master through the socket, return the slave."""
    master = linux.open_in_root(root_fd, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    status = os.fstat(master)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _MULTIPLEXER:
        raise OSError(25, os.strerror(25), "/dev/pts/ptmx")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    link = _socket.socket(fileno=console_fd)
    rights = struct.pack("i", master)
    link.sendmsg([b"m"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    link.close()
    os.close(master)
    return slave


def receive(link: _socket.socket) -> int:
    """The master a child has sent, or -1 when it has ended without one."""
    try:
        _, ancillary, _, _ = link.recvmsg(1, _socket.CMSG_SPACE(_RIGHTS_BYTES))
    except OSError:
        return -1
    for _, _, rights in ancillary:
        master = int(struct.unpack("i", rights)[0])
        os.set_inheritable(master, False)
        os.set_blocking(master, False)
        return master
    return -1


def show(root_fd: int, slave: int) -> None:
    """Mount the slave on /dev/console."""
    number = os.minor(os.fstat(slave).st_rdev)
    source = linux.open_in_root(root_fd, f"/dev/pts/{number}", linux.O_PATH)
    tree = linux.open_tree(source, "", recursive=False)
    target = rootfs.open_target(root_fd, "/dev/console", directory=False)
    linux.attach_mount(tree, target, "/dev/console")
    for fd in (source, tree, target):
        os.close(fd)


def set_size(master: int, height: int, width: int) -> None:
    """Tell the terminal its size; its foreground process gets SIGWINCH when it has changed."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Our end and the child's end of the way a master takes."""
    kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind, 0)
    ours.setblocking(False)
    return ours, theirs
