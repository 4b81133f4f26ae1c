"""`--publish`: the short form `[published:]target[/protocol]`, ranges, and the long form.

A host address is refused rather than dropped: a published port listens on every address of the
node, and nobody should believe otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Final, TypeVar

from shoal.errors import InvalidArgument
from shoal.model.enums import PortProtocol, PublishMode, PublishPreference, PublishSource
from shoal.model.types import PortConfig
from swarmctl.parsing.fields import required, split_fields
from swarmctl.parsing.words import spell

PORT_MAX = 65_535

Target = tuple[int, PortProtocol, PublishMode]

_PROTOCOLS = {"tcp": PortProtocol.TCP, "udp": PortProtocol.UDP}
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
    left, colon, right = ports.rpartition(":")
    if ":" in left or left.startswith("["):
        raise InvalidArgument(
            f"{text!r}: a published port listens on every address of the node: "
            "leave the host address out, as in 8080:80"
        )
    targets = _range(right, text)
    if 0 in targets:
        raise InvalidArgument(f"{text!r}: the target port must be from 1 to {PORT_MAX}")
    published = _range(left, text) if colon else range(0)
    if not published:
        return tuple(PortConfig(protocol=protocol, target_port=target) for target in targets)
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
}
"""Keys of the long form: the field, and what reads it."""
