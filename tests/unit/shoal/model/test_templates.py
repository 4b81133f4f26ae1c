"""The template language: what it knows, what it refuses by name, and that it costs little."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.model.templates import FIELDS, PLACEHOLDERS_MAX, Sources, calls, expand, parse

SOURCES = Sources(
    {name: f"<{name}>" for name in FIELDS},
    {"tier": "edge", "a.b": "dotted"},
    {
        "secret": lambda name: f"secret {name}",
        "config": lambda name: f"config {name}",
        "env": lambda name: f"env {name}",
    },
)


def expanded(text: str) -> str:
    return expand(parse(text, functions=True), SOURCES)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        *((f"{{{{ .{name} }}}}", f"<{name}>") for name in FIELDS),
        ('{{index .Service.Labels "a.b"}}', "dotted"),
        ("{{.Service.Labels.tier}}", "edge"),
        ("{{.Service.Labels.none}}", ""),
        ('a {{secret "db"}}\n{{config `site`}}', "a secret db\nconfig site"),
        ('{{ env "HOME" }} z', "env HOME z"),
        ('{{"{{"}}.Task.ID{{"}}"}}', "{{.Task.ID}}"),
        ('{{"a \\"b\\" \\\\ \\n"}}', 'a "b" \\ \n'),
        ("}} } {", "}} } {"),
    ],
)  # fmt: skip
def test_what_it_knows(text: str, result: str) -> None:
    assert expanded(text) == result


@pytest.mark.parametrize(
    "expression",
    [
        "", ".", ".Task.Nope", ".Service.Labels", "if .Task.Slot", "range .", "end", "- .Task.ID -",
        'secret "a" | printf', "secret .Task.ID", "secret", 'print "x"', "/* a */", "$x := 1",
        'template "x"', ".Service.Name.Length", 'index .Service.Labels "a" "b"',
    ],
)  # fmt: skip
def test_everything_else_is_refused_by_its_name(expression: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"{re.escape(expression)}.*is unknown, use one of"):
        parse(f"a {{{{{expression}}}}}", functions=True)


@pytest.mark.parametrize("name", ["secret", "config", "env"])
def test_functions_belong_to_contents_alone(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{name} is only known in the content"):
        parse(f'{{{{{name} "x"}}}}')


def test_an_open_placeholder_shows_nothing_of_a_content() -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse("password {{", functions=True)
    assert "password" not in refused.value.message
    for text in ('{{"\\q"}}', '{{"\\\\ \\q"}}'):
        with pytest.raises(InvalidArgument, match=r"\\q is unknown in a quoted text"):
            parse(text)
    with pytest.raises(InvalidArgument, match="more than 512 characters between quotes"):
        parse(f'{{{{"{"a" * 513}"}}}}')


def test_the_calls_of_a_template() -> None:
    parts = parse('{{secret "a"}} {{config "b"}} {{secret "c"}}', functions=True)
    assert (calls(parts, "secret"), calls(parts, "config")) == (["a", "c"], ["b"])


def test_a_long_result_is_refused_before_it_is_made() -> None:
    parts = parse('{{secret "x"}}' * PLACEHOLDERS_MAX, functions=True)
    with pytest.raises(InvalidArgument, match="longer than 1000 characters"):
        expand(parts, SOURCES, size_max=1000)
    with pytest.raises(InvalidArgument, match="more than 500 placeholders"):
        parse('{{secret "x"}}' * (PLACEHOLDERS_MAX + 1), functions=True)


@given(st.lists(st.sampled_from(["{{", "}}", "{", "}", '"', "`", "\\", "a", ".Task.ID", "\n"])))
def test_any_text_is_a_template_or_refused(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        parts = parse(text)
    except InvalidArgument:
        return
    assert ("{{" in text) or [part.value for part in parts] == ([text] if text else [])


@given(
    st.text(),
    st.text(alphabet=st.characters(exclude_characters='"\\\n', codec="utf-8"), max_size=99),
)
def test_quoted_text_comes_out_as_it_is(around: str, quoted: str) -> None:
    around = around.replace("{", "")
    assert expanded(f'{around}{{{{"{quoted}"}}}}') == around + quoted


def test_placeholders_are_bounded_one_by_one_and_together():
    quoted = "\\n" * 512
    (part,) = parse(f'{{{{secret "{quoted}"}}}}', functions=True)
    assert part.value == "\n" * 512, "the longest argument fits"
    with pytest.raises(InvalidArgument, match="or 1200 between braces"):
        parse("{{" + " " * 1200 + '"x"}}')
    filled = '{{secret "x"' + " " * 1000 + "}}"
    text = ("between" * 1000).join([filled] * 64)
    assert len(parse(text, functions=True)) == 127
    with pytest.raises(InvalidArgument, match="more than 65536 characters together"):
        parse(text + filled * 2, functions=True)
