"""Output without what no two runs have in common: ids, times, sizes, addresses, widths. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

_RULES = tuple(
    (re.compile(pattern, re.MULTILINE), by)
    for pattern, by in (
        (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
        (r"\r", ""),
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?([+-]\d\d:?\d\d|Z)( [A-Z]+)?)?", "<time>"),
        (r"^time=.* level=error msg=.*$", ""),  # the command line's own race with an early answer
        (r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d \d{4}", "<time>"),
        (r"(sha256:)?\b[0-9a-f]{64}\b", "<id>"),
        (r"\b[0-9a-f]{12}\b", "<id>"),
        (r"(Less than a second|About an? \w+|\d+ (second|minute|hour|day|week)s?)( ago)?", "<ago>"),
        (r"\b\d+(\.\d+)? ?([kKMGT]i?)?B\b", "<size>"),
        (r"\d+(\.\d+)?%", "<percent>"),
        (r"\b127\.0\.0\.1:\d+/(?=[a-z])", "<registry>/"),
        (r"\b127\.0\.0\.1:5000\b", "<registry>"),
        (r"\b172\.\d+\.\d+\.\d+\b", "<address>"),
        (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "<mac>"),
        (r"\b[a-z]{3,}_[a-z]{3,}\d?\b(?=$|\s| \(|,)", "<name>"),
        (r"^(\w+ +)?\d{3,} +(\d{3,} +)?", r"\1<pid> "),
        (r"(?<= )\d\d:\d\d(?= )", "<time>"),
        (r"'[^' ]+(/x|/config\.json)'", "<file>"),
        (r"^ *(BuildKit is currently disabled|environment-variable\.|Install the buildx).*$", ""),
        (r"^ *https://docs.docker.com/go/buildx/$", ""),
        (r"[ \t]+", " "),
        (r"^ | $", ""),
        (r"(^(<time> )?[oe]\d*$\n?)+", "<lines of a loop>\n"),
        (r"\n+", "\n"),
    )
)


def normal(text: str) -> str:
    """The text in a form two runs can share."""
    for pattern, by in _RULES:
        text = pattern.sub(by, text)
    return text.strip()


def agrees(expected: str, found: str, *, cut: bool, clean: Callable[[str], str] = normal) -> bool:
    """Whether an output is the recorded one. cut: of that, only the end is known."""
    wanted, shown = clean(expected), clean(found)
    if not cut:
        return wanted == shown
    return shown.endswith(wanted.partition("\n")[2])
