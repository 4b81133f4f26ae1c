"""Durations, sizes and CPU counts: grammar, and round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from swarmctl.parsing import units

INT64 = st.integers(min_value=0, max_value=units.INT64_MAX)


@given(INT64)
def test_a_printed_duration_reads_back(duration_ns):
    assert units.parse_duration(units.format_duration(duration_ns)) == duration_ns


@given(st.integers(min_value=0, max_value=10**15))
def test_a_printed_cpu_count_reads_back(nano_cpus):
    assert units.parse_cpus(units.format_cpus(nano_cpus)) == nano_cpus


@given(st.integers(min_value=0, max_value=2**20), st.sampled_from(["k", "m", "g", "t"]))
def test_sizes_are_binary(count, unit):
    factor = 1024 ** ("kmgt".index(unit) + 1)
    for spelling in (unit, unit.upper(), f"{unit}b", f"{unit}iB"):
        assert units.parse_bytes(f"{count}{spelling}") == count * factor


@given(st.text(alphabet="0123456789.hmsunµ -", max_size=12))
def test_any_text_is_a_duration_or_refused(text):
    try:
        duration_ns = units.parse_duration(text)
    except InvalidArgument:
        return
    assert 0 <= duration_ns <= units.INT64_MAX


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("5s", 5_000_000_000),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("1h30m", 5_400_000_000_000),
        ("2160h0m0s", 7_776_000_000_000_000),
        ("100ms", 100_000_000),
        ("7us", 7_000),
        ("7µs", 7_000),
        ("1.0000000001s", 1_000_000_000),
    ],
)
def test_durations(text, expected):
    assert units.parse_duration(text) == expected


@pytest.mark.parametrize(
    ("duration_ns", "expected"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5us"),
        (250_000_000, "250ms"),
        (1_500_000_000, "1.5s"),
        (90_000_000_000, "1m30s"),
        (7_776_000_000_000_000, "2160h0m0s"),
        (-1_000_000_000, "-1s"),
    ],
)
def test_durations_are_printed_as_go_does(duration_ns, expected):
    assert units.format_duration(duration_ns) == expected


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5x", "1h-3m", "9999999999h"])
def test_no_durations(text):
    with pytest.raises(InvalidArgument):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("4096", 4096), ("64m", 64 << 20), ("1.5GiB", 3 << 29), ("10 MB", 10 << 20)],
)
def test_sizes(text, expected):
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "m", "-1m", "1x", "1mm", "9999999t"])
def test_no_sizes(text):
    with pytest.raises(InvalidArgument):
        units.parse_bytes(text)


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1e9", "0.0000000001", "two"])
def test_no_cpu_counts(text):
    with pytest.raises(InvalidArgument):
        units.parse_cpus(text)


@pytest.mark.parametrize(
    ("size", "binary", "decimal"),
    [
        (0, "0B", "0B"),
        (1023, "1023B", "1.02kB"),
        (64 << 20, "64MiB", "67.1MB"),
        (25_276_502_016, "23.54GiB", "25.3GB"),
        (1_990_000, "1.898MiB", "1.99MB"),
    ],
)
def test_sizes_for_people(size, binary, decimal):
    assert units.format_binary_size(size) == binary
    assert units.format_decimal_size(size) == decimal
