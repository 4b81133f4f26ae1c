"""`--publish`: the short form `[published:]target[/protocol]`, ranges, and the long form.

A host address is refused rather than dropped: a published port listens on every address of the
node, and nobody should believe otherwise.
"""

from __future__ import annotations

from shoal.errors import InvalidArgument
from shoal.model.enums import PortProtocol, PublishMode
from shoal.model.types import PortConfig
from swarmctl.parsing.fields import required, split_fields

PORT_MAX = 65_535

Target = tuple[int, PortProtocol, PublishMode]

_PROTOCOLS = {"tcp": PortProtocol.TCP, "udp": PortProtocol.UDP}
_MODES = {"ingress": PublishMode.INGRESS, "host": PublishMode.HOST}


def parse_publish(text: str) -> tuple[PortConfig, ...]:
    """The ports of one `--publish` value; a range gives several."""
    return (_parse_long(text),) if "=" in text else _parse_short(text)


def format_port(port: PortConfig) -> str:
    """A port in the long form, which `parse_publish` reads back."""
    published = f"published={port.published_port}," if port.published_port else ""
    return (
        f"{published}target={port.target_port},protocol={port.protocol.name.lower()},"
        f"mode={port.publish_mode.name.lower()}{',sticky=true' if port.sticky else ''}"
    )


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
        word = required(value, key=key)
        match key:
            case "target":
                port = port.replaced(target_port=_single(word, key, least=1))
            case "published":
                port = port.replaced(published_port=_single(word, key, least=0))
            case "protocol":
                port = port.replaced(protocol=_protocol(word))
            case "mode":
                port = port.replaced(publish_mode=_mode(word))
            case "sticky":
                port = port.replaced(sticky=_truth(word, text))
            case _:
                raise InvalidArgument(
                    f"{text!r}: unknown key {key!r}: the keys are target, published, "
                    "protocol, mode and sticky"
                )
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
    raise InvalidArgument(f"protocol {name!r} is not supported: use tcp or udp")


def _truth(word: str, whole: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise InvalidArgument(f"{whole!r}: sticky is true or false")
    return word.lower() == "true"


def _mode(name: str) -> PublishMode:
    if name.lower() in _MODES:
        return _MODES[name.lower()]
    raise InvalidArgument(f"mode {name!r} is unknown: use ingress or host")
