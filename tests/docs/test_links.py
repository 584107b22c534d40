"""Links between the files of the documentation, as a code host resolves them."""

import posixpath
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()[^)]*(?=\))")


@cache
def prose(page):
    return FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))


def links(page):
    return LINK.findall(prose(page))


@cache
def anchors(page):
    """The anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", one).strip().replace(" ", "-") for one in words}


def broken(page, link):
    file, _, anchor = link.partition("#")
    if re.match(r"https?://\S+$", link):
        return False
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), file)) if file else page
    if re.search(r"\s", link) or not (ROOT / target).is_file():
        return True
    return bool(anchor) and (target not in PAGES or anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    assert [link for link in links(page) if broken(page, link)] == []


@pytest.mark.parametrize(
    "link", ["nowhere.md", "docs/mini.md#nowhere", "#nowhere", "docs/mini.md#adapted-to-\nstelib", "docs"]
)
def test_broken_links_are_found(link):
    assert broken("README.md", link)


@pytest.mark.parametrize("link", ["docs/mini.md", "docs/mini.md#adapted-to-stelib", "#inputs", "LICENSE"])
def test_good_links_are_not(link):
    assert not broken("README.md", link)
