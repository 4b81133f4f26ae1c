"""Output of swarms without what no two of them have in common. Pure."""

from __future__ import annotations

import re

from tests.conformance import normal as common

_RULES = tuple(
    (re.compile(pattern, re.MULTILINE), by)
    for pattern, by in (
        (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
        (r"SWMTKN-1-(<50 base36>-<25 base36>|[0-9a-z]{50}-[0-9a-z]{25})", "<token>"),
        (r"SWMKEY-1-(<43 base64>|[0-9A-Za-z+/]{43})", "<key>"),
        (r"-----BEGIN CERTIFICATE-----(\.\.\.|[\s\S]*?-----END CERTIFICATE-----)", "<certificate>"),
        (r"\bM[0-9A-Za-z+/]{20,}={0,2}", "<base64>"),  # DER: names and public keys
        (r"\b[0-9a-z]{25}\b", "<id>"),
        (r"^[0-9a-z]{12}(?= {2,})", "<id>"),
        (r"(?<=[.\"(])[0-9a-z]{12}(?=[\"@)]|$)", "<id>"),
        (r"^[0-9a-z]{12}$", "<id>"),
        (r"\b[A-Z][a-z]{2} +\d+ \d\d:\d\d\b", "<time>"),
        (r"\b10\.\d+\.\d+\.\d+\b", "<address>"),
        (r"(?<=\"Index\": )\d+", "<index>"),
        (r"(?<=vxlanid_list\": \")\d+", "<number>"),
        (r"(?<=\.sock)/[^ ]*", ""),
        (r"(^(\S+Z )?lgs\.[12](\.<id>)?@\w+ *\| +[oe]\d+$\n?)+", "<lines of lgs>\n"),
        (r"^( ?Networks:)\s+(ov2 ov1|ov1 ov2)\b", r"\1 ov1 ov2"),  # by their ids
        # A progress is sampled: only how it ends is the same each time.
        (r"^ ?(overall progress|verify: Waiting|active tasks|job progress|\d+/\d+:).*$\n?", ""),
        (r" less than a second ago| \d+ (second|minute|hour)s? ago", " <ago>"),
    )
)


def normal(text: str) -> str:
    """The text in a form two swarms can share."""
    for pattern, by in _RULES:
        text = pattern.sub(by, text)
    return common.normal(text)
