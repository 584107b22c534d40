"""Flaws of real instruments that preprocessing is not told of: what adaptation recovers.

    python -m experiments.suite.shifts --out runs/experiments/shifts

Scattered light, a wavelength solution that is off, a throughput error, a lower resolution and noise, alone
and mixed, are put into the observed flux before the continuum is divided out (`specjax.simulate.flaws`, which
cites an instrument for each). Preprocessing is told nothing of them. Expected: heads recover most of what all
stars of the survey share, the backbone a little more where lines move or broaden; noise stays.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.suite import cases, figures, frame
from experiments.suite.frame import BASELINE, SCORES, Column, Kept, Results, Row, beside_strongest, figure_of
from experiments.suite.raw import Raw, load_raw
from experiments.suite.runner import Runner
from specjax.adapt.configuration import Configuration
from specjax.adapt.target import Target
from specjax.errors import ConfigError
from specjax.progress import Say
from specjax.report.style import colours
from specjax.simulate.flaws import Flaws, spoil

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "none"
LOWEST = -0.5  # of R2 in the plot: of predictions that are far worse than the mean, the number is enough

FLAWS: Mapping[str, Flaws] = {
    NOTHING: Flaws(),
    "scattered light 10%": Flaws(scattered_light=0.1),
    "scattered light 20%": Flaws(scattered_light=0.2),
    "scattered light 40%": Flaws(scattered_light=0.4),
    "wavelengths off by 1 pixel": Flaws(wavelength_offset=1.0),
    "wavelengths off by 2 pixels": Flaws(wavelength_offset=2.0),
    "wavelengths off by 4 pixels": Flaws(wavelength_offset=4.0),
    "throughput off by 10%": Flaws(throughput=0.1),
    "throughput off by 30%": Flaws(throughput=0.3),
    "FWHM 6 A": Flaws(fwhm=6.0),
    "FWHM 12 A": Flaws(fwhm=12.0),
    "FWHM 24 A": Flaws(fwhm=24.0),
    "S/N 50": Flaws(snr=50.0),
    "S/N 20": Flaws(snr=20.0),
    "S/N 5": Flaws(snr=5.0),
    "mixed, mild": Flaws(scattered_light=0.1, wavelength_offset=1.0, throughput=0.1, fwhm=6.0, snr=50.0),
    "mixed, severe": Flaws(scattered_light=0.4, wavelength_offset=4.0, throughput=0.3, fwhm=12.0, snr=20.0),
}
"""What is put into the spectra, by the name in the table."""

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="flaw", heading="flaw"),
    Column(name="name", heading="row"),
    *SCORES,
    Column(name="r2_gain", heading="gain in R²", signed=True),
    Column(name="recovered", heading="recovered"),
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Settings of `frame.Config`, and those below.

    Attributes:
        flaws: what is put into the spectra, any of `FLAWS`, "none" among them.
        heads: configuration of heads alone.
        backbone: the same with the backbone.
    """

    targets: tuple[str, ...] = ("miles",)
    seeds: int = 2
    flaws: tuple[str, ...] = tuple(FLAWS)
    heads: str = "lora2"
    backbone: str = "lora1+lora2"


def get_config() -> Config:
    """Return the default settings."""
    return Config()


def run(config: Config, out: Path, say: Say) -> Results:
    """Spoil the spectra in each way, and adapt to each."""
    unknown = [name for name in config.flaws if name not in FLAWS]
    if unknown or NOTHING not in config.flaws:
        missing = f"no flaw {unknown[0]!r}" if unknown else f"no {NOTHING!r} to compare with"
        raise ConfigError(f"there is {missing} among the flaws, which are any of {', '.join(FLAWS)}")
    kept = Kept(out, config)
    rows = [
        row
        for raw in load_raw(config)
        for flaw in config.flaws
        for row in _rows(config, raw, flaw, kept, say)
    ]
    table = with_recovered(beside_strongest(rows, by=("target", "flaw")))
    said = [
        one
        for name in dict.fromkeys(row["target"] for row in table)
        for one in sentences(config, table, name)
    ]
    return Results(
        name="shifts",
        title="Flaws of instruments",
        question="Preprocessing is not told of a flaw of the instrument: how much of the accuracy that the"
        " flaw costs does adaptation recover?",
        method=(
            f"Each flaw is put into the spectra as observed; {config.seeds} seeds. Gains are over the model"
            " as it is. Recovered is the share of the squared error that the flaw adds: 1 if an adapted row"
            " is as good as without the flaw, 0 if as bad as the model as it is. Sources of the flaws:"
            " `specjax/simulate/flaws.py`."
        ),
        columns=COLUMNS,
        rows=table,
        sentences=said,
        answers={"shifts": said[0]},
        draw=lambda figure: draw(figure, config, table),
    )


def spoilt_target(raw: Raw, flaw: str) -> Target:
    """Return the target of the stars of a survey with a flaw; preprocessing is not told of it."""
    return raw.target(raw.name, spoil(raw.spectra, FLAWS[flaw], fwhm_from=raw.fwhm))


def _rows(config: Config, raw: Raw, flaw: str, kept: Kept, say: Say) -> list[Row]:
    case = cases.make_case(config, spoilt_target(raw, flaw))
    key = f"{raw.name}/{re.sub(r'[^A-Za-z0-9]+', '-', flaw)}"
    runner = Runner(case, kept, say, key)
    found = {name: runner.predictions(name) for name in (config.heads, config.backbone)}
    zero_shot = Configuration.parse(config.backbone).zero_shot.name
    as_it_is = runner.predictions(zero_shot)
    made = [case.score(zero_shot, as_it_is, kind="zero-shot")]
    made += [case.score(name, one, kind="adapted", reference=as_it_is) for name, one in found.items()]
    made += [case.score(name, one, kind="baseline") for name, one in runner.baselines().items()]
    against = case.score("", found[config.backbone], kind="adapted", reference=found[config.heads])
    over = {f"over_heads{end}": against[f"r2_gain{end}"] for end in ("", "_lo", "_hi")}
    return [{**row, "flaw": flaw, **(over if row["name"] == config.backbone else {})} for row in made]


def recovered(r2: float, as_it_is: float, without: float) -> float:
    """Return the share of the squared error that a flaw adds to the model as it is that a row recovers.

    Args:
        r2: of the row, with the flaw.
        as_it_is: R2 of the model as it is, with the flaw.
        without: R2 of the row without the flaw.

    Returns:
        1 if the row is as good as without the flaw, 0 if it is as bad as the model as it is; NaN if that is
        as good as the row without the flaw.
    """
    return (r2 - as_it_is) / (without - as_it_is) if without > as_it_is else math.nan


def with_recovered(rows: Sequence[Row]) -> list[Row]:
    """Add "recovered" to the adapted rows with a flaw."""
    plain = {(row["target"], row["name"]): row["r2"] for row in rows if row["flaw"] == NOTHING}
    as_it_is = {(row["target"], row["flaw"]): row["r2"] for row in rows if row["kind"] == "zero-shot"}
    made = []
    for row in rows:
        if row["kind"] == "adapted" and row["flaw"] != NOTHING:
            worst, best = as_it_is[row["target"], row["flaw"]], plain[row["target"], row["name"]]
            row = {**row, "recovered": recovered(row["r2"], worst, best)}
        made.append(row)
    return made


def sentences(config: Config, rows: Sequence[Row], target: str) -> list[str]:
    """Say which flaw costs most, what heads and backbone recover, and where the backbone is worth it."""
    own = [row for row in rows if row["target"] == target]
    by = {(row["flaw"], row["name"]): row for row in own}
    spoilt = [flaw for flaw in config.flaws if flaw != NOTHING]
    worst = min(spoilt, key=lambda flaw: by[flaw, _zero_shot(own)]["r2"])
    as_it_is, heads, backbone = (by[worst, name] for name in (_zero_shot(own), config.heads, config.backbone))
    said = [
        f"On {target}, the worst of {len(spoilt)} flaws for the model as it is, {worst}, leaves it R²"
        f" {figure_of(as_it_is, 'r2', '')}; {config.heads} reaches {figure_of(heads, 'r2', '')},"
        f" {config.backbone} {figure_of(backbone, 'r2', '')}"
    ]
    strongest = by.get((worst, as_it_is["baseline"]))
    said[0] += f", and {strongest['name']} {figure_of(strongest, 'r2', '')}." if strongest else "."
    gains = [by[flaw, config.backbone] for flaw in spoilt]
    better = [row for row in gains if row["over_heads_lo"] > 0]
    said.append(
        f"{config.backbone} is better than {config.heads}, beyond the interval of the difference in R²,"
        f" for {len(better)} of {len(spoilt)} flaws"
        + (f": {'; '.join(_with_gain(row) for row in better)}." if better else ".")
    )
    lower = [row for row in gains if row["over_heads_hi"] < 0]
    if lower:
        said.append(f"It is worse for {'; '.join(_with_gain(row) for row in lower)}.")
    beaten = [
        flaw
        for flaw in spoilt
        if min(by[flaw, name]["sigma"] for name in (config.heads, config.backbone))
        > by[flaw, config.heads].get("baseline_sigma", math.inf)
    ]
    said.append(
        f"The strongest baseline has a smaller σ than both for {len(beaten)} of {len(spoilt)} flaws"
        + (f": {'; '.join(beaten)}." if beaten else ".")
    )
    return said


def _with_gain(row: Row) -> str:
    return f"{row['flaw']} ({figure_of(row, 'over_heads', '', signed=True)})"


def _zero_shot(rows: Sequence[Row]) -> str:
    return str(next(row["name"] for row in rows if row["kind"] == "zero-shot"))


def draw(figure: "Figure", config: Config, rows: Sequence[Row]) -> None:
    """Draw R2 of the model as it is and of both configurations, one line per flaw, for the first target."""
    own = [row for row in rows if row["target"] == rows[0]["target"]]
    figure.set_size_inches(3.5, 1.0 + 0.24 * len(config.flaws))
    axis = figure.subplots()
    names = (_zero_shot(own), config.heads, config.backbone)
    axis.set_xlim(LOWEST, 1.0)
    for offset, (name, colour), marker in zip((-0.25, 0.0, 0.25), colours(names).items(), "os^", strict=True):
        values = np.array([
            [row["r2"], row["r2_lo"], row["r2_hi"]]
            for flaw in config.flaws for row in own if (row["flaw"], row["name"]) == (flaw, name)
        ])  # fmt: skip
        reach = np.maximum(np.abs(np.nan_to_num(values[:, 1:] - values[:, :1])).T, 0)
        places = offset + np.arange(len(values))
        axis.errorbar(
            values[:, 0], places, xerr=reach, fmt=marker, color=colour, ms=3, elinewidth=0.7, label=name
        )
        for value, place in zip(values[:, 0], places, strict=True):
            if value < LOWEST:
                figures.draw_beyond(axis, value, place, colour)
    axis.set_yticks(range(len(config.flaws)), config.flaws)
    axis.set_ylim(len(config.flaws) - 0.4, -0.6)
    axis.set_xlabel("R²")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)


if __name__ == "__main__":
    frame.command("shifts", get_config(), run, __doc__)
