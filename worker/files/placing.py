"""Unpack a tar into a directory of a container, which may be changing under it.

Each parent is found anew with `openat2(RESOLVE_IN_ROOT)`: links inside the container are followed
inside it, and none leads out. What is made has a single name in an opened directory and is never
opened through a link: files are made exclusively, and attributes are set through the descriptor of
the very thing. As Docker unpacks: a later thing replaces an earlier one, directories merge.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat

from shoal.errors import InvalidArgument, NotFound
from worker.files import paths
from worker.images import rules
from worker.images.tarstream import Entry, Kind, TarBytes
from worker.runtime.lean import linux

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HELD = linux.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}

Owner = tuple[int, int]


class Placer:
    """Puts entries below one directory; `finish` sets the directories' times."""

    def __init__(self, root: int, directory: str, *, keep_kinds: bool, owner: Owner | None) -> None:
        """directory: its clean path. owner: of everything; None: as each entry says."""
        self._root = root
        self._directory = directory.rstrip("/")
        self._keep_kinds = keep_kinds
        self._owner = owner
        self._parent_path: str | None = None
        self._parent_fd = -1
        self._times: dict[str, int] = {}

    def place(self, entry: Entry, content: TarBytes) -> None:
        """Make one thing, reading exactly its content. Raises: InvalidArgument, OSError."""
        name = _inside(entry.name, "entry")
        if not name:
            return  # the directory itself, which is the container's
        parent, _, leaf = name.rpartition("/")
        directory = self._parent(parent)
        existing = _look(directory, leaf)
        if existing is not None:
            merge = stat.S_ISDIR(existing.st_mode) and entry.kind is Kind.DIRECTORY
            self._check_kinds(entry, existing)
            if merge:
                self._set_directory(directory, leaf, name, entry)
                return
            self._remove(directory, leaf, existing)
        self._create(directory, leaf, name, entry, content)

    def finish(self) -> None:
        """Set the directories' times: everything made in them moved those."""
        for name, mtime_ns in self._times.items():
            try:
                fd = paths.open_inside(
                    self._root, f"{self._directory}/{name}", linux.O_PATH | os.O_NOFOLLOW
                )
            except (NotFound, InvalidArgument):  # a later entry, or the container, replaced it
                continue
            try:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    os.utime(_itself(fd), ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    # -- places -----------------------------------------------------------------------------

    def _parent(self, parent: str) -> int:
        if parent != self._parent_path:
            fd = self._open_parent(parent)
            if self._parent_fd >= 0:
                os.close(self._parent_fd)
            self._parent_path, self._parent_fd = parent, fd
        return self._parent_fd

    def _open_parent(self, parent: str) -> int:
        """A directory inside, whose missing parts are made."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            return paths.open_inside(self._root, f"{self._directory}/{parent}", flags)
        except NotFound:
            above, _, leaf = parent.rpartition("/")
            if not leaf:
                raise
        directory = self._open_parent(above)
        try:
            os.mkdir(leaf, 0o755, dir_fd=directory)
        except FileExistsError as error:  # a link that leads nowhere
            raise InvalidArgument(f"{self._directory}/{parent}: {error.strerror}") from None
        finally:
            os.close(directory)
        return paths.open_inside(self._root, f"{self._directory}/{parent}", flags)

    def _check_kinds(self, entry: Entry, existing: os.stat_result) -> None:
        if not self._keep_kinds:
            return
        place = f"{self._directory}/{_inside(entry.name, 'entry')}"
        top = self._directory or "/"
        is_directory = stat.S_ISDIR(existing.st_mode)
        if is_directory and entry.kind is not Kind.DIRECTORY:
            raise InvalidArgument(
                f'cannot overwrite directory "{place}" with non-directory "{top}"'
            )
        if not is_directory and entry.kind is Kind.DIRECTORY:
            raise InvalidArgument(
                f'cannot overwrite non-directory "{place}" with directory "{top}"'
            )

    def _remove(self, directory: int, leaf: str, existing: os.stat_result) -> None:
        if stat.S_ISDIR(existing.st_mode):
            shutil.rmtree(leaf, dir_fd=directory)
            self._parent_path = None  # it may have been below
        else:
            os.unlink(leaf, dir_fd=directory)

    # -- making -----------------------------------------------------------------------------

    def _create(
        self, directory: int, leaf: str, name: str, entry: Entry, content: TarBytes
    ) -> None:
        match entry.kind:
            case Kind.FILE:
                self._create_file(directory, leaf, entry, content)
            case Kind.DIRECTORY:
                os.mkdir(leaf, 0o700, dir_fd=directory)
                self._set_directory(directory, leaf, name, entry)
            case Kind.HARDLINK:
                self._create_link(directory, leaf, entry)
            case Kind.SYMLINK:
                os.symlink(entry.link, leaf, dir_fd=directory)
                os.chown(leaf, *self._owner_of(entry), dir_fd=directory, follow_symlinks=False)
                times = entry.mtime_ns, entry.mtime_ns
                os.utime(leaf, ns=times, dir_fd=directory, follow_symlinks=False)
            case Kind.CHARACTER | Kind.BLOCK | Kind.FIFO:
                kind = _DEVICES[entry.kind]
                device = os.makedev(entry.major, entry.minor)
                os.mknod(leaf, kind | 0o600, device, dir_fd=directory)
                self._set_node(directory, leaf, kind, entry)

    def _create_file(self, directory: int, leaf: str, entry: Entry, content: TarBytes) -> None:
        fd = os.open(leaf, _CREATE, 0o600, dir_fd=directory)
        try:
            for view in content.views(entry.size):
                rest = view
                while rest:
                    rest = rest[os.write(fd, rest) :]
            self._set_attributes(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _create_link(self, directory: int, leaf: str, entry: Entry) -> None:
        """Another name for what this directory has: the source is named as an entry is."""
        target = _inside(entry.link, f"entry {entry.name!r}: hard link target")
        parent, _, source = target.rpartition("/")
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            above = paths.open_inside(self._root, f"{self._directory}/{parent}", flags)
        except NotFound:
            raise _no_target(entry) from None
        try:
            os.link(source, leaf, src_dir_fd=above, dst_dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            raise _no_target(entry) from None
        finally:
            os.close(above)

    def _set_directory(self, directory: int, leaf: str, name: str, entry: Entry) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(leaf, flags, dir_fd=directory)
        try:
            self._set_attributes(fd, entry)
        finally:
            os.close(fd)
        self._times[name] = entry.mtime_ns

    def _set_node(self, directory: int, leaf: str, kind: int, entry: Entry) -> None:
        fd = os.open(leaf, _HELD, dir_fd=directory)
        try:
            if stat.S_IFMT(os.fstat(fd).st_mode) == kind:
                os.chown(_itself(fd), *self._owner_of(entry))
                os.chmod(_itself(fd), entry.mode)
                os.utime(_itself(fd), ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _set_attributes(self, fd: int, entry: Entry) -> None:
        os.fchown(fd, *self._owner_of(entry))
        os.fchmod(fd, entry.mode)  # after chown, which clears setuid
        for key, value in rules.kept_xattrs(entry).items():
            try:
                os.setxattr(fd, key, value)
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise

    def _owner_of(self, entry: Entry) -> Owner:
        return (entry.uid, entry.gid) if self._owner is None else self._owner


def _inside(name: str, what: str) -> str:
    """A name below the directory, cleaned; "" is the directory. Raises: InvalidArgument."""
    if "\0" in name:
        raise InvalidArgument(f"{what} {name!r} contains a NUL byte")
    clean = posixpath.normpath(name.lstrip("/") or ".")
    if clean == ".." or clean.startswith("../"):
        raise InvalidArgument(f"{what} {name!r} is outside of the directory it is unpacked into")
    return "" if clean == "." else clean


def _look(directory: int, leaf: str) -> os.stat_result | None:
    try:
        return os.stat(leaf, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _itself(fd: int) -> str:
    """The thing behind an O_PATH descriptor, whatever has its name by now."""
    return f"/proc/self/fd/{fd}"


def _no_target(entry: Entry) -> InvalidArgument:
    return InvalidArgument(f"entry {entry.name!r}: hard link target {entry.link!r} is not there")
