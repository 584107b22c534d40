"""`specjax adapt`: adapt a model to a survey and score it on test stars."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes

from specjax.commands.hosts import Hosts
from specjax.commands.options_file import FILE, FromFile, options_text
from specjax.commands.paths import check_exist, check_model
from specjax.interrupt import explained_interrupt
from specjax.progress import say

if TYPE_CHECKING:
    from specjax.adapt.settings import AdaptConfig


@dataclass(frozen=True, kw_only=True)
class Adapt(FromFile):
    """Adapt a model to a survey with about a hundred labelled spectra, and print the scores on test stars.

    The run folder contains the score table, the predictions, plots, and the adapters for `specjax predict`.
    Run the same command again to resume a run that was killed.
    """

    spectra: Path
    """folder of survey files, or an .npz or .h5 file with wavelength, flux and optionally ivar, mask, id"""
    labels: Path
    """table with a column id and a column named after the label"""
    out: Path
    """run folder to write"""
    model: str = "mini"
    """model folder, hf://OWNER/NAME, or mini for the model that ships with specjax"""
    label: tuple[str, ...] = ("fe_h",)
    """labels to predict, such as --label teff logg fe_h: columns of the table and labels of the model"""
    configuration: tuple[str, ...] = ("lora4",)
    """configurations: lora1 to lora4 joined by +, such as lora1+lora2, or zero-shot, residual, scratch or
    full followed by -mlp1 or -mlp2"""
    seeds: int = 16
    """number of random splits; each trains its own adapter"""
    train: int | None = None
    """training stars per split; by default 60, and of fewer than 100 labelled stars 60% (at least 10)"""
    validate: int | None = None
    """validation stars per split; by default 10, and of fewer than 100 labelled stars 10%; the remaining
    stars are the test stars"""
    objective: Literal["joint", "sequential"] = "joint"
    """joint trains all groups together on the labels; sequential is the paper's: lora1 by masked modelling,
    lora3 against Gaia XP, then the heads"""
    steps: int | None = None
    """steps of the joint training of tower and heads, a multiple of 10 (60 by default); how many are used is
    selected"""
    ranks: tuple[tuple[str, int], ...] = ()
    """pairs of a regular expression and the rank of the layers that it is found in, 0 to leave them alone,
    such as --ranks q_proj 0 out_proj 2"""
    one_split: bool = False
    """one split for all seeds, as in the paper: the first one if the table of labels contains splits"""
    fuse: bool = False
    """also average the seeds of configurations of lora1 to lora4 into one adapter (NAME-fused)"""
    report: bool = False
    """also write report.html into the run folder: one page with all tables and figures, to keep or send"""
    survey: str | None = None
    """name of the survey, if it cannot be recognised from the files"""
    wavelength_medium: Literal["vacuum", "air"] | None = None
    """medium of the wavelengths of files that do not declare it (default: vacuum)"""
    wavelength_unit: Literal["angstrom", "nm", "um", "log10"] | None = None
    """unit of the wavelengths of files that do not declare it (default: Angstrom)"""
    xp: Path | None = None
    """Gaia XP spectra with the same ids, for lora3 in the sequential objective"""
    fwhm: float | None = None
    """resolution (FWHM, Angstrom) of the spectra, to derive Gaia XP spectra if they cover 336-1020 nm"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the towers' matrix products: auto is bfloat16 on a GPU that is fast in it, else float32"""
    hosts: Annotated[Hosts, OmitArgPrefixes] = Hosts()

    def run(self) -> None:
        """Adapt the model; print the score table and the run folder."""
        kept = f"finished seeds are kept: run the same command again to go on with {self.out}"
        with self.hosts.session(), explained_interrupt(kept):
            self._run()

    def _run(self) -> None:
        check_exist(spectra=self.spectra, labels=self.labels, xp=self.xp)
        check_model(self.model)
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax import distributed
        from specjax.adapt.settings import AdaptConfig
        from specjax.adapt.survey import adapt_survey
        from specjax.report.calibration import MEAN_INTERVALS, calibration_lines
        from specjax.report.cautions import losses
        from specjax.report.next_step import best_adapter, predict_command
        from specjax.report.results import print_table, read_calibration

        rows = adapt_survey(
            model=self.model,
            spectra=self.spectra,
            labels=self.labels,
            out=self.out,
            label=self.label,
            configurations=self.configuration,
            config=AdaptConfig(
                seeds=self.seeds,
                train=self.train,
                validate=self.validate,
                objective=self.objective,
                ranks=self.ranks,
                one_split=self.one_split,
                fuse=self.fuse,
            ),
            steps=self.steps,
            survey=self.survey,
            wavelength_medium=self.wavelength_medium,
            wavelength_unit=self.wavelength_unit,
            xp=self.xp,
            fwhm=self.fwhm,
            dtype=self.dtype,
            files=self._files,
            say=distributed.say_on_main(say),
        )
        if not distributed.is_main():
            return
        print_table(rows)
        if coverage := calibration_lines(rows, read_calibration(self.out)):
            print("\n".join(coverage))
            print(MEAN_INTERVALS)
        for line in losses(rows):
            print(f"warning: {line}")
        if (adapter := best_adapter(self.out, rows)) is not None:
            several = sum(not one.startswith("zero-shot") for one in self.configuration) > 1
            why = "the smallest scatter above, which is slightly too good as the smallest of several:"
            print(f"predict with {why}" if several else "predict with:")
            print(predict_command(adapter, {"model": self.model}))
        if self.report:
            from specjax.report.page import write_page

            write_page(self.out)
        print(self.out)

    def _files(self, config: "AdaptConfig") -> dict[str, str]:
        """Return the options of this run as a file of its folder, with the numbers that were resolved."""
        resolved = replace(self, seeds=config.seeds, train=config.train, validate=config.validate)
        return {FILE: options_text(resolved)}
