"""Raft messages on the wire: msgpack lists of bounded size. Pure.

Fields are named on the wire, and unknown ones are skipped, so managers of neighbouring versions
understand each other. Refuses what is not a list of messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from manager.raft.entries import entries_bytes
from manager.raft.messages import Message
from shoal.errors import InvalidArgument

FRAME_BYTES_MAX = 1 << 20
"""Of entries; a frame holds at least one message, and one APPEND may hold one larger entry."""
FRAME_MESSAGES_MAX = 512
_OVERHEAD_BYTES = 64

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Message])
_message_decoder = msgspec.msgpack.Decoder(Message)


def message_bytes(message: Message) -> int:
    """About what a message takes on the wire."""
    return entries_bytes(message.entries) + _OVERHEAD_BYTES


def frames(messages: Sequence[Message]) -> Iterator[bytes]:
    """The messages in order, in as few frames as the limits allow."""
    group: list[Message] = []
    size = 0
    for message in messages:
        more = message_bytes(message)
        if group and (size + more > FRAME_BYTES_MAX or len(group) == FRAME_MESSAGES_MAX):
            yield _encoder.encode(group)
            group, size = [], 0
        group.append(message)
        size += more
    if group:
        yield _encoder.encode(group)


def messages_of(frame: bytes) -> list[Message]:
    """Raises: InvalidArgument."""
    try:
        return _decoder.decode(frame)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"raft frame: {error}") from error


def encode_message(message: Message) -> bytes:
    """One message, for the first chunk of a snapshot."""
    return _encoder.encode(message)


def decode_message(data: bytes) -> Message:
    """Raises: InvalidArgument."""
    try:
        return _message_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"raft message: {error}") from error
