"""MILES as a target survey with the numbers of stars of the paper, as observed and at low resolution.

785 MILES stars have all labels and 3800-7500 K. Of these, 495 are the labelled stars of the target and 164
its unlabelled ones, as many as in the paper. The other 126 are development stars: what was decided for
`mini-physics` was decided on them, it has seen spectra of most of them, without labels, and they are part of
no table. Its other settings (augmentation, rates and later stages) are those of `mini`, for which MILES stars
with labels were held out.
"""

from pathlib import Path

import numpy as np

from experiments.libraries import targets_of
from specjax.adapt.target import Target
from specjax.pretrain.corpus import label_table, miles_parts, read_miles
from specjax.surveys import miles
from specjax.typing import FloatArray, StrArray

NAMES = ("miles", "miles-grism")
TRAIN, VALIDATE = 89, 9
"""Training and validation stars of each seed; the other 397 labelled stars are test stars."""


def star_labels(libraries: Path, ids: StrArray) -> FloatArray:
    """Return `corpus.LABELS` (n, 3) of the MILES stars with these ids: K, dex and dex, NaN where unknown."""
    return label_table(miles.read(libraries / "miles").select(ids))


def make_targets(libraries: Path, names: tuple[str, ...] = NAMES, label: str = "fe_h") -> list[Target]:
    """Build the targets from the stellar libraries.

    The Gaia XP spectra of both targets are made from the MILES flux at 3540-7410 A, continued to 10200 A with
    the best-matching mean MaStar spectrum.

    Args:
        libraries: folder of the stellar libraries.
        names: targets to build, any of `NAMES`.
        label: label to adapt to.
    """
    stars = read_miles(libraries)
    labelled, unlabelled, _ = miles_parts(len(stars))
    chosen = np.sort(np.concatenate([labelled, unlabelled]))
    return targets_of(stars[chosen], miles.FWHM, np.isin(chosen, labelled), libraries, names, label)
