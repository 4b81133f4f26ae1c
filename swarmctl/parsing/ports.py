"""`--publish`: the short form `[[ip:]published:]target[/protocol]`, ranges, and the long form.

An address is never dropped, as docker does: nobody should believe that a port answers only there
when it answers everywhere. `0.0.0.0` and `::` mean every address, of both families.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from ipaddress import ip_address
from typing import Final, TypeVar

from shoal.docker.words import spell
from shoal.errors import InvalidArgument
from shoal.model.enums import PortProtocol, PublishMode, PublishPreference, PublishSource
from shoal.model.types import PortConfig
from swarmctl.parsing.fields import required, split_fields

PORT_MAX = 65_535

Target = tuple[int, PortProtocol, PublishMode]

_PROTOCOLS = {"tcp": PortProtocol.TCP, "udp": PortProtocol.UDP, "sctp": PortProtocol.SCTP}
_LABEL_PREFIX = "node.labels."
_EnumT = TypeVar("_EnumT", bound=IntEnum)


def parse_publish(text: str) -> tuple[PortConfig, ...]:
    """The ports of one `--publish` value; a range gives several."""
    return (_parse_long(text),) if "=" in text else _parse_short(text)


def format_port(port: PortConfig) -> str:
    """A port in the long form, which `parse_publish` reads back."""
    fields = {
        "published": str(port.published_port or ""),
        "target": str(port.target_port),
        "protocol": spell(port.protocol),
        "mode": spell(port.publish_mode),
        "sticky": "true" if port.sticky else "",
        "source": spell(port.source) if port.source else "",
        "prefer": spell(port.prefer) if port.prefer else "",
        "ip": port.address,
        "interface": port.interface,
        "weight": f"{_LABEL_PREFIX}{port.weight_label}" if port.weight_label else "",
    }
    return ",".join(f"{key}={word}" for key, word in fields.items() if word)


def parse_targets(text: str) -> tuple[Target, ...]:
    """What `--publish-rm` takes: target ports, alone or within a `--publish` value."""
    return tuple(dict.fromkeys(target_of(port) for port in parse_publish(text)))


def target_of(port: PortConfig) -> Target:
    """What a port is removed by; as in docker the mode belongs to it."""
    return port.target_port, port.protocol, port.publish_mode


def _parse_short(text: str) -> tuple[PortConfig, ...]:
    ports, slash, protocol_name = text.partition("/")
    protocol = _protocol(protocol_name) if slash else PortProtocol.TCP
    head, colon, right = ports.rpartition(":")
    host, _, left = head.rpartition(":")
    if ":" in host and not host.startswith("["):
        raise InvalidArgument(f"{text!r}: an IPv6 address stands in brackets, as in [::1]:80:80")
    address = _address(host) if host else ""
    targets = _range(right, text)
    if 0 in targets:
        raise InvalidArgument(f"{text!r}: the target port must be from 1 to {PORT_MAX}")
    published = _range(left, text) if colon and (left or not host) else range(0)
    if not published:
        return tuple(
            PortConfig(protocol=protocol, target_port=target, address=address) for target in targets
        )
    if len(targets) not in (1, len(published)):
        raise InvalidArgument(
            f"invalid ranges specified for container and host Ports: {right} and {left}: "
            "make them equally long, or give one target port"
        )
    return tuple(
        PortConfig(
            protocol=protocol,
            target_port=targets[index % len(targets)],
            published_port=port,
            address=address,
        )
        for index, port in enumerate(published)
    )


def _parse_long(text: str) -> PortConfig:
    port = PortConfig()
    for key, value in split_fields(text):
        if key not in _KEYS:
            raise InvalidArgument(f"{text!r}: unknown key {key!r}: the keys are {', '.join(_KEYS)}")
        field, read = _KEYS[key]
        port = port.replaced(**{field: read(required(value, key=key))})
    if not port.target_port:
        raise InvalidArgument(f"{text!r}: target is missing, as in target=80")
    return port


def _range(text: str, whole: str) -> range:
    first, dash, last = text.partition("-")
    start = _number(first, whole, least=0)
    end = _number(last, whole, least=0) if dash else start
    if end < start:
        raise InvalidArgument(f"{whole!r}: the range {text} ends before it starts")
    return range(start, end + 1)


def _single(word: str, key: str, *, least: int) -> int:
    """A port of the long form, which as in docker has no ranges."""
    if word.isascii() and word.isdigit():
        return _number(word, f"{key}={word}", least=least)
    raise InvalidArgument(
        f"invalid {key} port ({word}): value must be an integer: "
        "for a range use the short form, as in 8080-8085:80-85"
    )


def _number(text: str, whole: str, *, least: int) -> int:
    if text.isascii() and text.isdigit() and least <= int(text) <= PORT_MAX:
        return int(text)
    raise InvalidArgument(f"{whole!r}: {text!r} is not a port from {least} to {PORT_MAX}")


def _protocol(name: str) -> PortProtocol:
    if name.lower() in _PROTOCOLS:
        return _PROTOCOLS[name.lower()]
    raise InvalidArgument(f"protocol {name!r} is not supported: use {' or '.join(_PROTOCOLS)}")


def _address(text: str) -> str:
    """An IP address as the control API wants it; "" for one that means every address."""
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ip_address(inside)
    except ValueError:
        raise InvalidArgument(f"invalid IP address: {text}") from None
    return "" if address.is_unspecified else str(address)


def _label(text: str) -> str:
    name = text.removeprefix(_LABEL_PREFIX)
    if name in ("", text):
        raise InvalidArgument(f"weight {text!r} must be a label of nodes, as in node.labels.size")
    return name


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise InvalidArgument(f"sticky is true or false, not {word!r}")
    return word.lower() == "true"


def _member(members: type[_EnumT], key: str) -> Callable[[str], _EnumT]:
    """Reads a member of an enum by its word."""
    words = {spell(member): member for member in members}

    def read(word: str) -> _EnumT:
        if word.lower() in words:
            return words[word.lower()]
        raise InvalidArgument(f"{key} {word!r} is unknown: use {' or '.join(words)}")

    return read


_KEYS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "target": ("target_port", partial(_single, key="target", least=1)),
    "published": ("published_port", partial(_single, key="published", least=0)),
    "protocol": ("protocol", _protocol),
    "mode": ("publish_mode", _member(PublishMode, "mode")),
    "sticky": ("sticky", _truth),
    "source": ("source", _member(PublishSource, "source")),
    "prefer": ("prefer", _member(PublishPreference, "prefer")),
    "ip": ("address", _address),
    "host_ip": ("address", _address),
    "interface": ("interface", str),
    "weight": ("weight_label", _label),
}
"""Keys of the long form: the field, and what reads it."""

_WORDS: Final = {
    "protocol": tuple(_PROTOCOLS),
    "mode": tuple(map(spell, PublishMode)),
    "sticky": ("true", "false"),
    "source": tuple(map(spell, PublishSource)),
    "prefer": tuple(map(spell, PublishPreference)),
}


def suggestions(incomplete: str) -> list[str]:
    """What the long form may go on with: keys that are not there yet, words of a key."""
    before, comma, last = incomplete.rpartition(",")
    key, equals, typed = last.partition("=")
    if equals:
        words = (word for word in _WORDS.get(key, ()) if word.startswith(typed))
        return [f"{before}{comma}{key}={word}" for word in words]
    there = {field.partition("=")[0] for field in before.split(",")}
    return [f"{before}{comma}{one}=" for one in _KEYS if one.startswith(last) and one not in there]
