import pytest

from specjax.plurals import counted


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1 star"),
        (1.0, "1 star"),
        (0, "0 stars"),
        (2, "2 stars"),
        (24.5, "24.5 stars"),
        (2000000, "2,000,000 stars"),
    ],
)
def test_one_alone_is_singular(count, text):
    assert counted(count, "star") == text
