"""The part of Go's text/template that `--format` needs.

`parse(text)` gives a frozen tree, `render(tree, value)` its text for one JSON-like value. Fields,
variables, pipelines, if/else if/with/range, trim markers, comments, Go's comparison functions and
docker's `json split join title lower upper pad truncate`. Named templates are refused.
"""

from __future__ import annotations

from swarmctl.gotemplate.evaluate import render
from swarmctl.gotemplate.parser import parse

__all__ = ["parse", "render"]
