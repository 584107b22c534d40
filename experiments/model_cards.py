"""The page docs/model-card.md: the models that ship, from their folders and from the tables of the docs.

    python -m experiments.model_cards

Counts, digests and training settings come from the model folders, and scores from the tables of docs/demo.md
and docs/mini.md, so that they can differ from neither. A test compares the page with what this writes.
"""

import dataclasses
from pathlib import Path

from specjax.atomic import atomic_file
from specjax.checkpoints import Stored, load_model
from specjax.errors import DataError
from specjax.foundation.model import shipped_folder
from specjax.report.model_facts import model_facts, model_training

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "model-card.md"

_INTRODUCTION = """\
# Model card: the models that ship

This page is written by `python -m experiments.model_cards`, from the model folders and the docs' tables.

Both models are for trying specjax, and for stars of about 3800 to 7500 K with a spectrum of 4000-5600 A,
after adaptation with labelled stars of the survey. Neither is meant for galaxies, quasars, emission-line or
binary stars, nor for labels without adaptation: the rows named zero-shot show what these cost. Spectra
unlike the training spectra are flagged, not refused. Both were trained on hundreds of observed stars or on
the simulated spectra of one emulator, where the published model was trained on millions; for catalogues,
use [the published weights](convert.md). Licence: MIT. The libraries that they were trained on are to be
cited: MILES (Sanchez-Blazquez et al. 2006; labels of Cenarro et al. 2007), MaStar (Yan et al. 2019), and
for the scores STELIB (Le Borgne et al. 2003)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where the parts of a model's card come from.

    Attributes:
        name: of the model.
        training: sentences on the data that it was trained on.
        page: page with its tables of scores.
        targets: first cells of these tables.
        stars: sentences on the stars of the scores.
    """

    name: str
    training: str
    page: str
    targets: tuple[str, ...]
    stars: str


SOURCES = (
    Source(
        name="mini",
        training=(
            "Trained on 689 observed stars of MILES with their labels, on degraded copies of them, and on"
            " stars interpolated between them; no star of STELIB."
            " [mini.md](mini.md#training-data) has the details."
        ),
        page="mini.md",
        targets=("stelib", "stelib-grism"),
        stars=(
            "126 stars of STELIB, as observed, and as a slitless survey of low resolution (24 A) and signal"
            " to noise (20) would observe them. In each of 16 random splits, 60 stars are for training, 10"
            " for validation and 56 for the test."
        ),
    ),
    Source(
        name="mini-physics",
        training=(
            "Trained on spectra that an emulator draws anew in every batch, and on 178 observed spectra (mean"
            " MaStar spectra, and MILES stars that belong to no target) without labels."
            " [mini.md](mini.md#the-model-from-physics-mini-physics) has the details."
        ),
        page="demo.md",
        targets=("miles", "miles-grism", "stelib"),
        stars=(
            "Stars of MILES, as observed and as a slitless survey would observe them, with 89 for training,"
            " 9 for validation and 397 for the test in each of 16 random splits; stars of STELIB as for"
            " `mini`."
        ),
    ),
)


def make_page() -> str:
    """Return the text of the page."""
    parts = [_INTRODUCTION]
    for source in SOURCES:
        stored = load_model(shipped_folder(source.name))
        parts += [f"## `{source.name}`", *_card(source, stored)]
    return "\n\n".join(parts) + "\n"


def _card(source: Source, stored: Stored) -> list[str]:
    tables = [table_of(DOCS / source.page, target) for target in source.targets]
    return [
        source.training,
        model_facts(stored),
        model_training(stored),
        f"### What `{source.name}` reaches",
        f"{source.stars} σ is the robust scatter of [Fe/H] in dex; means over the splits, with 95% intervals"
        f" from a bootstrap over stars. [{source.page}]({source.page}) explains the rows and baselines.",
        *tables,
    ]


def table_of(page: Path, heading: str) -> str:
    """Return the Markdown table of a page whose first cell is `heading`.

    Raises:
        DataError: the page has no such table.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    if not starts:
        raise DataError(f"{page} has no table {heading}")
    rows = lines[starts[0] :]
    end = next((index for index, line in enumerate(rows) if not line.startswith("|")), len(rows))
    return "\n".join(rows[:end])


def main() -> None:
    """Write the page."""
    with atomic_file(PAGE) as path:
        path.write_text(make_page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
