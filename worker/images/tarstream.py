"""Read a tar as a stream of entries: ustar, pax, GNU long names, base-256 numbers.

About four times faster than `tarfile` on layers with many small files, and stricter: every header
carries a right checksum, extended headers are bounded, the end marker must be there (an archive
cut at an entry's edge looks whole otherwise), and what cannot be kept faithfully (sparse files,
unknown types) is refused with the entry's name. Says nothing about where entries may be written:
that is `rules` and `apply`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from enum import Enum

import msgspec

from shoal.errors import InvalidArgument
from worker.images.model import UnpackLimits

BLOCK = 512
_NS = 1_000_000_000
_TIME_NS_MAX = (1 << 40) * _NS
_XATTR_PREFIX = b"SCHILY.xattr."
_ZEROS = bytes(BLOCK)


class Kind(Enum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    CHARACTER = "character device"
    BLOCK = "block device"
    FIFO = "fifo"


_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.HARDLINK, b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER, b"4": Kind.BLOCK, b"5": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip


class Entry(msgspec.Struct, gc=False):
    """One entry as the tar has it: `name` and `link` unchecked, undecodable bytes as surrogates."""

    name: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: str
    major: int
    minor: int
    xattrs: dict[str, bytes]


class TarBytes:
    """The tar's bytes in order, counted, bounded and (when asked) hashed.

    read_piece: the next piece, empty at the end.
    """

    def __init__(
        self, read_piece: Callable[[], bytes], *, bytes_max: int, hashed: bool = True
    ) -> None:
        self._read_piece = read_piece
        self._bytes_max = bytes_max
        self._hash = hashlib.sha256() if hashed else None
        self._piece = b""
        self._at = 0
        self.total = 0
        self.on_piece: Callable[[bytes], None] | None = None

    def digest(self) -> str:
        """sha256 of everything read so far; after `drain` that is the whole tar: its diffID."""
        return f"sha256:{self._hash.hexdigest()}" if self._hash is not None else ""

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, fewer only at the end."""
        at = self._at
        taken = self._piece[at : at + count]
        self._at = at + len(taken)
        if len(taken) == count:
            return taken
        parts = [taken]
        missing = count - len(taken)
        while missing and self._fill():
            part = self._piece[:missing]
            self._at = len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def views(self, count: int) -> Iterator[memoryview]:
        """`count` bytes as slices of the buffer, without copying. Raises InvalidArgument if cut."""
        while count:
            if self._at == len(self._piece) and not self._fill():
                raise InvalidArgument("archive is truncated: it ends inside an entry's content")
            view = memoryview(self._piece)[self._at : self._at + count]
            self._at += len(view)
            count -= len(view)
            yield view

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        for _ in self.views(count):
            pass

    def at_end(self) -> bool:
        """Whether nothing more comes."""
        return self._at == len(self._piece) and not self._fill()

    def drain(self) -> None:
        """Read to the end: padding behind the end marker belongs to the digest."""
        while self._fill():
            pass
        self._at = len(self._piece)

    def _fill(self) -> bool:
        piece = self._read_piece()
        if not piece:
            return False
        self.total += len(piece)
        if self.total > self._bytes_max:
            raise InvalidArgument(
                f"archive unpacks to more than {self._bytes_max} bytes, the limit on this node:"
                " raise unpacked_bytes_max if it is trusted"
            )
        if self._hash is not None:
            self._hash.update(piece)
        if self.on_piece is not None:
            self.on_piece(piece)
        self._piece, self._at = piece, 0
        return True


def entries(source: TarBytes, limits: UnpackLimits, *, open_end: bool = False) -> Iterator[Entry]:
    """Every entry in order. The caller reads or skips exactly `entry.size` bytes in between.

    Padding is passed over here. open_end: the archive may stop after the last entry's content, as
    the docker command line writes one whose Dockerfile it put in. Raises InvalidArgument for
    anything malformed, truncated or beyond `limits.entries_max` and `limits.header_bytes_max`.
    """
    for count, entry in enumerate(_headers(source, limits, open_end=open_end), start=1):
        if count > limits.entries_max:
            raise InvalidArgument(f"archive has more than {limits.entries_max} entries, the limit")
        yield entry
        padding = -entry.size % BLOCK
        if padding and open_end and source.at_end():
            return
        source.skip(padding)


def _headers(source: TarBytes, limits: UnpackLimits, *, open_end: bool) -> Iterator[Entry]:
    shared: dict[bytes, bytes] = {}
    records: dict[bytes, bytes] = {}
    long_name: bytes | None = None
    long_link: bytes | None = None
    held = {b"g": 0}  # bytes of extended headers waiting for their entry; global ones for good
    while True:
        block = source.read(BLOCK)
        if block == _ZEROS or (open_end and not block and source.total):
            return
        _check_block(block, first=source.total <= len(block))
        flag = block[156:157]
        if flag in (b"x", b"X", b"g", b"L", b"K"):
            payload = _payload(source, block, limits)
            scope = b"g" if flag == b"g" else b""
            held[scope] = held.get(scope, 0) + len(payload)
            _check_held(held[scope], limits)
            if flag == b"L":
                long_name = payload.split(b"\0", 1)[0]
            elif flag == b"K":
                long_link = payload.split(b"\0", 1)[0]
            elif flag == b"g":
                shared.update(_pax_records(payload))
            else:
                records.update(_pax_records(payload))
            continue
        yield _entry(block, {**shared, **records} if shared or records else records,
                     long_name=long_name, long_link=long_link)  # fmt: skip
        records, long_name, long_link = {}, None, None
        held.pop(b"", None)


def _check_block(block: bytes, *, first: bool) -> None:
    if len(block) < BLOCK:
        if not block and first:
            raise InvalidArgument("archive is empty")
        if not block:
            raise InvalidArgument("archive is truncated: its end-of-archive marker is missing")
        raise InvalidArgument("archive is truncated or not a tar: it ends inside a header")
    unsigned = sum(block) - sum(block[148:156]) + 256
    stored = _octal(block[148:156], "checksum")
    if stored not in (unsigned, unsigned - 256 * sum(byte > 127 for byte in block)):
        raise InvalidArgument("archive is not a tar, or is corrupt: a header's checksum is wrong")


def _payload(source: TarBytes, block: bytes, limits: UnpackLimits) -> bytes:
    size = _number(block[124:136], "size of an extended header")
    _check_held(size, limits)
    payload = source.read(size)
    if len(payload) < size:
        raise InvalidArgument("archive is truncated: it ends inside an extended header")
    source.skip(-size % BLOCK)
    return payload


def _check_held(held_bytes: int, limits: UnpackLimits) -> None:
    if held_bytes > limits.header_bytes_max:
        raise InvalidArgument(
            f"an entry's extended headers have {held_bytes} bytes or more,"
            f" the limit is {limits.header_bytes_max}"
        )


def _entry(
    block: bytes,
    pax: dict[bytes, bytes],
    *,
    long_name: bytes | None,
    long_link: bytes | None,
) -> Entry:
    raw_name = pax.get(b"path", long_name)
    if raw_name is None:
        raw_name = block[0:100].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0" and block[345] != 0:
            raw_name = block[345:500].split(b"\0", 1)[0] + b"/" + raw_name
    raw_link = pax.get(b"linkpath", long_link)
    if raw_link is None:
        raw_link = block[157:257].split(b"\0", 1)[0]
    name = raw_name.decode("utf-8", "surrogateescape")
    kind = _kind(block[156:157], name, pax)
    size = _pax_int(pax, b"size", name, default=_number(block[124:136], f"size of {name!r}"))
    device = kind is Kind.CHARACTER or kind is Kind.BLOCK
    return Entry(
        name=name,
        kind=kind,
        mode=_number(block[100:108], f"mode of {name!r}") & 0o7777,
        uid=_owner(pax, b"uid", name, _number(block[108:116], f"uid of {name!r}")),
        gid=_owner(pax, b"gid", name, _number(block[116:124], f"gid of {name!r}")),
        size=size if kind is Kind.FILE else 0,
        mtime_ns=_mtime_ns(pax, name, _number(block[136:148], f"mtime of {name!r}", signed=True)),
        link=raw_link.decode("utf-8", "surrogateescape"),
        major=_number(block[329:337], f"device of {name!r}") if device else 0,
        minor=_number(block[337:345], f"device of {name!r}") if device else 0,
        xattrs=_xattrs(pax) if pax else {},
    )


def _kind(flag: bytes, name: str, pax: dict[bytes, bytes]) -> Kind:
    if flag == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax):
        raise InvalidArgument(
            f"entry {name!r} is a sparse file, which layers cannot carry: pack without --sparse"
        )
    kind = _KINDS.get(flag)
    if kind is None:
        raise InvalidArgument(f"entry {name!r} has unknown type {flag!r}")
    if kind is Kind.FILE and flag != b"7" and name.endswith("/"):
        return Kind.DIRECTORY  # before POSIX 1988 a trailing slash was the only mark
    return kind


def _xattrs(pax: dict[bytes, bytes]) -> dict[str, bytes]:
    return {
        key[len(_XATTR_PREFIX) :].decode("utf-8", "surrogateescape"): value
        for key, value in pax.items()
        if key.startswith(_XATTR_PREFIX)
    }


def _owner(pax: dict[bytes, bytes], key: bytes, name: str, default: int) -> int:
    owner = _pax_int(pax, key, name, default=default)
    if owner > 0xFFFFFFFE:
        raise InvalidArgument(f"entry {name!r}: {key.decode()} {owner} is not a user or group id")
    return owner


def _mtime_ns(pax: dict[bytes, bytes], name: str, default_s: int) -> int:
    text = pax.get(b"mtime")
    if text is None:
        return _clamped(default_s * _NS)
    negative = text.startswith(b"-")
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    digits = fraction[:9].ljust(9, b"0")
    if not whole.isdigit() or len(whole) > 18 or not digits.isdigit():
        raise InvalidArgument(f"entry {name!r}: mtime {text[:40]!r} is not a number of seconds")
    magnitude = int(whole) * _NS + int(digits)
    return _clamped(-magnitude if negative else magnitude)


def _clamped(time_ns: int) -> int:
    """Far beyond what any file system stores, yet within what utimensat takes; it clamps on."""
    return max(-_TIME_NS_MAX, min(time_ns, _TIME_NS_MAX))


def _pax_int(pax: dict[bytes, bytes], key: bytes, name: str, *, default: int) -> int:
    text = pax.get(key)
    if text is None:
        return default
    if not text.isdigit() or len(text) > 18:
        raise InvalidArgument(f"entry {name!r}: pax {key.decode()} {text[:40]!r} is not a number")
    return int(text)


def _pax_records(payload: bytes) -> dict[bytes, bytes]:
    """Parse `length key=value` records; an empty value removes nothing we would otherwise keep."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(payload) and payload[at] != 0:
        space = payload.find(b" ", at, at + 20)
        length = payload[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else 0
        if end <= space + 1 or end > len(payload) or payload[end - 1 : end] != b"\n":
            raise InvalidArgument("archive is corrupt: a pax header's record has a wrong length")
        key, equals, value = payload[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise InvalidArgument("archive is corrupt: a pax header's record has no key")
        records[key] = value
        at = end
    return records


def _number(field: bytes, what: str, *, signed: bool = False) -> int:
    if not field[0] & 0x80:
        return _octal(field, what)
    value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
    if field[0] & 0x40:
        value -= 1 << (8 * len(field) - 1)
    if (value < 0 and not signed) or value.bit_length() > 62:
        raise InvalidArgument(f"archive is corrupt: {what} is out of range")
    return value


def _octal(field: bytes, what: str) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    try:
        value = int(digits.split(b"\0", 1)[0], 8)
    except ValueError:
        raise InvalidArgument(f"archive is not a tar, or is corrupt: {what} is malformed") from None
    if value < 0:
        raise InvalidArgument(f"archive is corrupt: {what} is out of range")
    return value
