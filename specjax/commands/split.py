"""`specjax split`: who trains, validates, tests and stays unlabelled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Split:
    """Draw who trains, validates and tests for each seed, and which spectra stay unlabelled.

    The table gets columns split_0, split_1, ...; `specjax adapt --labels` follows them. The numbers are the
    published ones.
    """

    labels: Annotated[Positional[Path], arg(metavar="LABELS")]
    """a table as `specjax label` writes it: id, labels, snr"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """the table to write: .ecsv, .fits, .parquet or .csv"""
    label: str = "fe_h"
    """the label that a star must have to train, validate or test"""
    train: int = 89
    """stars to train on in each split"""
    validate: int = 9
    """stars to validate on"""
    test: int | None = None
    """stars to test on; all that are left unless given"""
    unlabelled: int = 164
    """spectra without the label that stay unlabelled, for lora1 and lora3"""
    min_snr: float = 50.0
    """signal to noise that these must exceed"""
    seeds: int = 16
    """splits to draw"""
    seed: int = 0
    """the first of their seeds"""
    stratify: str | None = None
    """a column, such as fe_h, whose distribution all parts shall share"""

    def run(self) -> None:
        """Draw, write, say the sizes on stderr and print the table's path."""
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
