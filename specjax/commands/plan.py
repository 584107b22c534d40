"""`specjax plan`: how many labelled stars a survey needs, and at what S/N, from simulation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specjax.commands.options_file import FILE, FromFile, options_text
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Plan(FromFile):
    """Estimate how many labelled stars a survey needs, and at what S/N, by adapting to simulations of it.

    The folder contains the table of scores and a plot of the scatter against the number of stars. Real
    spectra differ from simulated ones: differences between the points are more reliable than their level.
    """

    instrument: str
    """lamost, desi, boss, grism, or a .toml file, as for `specjax simulate`"""
    out: Path
    """folder to write"""
    model: str = "mini"
    """model folder, hf://OWNER/NAME, or mini for the model that ships with specjax"""
    label: str = "fe_h"
    """label to predict: teff, logg or fe_h, as far as the model has it"""
    configuration: str = "lora4"
    """configuration to adapt, as for `specjax adapt`"""
    stars: tuple[int, ...] = (20, 40, 80, 160)
    """numbers of training stars"""
    snr: tuple[float, ...] = (10.0, 30.0, 100.0)
    """signal-to-noise ratios per pixel"""
    label_error: float = 0.0
    """standard deviation of the errors of the labels that you will have, in the label's unit"""
    test: int = 300
    """test stars, at least 10"""
    seeds: int = 8
    """number of random splits"""
    ranges: tuple[str, ...] = ()
    """labels uniform in ranges, as for `specjax simulate`"""
    seed: int = 0
    """seed of the simulated stars, errors and noise"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the towers' matrix products: auto is bfloat16 on a GPU that is fast in it, else float32"""

    def run(self) -> None:
        """Simulate, adapt, and print the scores and the folder."""
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.adapt.plan import PlanConfig, plan_survey
        from specjax.report.results import print_table
        from specjax.simulate.instrument import Instrument
        from specjax.simulate.population import Ranges
        from specjax.units import symbol_and_unit

        rows = plan_survey(
            model=self.model,
            instrument=Instrument.get(self.instrument),
            out=self.out,
            config=PlanConfig(
                label=self.label,
                configuration=self.configuration,
                stars=self.stars,
                snr=self.snr,
                test=self.test,
                seeds=self.seeds,
                label_error=self.label_error,
                seed=self.seed,
            ),
            population=Ranges.parse(self.ranges) if self.ranges else None,
            dtype=self.dtype,
            files={FILE: options_text(self)},
            say=say,
        )
        print_table(rows, unit=symbol_and_unit(self.label)[1])
        print(self.out)
