"""docs/model-card.md is what the folders of the models and the tables of the docs say now."""

import pytest

from experiments.model_cards import DOCS, PAGE, SOURCES, make_page, table_of
from specjax.errors import DataError
from specjax.foundation.model import SHIPPED


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == make_page(), "run python -m experiments.model_cards"


def test_every_model_that_ships_has_a_card():
    assert [source.name for source in SOURCES] == list(SHIPPED)


def test_tables_are_taken_whole(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("words\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| c | d |\n|---|---|\n| 3 | 4 |\n")
    assert table_of(page, "a") == "| a | b |\n|---|---|\n| 1 | 2 |"
    assert table_of(page, "c").endswith("| 3 | 4 |")
    with pytest.raises(DataError, match="no table b"):
        table_of(page, "b")
    assert table_of(DOCS / "mini.md", "stelib").count("\n") > 10
