"""The house's size limits hold, and the check that says so can fail."""

from __future__ import annotations

import pytest

from tools import tidy


def problems(tmp_path, text: str, allow: str = "", name: str = "shoal/x.py") -> list[str]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return tidy.check(tmp_path, allow)


def function(lines: int) -> str:
    return "def long():\n" + "    pass\n" * (lines - 1)


def test_the_repository_is_tidy():
    assert tidy.check(tidy.ROOT, (tidy.ROOT / "tools/tidy_allow.txt").read_text()) == []


def test_sizes_at_the_limit_are_fine_and_one_more_is_not(tmp_path):
    assert problems(tmp_path, function(70)) == []
    assert problems(tmp_path, function(71)) == [
        "shoal/x.py:1: shoal/x.py:long has 71 lines, 70 allowed"
    ]
    assert problems(tmp_path, "x = 1\n" * 600) == []
    assert problems(tmp_path, "x = 1\n" * 601) == [
        "shoal/x.py: shoal/x.py has 601 lines, 600 allowed"
    ]


def test_methods_and_coroutines_count_as_well(tmp_path):
    method = "class A:\n    async def long(self):\n" + "        pass\n" * 70
    assert len(problems(tmp_path, method)) == 1


def test_generated_code_is_left_alone(tmp_path):
    assert problems(tmp_path, "x = 1\n" * 601, name="shoal/api/v1/x_pb2.py") == []


def test_an_exception_has_its_own_limit_and_must_be_needed(tmp_path):
    allow = "# why\n\nshoal/x.py:long 80 2026-01-31 a table that reads best in one piece\n"
    assert problems(tmp_path, function(80), allow) == []
    assert "80 allowed" in problems(tmp_path, function(81), allow)[0]
    assert problems(tmp_path, function(70), allow) == [
        "tools/tidy_allow.txt: shoal/x.py:long needs no exception any more"
    ]


@pytest.mark.parametrize("line", ["a.py 10 2026-01-31", "a.py ten 2026-01-31 x", "a.py 1 jan x"])
def test_an_exception_without_limit_day_and_reason_is_refused(tmp_path, line):
    with pytest.raises(ValueError, match=r"tidy_allow\.txt:1"):
        problems(tmp_path, "", line)


def test_leftovers_need_an_issue(tmp_path):
    assert problems(tmp_path, "x = 1  # TODO(#12): later\n") == []
    assert problems(tmp_path, "x = '# TODO'\n") == []
    assert problems(tmp_path, "y = 1\nx = 1  # TODO later\n") == [
        "shoal/x.py:2: TODO without an issue; write TODO(#number)"
    ]
