"""Pages as a code host shows them, made into pages of the site: links, and lists indented by two spaces."""

import posixpath
import re

OUTSIDE = {
    "README.md": "index.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files in the root of the repository, and their pages."""

_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
_FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def page_of(file: str) -> str:
    """Return the place on the site of a file of the repository.

    >>> page_of("README.md"), page_of("docs/mini.md")
    ('index.md', 'mini.md')
    """
    return OUTSIDE.get(file, file.removeprefix("docs/"))


def for_site(text: str, file: str) -> str:
    """Return a file of the repository as a page: links go to pages, and lists are indented by four spaces.

    Blocks of code stay as they are.

    >>> for_site("[Scores](docs/adaptation.md#scores), [plot](docs/sigma.png)", "README.md")
    '[Scores](adaptation.md#scores), [plot](sigma.png)'
    >>> for_site("[inputs](../README.md#inputs)", "docs/mini.md")
    '[inputs](index.md#inputs)'
    """
    pieces = _FENCED.split(text)
    pieces[::2] = [_indented(_LINK.sub(lambda link: _moved(link[1], file), piece)) for piece in pieces[::2]]
    return "".join(pieces)


def _moved(link: str, file: str) -> str:
    if ":" in link:
        return link
    target = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(file), link)))
    return posixpath.relpath(target, posixpath.dirname(page_of(file)) or ".")


def _indented(text: str) -> str:
    return re.sub(r"^ {2,3}(?=\S)", "    ", text, flags=re.MULTILINE)
