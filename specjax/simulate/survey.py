"""Surveys with known truth: stars of a population, observed with an instrument, written chunk by chunk."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specjax._version import __version__
from specjax.atomic import atomic_file
from specjax.errors import ConfigError
from specjax.interrupt import Interrupt, deferred_interrupt
from specjax.overwrite import check_replaceable
from specjax.plurals import counted
from specjax.preprocess.resample import SPEED_OF_LIGHT
from specjax.progress import Pace, Say, silent
from specjax.simulate.emulator import Emulator, shipped
from specjax.simulate.instrument import Instrument
from specjax.simulate.labels import LABELS, Domain
from specjax.simulate.observe import Observation, Optics, observe
from specjax.simulate.population import LabelTable, MilkyWay, Population, Stars
from specjax.spectra import Spectra
from specjax.surveys import arrays
from specjax.surveys.io.tables import write_table
from specjax.typing import AnyArray, FloatArray, StrArray

CHUNK = 2048
"""Spectra that are simulated at a time, which take about 200 MB."""

MAX_NPZ = 20_000
"""Spectra that an .npz file may have, as it is made in memory."""

_TOO_MANY = 2**31  # stars are numbered in int32


class Batch(NamedTuple):
    """n simulated spectra; the arrays are those of `observe.Observation`."""

    flux: AnyArray
    ivar: AnyArray
    mask: AnyArray
    snr: AnyArray
    velocity: AnyArray
    reported: AnyArray
    stars: Stars


def simulate_survey(
    out: str | Path,
    *,
    instrument: Instrument,
    n: int,
    population: Population | None = None,
    seed: int = 0,
    emulator: Emulator | None = None,
    chunk: int = CHUNK,
    say: Say = silent,
) -> Path:
    """Simulate a survey and write its spectra, and a table NAME_labels.ecsv of the true labels beside them.

    Spectra and table have columns id, teff, logg, fe_h, alpha_fe, vmicro, velocity (the true shift of the
    spectrum) and snr. Unless the instrument removes them, the file also has the column redshift, the velocity
    over c as the survey reports it. File and table say in their metadata that and how they were simulated.

    Args:
        out: file to write, .h5, .hdf5 or .npz.
        instrument: the instrument.
        n: number of spectra.
        population: of the stars; the default is `MilkyWay`.
        seed: star k of a seed has the same labels, errors and noise whatever n is.
        emulator: of the stars; the default is the one that ships with the package.
        chunk: spectra to simulate at a time.
        say: receives progress.

    Returns:
        The path of the table.

    Raises:
        ConfigError: `n`, the seed or the suffix of the file is not possible, a file would replace a folder or
            the table of the population, or the emulator cannot simulate the instrument.
        DataError: the population has hardly any stars inside the grid of the emulator, or the spectra do not
            fit on the disk.
    """
    out = Path(out)
    table = out.with_name(f"{out.stem}_labels.ecsv")
    _check_file(out, n)
    for path in (out, table):
        _check_replaced(path, population)
    check_replaceable(out, table)
    emulator, population = emulator or shipped(), population or MilkyWay()
    notes = describe(instrument, population, emulator, seed)
    wavelength, batches = _start(instrument, emulator, population, n, seed, chunk, say)
    arrays.check_space(out, n, wavelength.size)
    # The table is written before the spectra are complete, and appears after them.
    if out.suffix.lower() in arrays.HDF5:
        with (
            deferred_interrupt() as interrupt,
            atomic_file(table) as temporary,
            arrays.stream(out, n, wavelength, survey=_name(instrument), notes=notes) as file,
        ):
            parts = []
            for batch in _interruptible(batches, interrupt):
                file.append(batch.flux, batch.ivar, batch.mask)
                parts.append(_columns(batch, instrument))
            columns = _joined(parts, seed)
            file.add_columns(columns)
            _write_labels(temporary, columns, notes)
            interrupt.check()
    else:
        spectra = _in_memory(wavelength, batches, instrument, seed)
        with atomic_file(table) as temporary:
            _write_labels(temporary, {"id": spectra.id, **spectra.meta}, notes)
            arrays.write(out, spectra, notes)
    return table


def simulate_spectra(
    instrument: Instrument,
    n: int,
    *,
    population: Population | None = None,
    seed: int = 0,
    emulator: Emulator | None = None,
    chunk: int = CHUNK,
    say: Say = silent,
) -> Spectra:
    """Simulate a survey in memory, with the columns that `simulate_survey` writes in `meta`.

    Arguments and errors are those of `simulate_survey`.
    """
    emulator, population = emulator or shipped(), population or MilkyWay()
    wavelength, batches = _start(instrument, emulator, population, n, seed, chunk, say)
    return _in_memory(wavelength, batches, instrument, seed)


def describe(instrument: Instrument, population: Population, emulator: Emulator, seed: int) -> dict[str, str]:
    """Return the metadata of simulated spectra, {name: text}."""
    return {
        "simulated": f"by specjax {__version__}",
        "emulator": emulator.digest or "not from a file",
        "instrument": json.dumps(dataclasses.asdict(instrument)),
        "population": population.describe(),
        "seed": str(seed),
    }


def simulate(
    optics: Optics, population: Population, domain: Domain, *, n: int, seed: int = 0, chunk: int = CHUNK
) -> Iterator[Batch]:
    """Yield n simulated spectra in batches of `chunk`; one batch is computed while another one is used."""
    key = jax.random.key(seed)
    stars_key, noise_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    size = min(chunk, 1 << (n - 1).bit_length())
    optics = jax.device_put(optics)
    ahead: tuple[Observation, Stars] | None = None
    for first in range(0, n, size):
        stars = population.draw(stars_key, first, size, domain)
        labels, velocity = jnp.asarray(stars.labels, jnp.float32), jnp.asarray(stars.velocity, jnp.float32)
        computing = _observe(optics, noise_key, first, labels, velocity)  # returns before it is computed
        if ahead is not None:
            yield _on_host(*ahead, size)
        ahead = computing, stars
    assert ahead is not None
    yield _on_host(*ahead, n - first)


@jax.jit
def _observe(
    optics: Optics, key: jax.Array, first: int, labels: jax.Array, velocity: jax.Array
) -> Observation:
    numbers = first + jnp.arange(len(labels))
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
    return observe(optics, keys, labels, velocity)


def _start(
    instrument: Instrument,
    emulator: Emulator,
    population: Population,
    n: int,
    seed: int,
    chunk: int,
    say: Say,
) -> tuple[FloatArray, Iterator[Batch]]:
    """Return the wavelengths of a survey and its batches, which report their progress."""
    if n < 1:
        raise ConfigError(f"a survey needs at least one spectrum, not {n}")
    if n >= _TOO_MANY:
        raise ConfigError(f"a survey has fewer than 2**31 spectra, not {n}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"the seed must be from 0 to 2**32 - 1, not {seed}")
    optics, wavelength = Optics.of(instrument, emulator, seed)
    say(_range(instrument, wavelength))
    batches = simulate(optics, population, emulator.domain, n=n, seed=seed, chunk=chunk)
    return wavelength, _reported(batches, n, say)


def _in_memory(
    wavelength: FloatArray, batches: Iterator[Batch], instrument: Instrument, seed: int
) -> Spectra:
    with deferred_interrupt() as interrupt:
        kept = list(_interruptible(batches, interrupt))
    columns = _joined([_columns(batch, instrument) for batch in kept], seed)
    flux, ivar, mask = (np.concatenate([batch[k] for batch in kept]) for k in range(3))
    names = columns.pop("id")
    return Spectra.build(wavelength, flux, ivar, mask, names, meta=columns, survey=_name(instrument))


def _interruptible(batches: Iterator[Batch], interrupt: Interrupt) -> Iterator[Batch]:
    """Yield the batches until there was an interrupt."""
    for batch in batches:
        interrupt.check()
        yield batch
        interrupt.check()


def _write_labels(path: Path, columns: dict[str, AnyArray], notes: dict[str, str]) -> None:
    """Write the table of true labels."""
    truth = {name: column for name, column in columns.items() if name != "redshift"}
    write_table(path, truth, {name: notes[name] for name in sorted(notes)})


def _on_host(observed: Observation, stars: Stars, count: int) -> Batch:
    """Wait for the spectra, and return the first of them as NumPy arrays."""
    kept = Stars(
        labels=stars.labels[:count],
        velocity=stars.velocity[:count],
        id=None if stars.id is None else stars.id[:count],
        rejected=stars.rejected,
    )
    arrays = {name: np.asarray(array)[:count] for name, array in observed._asdict().items()}
    return Batch(**arrays, stars=kept)


def _reported(batches: Iterator[Batch], n: int, say: Say) -> Iterator[Batch]:
    """Report progress and, at the end, the speed and the stars that were drawn again."""
    pace, done, rejected = Pace(), 0, 0
    for batch in batches:
        yield batch
        done, rejected = done + len(batch.stars.labels), rejected + batch.stars.rejected
        if done < n and pace.due():
            say(f"{done:,} of {n:,} spectra, {done / pace.elapsed:,.0f} per second")
    again = f", {rejected / (n + rejected):.1%} of the draws outside the emulator's grid" if rejected else ""
    say(f"simulated {counted(n, 'spectrum', 'spectra')} in {pace.elapsed:.1f} s{again}")


def _columns(batch: Batch, instrument: Instrument) -> dict[str, AnyArray]:
    """Return the columns of a batch; id only for stars with names."""
    columns: dict[str, AnyArray] = {} if batch.stars.id is None else {"id": batch.stars.id}
    columns |= dict(zip(LABELS, batch.stars.labels.T.copy(), strict=True))
    columns["velocity"] = np.round(np.asarray(batch.velocity, np.float64), 3)
    columns["snr"] = np.round(np.asarray(batch.snr, np.float64), 2)
    if not instrument.rest_frame:
        columns["redshift"] = np.asarray(batch.reported, np.float64) / SPEED_OF_LIGHT
    return columns


def _joined(parts: list[dict[str, AnyArray]], seed: int) -> dict[str, AnyArray]:
    """Concatenate the columns of all batches; stars without names are numbered."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return columns if "id" in columns else {"id": _numbered(len(columns["snr"]), seed), **columns}


def _numbered(n: int, seed: int) -> StrArray:
    return np.char.add(f"sim-{seed}-", np.char.zfill(np.arange(n).astype(np.str_), 7))


def _range(instrument: Instrument, wavelength: FloatArray) -> str:
    """Say which pixels are simulated."""
    pixels = instrument.pixels()
    text = f"{instrument.name}: {wavelength.size} pixels, {wavelength[0]:.0f}-{wavelength[-1]:.0f} A"
    if wavelength.size < pixels.size:
        text += f" (of {pixels[0]:.0f}-{pixels[-1]:.0f} A; the emulator does not cover the rest)"
    return text


def _name(instrument: Instrument) -> str:
    """Return the name of the survey, which says that it is simulated."""
    return f"simulated-{instrument.name}"


def _check_file(out: Path, n: int) -> None:
    if out.suffix.lower() not in arrays.HDF5 + arrays.NPZ:
        raise ConfigError(f"cannot write {out.name}: the suffix must be .h5, .hdf5 or .npz")
    if out.suffix.lower() in arrays.NPZ and n > MAX_NPZ:
        raise ConfigError(f"{n} spectra are too many for .npz, up to {MAX_NPZ}: write .h5")


def _check_replaced(path: Path, population: Population | None) -> None:
    """Check that a file to write replaces neither a folder nor the table of the stars."""
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder")
    if isinstance(population, LabelTable) and path.exists() and path.samefile(population.path):
        raise ConfigError(f"{path} is the table of the stars, which would be replaced: choose another name")
