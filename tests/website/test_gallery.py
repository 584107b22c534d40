"""The gallery shows every picture once, and no heading over nothing."""

import pytest

from website.gallery import committed, gallery

PICTURES = {"show.png": ("a spectrum", "commands.md")}


@pytest.mark.parametrize("made", [{}, {"tutorials/demo.md": []}])
def test_a_section_without_pictures_has_no_heading(made):
    page = gallery(PICTURES, made)
    assert "From the tutorials" not in page
    assert "[![a spectrum](show.png)](commands.md)" in page


def test_pictures_of_tutorials_link_to_their_page():
    page = gallery(PICTURES, {"tutorials/a.md": [], "tutorials/b.md": ["tutorials/b-1.png"]})
    assert page.count("## From the tutorials") == 1
    assert "[![from tutorials/b.md](tutorials/b-1.png)](tutorials/b.md)" in page


def test_pictures_of_pages_are_found(tmp_path):
    (tmp_path / "a.md").write_text("text ![one](one.png) and ![two](folder/two.png)\n![no](x.svg)\n")
    assert committed(tmp_path) == {"one.png": ("one", "a.md"), "folder/two.png": ("two", "a.md")}
