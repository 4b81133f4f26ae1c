"""Write a layer's entries into a directory that will be an overlayfs lower layer.

Runs in the chroot()ed child with the layer's root as working directory. Invariant: every path it
writes to consists of real directories made by this very layer; links on the way are resolved here,
never by the kernel, and one that is absolute or climbs above the root is refused. Parents the tar
leaves out are made and remembered (`implied`): their attributes come from the layers below, which
only `settle` can see. Files are created exclusively, so nothing that exists is ever opened.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from shoal.errors import FailedPrecondition, InvalidArgument
from worker.images import rules
from worker.images.model import UnpackLimits
from worker.images.tarstream import Entry, Kind, TarBytes

OPAQUE_XATTR = "trusted.overlay.opaque"
_LINK_HOPS_MAX = 40
_DEPTH_MAX = 255  # so that any tree can be deleted again with a descriptor per level
_WHITEOUT_DEVICE = os.makedev(0, 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Applier:
    """Applies entries one by one; `finish` sets directories' times. Call in the layer's root."""

    def __init__(self, limits: UnpackLimits) -> None:
        self._limits = limits
        self._devices = 0
        self._real = {"": ""}  # parent as named -> the same with links resolved
        self._times: dict[str, int] = {}
        self._hidden: set[str] = set()  # whiteouts over names this layer also has
        self.implied: dict[str, None] = {"": None}  # the root too, until the tar has it

    def apply(self, entry: Entry, content: TarBytes) -> None:
        """Apply one entry, reading exactly its content.

        Raises InvalidArgument naming the entry and rule; OSError as the kernel gives it.
        """
        path = rules.clean_name(entry.name)
        if rules.is_whiteout_bookkeeping(path):
            content.skip(entry.size)
            return
        hidden = rules.whiteout_target(entry, path)
        if hidden is not None:
            content.skip(entry.size)
            self._whiteout(path, hidden, entry)
            return
        rules.check_kind(
            entry, devices_before=self._devices, devices_max=self._limits.device_nodes_max
        )
        if not path:
            self._root(entry)
            return
        parent, _, leaf = path.rpartition("/")
        real_parent = self._parent(parent, entry)
        target = f"{real_parent}/{leaf}" if real_parent else leaf
        try:
            self._create(target, entry, content)
        except FileExistsError:
            self._replace(target, entry, content)

    def finish(self) -> None:
        """Set the directories' times, last because every file made in them moves those."""
        for path, mtime_ns in self._times.items():
            os.utime(path or ".", ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    # -- creating ---------------------------------------------------------------------------

    def _create(self, target: str, entry: Entry, content: TarBytes) -> None:
        match entry.kind:
            case Kind.FILE:
                self._file(target, entry, content)
                return
            case Kind.DIRECTORY:
                os.mkdir(target, 0o700)
                self._directory(target, entry)
                return
            case Kind.HARDLINK:
                self._hardlink(target, entry)
                return
            case Kind.SYMLINK:
                if not entry.link or "\0" in entry.link:
                    raise InvalidArgument(f"entry {entry.name!r}: a link must name its target")
                os.symlink(entry.link, target)
            case Kind.FIFO:
                os.mkfifo(target, 0o600)
            case Kind.CHARACTER | Kind.BLOCK:
                os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(entry.major, entry.minor))
                self._devices += 1
        os.chown(target, entry.uid, entry.gid, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(target, entry.mode)
        self._xattrs(target, entry)
        os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)

    def _file(self, target: str, entry: Entry, content: TarBytes) -> None:
        fd = os.open(target, _CREATE, 0o600)
        try:
            for view in content.views(entry.size):
                rest = view
                while rest:
                    rest = rest[os.write(fd, rest) :]
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)  # after chown, which clears setuid
            if entry.xattrs:
                self._xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, target: str, entry: Entry) -> None:
        os.chown(target or ".", entry.uid, entry.gid)
        os.chmod(target or ".", entry.mode)
        self._xattrs(target or ".", entry)
        self._times[target] = entry.mtime_ns
        self.implied.pop(target, None)
        self._real.setdefault(target, target)

    def _root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise InvalidArgument(
                f"entry {entry.name!r} is a {entry.kind.value}, but the root is a directory"
            )
        self._directory("", entry)

    def _hardlink(self, target: str, entry: Entry) -> None:
        source = rules.clean_name(entry.link, of=f"entry {entry.name!r}: hard link target")
        parent, _, leaf = source.rpartition("/")
        real_parent = self._parent(parent, entry, create=False)
        real_source = f"{real_parent}/{leaf}" if real_parent else leaf
        try:
            found = os.lstat(real_source or ".")
        except FileNotFoundError:
            raise _no_link_target(entry) from None
        if stat.S_ISDIR(found.st_mode) or _is_whiteout(found):
            raise _no_link_target(entry)
        if real_source == target:
            raise InvalidArgument(f"entry {entry.name!r} is a hard link to itself")
        os.link(real_source, target, follow_symlinks=False)

    def _xattrs(self, target: str | int, entry: Entry) -> None:
        for key, value in rules.kept_xattrs(entry).items():
            try:
                if isinstance(target, int):
                    os.setxattr(target, key, value)
                else:
                    os.setxattr(target, key, value, follow_symlinks=False)
            except OSError as error:
                if error.errno == errno.ENOTSUP:
                    raise FailedPrecondition(
                        f"entry {entry.name!r}: the image store's file system"
                        f" cannot hold attribute {key!r}"
                    ) from error
                if error.errno in (errno.EINVAL, errno.EPERM, errno.ERANGE, errno.E2BIG):
                    raise InvalidArgument(
                        f"entry {entry.name!r}: attribute {key!r} is refused: {error.strerror}"
                    ) from error
                raise

    # -- names that exist already -----------------------------------------------------------

    def _replace(self, target: str, entry: Entry, content: TarBytes) -> None:
        """A later entry of the same name wins, as in tar; a directory over a directory merges."""
        found = os.lstat(target)
        is_directory = stat.S_ISDIR(found.st_mode)
        if is_directory and entry.kind is Kind.DIRECTORY:
            self._directory(target, entry)
            return
        if is_directory:
            shutil.rmtree(target)
            self._forget(target)
        else:
            os.unlink(target)
            if stat.S_ISLNK(found.st_mode):
                self._real = {"": ""}  # parents may have been resolved through it
        self._create(target, entry, content)
        if entry.kind is Kind.DIRECTORY and (_is_whiteout(found) or target in self._hidden):
            os.setxattr(target, OPAQUE_XATTR, b"y")

    def _forget(self, target: str) -> None:
        below = target + "/"
        self._real = {"": ""}
        for known in (self._times, self.implied):
            for path in [p for p in known if p == target or p.startswith(below)]:
                del known[path]

    def _whiteout(self, path: str, hidden: str, entry: Entry) -> None:
        real_parent = self._parent(path.rpartition("/")[0], entry)
        if not hidden:
            os.setxattr(real_parent or ".", OPAQUE_XATTR, b"y")
            return
        target = f"{real_parent}/{hidden}" if real_parent else hidden
        try:
            os.mknod(target, stat.S_IFCHR, _WHITEOUT_DEVICE)
        except FileExistsError:
            # A whiteout hides lower layers only: what this layer itself brings stays.
            self._hidden.add(target)
            if stat.S_ISDIR(os.lstat(target).st_mode):
                os.setxattr(target, OPAQUE_XATTR, b"y")

    # -- parents ----------------------------------------------------------------------------

    def _parent(self, parent: str, entry: Entry, *, create: bool = True) -> str:
        """`parent` with every link resolved, its missing directories made (or refused)."""
        known = self._real.get(parent)
        if known is not None:
            return known
        pending = parent.split("/")[::-1]
        real = ""
        hops = 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":  # only from a link: names have none
                if not real:
                    raise _leaves_root(entry, parent)
                real = real.rpartition("/")[0]
                continue
            step = f"{real}/{part}" if real else part
            link = self._step(step, entry, create=create)
            if link is None:
                real = step
                continue
            hops += 1
            if link.startswith("/") or hops > _LINK_HOPS_MAX:
                raise _leaves_root(entry, step)
            pending.extend(link.split("/")[::-1])
        self._real[parent] = real
        if real.count("/") >= _DEPTH_MAX:
            raise InvalidArgument(
                f"entry {entry.name[:80]!r}... lies more than {_DEPTH_MAX} directories deep"
            )
        return real

    def _step(self, step: str, entry: Entry, *, create: bool) -> str | None:
        """Make sure `step` is a real directory (None), or give the target of the link it is."""
        try:
            found = os.lstat(step)
        except FileNotFoundError:
            if not create:
                raise _no_link_target(entry) from None
            self._imply(step)
            return None
        if stat.S_ISDIR(found.st_mode):
            return None
        if stat.S_ISLNK(found.st_mode):
            return os.readlink(step)
        if _is_whiteout(found) and create:
            os.unlink(step)
            self._imply(step)
            os.setxattr(step, OPAQUE_XATTR, b"y")
            return None
        raise InvalidArgument(
            f"entry {entry.name!r}: its parent {step!r} is not a directory in this layer"
        )

    def _imply(self, step: str) -> None:
        os.mkdir(step, 0o755)
        self.implied[step] = None


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == _WHITEOUT_DEVICE


def _no_link_target(entry: Entry) -> InvalidArgument:
    return InvalidArgument(
        f"entry {entry.name!r}: hard link target {entry.link!r} is not a file of this layer"
    )


def _leaves_root(entry: Entry, link: str) -> InvalidArgument:
    return InvalidArgument(
        f"entry {entry.name!r}: its parent {link!r} is a symbolic link that leaves the root"
        " file system (absolute, climbing above it, or circular)"
    )
