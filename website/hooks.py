"""Hooks of MkDocs: pages from outside docs, executed tutorials, and the gallery.

With SPECJAX_DOCS_RUN=0 in the environment, the tutorials are not executed and have no outputs.
"""

import os
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website.cells import split_cells
from website.gallery import committed, gallery
from website.notebook import ROOT, as_notebook, executed
from website.outputs import rendered
from website.pages import OUTSIDE, for_site

TUTORIALS = "tutorials"
SCRIPTS = "experiments/suite"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in the folder docs, and replace tutorials by executed ones."""
    for source, page in OUTSIDE.items():
        text = for_site((ROOT / source).read_text(encoding="utf-8"), source)
        _add(files, config, page, text)
    for script in sorted((ROOT / SCRIPTS).glob("*.py")):  # to which the page of the experiments links
        _add(files, config, f"{SCRIPTS}/{script.name}", script.read_text(encoding="utf-8"))
    made = {}
    for file in [file for file in files.documentation_pages() if file.src_uri.startswith(TUTORIALS)]:
        made[file.src_uri] = _run(files, config, Path(file.src_uri))
    _add(files, config, "gallery.md", gallery(committed(Path(config.docs_dir)), made))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of pages in docs go to pages."""
    inside = page.file.generated_by is None or page.file.src_uri.startswith(TUTORIALS)
    return for_site(markdown, f"docs/{page.file.src_uri}") if inside else markdown


def _run(files: Files, config: MkDocsConfig, page: Path) -> list[str]:
    """Replace a tutorial by the executed one, add its notebook, and return its pictures."""
    text = (Path(config.docs_dir) / page).read_text(encoding="utf-8")
    cells = split_cells(text)
    run = os.environ.get("SPECJAX_DOCS_RUN", "1") != "0"
    notebook = executed(cells) if run else as_notebook(cells)
    shown, pictures = rendered(cells, notebook, page.stem)
    shown += f"\n\n[This page as a notebook]({page.stem}.ipynb)\n"
    _add(files, config, page.as_posix(), shown)
    _add(files, config, page.with_suffix(".ipynb").as_posix(), nbformat.writes(notebook))
    for name, picture in pictures.items():
        _add(files, config, f"{TUTORIALS}/{name}", picture)
    return [f"{TUTORIALS}/{name}" for name in pictures]


def _add(files: Files, config: MkDocsConfig, place: str, content: str | bytes) -> None:
    old = files.get_file_from_path(place)
    if old is not None:
        files.remove(old)
    files.append(File.generated(config, place, content=content))
