"""The documentation site: its navigation, its reference, and, slowly, the site itself."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from website.pages import OUTSIDE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
TUTORIALS = sorted(path.stem for path in (DOCS / "tutorials").glob("*.md"))


def named(nav):
    """All pages of a navigation."""
    for entry in nav.values() if isinstance(nav, dict) else nav:
        if isinstance(entry, str):
            yield entry
        else:
            yield from named(entry)


def described():
    """(module, name) for everything that the reference describes; the name of a whole module is ""."""
    for page in sorted((DOCS / "api").glob("*.md")):
        for block in re.split(r"^::: ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            module, *rest = block.split("\n", 1)
            members = re.search(r"members: \[(.*)\]", "".join(rest))
            for name in (members[1] if members else "").split(","):
                yield module, name.strip()


def test_the_navigation_names_every_page_once():
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(named(CONFIG["nav"])) == sorted([*pages, *OUTSIDE.values(), "gallery.md"])


def test_nothing_comes_from_elsewhere():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert CONFIG["theme"]["font"] is False
    assert "//" not in text


@cache
def docstrings(module):
    """{name: docstring} of a module, "", and of its functions and classes, without importing it."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    defined = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {"": ast.get_docstring(tree)} | {node.name: ast.get_docstring(node) for node in defined}


@pytest.mark.parametrize(("module", "name"), list(described()))
def test_the_reference_describes_what_exists_and_has_a_docstring(module, name):
    assert docstrings(module).get(name)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with all warnings as errors and all tutorials executed."""
    place = tmp_path_factory.mktemp("site")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SPECJAX_DOCS_RUN": "1",
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_every_tutorial_runs_and_shows_what_it_gives(site, name):
    page = (site / "tutorials" / f"{name}.html").read_text(encoding="utf-8")
    assert page.count('class="output"') >= 3
    assert "Traceback" not in page


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site):
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    found = {
        page.name: loads.findall(page.read_text(encoding="utf-8", errors="replace"))
        for page in site.rglob("*.html")
    }
    assert len(found) > 30
    assert {name: hits for name, hits in found.items() if hits} == {}


@pytest.mark.slow
def test_the_search_knows_pages_and_the_reference(site):
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    for place in ("uncertainties.html", "tutorials/own-survey.html", "api/foundation.html"):
        assert place in index
