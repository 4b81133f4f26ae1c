"""The logger: one process that copies every container's output into bounded log files.

It loses nothing when it is killed: bytes are looked at with tee(2), written to the log file, and
only then taken out of the pipe. `position` says what was being written, so a restart neither drops
nor repeats a chunk. A line still being assembled stays in the pipe; clients that follow live have
seen it already (`copies`). Standard library and ctypes only; the format is documented in
docs/design/logs.md.

Refuses to lag for one container: each gets one chunk per turn. With no space left on the disk it
drops the chunk and says so, rather than stop the program that wrote it.
"""

from __future__ import annotations

import _json
import _signal  # type: ignore[import-not-found]
import _socket
import binascii
import ctypes
import errno
import gc
import os
import select
import struct
import time

from worker.logs import files
from worker.logs.copies import RESUME, Copies, received
from worker.logs.sinks import Sink

CHUNK_BYTES = 65536
PIECE_BYTES = 16384  # a longer line is written in pieces, all but the last without newline
LOG_END_FILE = "log.end"
STREAMS = ("stdout", "stderr")
POSITION_FILE = "position"

# pending, crc, file, offset, length, taken, -, last time, bytes taken before this chunk
_POSITION = struct.Struct("<BxxxIQQQIIQQ")
_SLOT_BYTES = 64
_LAST_NS = 7  # which field of it
_SPLICE_F_NONBLOCK = 2
_LINK_FD = 3
_ANCILLARY_BYTES = 64
_COMPLAINT_PERIOD_S = 60.0
_SECOND_NS = 1_000_000_000

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_libc.tee.restype = ctypes.c_ssize_t


class Stream:
    """One FIFO of one container."""

    __slots__ = ("ended", "fd", "log", "name", "number", "prefix", "taken")

    def __init__(self, log: ContainerLog, name: str, fd: int) -> None:
        self.log = log
        self.name = name
        self.number = STREAMS.index(name) + 1
        self.fd = fd
        self.ended = False  # nobody has the pipe open for writing any more
        self.taken = 0  # bytes, since the container was made
        self.prefix = f'","stream":"{name}",{log.attributes}"time":"'

    def held(self) -> int:
        """How many bytes wait in the pipe."""
        return len(peek(self.fd) or b"") if self.fd >= 0 else 0


class ContainerLog:
    """The log files of one container and the position record beside them."""

    def __init__(self, directory: str, run_ns: int = 0, epoll: select.epoll | None = None) -> None:
        """run_ns: when the run began whose output this is. epoll: for the way to a server."""
        self.directory = directory
        self.name = os.path.basename(directory)
        self.run_ns = run_ns
        self.exited = False
        conf = _read_json(f"{directory}/log.conf") or {}
        self.bytes_max: int = conf.get("max_size_bytes", 10 << 20)
        self.files_max: int = conf.get("max_files", 3)
        self.keeps_files: bool = conf.get("files", True)
        self.compresses: bool = conf.get("compress", False)
        self.attributes = _attributes(conf.get("attrs", {}))
        self.sink = Sink(self.name, conf["sink"], epoll) if epoll and "sink" in conf else None
        self.last_ns = 0
        self.sequence = max(files.sequences(directory), default=1)
        self._file = self._open()
        self._size = os.fstat(self._file).st_size
        self._position = os.open(
            f"{directory}/{POSITION_FILE}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        self.streams: list[Stream] = []
        self._complained_at_s = -_COMPLAINT_PERIOD_S

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(files.path_of(self.directory, self.sequence), flags, 0o640)

    def close(self) -> None:
        """Let go of every descriptor."""
        for fd in (self._file, self._position, *(s.fd for s in self.streams if s.fd >= 0)):
            os.close(fd)
        self.streams = []
        if self.sink is not None:
            self.sink.close()

    def append(self, stream: Stream, data: bytes) -> None:
        """Write lines as far as the file has room, then take just these from the pipe."""
        if not self.keeps_files:
            self._send(stream, data)
            _take(stream.fd, len(data))
            stream.taken += len(data)
            return
        entries, taken = self._entries(stream, data, self.bytes_max - self._size)
        if not taken:
            self._rotate()
            entries, taken = self._entries(stream, data, self.bytes_max)
        checksum = binascii.crc32(data[:taken])
        self._note(stream, 1, checksum, len(entries), taken)
        try:
            self._write(entries)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            self._complain(error)
        else:
            self._size += len(entries)
        self._send(stream, data[:taken])
        _take(stream.fd, taken)
        self._note(stream, 0, checksum, len(entries), taken)
        stream.taken += taken

    def _send(self, stream: Stream, data: bytes) -> None:
        if self.sink is not None:
            self.sink.put(stream.number, _pieces(data))

    def _entries(self, stream: Stream, data: bytes, room: int) -> tuple[bytes, int]:
        """Entries of at most `room` bytes, or one where a whole file is too small for it."""
        now_ns = max(time.time_ns(), self.last_ns + 1)
        quote, prefix = _json.encode_basestring, stream.prefix
        second, seconds = -1, ""
        entries: list[bytes] = []
        taken = used = 0
        for piece in _pieces(data):
            if now_ns // _SECOND_NS != second:
                second = now_ns // _SECOND_NS
                seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            text = quote(piece.decode("utf-8", "replace"))[:-1]
            entry = f'{{"log":{text}{prefix}{seconds}.{now_ns % _SECOND_NS:09d}Z"}}\n'.encode()
            used += len(entry)
            if used > room and (entries or room < self.bytes_max):
                break
            entries.append(entry)
            taken += len(piece)
            self.last_ns = now_ns
            now_ns += 1
        return b"".join(entries), taken

    def _write(self, entries: bytes) -> None:
        written = 0
        while written < len(entries):
            written += os.write(self._file, entries[written:])

    def _rotate(self) -> None:
        os.close(self._file)
        self.sequence += 1
        self._file = self._open()
        self._size = 0
        for sequence in files.sequences(self.directory):
            if sequence <= self.sequence - self.files_max:
                files.discard(self.directory, sequence)
        if self.compresses:
            files.compress_apart(self.directory, _LINK_FD)

    def _note(self, stream: Stream, pending: int, checksum: int, length: int, taken: int) -> None:
        record = _POSITION.pack(
            pending, checksum, self.sequence, self._size, length, taken, 0, self.last_ns,
            stream.taken,
        )  # fmt: skip
        os.pwrite(self._position, record, (stream.number - 1) * _SLOT_BYTES)

    def recover(self, stream: Stream) -> None:
        """Finish or undo the chunk that was in hand when an earlier logger died."""
        slot = os.pread(self._position, _POSITION.size, (stream.number - 1) * _SLOT_BYTES)
        if not slot:
            return
        fields = _POSITION.unpack(slot.ljust(_POSITION.size, b"\0"))
        pending, checksum, sequence, offset, length, taken, _, last_ns, stream.taken = fields
        self.last_ns = max(self.last_ns, last_ns)
        if not pending:
            stream.taken += taken
        if not pending or sequence != self.sequence:
            return
        if self._size < offset + length:
            os.ftruncate(self._file, offset)  # half written: still whole in the pipe
            self._size = offset
            taken = 0
        else:
            head = peek(stream.fd)
            whole = head is not None and len(head) >= taken
            if head and whole and binascii.crc32(head[:taken]) == checksum:
                _take(stream.fd, taken)
        self._note(stream, 0, checksum, length, taken)
        stream.taken += taken

    def mark_end(self) -> None:
        """Say that the log is complete."""
        path = f"{self.directory}/{LOG_END_FILE}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _complain(self, error: OSError) -> None:
        now_s = time.monotonic()
        if now_s - self._complained_at_s >= _COMPLAINT_PERIOD_S:
            self._complained_at_s = now_s
            files.complain(f"logger: {self.directory}: output dropped: {error}")


class Logger:
    """Watches the pipes of all containers."""

    def __init__(self, run_dir: str, state_dir: str) -> None:
        self._containers_dir = f"{state_dir}/containers"
        self._logs: dict[str, ContainerLog] = {}
        self._by_fd: dict[int, Stream] = {}
        self._ready: dict[int, Stream] = {}
        self._epoll = select.epoll()
        self._copies = Copies(self._epoll)
        self._inbox = _bind(f"{run_dir}/logger.sock")
        self._epoll.register(self._inbox.fileno(), select.EPOLLIN)

    def scan(self) -> None:
        """Pick up every container whose log is not complete."""
        for name in os.listdir(self._containers_dir):
            self._guarded_notice(name)

    def notice(self, name: str) -> None:
        """A container has started, ended or been removed: look at its record."""
        directory = f"{self._containers_dir}/{name}"
        record = _read_json(f"{directory}/state.json")
        if record is None:
            self._copies.drop(name)  # created and removed, or never there
            self._drop(name)
            return
        if record["state"] == "created" or os.path.exists(f"{directory}/{LOG_END_FILE}"):
            return
        known = self._logs.get(name)
        if known is not None and known.run_ns != record["started_at_ns"]:
            self._copies.finish(name)
            self._drop(name)
        if name not in self._logs:
            self._add(name, directory, record["started_at_ns"])
        if record["state"] == "exited":
            self._copies.ended(name)
            self._logs[name].exited = True
            for stream in self._logs[name].streams:
                stream.ended = True
                self._wake(stream)

    def _wake(self, stream: Stream) -> None:
        if stream.fd in self._by_fd:
            self._ready[stream.fd] = stream

    def _add(self, name: str, directory: str, run_ns: int) -> None:
        log = self._logs[name] = ContainerLog(directory, run_ns, self._epoll)
        for stream_name in STREAMS:
            path = f"{directory}/{stream_name}"
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stream = Stream(log, stream_name, fd)
            log.streams.append(stream)
            log.recover(stream)
            self._by_fd[fd] = stream
            self._ready[fd] = stream
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._copies.begin(name, log.streams, log.last_ns)

    def _drop(self, name: str) -> None:
        log = self._logs.pop(name, None)
        if log is not None:
            for stream in log.streams:
                self._forget(stream)
            log.close()

    def _forget(self, stream: Stream) -> None:
        if stream.fd >= 0:
            self._epoll.unregister(stream.fd)
            self._by_fd.pop(stream.fd, None)
            self._ready.pop(stream.fd, None)

    def run(self) -> None:
        """Serve until the keeper is gone."""
        self._epoll.register(_LINK_FD, select.EPOLLIN)
        while True:
            for fd, events in self._epoll.poll(self._timeout_s()):
                if fd == _LINK_FD:
                    return
                self._on_event(fd, events)
            for name in self._copies.cut_slow():
                self._resume(name)
            self._cut_sinks()
            for fd, stream in list(self._ready.items()):
                if not self._guarded_turn(stream):
                    self._ready.pop(fd, None)

    def _timeout_s(self) -> float:
        if self._ready:
            return 0
        waits = [self._copies.timeout_s(), *(sink.timeout_s() for sink in self._sinks())]
        return min((wait for wait in waits if wait >= 0), default=-1)

    def _sinks(self) -> list[Sink]:
        return [log.sink for log in self._logs.values() if log.sink is not None]

    def _cut_sinks(self) -> None:
        for sink in self._sinks():
            if sink.cut():
                self._resume(sink.container)

    def _on_event(self, fd: int, events: int) -> None:
        stream = self._by_fd.get(fd)
        if fd == self._inbox.fileno():
            self._read_inbox()
        elif stream is not None:
            stream.ended = stream.ended or bool(events & select.EPOLLHUP)
            self._ready[fd] = stream
        elif name := self._copies.on_event(fd, events):
            self._resume(name)
        else:
            for sink in self._sinks():
                if sink.fd == fd:
                    sink.flush()
                    self._resume(sink.container)

    def _resume(self, name: str) -> None:
        """Nobody needs to be waited for any more."""
        log = self._logs.get(name)
        for stream in log.streams if log is not None else ():
            self._wake(stream)

    def _read_inbox(self) -> None:
        """Names of containers; with a descriptor, who wants a live copy of which."""
        try:
            while True:
                text, ancillary, _, _ = self._inbox.recvmsg(256, _ANCILLARY_BYTES)
                fds = received(ancillary)
                request = text.decode("utf-8", "replace")
                self._guarded_notice(request.partition(" ")[0])
                if fds:
                    self._begin_copy(request, fds)
        except BlockingIOError:
            return

    def _begin_copy(self, request: str, fds: list[int]) -> None:
        name, *how = request.split(" ")
        log = self._logs.get(name)
        if not os.path.exists(f"{self._containers_dir}/{name}/state.json"):
            how = [RESUME, "0", "0"]  # removed: there is only an end to tell
        streams: list[Stream] = []
        if log is not None and (not log.exited or RESUME in how):
            streams = log.streams
        last_ns = log.last_ns if log else _last_ns(f"{self._containers_dir}/{name}")
        drains = log is not None and log.exited
        try:
            self._copies.accept(name, how, fds.pop(), streams, last_ns, drains=drains)
        except ValueError as error:
            os.write(2, f"logger: live copy: {request!r}: {error}\n".encode())
        finally:
            for fd in fds:
                os.close(fd)

    def _guarded_notice(self, name: str) -> None:
        try:
            self.notice(name)
        except FileNotFoundError:  # removed meanwhile
            self._copies.drop(name)
            self._drop(name)
        except OSError as error:
            os.write(2, f"logger: {name}: {error}\n".encode())
            self._drop(name)

    def _guarded_turn(self, stream: Stream) -> bool:
        try:
            return self._turn(stream)
        except OSError as error:  # its directory was removed under us
            os.write(2, f"logger: {stream.log.name}: {error}\n".encode())
            self._copies.finish(stream.log.name)
            self._drop(stream.log.name)
            return False

    def _turn(self, stream: Stream) -> bool:
        """Copy one chunk; True when there may be more to do now."""
        name = stream.log.name
        sink = stream.log.sink
        if stream.fd not in self._by_fd or self._copies.holds(name):
            return False
        if sink is not None and sink.holds():
            return False
        data = peek(stream.fd)
        if data is None:
            return False
        self._copies.show(name, stream.number, stream.taken, data)
        if not data:
            self._end(stream)
            return False
        whole = data if stream.ended and len(data) < CHUNK_BYTES else data[: _whole_bytes(data)]
        if not whole:
            return False
        stream.log.append(stream, whole)
        return True

    def _end(self, stream: Stream) -> None:
        log = stream.log
        self._forget(stream)
        os.close(stream.fd)
        stream.fd = -1
        if all(s.fd < 0 for s in log.streams):
            log.mark_end()
            log.close()
            self._logs.pop(log.name, None)
            self._copies.finish(log.name)
            self._copies.settled(log.name, log.last_ns)


def _last_ns(directory: str) -> int:
    """The time of the last entry of a log that is complete; 0 when there is none."""
    try:
        fd = os.open(f"{directory}/{POSITION_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        slots = [os.pread(fd, _POSITION.size, n * _SLOT_BYTES) for n in range(len(STREAMS))]
    finally:
        os.close(fd)
    times = [_POSITION.unpack(slot.ljust(_POSITION.size, b"\0"))[_LAST_NS] for slot in slots]
    return int(max(times))


def peek(fd: int) -> bytes | None:
    """What the pipe holds, left in it; b"" at end of file, None when it is empty for now."""
    count = _libc.tee(fd, _PEEK_WRITE, CHUNK_BYTES, _SPLICE_F_NONBLOCK)
    if count < 0:
        code = ctypes.get_errno()
        if code in (errno.EAGAIN, errno.EINTR):
            return None
        raise OSError(code, os.strerror(code), "tee")
    return os.read(_PEEK_READ, count) if count else b""


def _take(fd: int, count: int) -> None:
    while count > 0:
        count -= len(os.read(fd, count))


def _whole_bytes(data: bytes) -> int:
    """How many bytes may be written now: up to the last newline, or full pieces of a long line."""
    end = data.rfind(b"\n") + 1
    rest = len(data) - end
    return end + rest - rest % PIECE_BYTES


def _pieces(data: bytes) -> list[bytes]:
    pieces = []
    for line in data.splitlines(keepends=True) if b"\r" not in data else _lines(data):
        if len(line) <= PIECE_BYTES:
            pieces.append(line)
        else:
            pieces += [line[i : i + PIECE_BYTES] for i in range(0, len(line), PIECE_BYTES)]
    return pieces


def _lines(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _attributes(attributes: dict[str, str]) -> str:
    """What every entry of a log says besides its line; nothing, mostly."""
    if not attributes:
        return ""
    quote = _json.encode_basestring
    pairs = [f"{quote(key)}:{quote(text)}" for key, text in attributes.items()]
    return f'"attrs":{{{",".join(pairs)}}},'


def _read_json(path: str) -> Any:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        value, _ = _scan(os.read(fd, 1 << 20).decode(), 0)
    except (ValueError, StopIteration):
        return None
    finally:
        os.close(fd)
    return value


class _ScannerSettings:
    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float
    memo: dict[str, Any] = {}  # noqa: RUF012 - the C scanner wants the attribute


def _bind(path: str) -> _socket.socket:
    if os.path.exists(path):
        os.unlink(path)
    kind = _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
    sock = _socket.socket(_socket.AF_UNIX, kind, 0)
    mask = os.umask(0o177)
    sock.bind(path)
    os.umask(mask)
    return sock


_scan = _json.make_scanner(_ScannerSettings())  # type: ignore[arg-type]
_PEEK_READ, _PEEK_WRITE = os.pipe2(os.O_CLOEXEC)


def main(run_dir: str, state_dir: str) -> None:
    """Serve until the keeper is gone."""
    os.set_inheritable(_LINK_FD, False)
    logger = Logger(run_dir, state_dir)
    logger.scan()
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # nobody waits for those that compress
    gc.collect()
    gc.freeze()
    logger.run()
