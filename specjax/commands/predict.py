"""`specjax predict`: predict labels of spectra with an adapted model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

from specjax.commands.many import ManySpectra
from specjax.commands.paths import check_exist


@dataclass(frozen=True, kw_only=True)
class Predict(ManySpectra):
    """Predict labels of any number of spectra, and write them with their uncertainties to a table.

    Run the same command again to resume an interrupted run. Files that cannot be read are left out and listed
    in OUT.report.ecsv.
    """

    out: Annotated[Path, arg(aliases=("-o",))]
    """table to write: .ecsv, .fits, .vot, .parquet, .csv or .h5"""
    adapter: UseAppendAction[tuple[Path, ...]] = ()
    """adapter folder, such as RUN/adapters/TARGET/CONFIGURATION, hf://OWNER/NAME, or a folder that holds one
    per label; may be given several times, for a label each; without one, the model as it is predicts all its
    labels"""
    head: Literal["mlp1", "mlp2"] | None = None
    """head of the model that predicts without an adapter: mlp1 reads the mean token, mlp2 the projected
    vector; by default mlp2 if the model has it"""
    label: Annotated[tuple[str, ...], arg(metavar="LABEL ...")] = ()
    """labels that the model predicts without an adapter, such as teff logg fe_h; by default all it has"""

    def run(self) -> None:
        """Predict labels and print the path of the table."""
        options = self.options("predict", self.out)
        check_exist(adapter=self.adapter)
        from specjax.arenas import share_arenas
        from specjax.cache import use_compilation_cache

        share_arenas()
        use_compilation_cache()
        from specjax.pipeline.predict import predict_survey

        predict_survey(
            **options, adapter=self.adapter, head=self.head, labels=self.label or None, out=self.out
        )
        if not self.dry_run:
            print(self.out)
