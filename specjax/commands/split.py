"""`specjax split`: draw training, validation and test stars and unlabelled spectra."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from specjax.commands.options_file import FromFile
from specjax.commands.paths import check_sources
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Split(FromFile):
    """Draw training, validation and test stars for each seed, and the spectra used without labels.

    The splits are written as columns split_0, split_1, ..., which `specjax adapt --labels` uses. The default
    sizes are those of arXiv:2507.20972.
    """

    labels: Annotated[Positional[Path], arg(metavar="LABELS")]
    """table written by `specjax label`, with columns id, snr and the labels"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """table to write: .ecsv, .fits, .vot, .parquet or .csv"""
    label: str = "fe_h"
    """label that training, validation and test stars must have"""
    train: int = 89
    """training stars per split"""
    validate: int = 9
    """validation stars per split"""
    test: int | None = None
    """test stars per split; by default all remaining stars"""
    unlabelled: int | None = None
    """spectra without a label to use as unlabelled spectra, for lora1 and lora3; by default 164, or all if
    there are fewer"""
    min_snr: float = 50.0
    """minimum signal-to-noise ratio (exclusive) of the unlabelled spectra"""
    seeds: int = 16
    """number of splits"""
    seed: int = 0
    """seed of the first split"""
    stratify: str | None = None
    """column to stratify the splits by, such as fe_h"""

    def run(self) -> None:
        """Draw the splits, report their sizes on stderr and print the path of the table."""
        check_sources([self.labels], self.out)
        from specjax.adapt.roles import SplitConfig, split_file

        config = SplitConfig(
            label=self.label,
            train=self.train,
            validate=self.validate,
            test=self.test,
            unlabelled=self.unlabelled,
            min_snr=self.min_snr,
            seeds=self.seeds,
            seed=self.seed,
            stratify=self.stratify,
        )
        split_file(self.labels, self.out, config, say=say)
        print(self.out)
