"""The tar reader against tarfile, and against damage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from worker.images.decompress import Packing, Unpacker
from worker.images.model import UnpackLimits
from worker.images.tarstream import Kind, TarBytes, entries

LIMITS = UnpackLimits()

PACKERS = {
    Packing.PLAIN: lambda data: data,
    Packing.GZIP: lambda data: gzip.compress(data, mtime=0),
    Packing.ZSTD: zstd.compress,
    Packing.XZ: lzma.compress,
    Packing.BZIP2: bz2.compress,
}


def read(packed, *, limits=LIMITS, bytes_max=1 << 30):
    unpacker = Unpacker(io.BytesIO(packed).read)
    source = TarBytes(unpacker.read, bytes_max=bytes_max)
    found = [
        (entry, b"".join(bytes(view) for view in source.views(entry.size)))
        for entry in entries(source, limits)
    ]
    source.drain()
    return found


def made(members, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content, mtime in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid = len(content), mtime, 70_000
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)),
    min_size=1, max_size=60,
)  # fmt: skip
MEMBERS = st.lists(
    st.tuples(NAMES, st.binary(max_size=2000), st.integers(-(2**33), 2**33)), max_size=5
)


@settings(max_examples=60)
@given(MEMBERS, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_reads_what_tarfile_writes(members, form):
    found = read(made(members, form))
    assert [(e.name, content, e.mtime_ns // 10**9) for e, content in found] == members
    assert all(e.kind is Kind.FILE and e.uid == 70_000 for e, _ in found)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_fractions(form):
    name = "/".join(["d" * 90] * 4)
    found = read(made([(name, b"x", 1.5)], form))
    assert found[0][0].name == name
    if form == tarfile.PAX_FORMAT:
        assert found[0][0].mtime_ns == 1_500_000_000


@pytest.mark.parametrize("packing", list(Packing))
def test_every_packing_is_told_by_content(packing):
    packed = PACKERS[packing](made([("a", b"x" * 3_000_000, 0)]))
    unpacker = Unpacker(io.BytesIO(packed).read)
    assert unpacker.packing is packing
    assert read(packed)[0][1] == b"x" * 3_000_000


@pytest.mark.parametrize("packing", list(Packing))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_every_cut_is_noticed(packing, share):
    packed = PACKERS[packing](made([("a", bytes(range(256)) * 40, 0), ("b", b"y" * 9000, 0)]))
    if packing is Packing.PLAIN:
        packed = packed.rstrip(b"\0")
    with pytest.raises(InvalidArgument):
        read(packed[: int(len(packed) * share)])


def test_missing_end_marker_is_a_cut():
    plain = made([("a", b"x" * 512, 0)])
    with pytest.raises(InvalidArgument, match="end-of-archive"):
        read(plain[:1024])


@pytest.mark.parametrize("packing", [p for p in Packing if p is not Packing.PLAIN])
def test_bombs_meet_the_limit_before_memory(packing):
    packed = PACKERS[packing](made([("zeros", bytes(50_000_000), 0)]))
    with pytest.raises(InvalidArgument, match="more than 3000000 bytes"):
        read(packed, bytes_max=3_000_000)


def test_foreign_data_behind_gzip_is_refused_but_padding_is_not():
    packed = gzip.compress(made([("a", b"x", 0)]))
    assert len(read(packed + bytes(700))) == 1
    with pytest.raises(InvalidArgument, match="other data"):
        read(packed + b"surprise")


def test_several_gzip_members_are_one_stream():
    plain = made([("a", b"x" * 5000, 0)])
    assert len(read(gzip.compress(plain[:3000]) + gzip.compress(plain[3000:]))) == 1


def test_limits_on_entries_and_headers():
    plain = made([(f"f{i}", b"", 0) for i in range(5)])
    with pytest.raises(InvalidArgument, match="more than 4 entries"):
        read(plain, limits=UnpackLimits(entries_max=4))
    with pytest.raises(InvalidArgument, match="extended header"):
        read(made([("n" * 3000, b"", 0)]), limits=UnpackLimits(header_bytes_max=1000))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda b: b"", "empty"),
        (lambda b: b"hello world" * 100, "not a tar"),
        (lambda b: b[:100] + b"junkjunk" + b[108:], "checksum"),
        (lambda b: b[:156] + b"S" + b[157:], "checksum"),
    ],
)
def test_damage_is_named(damage, why):
    with pytest.raises(InvalidArgument, match=why):
        read(damage(made([("a", b"x", 0)])))


def test_sparse_files_are_refused_by_name():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("holes")
        info.pax_headers = {"GNU.sparse.major": "1"}
        archive.addfile(info)
    with pytest.raises(InvalidArgument, match="'holes' is a sparse file"):
        read(out.getvalue())


@settings(max_examples=150)
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=12))
def test_flipped_bytes_never_crash(at, junk):
    plain = bytearray(made([("n" * 150, b"x" * 700, 5), ("b", b"y", 1)]))
    plain[at : at + len(junk)] = junk
    with contextlib.suppress(InvalidArgument):
        read(bytes(plain))


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_an_end_without_marker_is_accepted_where_that_is_said(size):
    whole = made([("a", b"x" * size, 0)], tarfile.USTAR_FORMAT)
    for cut in {512 + size, 512 + size + -size % 512}:
        source = TarBytes(io.BytesIO(whole[:cut]).read, bytes_max=1 << 20)
        names = []
        for entry in entries(source, LIMITS, open_end=True):
            source.skip(entry.size)
            names.append(entry.name)
        assert names == ["a"]
        with pytest.raises(InvalidArgument, match="truncated"):
            read(whole[:cut])
    if size:
        source = TarBytes(io.BytesIO(whole[: 512 + size - 1]).read, bytes_max=1 << 20)
        entry = next(entries(source, LIMITS, open_end=True))
        with pytest.raises(InvalidArgument, match="inside an entry's content"):
            source.skip(entry.size)
