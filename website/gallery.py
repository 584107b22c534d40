"""The gallery: pictures of the documentation, and those that the tutorials have made."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+\.png)\)")


def committed(docs: Path) -> dict[str, tuple[str, str]]:
    """Return {picture: (caption, page that shows it)} for the pictures of the pages in a folder."""
    found = {}
    for page in sorted(docs.glob("*.md")):
        for caption, picture in _PICTURE.findall(page.read_text(encoding="utf-8")):
            found[picture] = (caption, page.name)
    return found


def gallery(pictures: Mapping[str, tuple[str, str]], made: Mapping[str, Sequence[str]]) -> str:
    """Return the page.

    Args:
        pictures: as `committed` returns them.
        made: {page of a tutorial: its pictures}; without any, the section is left out.
    """
    lines = ["# Gallery", "", '<div class="gallery" markdown>', ""]
    if any(made.values()):
        lines += ["## From the tutorials", "", "Made anew with every build of this site.", ""]
    for page, files in made.items():
        for file in files:
            lines += [f"[![from {page}]({file})]({page})", ""]
    lines += ["## From the pages", ""]
    for picture, (caption, page) in sorted(pictures.items()):
        lines += [f"### {caption[:1].upper()}{caption[1:]}", "", f"[![{caption}]({picture})]({page})", ""]
    return "\n".join([*lines, "</div>", ""])
