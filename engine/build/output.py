"""What a build tells its client, in Docker's words.

Quiet: only the id at the end; if it fails, what would have been said (its end, at most HELD_MAX).
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Put = Callable[[Mapping[str, Any]], Awaitable[None]]
HELD_MAX = 10_000
PROGRESS_BYTES = 8 << 20
"""How many bytes a download brings between two words about it."""


class Output:
    """One build's stream. put: sends one object."""

    def __init__(self, put: Put, *, quiet: bool = False) -> None:
        self._put = put
        self._held: deque[Mapping[str, Any]] | None = deque(maxlen=HELD_MAX) if quiet else None
        self._decoders = {
            stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in (1, 2)
        }

    async def say(self, text: str) -> None:
        """A piece of text."""
        await self.put({"stream": text})

    async def line(self, text: str) -> None:
        """A line of its own."""
        await self.say(f"{text}\n")

    async def command_wrote(self, stream: int, data: bytes) -> None:
        """What a command has written."""
        text = self._decoders[stream].decode(data)
        if text:
            await self.say(text)

    async def put(self, value: Mapping[str, Any]) -> None:
        """An object, also of a pull's progress."""
        if self._held is None:
            await self._put(value)
        else:
            self._held.append(value)

    async def failed(self) -> None:
        """Say what was held back."""
        held, self._held = self._held, None
        for value in held or ():
            await self._put(value)

    async def done(self, image_id: str) -> None:
        """The image is there."""
        if self._held is not None:
            await self._put({"stream": f"{image_id}\n"})
        else:
            await self._put({"aux": {"ID": image_id}})
            await self.line(f"Successfully built {short(image_id)}")

    async def tagged(self, name: str) -> None:
        """It has got a name."""
        if self._held is None:
            await self.line(f"Successfully tagged {name}")


class FetchProgress:
    """What a build says while it fetches a file: now and then, and at the end."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._come = self._total = self._told = 0

    async def come(self, come: int, total: int) -> None:
        """So many bytes are here, of so many; 0: nobody knows."""
        self._come, self._total = come, total
        if come - self._told >= PROGRESS_BYTES:
            await self._tell()

    async def done(self) -> None:
        """All of it is here."""
        await self._tell()
        await self._output.line("")

    async def _tell(self) -> None:
        self._told = self._come
        detail = {"current": self._come, "total": self._total}
        await self._output.put(
            {"status": "Downloading", "progressDetail": {k: v for k, v in detail.items() if v}}
        )


def short(image_id: str) -> str:
    """Twelve digits."""
    return image_id.removeprefix("sha256:")[:12]
