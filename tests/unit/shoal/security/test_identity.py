"""The identity files: written as a set, repaired after a crash, refused when they do not fit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from shoal.security.identity import (
    make_identity,
    read_identity,
    remove_identity,
    write_identity,
)
from shoal.security.keys import make_csr, make_key
from shoal.security.lock import LockKey, LockKeys
from shoal.security.roles import Role
from shoal.security.root import RootCA
from shoal.security.unlock import Locked
from tests.unit.shoal.security.support import DAY_NS, NOW_NS, a_node, a_peer

ROOT = RootCA.create(now_ns=NOW_NS)
OLD = a_node(ROOT)
NEW = a_node(ROOT, Role.MANAGER)


class Crash(BaseException):
    """The power goes."""


def test_what_was_written_is_read(tmp_path: Path):
    write_identity(tmp_path, OLD)
    assert read_identity(tmp_path) == OLD
    write_identity(tmp_path, NEW)
    assert read_identity(tmp_path) == NEW
    assert sorted(os.listdir(tmp_path / "identity")) == ["ca.crt", "node.crt", "node.key"]


def test_the_key_is_for_its_owner_only(tmp_path: Path):
    write_identity(tmp_path, OLD)
    mode = (tmp_path / "identity" / "node.key").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700


@pytest.mark.parametrize("step", range(40))
def test_a_crash_at_any_step_leaves_the_old_or_the_new(tmp_path: Path, step: int, monkeypatch):
    write_identity(tmp_path, OLD)
    calls = iter(range(step))

    def dying(real):
        def call(*args, **kwargs):
            if next(calls, None) is None:
                raise Crash
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "mkdir", "rmdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        for name in ("rename", "replace", "mkdir", "rmdir"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        try:
            write_identity(tmp_path, NEW)
            finished = True
        except Crash:
            finished = False
    found = read_identity(tmp_path)
    assert found == NEW if finished else found in (OLD, NEW)
    write_identity(tmp_path, OLD)
    assert read_identity(tmp_path) == OLD


def test_without_files_the_node_is_in_no_cluster(tmp_path: Path):
    with pytest.raises(NotFound, match="swarmctl join"):
        read_identity(tmp_path)


@pytest.mark.parametrize("name", ["node.crt", "node.key", "ca.crt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    write_identity(tmp_path, OLD)
    (tmp_path / "identity" / name).unlink()
    with pytest.raises(FailedPrecondition, match=f"{name} is missing"):
        read_identity(tmp_path)


@pytest.mark.parametrize("name", ["node.crt", "node.key", "ca.crt"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 500, b"x" * 100_000])
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path: Path, name: str, content: bytes):
    write_identity(tmp_path, OLD)
    (tmp_path / "identity" / name).write_bytes(content)
    with pytest.raises(FailedPrecondition, match="leave and join again"):
        read_identity(tmp_path)


def test_a_key_others_can_read_is_refused(tmp_path: Path):
    write_identity(tmp_path, OLD)
    (tmp_path / "identity" / "node.key").chmod(0o640)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        read_identity(tmp_path)


def test_a_foreign_key_is_refused(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="does not belong"):
        make_identity(OLD.certificate_pem, make_key(), OLD.root_pem)
    write_identity(tmp_path, OLD)
    (tmp_path / "identity" / "node.key").write_bytes(NEW.key_pem)
    with pytest.raises(FailedPrecondition, match="does not belong"):
        read_identity(tmp_path)


def test_a_foreign_root_is_refused():
    other = RootCA.create(now_ns=NOW_NS)
    with pytest.raises(Unauthenticated, match="not issued by"):
        make_identity(OLD.certificate_pem, OLD.key_pem, other.certificate_pem)


def test_a_locked_key_opens_with_a_lock_key_only(tmp_path: Path):
    key, other = LockKey.make(), LockKey.make()
    write_identity(tmp_path, OLD, key)
    raw = (tmp_path / "identity" / "node.key").read_bytes()
    assert raw.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert OLD.key_pem.splitlines()[1] not in raw
    with pytest.raises(Locked, match='use "swarmctl unlock"'):
        read_identity(tmp_path)
    with pytest.raises(FailedPrecondition, match="this node's lock key; restore"):
        read_identity(tmp_path, LockKeys(other))
    assert read_identity(tmp_path, LockKeys(key)) == OLD
    assert read_identity(tmp_path, LockKeys(other, (key,))) == OLD
    assert read_identity(tmp_path, LockKeys(None, (key,))) == OLD
    write_identity(tmp_path, OLD)
    assert read_identity(tmp_path) == OLD, "open again"
    assert read_identity(tmp_path, LockKeys(key)) == OLD, "a key that is not needed"


def test_removing_forgets_and_is_repeatable(tmp_path: Path):
    write_identity(tmp_path, OLD)
    remove_identity(tmp_path)
    remove_identity(tmp_path)
    with pytest.raises(NotFound):
        read_identity(tmp_path)


def test_an_interrupted_removal_is_still_a_removal(tmp_path: Path, monkeypatch):
    def dying(path: Path) -> None:
        raise Crash

    write_identity(tmp_path, OLD)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", dying)
        with pytest.raises(Crash):
            remove_identity(tmp_path)
    with pytest.raises(NotFound):
        read_identity(tmp_path)
    write_identity(tmp_path, NEW)
    remove_identity(tmp_path)
    assert os.listdir(tmp_path) == []


def test_renewal_lies_inside_the_validity():
    assert OLD.peer == a_peer(Role.WORKER)
    issued_ns = OLD.not_before_ns + 3600 * 10**9
    assert OLD.not_after_ns - issued_ns == 90 * DAY_NS
    assert OLD.renew_at_ns(0.5) == issued_ns + 45 * DAY_NS
    assert OLD.renew_at_ns(0.8) == issued_ns + 72 * DAY_NS
    with pytest.raises(InvalidArgument, match="fraction"):
        OLD.renew_at_ns(0.9)


def test_a_certificate_of_an_hour_is_not_due_at_once():
    key = make_key()
    made = ROOT.sign(make_csr(key), a_peer(), now_ns=NOW_NS, validity_s=3600)
    short = make_identity(made, key, ROOT.certificate_pem)
    assert NOW_NS + 1700 * 10**9 < short.renew_at_ns(0.5) < short.renew_at_ns(0.8)
    assert short.renew_at_ns(0.8) <= NOW_NS + 2880 * 10**9


def test_a_repr_shows_no_key():
    assert "PRIVATE" not in repr(OLD)
    assert OLD.key_pem.decode().splitlines()[1] not in repr(OLD)
