"""Published ports of one service spec: numbers, protocols, modes, and where they answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.enums import PublishMode, PublishPreference
from shoal.model.published import address_problem, interface_problem, is_at_odds, name_of
from shoal.model.types import PortConfig

PORTS_MAX: Final = 1_024
WEIGHT_LABEL_MAX: Final = 256


def check_published(ports: Sequence[PortConfig]) -> None:
    """Refuse ports of one service that cannot be published. Raises: InvalidArgument, Unimplemented.

    What other services hold is the allocator's affair.
    """
    if len(ports) > PORTS_MAX:
        raise InvalidArgument(f"publish: {len(ports)} ports, at most {PORTS_MAX}")
    seen: dict[tuple[object, int], list[PortConfig]] = {}
    for port in ports:
        _port(port)
        same = seen.setdefault((port.protocol, port.published_port), [])
        if port.published_port and is_at_odds(port, same):
            raise InvalidArgument(f"publish: port {name_of(port)} is given twice")
        same.append(port)


def _port(port: PortConfig) -> None:
    if not 1 <= port.target_port <= 65_535:
        raise InvalidArgument(f"publish: target port {port.target_port} must be 1 to 65535")
    if not 0 <= port.published_port <= 65_535:
        raise InvalidArgument(f"publish: published port {port.published_port} must be 1 to 65535")
    if port.publish_mode is PublishMode.HOST and not port.published_port:
        raise Unimplemented("publish: mode=host needs a published port in this version")
    _place(port)
    if port.publish_mode is PublishMode.HOST and port.weight_label:
        raise InvalidArgument(
            "publish: weight is for mode=ingress: with mode=host a node has no other tasks"
        )
    if len(port.weight_label) > WEIGHT_LABEL_MAX or "\0" in port.weight_label:
        raise InvalidArgument(
            f"publish: weight: a label of at most {WEIGHT_LABEL_MAX} characters, without NUL"
        )
    if port.publish_mode is PublishMode.HOST and port.prefer is PublishPreference.LOCAL:
        raise InvalidArgument(
            "publish: prefer=local is for mode=ingress: with mode=host a node has no other tasks"
        )


def _place(port: PortConfig) -> None:
    if port.address and port.interface:
        raise InvalidArgument(f"publish: give ip={port.address} or interface={port.interface}")
    if port.address and (problem := address_problem(port.address)):
        raise InvalidArgument(f"publish: ip: {problem}")
    if port.interface and (problem := interface_problem(port.interface)):
        raise InvalidArgument(f"publish: interface: {problem}")
