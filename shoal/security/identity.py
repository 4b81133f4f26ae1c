"""A node's certificate, key and roots, and their three files under `<state>/identity`.

`node.crt`, `node.key` (0600) and `ca.crt` always belong together. They are replaced as a set: the
new files are written and synced in `next/`, one rename to `commit/` makes them the truth, then
each is moved into place. A crash in between is repaired on the next read: `commit/` is moved on,
`next/` is dropped. The writer and its readers are different processes, so each locks the directory.
On a locked manager `node.key` is encrypted with the node's lock key (`shoal.security.lock`).
Files that are damaged, missing or do not fit each other are refused with the remedy; nothing is
ever guessed. All functions that touch files block: call them off the loop.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from typing_extensions import override

from shoal.clock import NS_PER_S
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, SwarmError
from shoal.security.keys import decrypt_key, encrypt_key, is_encrypted, load_key
from shoal.security.lock import LOCKED_TEXT, LockKey, LockKeys
from shoal.security.roles import PeerIdentity
from shoal.security.root import BACKDATE_S
from shoal.security.trust import TrustBundle, load_certificate
from shoal.security.unlock import Locked

CERTIFICATE_FILE = "node.crt"
KEY_FILE = "node.key"
ROOT_FILE = "ca.crt"
RENEW_FRACTION_MIN = 0.5
RENEW_FRACTION_MAX = 0.8
_FILES = {CERTIFICATE_FILE: 0o644, KEY_FILE: 0o600, ROOT_FILE: 0o644}
_FILE_BYTES_MAX = 64 * 1024
_KEY_PURPOSE = "shoal node key v1"
_REMEDY = "restore the identity directory from a backup, or let the node leave and join again"


class NodeIdentity(msgspec.Struct, frozen=True):
    """Who this node is. Make it with `make_identity`, which checks that the parts fit."""

    peer: PeerIdentity
    certificate_pem: bytes
    key_pem: bytes
    root_pem: bytes
    not_before_ns: int
    not_after_ns: int

    def renew_at_ns(self, fraction: float) -> int:
        """When to renew: `fraction` (0.5 to 0.8, drawn at random) into the validity, wall time."""
        if not RENEW_FRACTION_MIN <= fraction <= RENEW_FRACTION_MAX:
            raise InvalidArgument(
                f"fraction: must be {RENEW_FRACTION_MIN} to {RENEW_FRACTION_MAX}, is {fraction}"
            )
        # What lies before the issue was never usable; a certificate of an hour would be renewed
        # over and over if it counted.
        start_ns = self.not_before_ns + BACKDATE_S * NS_PER_S
        if start_ns >= self.not_after_ns:
            start_ns = self.not_before_ns
        return start_ns + int((self.not_after_ns - start_ns) * fraction)

    def with_roots(self, root_pem: bytes) -> NodeIdentity:
        """The same certificate, believing these roots. Raises Unauthenticated if none issued it."""
        return make_identity(self.certificate_pem, self.key_pem, root_pem)

    @override
    def __repr__(self) -> str:
        return f"NodeIdentity({self.peer!r})"


def make_identity(certificate_pem: bytes, key_pem: bytes, root_pem: bytes) -> NodeIdentity:
    """Check that certificate, key and roots belong together.

    Raises InvalidArgument or Unauthenticated, naming the part that does not fit.
    """
    certificate = load_certificate(certificate_pem)
    if certificate.public_key() != load_key(key_pem).public_key():
        raise InvalidArgument("the private key does not belong to the certificate")
    return NodeIdentity(
        peer=TrustBundle(root_pem).identify(certificate),
        certificate_pem=certificate_pem,
        key_pem=key_pem,
        root_pem=root_pem,
        not_before_ns=int(certificate.not_valid_before_utc.timestamp()) * NS_PER_S,
        not_after_ns=int(certificate.not_valid_after_utc.timestamp()) * NS_PER_S,
    )


def write_identity(
    state_dir: Path, identity: NodeIdentity, lock_key: LockKey | None = None
) -> None:
    """Replace the node's identity on disk, durably and as a whole.

    lock_key: encrypts the private key.
    """
    directory = state_dir / "identity"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_pem = identity.key_pem
    if lock_key is not None:
        key_pem = encrypt_key(key_pem, _passphrase(lock_key))
    with _locked(directory):
        _replace(directory, identity, key_pem)
    _sync_directory(state_dir)


def _replace(directory: Path, identity: NodeIdentity, key_pem: bytes) -> None:
    _finish(directory)
    contents = {
        CERTIFICATE_FILE: identity.certificate_pem,
        KEY_FILE: key_pem,
        ROOT_FILE: identity.root_pem,
    }
    next_dir = directory / "next"
    next_dir.mkdir(mode=0o700)
    for name, content in contents.items():
        _write_synced(next_dir / name, content, _FILES[name])
    _sync_directory(next_dir)
    next_dir.rename(directory / "commit")
    _sync_directory(directory)
    _finish(directory)


def read_identity(state_dir: Path, lock_keys: LockKeys | None = None) -> NodeIdentity:
    """The identity on disk, after repairing an interrupted `write_identity`.

    lock_keys: one of them opens the private key if it is encrypted.
    Raises NotFound if the node has none, Locked if a lock key is needed and none was given,
    FailedPrecondition if the files are damaged, do not belong together, or the key is readable by
    others. An expired certificate is not an error here: look at `not_after_ns`.
    """
    lock_keys = lock_keys or LockKeys()
    directory = state_dir / "identity"
    try:
        with _locked(directory):
            _finish(directory)
            return _read_all(directory, lock_keys)
    except FileNotFoundError:
        return _read_all(directory, lock_keys)  # there is no directory: it says so


def _read_all(directory: Path, lock_keys: LockKeys) -> NodeIdentity:
    missing = [name for name in _FILES if not (directory / name).is_file()]
    if len(missing) == len(_FILES):
        raise NotFound(
            f"no node identity in {directory}: the node is in no cluster yet; "
            "create one with `swarmctl init` or enter one with `swarmctl join`"
        )
    if missing:
        raise FailedPrecondition(f"{directory}: {', '.join(missing)} is missing; {_REMEDY}")
    _check_private(directory / KEY_FILE)
    certificate_pem, key_pem, root_pem = (_read(directory / name) for name in _FILES)
    if is_encrypted(key_pem):
        key_pem = _decrypted(key_pem, lock_keys, directory / KEY_FILE)
    try:
        return make_identity(certificate_pem, key_pem, root_pem)
    except SwarmError as error:
        raise FailedPrecondition(f"{directory}: {error}; {_REMEDY}") from error


def _decrypted(key_pem: bytes, lock_keys: LockKeys, path: Path) -> bytes:
    if not lock_keys.all:
        raise Locked(LOCKED_TEXT)
    opened = (decrypt_key(key_pem, _passphrase(key)) for key in lock_keys.all)
    found = next(filter(None, opened), None)
    if found is None:
        raise FailedPrecondition(f"{path}: not encrypted with this node's lock key; {_REMEDY}")
    return found


def _passphrase(lock_key: LockKey) -> bytes:
    # No salt here: PKCS#8 has its own for each writing.
    return lock_key.derive(salt=b"", purpose=_KEY_PURPOSE).hex().encode()


def remove_identity(state_dir: Path) -> None:
    """Forget the identity (the node left its cluster). Nothing happens if there is none."""
    directory, removed = state_dir / "identity", state_dir / "identity.removed"
    if removed.is_dir():
        shutil.rmtree(removed)  # an earlier removal that was interrupted
    if directory.is_dir():
        with _locked(directory):
            directory.rename(removed)  # all three files go at once
        _sync_directory(state_dir)
        shutil.rmtree(removed)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes out. Raises FileNotFoundError if there is no directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _finish(directory: Path) -> None:
    """Bring an interrupted write to its end: forward if it was committed, back if not."""
    next_dir, commit_dir = directory / "next", directory / "commit"
    if next_dir.is_dir():
        shutil.rmtree(next_dir)
    if commit_dir.is_dir():
        for name in _FILES:
            if (commit_dir / name).exists():
                (commit_dir / name).replace(directory / name)
        _sync_directory(directory)
        commit_dir.rmdir()


def _write_synced(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise FailedPrecondition(
            f"{path}: mode {mode:04o} lets others read the private key: `chmod 600 {path}`, and "
            "let the node leave and join again if someone may have read it"
        )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise FailedPrecondition(f"{path}: larger than {_FILE_BYTES_MAX} bytes; {_REMEDY}")
    return content
