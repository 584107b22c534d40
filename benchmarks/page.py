"""Write the tables of BENCHMARKS.md from the JSON file of a run.

    python -m benchmarks.page [--page BENCHMARKS.md]

A region of the page begins with a comment such as <!-- table a from docs/bench_cpu.json -->, "targets" or
"gpu-targets" in place of "table a", and ends with <!-- end -->. What is between them is generated; the text
around them explains it and is written by hand. A section that the file does not have stays blank.
"""

import dataclasses
import re
from functools import cache
from pathlib import Path

import tyro

from benchmarks import report, results
from benchmarks.targets import GPU_TARGETS, TARGETS
from specjax.atomic import atomic_file

ROOT = Path(__file__).parents[1]
_REGION = re.compile(r"(<!-- (table \w|targets|gpu-targets) from (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet.\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to write."""

    page: Path = ROOT / "BENCHMARKS.md"
    """Markdown file with regions"""


def main(options: Options) -> None:
    """Replace all regions of the page."""
    text = generated(options.page.read_text(), options.page.parent)
    with atomic_file(options.page) as unfinished:
        unfinished.write_text(text)


def generated(text: str, folder: Path) -> str:
    """Return the text of a page with new contents of its regions, from files relative to a folder."""
    read = cache(results.read)

    def region(match: re.Match[str]) -> str:
        begin, what, name, end = match.groups()
        path = folder / name
        return f"{begin}\n{_content(what, read(path) if path.exists() else {})}\n{end}"

    return _REGION.sub(region, text)


def _content(what: str, sections: results.Sections) -> str:
    if what == "targets":
        return report.targets_markdown(sections, TARGETS) + "\n"
    if what == "gpu-targets":
        return report.targets_markdown(sections, GPU_TARGETS) + "\n"
    letter = what.removeprefix("table ")
    return report.section_markdown(sections[letter]) + "\n" if letter in sections else NOTHING


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
