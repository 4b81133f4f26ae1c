from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.http import bodies, gojson
from engine.http.errors import Refused
from shoal.errors import InvalidArgument


class Inner(msgspec.Struct, rename="pascal"):
    replicas: int = 0
    names: list[str] = []


class Outer(msgspec.Struct, rename="pascal"):
    image: str = ""
    mode: Inner | None = None
    parts: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = {}
    labels: dict[str, str] = {}
    again: Outer | None = None


def random_case(text: str, choices: list[bool]) -> str:
    return "".join(
        letter.upper() if upper else letter.lower()
        for letter, upper in zip(text, choices, strict=False)
    )


@given(st.lists(st.booleans(), min_size=8, max_size=8))
def test_keys_are_found_in_any_case_at_any_depth(choices):
    body = {
        random_case("Image", choices): "box",
        random_case("Mode", choices): {random_case("Replicas", choices): 2},
        random_case("Parts", choices): [{random_case("Names", choices): ["a"]}],
        random_case("ByName", choices): {"KeepsCase": {random_case("Replicas", choices): 3}},
        random_case("Labels", choices): {"Keeps.Case": "x"},
        random_case("Again", choices): {random_case("Image", choices): "deep"},
    }
    found = bodies.decode(json.dumps(body).encode(), Outer)
    assert found == Outer(
        image="box",
        mode=Inner(replicas=2),
        parts=(Inner(names=["a"]),),
        by_name={"KeepsCase": Inner(replicas=3)},
        labels={"Keeps.Case": "x"},
        again=Outer(image="deep"),
    )


def test_null_and_missing_are_the_same_and_unknown_keys_are_passed_over():
    body = b'{"Image": null, "Mode": {"Replicas": null, "What": 1}, "Labels": null, "More": [1]}'
    assert bodies.decode(body, Outer) == Outer(mode=Inner())
    assert bodies.decode(b"null", Outer) == Outer()


def test_a_wrong_type_names_its_field():
    with pytest.raises(InvalidArgument, match=r"invalid request: Mode.Replicas: expected int, got"):
        bodies.decode(b'{"mode": {"replicas": "many"}}', Outer)
    with pytest.raises(InvalidArgument, match="invalid request: expected object, got array"):
        bodies.decode(b"[]", Outer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "EOF"),
        ("  ", "EOF"),
        ("bad", "invalid character 'b' looking for beginning of value"),
        ("{bad", "invalid character 'b' looking for beginning of object key string"),
        ('{"a"', "unexpected EOF"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a": 1 "b": 2}', "invalid character '\"' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ('{"a": ["]", 1 2]}', "invalid character '2' after array element"),
        ('{"a": tru }', "invalid character ' ' in literal true (expecting 'e')"),
        ('{"a": tr', "unexpected EOF"),
        ('"ab', "unexpected EOF"),
        ('{"a": "b\nc"}', r"invalid character '\n' in string literal"),
        (r'{"a": "\x"}', "invalid character 'x' in string escape code"),
        ("{} x", "invalid character 'x' after top-level value"),
        ('{"a": NaN}', "invalid character 'N' looking for beginning of value"),
        ("[-Infinity]", "invalid character 'I' in numeric literal"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        ("'", r"invalid character '\'' looking for beginning of value"),
    ],
)
def test_what_is_no_json_is_explained_in_go_words(text, words):
    with pytest.raises(Refused) as caught:
        bodies.decode(text.encode(), Outer)
    assert (caught.value.status, caught.value.message) == (500, words)


@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_explained(data):
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        assert gojson.explain(data)


def test_very_deep_json_is_refused():
    with pytest.raises((Refused, InvalidArgument)):
        bodies.decode(b"[" * 100_000, Outer)
