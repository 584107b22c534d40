import doctest

import pytest

from website import cells, examples, pages
from website.gallery import committed, gallery
from website.pages import for_site


@pytest.mark.parametrize("module", [cells, examples, pages], ids=lambda module: module.__name__)
def test_examples_give_what_they_show(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("file", "link", "expected"),
    [
        ("README.md", "docs/mini.md", "mini.md"),
        ("README.md", "docs/tutorials/demo.md", "tutorials/demo.md"),
        ("docs/mini.md", "../README.md#inputs", "index.md#inputs"),
        ("docs/mini.md", "demo.md", "demo.md"),
        ("docs/mini.md", "#training-data", "#training-data"),
        ("docs/tutorials/demo.md", "../../BENCHMARKS.md", "../benchmarks.md"),
        ("docs/tutorials/demo.md", "../mini.md#stages", "../mini.md#stages"),
        ("docs/mini.md", "https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
    ],
)
def test_links_lead_to_the_same_page(file, link, expected):
    assert for_site(f"[x]({link})", file) == f"[x]({expected})"


def test_code_is_left_alone_and_lists_are_indented():
    text = "- item\n\n  more [x](docs/a.md)\n\n```sh\n  [x](docs/a.md)\n```\n"
    assert for_site(text, "README.md") == "- item\n\n    more [x](a.md)\n\n```sh\n  [x](docs/a.md)\n```\n"


def test_the_gallery_shows_every_picture_with_its_page(tmp_path):
    (tmp_path / "a.md").write_text("![what a shows](a.png)\n[![no](b.txt)](c)\n")
    page = gallery(committed(tmp_path), {"tutorials/demo.md": ["tutorials/demo-1.png"]})
    assert "[![what a shows](a.png)](a.md)" in page
    assert "[![from tutorials/demo.md](tutorials/demo-1.png)](tutorials/demo.md)" in page
    assert "b.txt" not in page
