"""Byte layouts: netlink attributes, nft keys and the ruleset's version."""

from __future__ import annotations

import errno
import socket
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.network import skeleton
from worker.network.api import Endpoint, NetworkSettings
from worker.network.netlink import NetlinkError, attr, attributes, iterate, nested, text, u32
from worker.network.nft import (
    endpoint_value,
    parse_endpoint,
    parse_port_key,
    parse_slot_key,
    placed_key,
    port_key,
    slot_key,
)

PORTS = st.integers(1, 65535)
SETTINGS = NetworkSettings(
    index=1, subnet="10.240.4.0/22", underlay_address="192.0.2.1", run_dir="/run/nowhere"
)


@given(st.lists(st.tuples(st.integers(1, 16000), st.binary(max_size=40)), max_size=8))
def test_attributes_round_trip_and_are_padded(items: list[tuple[int, bytes]]) -> None:
    packed = b"".join(attr(kind, payload) for kind, payload in items)
    assert len(packed) % 4 == 0
    assert list(iterate(packed)) == items
    assert attributes(nested(7, packed)) == {7: packed}


@given(st.binary(max_size=64))
def test_parsing_survives_any_bytes(junk: bytes) -> None:
    assert sum(len(payload) for _kind, payload in iterate(junk)) <= len(junk)


def test_scalars() -> None:
    assert u32(3, 1) == struct.pack("=HHI", 8, 3, 1)
    assert text(1, "ab") == struct.pack("=HH", 7, 1) + b"ab\0\0"


def test_nft_keys_have_the_layout_the_kernel_expects() -> None:
    assert slot_key(6, 8080, 5) == b"\x06\0\0\0" + b"\x1f\x90\0\0" + struct.pack("=I", 5)
    assert endpoint_value(Endpoint("10.0.0.1", 80)) == b"\x0a\0\0\x01" + b"\0\x50\0\0"
    six = endpoint_value(Endpoint("fd53::1", 80))
    assert six == b"\xfd\x53" + bytes(13) + b"\x01" + b"\0\x50\0\0"
    assert port_key(17, 53) == b"\x11\0\0\0" + b"\0\x35\0\0"


@given(st.sampled_from([6, 17]), PORTS, st.integers(0, 1023))
def test_nft_keys_round_trip(protocol: int, port: int, slot: int) -> None:
    assert parse_slot_key(slot_key(protocol, port, slot)) == (protocol, port, slot)
    assert parse_port_key(port_key(protocol, port)) == (protocol, port)
    for endpoint in (Endpoint("10.1.2.3", port), Endpoint("fd53:686f:616c::a01:203", port)):
        assert parse_endpoint(endpoint_value(endpoint)) == endpoint


def test_a_netlink_error_keeps_number_place_and_reason() -> None:
    error = NetlinkError(errno.EEXIST, "it is there", 3)
    assert (error.errno, error.index) == (errno.EEXIST, 3)
    assert "it is there" in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"data_path_port": 7790},
        {"mark_shift": 16},
        {"subnet": "10.240.8.0/22"},
        {"underlay_address": "192.0.2.2"},
    ],
)
def test_the_rulesets_version_follows_what_is_in_its_text(changes: dict[str, object]) -> None:
    version = skeleton.version_of(SETTINGS)
    assert version == skeleton.version_of(SETTINGS)
    assert f'comment "{version}"' in skeleton.render(SETTINGS, {})
    assert skeleton.version_of(msgspec.structs.replace(SETTINGS, **changes)) != version


def test_elements_are_carried_over_as_text() -> None:
    mac = bytes.fromhex("02fe0af00801")
    rendered = skeleton.render(
        SETTINGS,
        {
            "slots": {slot_key(6, 8080, 5): endpoint_value(Endpoint("10.0.0.1", 80))},
            "slots6": {slot_key(6, 8080, 5): endpoint_value(Endpoint("fd53::1", 80))},
            "nodes6": {socket.inet_pton(socket.AF_INET6, "2001:db8::9"): b""},
            "self6": {socket.inet_pton(socket.AF_INET6, "fd53::1") * 2: b""},
            "nodes": {b"\xc0\0\x02\x09": b""},
            "node_mac": {mac: struct.pack("=I", 2 << 20)},
            "node_zone": {mac: struct.pack("=H", 2)},
            "pub": {port_key(6, 8080): b""},
            "pub_at": {placed_key("192.0.2.7", port_key(6, 8081)): b""},
            "by_node_at6": {placed_key("2001:db8::7", port_key(17, 53)): b""},
            "slots_at6": {
                placed_key("2001:db8::7", slot_key(17, 53, 9)): endpoint_value(
                    Endpoint("fd53::2", 53)
                )
            },
        },
    )
    for line in (
        "elements = { 6 . 8080 . 5 : 10.0.0.1 . 80 }",
        "elements = { 6 . 8080 . 5 : fd53::1 . 80 }",
        "elements = { 2001:db8::9 }",
        "elements = { fd53::1 . fd53::1 }",
        "elements = { 192.0.2.9 }",
        "elements = { 02:fe:0a:f0:08:01 : 2097152 }",
        "elements = { 02:fe:0a:f0:08:01 : 2 }",
        "elements = { 6 . 8080 }",
        "elements = { 192.0.2.7 . 6 . 8081 }",
        "elements = { 2001:db8::7 . 17 . 53 }",
        "elements = { 2001:db8::7 . 17 . 53 . 9 : fd53::2 . 53 }",
    ):
        assert line in rendered
