"""The child process that reads archives: `python -m worker.images.child JOB PARENT_PID`.

Everything that touches an archive's content happens here, so that the worker's event loop never
waits and a hostile archive meets a process that is chroot()ed into the directory it fills and dies
with the worker. Speaks `jobs`. Leaves half-made output behind on failure: its parent removes the
whole job directory.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from isal import isal_zlib

from shoal.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    SwarmError,
)
from worker.images import jobs, rules
from worker.images.apply import Applier
from worker.images.decompress import Packing, Unpacker
from worker.images.model import UnpackLimits
from worker.images.packing import pack_upper
from worker.images.tarstream import Entry, Kind, TarBytes, entries

_PR_SET_PDEATHSIG = 1
_SPACE_CHECK_BYTES = 16 * 1024 * 1024
_SPACE_CHECK_ENTRIES = 2048
_COPY_BYTES = 1024 * 1024
_MEDIA_TYPES = {
    Packing.PLAIN: "application/vnd.oci.image.layer.v1.tar",
    Packing.GZIP: "application/vnd.oci.image.layer.v1.tar+gzip",
    Packing.ZSTD: "application/vnd.oci.image.layer.v1.tar+zstd",
}
_GZIP_LEVEL = 1
_GZIP_WBITS = 31


def main() -> int:
    """Do the one job and answer it. Exit status 0 means an answer was written."""
    _die_with_parent()
    os.umask(0)
    answer: jobs.Answer
    try:
        answer = _do(jobs.decode_job(sys.argv[1]))
    except SwarmError as error:
        answer = jobs.Failed(code=error.code.value, message=error.message)
    except OSError as error:
        refused = _from_os_error(error)
        answer = jobs.Failed(code=refused.code.value, message=refused.message)
    except MemoryError:
        answer = jobs.Failed(code="resource_exhausted", message="out of memory while unpacking")
    payload = memoryview(jobs.encode_answer(answer))
    while payload:
        payload = payload[os.write(1, payload) :]
    return 0


def _do(job: jobs.Job) -> jobs.Answer:
    match job:
        case jobs.UnpackJob():
            return _unpack(job)
        case jobs.SplitJob():
            return _split(job)
        case jobs.PackJob():
            return _pack(job)


class _RawArchive:
    """Standard input, counted, bounded, hashed, and copied to the kept blob if there is one."""

    def __init__(self, limits: UnpackLimits) -> None:
        self._limits = limits
        self._hash = hashlib.sha256()
        self.total = 0
        self.copy: Callable[[bytes], None] | None = None

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count`; empty at the end."""
        chunk = os.read(0, count)
        self.total += len(chunk)
        if self.total > self._limits.archive_bytes_max:
            raise InvalidArgument(
                f"archive has more than {self._limits.archive_bytes_max} bytes, the limit on this"
                " node: raise archive_bytes_max if it is trusted"
            )
        self._hash.update(chunk)
        if self.copy is not None:
            self.copy(chunk)
        return chunk

    def drain(self) -> None:
        """Read what the decompressor did not ask for."""
        while self.read(_COPY_BYTES):
            pass

    def digest(self) -> str:
        """sha256 of everything read."""
        return f"sha256:{self._hash.hexdigest()}"


class _Space:
    """Refuses to go on when the disk runs low, before the kernel says it is full."""

    def __init__(self, directory: str, reserve_bytes: int) -> None:
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._reserve_bytes = reserve_bytes
        self._next_bytes = 0
        self._next_entry = 0

    def check(self, *, written_bytes: int, upcoming_bytes: int, entry: int = 0) -> None:
        """Look at the disk every 16 MiB or 2048 entries. Raises ResourceExhausted.

        written_bytes includes the upcoming entry's, which must leave the reserve untouched.
        """
        if written_bytes < self._next_bytes and entry < self._next_entry:
            return
        self._next_bytes = written_bytes + _SPACE_CHECK_BYTES
        self._next_entry = entry + _SPACE_CHECK_ENTRIES
        found = os.fstatvfs(self._fd)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes - upcoming_bytes < self._reserve_bytes:
            raise ResourceExhausted(
                f"image store: {free_bytes} bytes are free, {upcoming_bytes} are needed next and"
                f" {self._reserve_bytes} must remain: remove images or enlarge the disk"
            )


# -- one layer ------------------------------------------------------------------------------


def _unpack(job: jobs.UnpackJob) -> jobs.Unpacked:
    raw = _RawArchive(job.limits)
    space = _Space(job.destination, job.limits.free_bytes_reserve) if job.destination else None
    blob = _KeptBlob(job.keep_blob) if job.keep_blob else None
    if job.destination:
        _enter(job.destination)
    unpacker = Unpacker(_head_kept(raw, blob))
    tar = TarBytes(unpacker.read, bytes_max=job.limits.unpacked_bytes_max)
    if blob is not None:
        blob.attach(raw, tar, unpacker.packing)
    counts, implied = _apply_all(tar, job, space)
    tar.drain()
    raw.drain()
    if blob is None:
        blob_digest, blob_bytes, packing = raw.digest(), raw.total, unpacker.packing
    else:
        blob_digest, blob_bytes, packing = blob.close(raw)
    return jobs.Unpacked(
        diff_id=tar.digest(),
        blob_digest=blob_digest,
        blob_bytes=blob_bytes,
        media_type=_MEDIA_TYPES.get(packing, ""),
        unpacked_bytes=counts.content_bytes,
        entries=counts.entries,
        implied=implied,
    )


class _Counts:
    """What a layer held."""

    entries = 0
    content_bytes = 0

    def add(self, entry: Entry) -> None:
        """Count one entry."""
        self.entries += 1
        self.content_bytes += entry.size


def _apply_all(
    tar: TarBytes, job: jobs.UnpackJob, space: _Space | None
) -> tuple[_Counts, list[bytes]]:
    counts = _Counts()
    if space is None:
        for entry in entries(tar, job.limits):
            tar.skip(entry.size)
            counts.add(entry)
        return counts, []
    applier = Applier(job.limits)
    for entry in entries(tar, job.limits):
        counts.add(entry)
        space.check(
            written_bytes=tar.total + entry.size,
            upcoming_bytes=entry.size,
            entry=counts.entries,
        )
        _apply_one(applier, entry, tar)
    applier.finish()
    return counts, [os.fsencode(path) for path in applier.implied]


def _apply_one(applier: Applier, entry: Entry, tar: TarBytes) -> None:
    try:
        applier.apply(entry, tar)
    except OSError as error:
        refused = _from_os_error(error)
        raise type(refused)(f"entry {entry.name[:200]!r}: {refused.message}") from error


def _enter(destination: str) -> None:
    try:
        os.chroot(destination)
    except PermissionError:
        raise FailedPrecondition(
            "unpacking images needs root: layers are written in a chroot with their own owners"
        ) from None
    os.chdir("/")


def _head_kept(raw: _RawArchive, blob: _KeptBlob | None) -> Callable[[int], bytes]:
    """Until the packing is known, what is read is held back for the blob."""
    if blob is not None:
        raw.copy = blob.hold
    return raw.read


class _KeptBlob:
    """The form of the layer that is kept: as it came for plain, gzip and zstd, else as gzip."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._held: list[bytes] = []
        self._repacked_hash = hashlib.sha256()
        self._repacked_bytes = 0
        self._packing = Packing.PLAIN
        self._gzip: isal_zlib.Compress | None = None

    def hold(self, chunk: bytes) -> None:
        """Keep the first bytes until `attach`."""
        self._held.append(chunk)

    def attach(self, raw: _RawArchive, tar: TarBytes, packing: Packing) -> None:
        """Start copying: raw bytes where OCI knows the packing, else the tar packed anew."""
        self._packing = packing
        if packing in _MEDIA_TYPES:
            raw.copy = self._write
            for chunk in self._held:
                self._write(chunk)
        else:
            self._packing = Packing.GZIP
            self._gzip = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WBITS)
            raw.copy = None
            tar.on_piece = self._repack
        self._held = []

    def close(self, raw: _RawArchive) -> tuple[str, int, Packing]:
        """Finish. Result: the kept form's digest, size in bytes, and packing."""
        if self._gzip is None:
            os.close(self._fd)
            return raw.digest(), raw.total, self._packing
        self._write_repacked(self._gzip.flush())
        os.close(self._fd)
        return f"sha256:{self._repacked_hash.hexdigest()}", self._repacked_bytes, self._packing

    def _repack(self, piece: bytes) -> None:
        if self._gzip is not None:
            self._write_repacked(self._gzip.compress(piece))

    def _write_repacked(self, packed: bytes) -> None:
        self._repacked_hash.update(packed)
        self._repacked_bytes += len(packed)
        self._write(packed)

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


# -- an archive of images -------------------------------------------------------------------


def _split(job: jobs.SplitJob) -> jobs.Split:
    raw = _RawArchive(job.limits)
    space = _Space(job.destination, job.limits.free_bytes_reserve)
    tar = TarBytes(Unpacker(raw.read).read, bytes_max=job.limits.unpacked_bytes_max, hashed=False)
    members: dict[str, jobs.Member] = {}
    for count, entry in enumerate(entries(tar, job.limits)):
        name = rules.clean_name(entry.name)
        if entry.kind is Kind.DIRECTORY or not name:
            continue
        if count >= job.members_max:
            raise InvalidArgument(f"image archive has more than {job.members_max} files, the limit")
        if not name.isprintable():
            raise InvalidArgument(f"image archive: file name {name!r} is not printable text")
        space.check(written_bytes=tar.total + entry.size, upcoming_bytes=entry.size)
        members[name] = _member(job, entry, name, tar, file=f"m{count}")
    tar.drain()
    raw.drain()
    return jobs.Split(members=list(members.values()))


def _member(
    job: jobs.SplitJob, entry: Entry, name: str, tar: TarBytes, *, file: str
) -> jobs.Member:
    if entry.kind is Kind.FILE:
        return _write_member(job, name, tar, size=entry.size, file=file)
    if entry.kind is Kind.HARDLINK:
        return jobs.Member(name=name, link=rules.clean_name(entry.link, of=f"link of {name!r}"))
    if entry.kind is Kind.SYMLINK:
        return jobs.Member(name=name, link=_link_in_archive(name, entry.link))
    raise InvalidArgument(f"image archive: entry {name!r} is a {entry.kind.value}")


def _link_in_archive(name: str, link: str) -> str:
    """Where a symbolic link of the archive points, inside the archive (docker <= 20.10)."""
    parts = name.split("/")[:-1]
    for part in link.split("/"):
        if part in ("", "."):
            if link.startswith("/"):
                break
            continue
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            break
    else:
        return "/".join(parts)
    raise InvalidArgument(f"image archive: link {name!r} -> {link!r} leaves the archive")


def _write_member(
    job: jobs.SplitJob, name: str, tar: TarBytes, *, size: int, file: str
) -> jobs.Member:
    digest = hashlib.sha256()
    path = Path(job.destination) / file
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for view in tar.views(size):
            digest.update(view)
            rest = view
            while rest:
                rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)
    return jobs.Member(name=name, file=file, digest=f"sha256:{digest.hexdigest()}", size=size)


# -- a layer from what a container has changed ----------------------------------------------


def _pack(job: jobs.PackJob) -> jobs.Packed:
    space = _Space(os.path.dirname(job.blob), job.limits.free_bytes_reserve)
    packed = pack_upper(
        job.upper, job.blob, lambda size: space.check(written_bytes=size, upcoming_bytes=0)
    )
    return jobs.Packed(packed.diff_id, packed.digest, packed.size)


# -- the process ----------------------------------------------------------------------------


def _from_os_error(error: OSError) -> SwarmError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(
            f"image store: {reason}: remove images or enlarge the disk, then try again"
        )
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EILSEQ, errno.EMLINK):
        return InvalidArgument(f"the file system refuses it: {reason}")
    return Internal(f"image store: {reason}")


def _die_with_parent() -> None:
    """Be killed when the worker dies, even by SIGKILL: nobody would clean up after us."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(sys.argv[2]):
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
