"""The page of `docker run`'s flags says what the table of their checks says."""

from __future__ import annotations

from tests.integration.engine.flags import table


def test_the_page_is_up_to_date():
    assert table.PAGE.read_text() == table.page()
    assert len(table.VERDICTS) == 103
    assert all(words for verdict, words in table.VERDICTS.values() if verdict != table.HONOURED)
