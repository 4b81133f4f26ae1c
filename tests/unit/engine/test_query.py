from __future__ import annotations

import json
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.http.errors import Refused
from engine.http.filters import parse_filters
from engine.http.query import Query
from shoal.errors import InvalidArgument

WORDS = st.text(min_size=1, max_size=8)


@pytest.mark.parametrize("text", ["", "0", "no", "false", "none", "False", "NONE", " 0 "])
def test_false_flags(text):
    assert not Query(f"all={quote_plus(text)}").flag("all", default=True)


@pytest.mark.parametrize("text", ["1", "true", "True", "yes", "anything"])
def test_true_flags(text):
    assert Query(f"all={text}").flag("all")


def test_an_absent_flag_is_the_default():
    assert Query("").flag("all", default=True)
    assert not Query("").flag("all")


def test_numbers():
    query = Query("limit=-1&t=+5&size=&bad=x&long=99999999999999999999")
    assert query.number("limit") == -1
    assert query.number("size", 7) == 7
    assert query.number("absent", 3) == 3
    with pytest.raises(Refused) as caught:
        query.number("bad")
    assert caught.value.status == 500
    assert caught.value.message == 'strconv.Atoi: parsing "x": invalid syntax'
    with pytest.raises(Refused):
        query.number("long")


def test_the_first_of_a_repeated_parameter_counts_and_all_can_be_had():
    query = Query("names=a&names=b%2Fc&t=x+y")
    assert query.text("names") == "a"
    assert query.many("names") == ["a", "b/c"]
    assert query.text("t") == "x y"
    assert "t" in query
    assert "u" not in query


def test_too_many_parameters_are_refused():
    with pytest.raises(InvalidArgument, match="more than 1000 parameters"):
        Query("&".join("a=1" for _ in range(1001)))


def test_times():
    query = Query("since=1700000000.5&until=12&zero=0&bad=yesterday")
    assert query.time_ns("since") == 1_700_000_000_500_000_000
    assert query.time_ns("until") == 12_000_000_000
    assert query.time_ns("zero") is None
    assert query.time_ns("absent") is None
    with pytest.raises(InvalidArgument, match="bad: 'yesterday' must be Unix seconds"):
        query.time_ns("bad")


@given(st.dictionaries(WORDS, st.lists(WORDS, max_size=3, unique=True), max_size=3))
def test_both_encodings_of_filters_say_the_same(wishes):
    go = parse_filters(json.dumps({name: dict.fromkeys(v, True) for name, v in wishes.items()}))
    python = parse_filters(json.dumps(wishes))
    for name, values in wishes.items():
        assert go.values(name) == python.values(name) == tuple(values)
        for value in values:
            assert go.matches(name, value)


def test_empty_filters_match_everything():
    for text in ("", "{}", "null", '{"status": {}}', '{"status": []}'):
        filters = parse_filters(text)
        assert not filters
        assert filters.matches("status", "running")


def test_filters_that_are_wrong():
    with pytest.raises(InvalidArgument, match="Invalid filter 'bad'"):
        Query('filters={"bad":["1"]}').filters(("status",))
    with pytest.raises(Refused) as caught:
        Query("filters=bad").filters()
    assert caught.value.message == "invalid character 'b' looking for beginning of value"
    for text in ("[]", '{"a": [{}]}', '{"a": null}', "1"):
        with pytest.raises(InvalidArgument):
            parse_filters(text)


def test_kinds_of_matches():
    filters = parse_filters(
        '{"id": ["ab"], "name": ["we"], "label": ["a=1", "b"], "label!": ["c"], "dangling": [true]}'
    )
    assert filters.matches_prefix("id", "abc")
    assert not filters.matches_prefix("id", "cab")
    assert filters.matches_part("name", "/web")
    assert filters.matches_any("id", ["x", "ab"])
    assert not filters.matches_any("id", ["x"])
    assert filters.matches_labels({"a": "1", "b": "x", "c": ""})
    assert not filters.matches_labels({"a": "2", "b": "x"})
    assert not filters.lacks_labels({"c": "1"})
    assert filters.lacks_labels({"d": "1"})
    assert filters.flag("dangling", default=False)
    assert filters.flag("absent", default=True)
    with pytest.raises(InvalidArgument, match="invalid filter 'name=\\[we\\]'"):
        filters.flag("name", default=False)
    with pytest.raises(InvalidArgument):
        parse_filters('{"x": ["true", "false"]}').flag("x", default=False)
