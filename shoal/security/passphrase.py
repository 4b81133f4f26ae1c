"""A stream of bytes sealed with a passphrase, to be kept where others may read it.

scrypt makes two keys of the passphrase: one seals the content with AES-256-GCM in chunks of
64 KiB, the other the header, so that a wrong passphrase is told from damage. The nonce of a chunk
is its number and whether it is the last one, so no chunk can be dropped, moved or left out at the
end (the STREAM construction). Invariant: nothing is returned that was not verified. Refuses to
seal with a short passphrase. The format: docs/formats.md. Source: RFC 7914; Hoang, Reyhanitabar,
Rogaway, Vizár, *Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance* (2015).
"""

from __future__ import annotations

import hmac
import secrets
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from typing_extensions import override

from shoal.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

MAGIC = b"SHOALENC"
VERSION = 1
CHUNK_BYTES = 64 << 10
LENGTH_MIN = 8
LENGTH_MAX = 1024
COST = 17
"""log2 of scrypt's N: 128 MiB and about half a second for each try."""
COST_MAX = 20
"""More is refused when reading: a file must not choose how much memory is taken."""

_TAG_BYTES = 16
_KEY_BYTES = 32
_BLOCKS = 8
_CHUNKS_MAX = 1 << 32
# magic, version, log2 of scrypt's N, salt, beginning of every nonce
_HEAD = struct.Struct("<8sIB3x16s7sx")
_NONCE = struct.Struct(">7sI?")
HEADER_BYTES = _HEAD.size + _KEY_BYTES


def is_sealed(beginning: bytes) -> bool:
    """Whether a stream that begins so was sealed here; 8 bytes tell."""
    return beginning.startswith(MAGIC)


def check_passphrase(passphrase: str) -> None:
    """Raises InvalidArgument for one that is too short or too long, never quoting it."""
    if not LENGTH_MIN <= len(passphrase) <= LENGTH_MAX:
        raise InvalidArgument(
            f"passphrase: must have {LENGTH_MIN} to {LENGTH_MAX} characters, this has"
            f" {len(passphrase)}"
        )


class Sealer:
    """Seals one stream: `header`, then what `add` gives, then what `finish` gives."""

    def __init__(self, passphrase: str, *, cost: int = COST) -> None:
        """Takes as long as `COST` says. Raises: InvalidArgument as `check_passphrase`."""
        check_passphrase(passphrase)
        head = _HEAD.pack(MAGIC, VERSION, cost, secrets.token_bytes(16), secrets.token_bytes(7))
        self._keys = _Keys(passphrase, head)
        self._plain = bytearray()
        self.header = head + self._keys.header_tag

    def add(self, data: bytes) -> bytes:
        """The sealed bytes that can be written now."""
        self._plain += data
        sealed = bytearray()
        while len(self._plain) > CHUNK_BYTES:  # one chunk is kept: the last is marked as such
            sealed += self._keys.seal(bytes(self._plain[:CHUNK_BYTES]), is_last=False)
            del self._plain[:CHUNK_BYTES]
        return bytes(sealed)

    def finish(self) -> bytes:
        """The end. To be called once."""
        return self._keys.seal(bytes(self._plain), is_last=True)

    @override
    def __repr__(self) -> str:
        return "Sealer(...)"


class Opener:
    """Opens one stream that was sealed with the passphrase."""

    def __init__(self, passphrase: str) -> None:
        self._passphrase = passphrase
        self._keys: _Keys | None = None
        self._sealed = bytearray()

    def add(self, data: bytes) -> bytes:
        """The plain bytes that are known to be good by now.

        Raises: InvalidArgument for a wrong passphrase; FailedPrecondition for damage, and for what
        a newer version sealed.
        """
        self._sealed += data
        if self._keys is None:
            if len(self._sealed) < HEADER_BYTES:
                return b""
            self._keys = _opened(self._passphrase, bytes(self._sealed[:HEADER_BYTES]))
            del self._sealed[:HEADER_BYTES]
        plain = bytearray()
        size = CHUNK_BYTES + _TAG_BYTES
        while len(self._sealed) > size:
            plain += self._keys.open(bytes(self._sealed[:size]), is_last=False)
            del self._sealed[:size]
        return bytes(plain)

    def finish(self) -> bytes:
        """The last plain bytes, when all was given. Raises: FailedPrecondition for a cut stream."""
        if self._keys is None:
            raise _damaged()
        return self._keys.open(bytes(self._sealed), is_last=True)

    @override
    def __repr__(self) -> str:
        return "Opener(...)"


class _Keys:
    """The keys of one stream, and the number of the next chunk."""

    def __init__(self, passphrase: str, head: bytes) -> None:
        _, _, cost, salt, self._prefix = _HEAD.unpack(head)
        kdf = Scrypt(salt, 2 * _KEY_BYTES, n=1 << cost, r=_BLOCKS, p=1)
        keys = kdf.derive(passphrase.encode())
        self._content = AESGCM(keys[:_KEY_BYTES])
        self._head = head
        self._number = 0
        self.header_tag = hmac.digest(keys[_KEY_BYTES:], head, "sha256")

    def seal(self, plain: bytes, *, is_last: bool) -> bytes:
        return self._content.encrypt(self._nonce(is_last=is_last), plain, self._head)

    def open(self, sealed: bytes, *, is_last: bool) -> bytes:
        try:
            return self._content.decrypt(self._nonce(is_last=is_last), sealed, self._head)
        except InvalidTag:
            raise _damaged() from None

    def _nonce(self, *, is_last: bool) -> bytes:
        if self._number >= _CHUNKS_MAX:
            raise ResourceExhausted("sealed file: larger than 256 TiB")
        nonce = _NONCE.pack(self._prefix, self._number, is_last)
        self._number += 1
        return nonce


def _opened(passphrase: str, header: bytes) -> _Keys:
    head, tag = header[: _HEAD.size], header[_HEAD.size :]
    magic, version, cost, _, _ = _HEAD.unpack(head)
    if magic != MAGIC:
        raise InvalidArgument("sealed file: it does not begin like one")
    if version != VERSION:
        raise FailedPrecondition(
            f"sealed file: format {version}, this version reads {VERSION}: use the newer one"
        )
    if not 1 <= cost <= COST_MAX:
        raise _damaged()
    keys = _Keys(passphrase, head)
    if not hmac.compare_digest(keys.header_tag, tag):
        raise InvalidArgument("passphrase: it is not the one that the file was encrypted with")
    return keys


def _damaged() -> FailedPrecondition:
    return FailedPrecondition("sealed file: it is damaged or cut short: take another copy of it")
