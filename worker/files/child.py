"""The process that works inside a container's root: `python -m worker.files.child JOB PID FD`.

PID: of the parent, whose death ends it. FD: where answers go.

Whatever touches the container's files happens here, so that the event loop never waits for a disk,
a hostile tar meets a process that dies with its job, and mounts made for the job vanish with it.
Speaks `jobs`. Everything it needs is imported before the first path of a container is followed.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable

from shoal.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    SwarmError,
    Unimplemented,
)
from worker.files import changes, jobs, paths, places
from worker.files.copying import Copier
from worker.files.packing import Packer
from worker.files.placing import Owner, Placer
from worker.files.survey import survey
from worker.images.decompress import Unpacker
from worker.images.model import UnpackLimits
from worker.images.tarstream import TarBytes, entries
from worker.runtime.lean import linux
from worker.runtime.lean.accounts import find_account

OUTPUT_BYTES = 256 << 10
ACCOUNTS_BYTES_MAX = 4 << 20
CHANGES_AT_ONCE = 1000
_PR_SET_PDEATHSIG = 1

Tell = Callable[[jobs.Answer], None]


def main() -> int:
    """Do the one job and answer it. Exit status 0 means that the last answer was written."""
    linux.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        return 1
    os.umask(0)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    job, answers = jobs.decode_job(sys.argv[1]), int(sys.argv[3])

    def tell(answer: jobs.Answer) -> None:
        _write_all(answers, jobs.encode_answer(answer) + b"\n")

    try:
        _do(job, tell)
        tell(jobs.Done())
    except SwarmError as error:
        tell(jobs.Failed(error.code.value, error.message))
    except OSError as error:
        refused = _from_os_error(error)
        tell(jobs.Failed(refused.code.value, refused.message))
    return 0


def _do(job: jobs.Job, tell: Tell) -> None:
    match job:
        case jobs.StatJob():
            _stat(job, tell)
        case jobs.ReadJob():
            _read(job, tell)
        case jobs.WriteJob():
            _write(job)
        case jobs.CopyJob():
            tell(jobs.Copied(_copy(job)))
        case jobs.SurveyJob():
            root = places.open_root(job.place)
            sources = survey(root, job.wanted, archives=job.archives)
            for at in range(0, len(sources), CHANGES_AT_ONCE):
                tell(jobs.Surveyed(sources[at : at + CHANGES_AT_ONCE]))
        case jobs.ChangesJob():
            found = changes.find_changes(job.upper, job.layers)
            for at in range(0, len(found), CHANGES_AT_ONCE):
                tell(jobs.Changed(found[at : at + CHANGES_AT_ONCE]))


def _stat(job: jobs.StatJob, tell: Tell) -> None:
    path = paths.parse(job.path)
    root = places.open_root(job.place)
    tell(paths.describe(root, paths.open_path(root, path), path))


def _read(job: jobs.ReadJob, tell: Tell) -> None:
    path = paths.parse(job.path)
    root = places.open_root(job.place)
    fd = paths.open_path(root, path)
    found = paths.describe(root, fd, path)
    if stat.S_ISSOCK(found.mode):
        raise InvalidArgument(f"{path.clean}: a socket cannot be put into a tar")
    tell(found)
    output = _Output()
    packer = Packer(output.write)
    if job.content_only:
        packer.pack_content(fd)
    else:
        packer.pack(fd, path.name)
    packer.finish()
    output.flush()


def _copy(job: jobs.CopyJob) -> bool:
    """Whether something was made. The source is opened first: both may be overlays."""
    source = -1 if job.place is None else places.open_root(job.place)
    target = places.open_root(job.target)
    owner = _owner(target, job.owner)
    copier = Copier(source, target, owner)
    if not job.sources:
        return copier.make_directory(job.destination)
    for one in job.sources:
        copier.copy(one, job.destination)
    return True


def _write(job: jobs.WriteJob) -> None:
    path = paths.parse(job.path)
    root = places.open_root(job.place)
    target = paths.open_inside(root, path.clean, linux.O_PATH)
    if not stat.S_ISDIR(os.fstat(target).st_mode):
        raise InvalidArgument("extraction point is not a directory")
    _check_writable(job.place, root, target)
    limits = UnpackLimits()
    unpacker = Unpacker(lambda count: os.read(0, count))
    tar = TarBytes(unpacker.read, bytes_max=limits.unpacked_bytes_max, hashed=False)
    placer = Placer(root, path.clean, keep_kinds=job.keep_kinds, owner=_owner(root, job.owner))
    for entry in entries(tar, limits, open_end=True):
        try:
            placer.place(entry, tar)
        except OSError as error:
            refused = _from_os_error(error)
            raise type(refused)(f"entry {entry.name[:200]!r}: {refused.message}") from None
    placer.finish()
    tar.drain()


def _check_writable(place: jobs.Place, root: int, target: int) -> None:
    if not os.fstatvfs(target).f_flag & os.ST_RDONLY:
        return
    what = "container rootfs" if _mount_id(root) == _mount_id(target) else "mounted volume"
    if isinstance(place, jobs.RestPlace) and what == "container rootfs" and not place.read_only:
        raise ResourceExhausted(  # it is mounted so when its work directory cannot be made
            f"{what}: no space left on device: enlarge the disk, then try again"
        )
    raise InvalidArgument(f"{what} is marked read-only")


def _mount_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(line for line in file if line.startswith("mnt_id:"))


def _owner(root: int, user: str) -> Owner | None:
    """The ids of a user of the container. Raises: InvalidArgument."""
    if not user:
        return None
    passwd, group = _accounts(root, "/etc/passwd"), _accounts(root, "/etc/group")
    try:
        account = find_account(user, [], passwd=passwd, group=group)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    return account.uid, account.gid


def _accounts(root: int, path: str) -> str:
    """A small regular file of the container, or nothing."""
    try:
        held = paths.open_inside(root, path, linux.O_PATH)
    except SwarmError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(held).st_mode):
            return ""
        with open(f"/proc/self/fd/{held}", "rb") as file:
            return file.read(ACCOUNTS_BYTES_MAX).decode("utf-8", "replace")
    finally:
        os.close(held)


class _Output:
    """Standard output, written in large pieces."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        if len(self._held) + len(data) <= OUTPUT_BYTES:
            self._held += data
            return
        self.flush()
        if len(data) < OUTPUT_BYTES:
            self._held += data
        else:
            _write_all(1, data)

    def flush(self) -> None:
        _write_all(1, self._held)
        self._held = bytearray()


def _write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _from_os_error(error: OSError) -> SwarmError:
    what = f"{error.filename}: " if isinstance(error.filename, str) else ""
    text = f"{what}{(error.strerror or str(error)).lower()}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"{text}: remove files or enlarge the disk, then try again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return PermissionDenied(text)
    if error.errno == errno.EBUSY:
        return FailedPrecondition(text)
    if error.errno == errno.ENOSYS:
        return Unimplemented(f"{text}: the kernel must be Linux 5.12 or later")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return InvalidArgument(text)
    return Internal(text)


if __name__ == "__main__":
    sys.exit(main())
