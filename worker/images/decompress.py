"""Turn an archive's raw bytes into tar bytes, whichever of five ways it is packed.

The packing is told by its first bytes, never by a file name. Output comes in bounded pieces
whatever the ratio, so a decompression bomb meets the caller's byte limit before it meets memory.
Several gzip members or zstd frames in a row are one stream. Bytes after the last one are refused,
except zero padding. Refuses an end in the middle.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from enum import Enum
from typing import Protocol, cast

from isal import igzip_lib

from shoal.errors import InvalidArgument

if sys.version_info >= (3, 14):  # pragma: no cover
    from compression import zstd
else:
    from backports import zstd

RAW_CHUNK_BYTES = 256 * 1024
PIECE_BYTES = 1024 * 1024
_LZMA_MEMORY_BYTES_MAX = 256 * 1024 * 1024
_IGZIP_ERROR = cast("type[Exception]", igzip_lib.IsalError)  # its stub says: an instance
_ZSTD_WINDOW_LOG_MAX = 27  # 128 MiB, what every zstd decoder accepts by default


class Packing(Enum):
    """How the tar is packed."""

    PLAIN = "plain"
    GZIP = "gzip"
    ZSTD = "zstd"
    XZ = "xz"
    BZIP2 = "bzip2"


_MAGIC = (
    (b"\x1f\x8b\x08", Packing.GZIP),
    (b"\x28\xb5\x2f\xfd", Packing.ZSTD),
    (b"\xfd7zXZ\x00", Packing.XZ),
    (b"BZh", Packing.BZIP2),
)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def detect(head: bytes) -> Packing:
    """The packing whose mark `head` (at least 6 bytes, or the whole archive) begins with."""
    for magic, packing in _MAGIC:
        if head.startswith(magic):
            return packing
    return Packing.PLAIN


class Unpacker:
    """Pull tar bytes out of a raw byte source.

    read_raw: returns the next bytes, at most its argument; empty at the end.
    """

    def __init__(self, read_raw: Callable[[int], bytes]) -> None:
        self._read_raw = read_raw
        self._pending = self._head()
        self.packing = detect(self._pending)
        self._decoder = None if self.packing is Packing.PLAIN else _decoder(self.packing)

    def read(self) -> bytes:
        """The next piece, at most about 1 MiB; empty exactly once everything was delivered."""
        if self._decoder is None:
            piece = self._pending or self._read_raw(RAW_CHUNK_BYTES)
            self._pending = b""
            return piece
        try:
            return self._read_packed(self._decoder)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._corrupt(str(error)) from error
        except (zstd.ZstdError, _IGZIP_ERROR) as error:
            raise self._corrupt(str(error)) from error

    def _read_packed(self, decoder: _Decompressor) -> bytes:
        while True:
            if decoder.eof:
                following = self._next_member(decoder)
                if following is None:
                    return b""
                self._decoder = decoder = following
            if not self._pending and decoder.needs_input:
                self._pending = self._read_raw(RAW_CHUNK_BYTES)
                if not self._pending:
                    raise InvalidArgument(
                        f"archive is truncated: its {self.packing.value} stream has no end"
                    )
            data, self._pending = self._pending, b""
            piece = decoder.decompress(data, PIECE_BYTES)
            if piece:
                return piece

    def _next_member(self, decoder: _Decompressor) -> _Decompressor | None:
        rest = self._pending or decoder.unused_data
        self._pending = b""
        while True:
            rest = rest.lstrip(b"\0")
            if len(rest) >= 6:
                break
            more = self._read_raw(RAW_CHUNK_BYTES)
            if not more:
                break
            rest += more
        if not rest:
            self._decoder = _Finished()
            return None
        if detect(rest) is not self.packing:
            raise self._corrupt("other data follows its end")
        self._pending = rest
        return _decoder(self.packing)

    def _head(self) -> bytes:
        head = b""
        while len(head) < 6:
            more = self._read_raw(RAW_CHUNK_BYTES)
            if not more:
                break
            head += more
        return head

    def _corrupt(self, detail: str) -> InvalidArgument:
        return InvalidArgument(f"archive is corrupt: its {self.packing.value} stream: {detail}")


class _Finished:
    """Stands behind the last member: at its end, with nothing left."""

    eof = True
    needs_input = False
    unused_data = b""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        del data, max_length
        return b""


def _decoder(packing: Packing) -> _Decompressor:
    match packing:
        case Packing.GZIP:
            return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        case Packing.ZSTD:
            options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG_MAX}
            return zstd.ZstdDecompressor(options=options)
        case Packing.XZ:
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY_BYTES_MAX)
        case Packing.BZIP2:
            return bz2.BZ2Decompressor()
        case Packing.PLAIN:
            raise ValueError("a plain tar needs no decoder")
