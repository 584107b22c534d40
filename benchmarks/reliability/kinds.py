"""A small example of each kind of file that specjax reads, with a function that returns what it holds."""

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from checkpoints_convert.torch_file import open_torch_file
from checkpoints_convert.torch_writer import write_torch_file
from specjax.checkpoints import TrainingStates, load_adapter, load_model, save_adapter, save_model
from specjax.npz import read_npz
from specjax.prepare import prepare_spectra
from specjax.progress import silent
from specjax.spectra import Spectra
from specjax.surveys import arrays, read
from specjax.surveys.io.tables import read_table, write_table
from specjax.typing import AnyArray, FloatArray

GRID = np.arange(3650.0, 5750.0, 2.0)

Content = dict[str, AnyArray]
"""What a file holds, by name; the rows of spectra are under their ids."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        files: those of the example.
        read: returns what they hold.
        guarded: by what damage is noticed, in words.
    """

    files: list[Path]
    read: Callable[[], Content]
    guarded: str


def make_kinds(place: Path) -> dict[str, Kind]:
    """Write an example of each kind below a folder."""
    makers = (prepared, simulated, npz, fits_gz, fits_sums, fits_plain, table, text_table)
    kinds = {maker.__name__: maker(place) for maker in makers}
    return kinds | {
        maker.__name__: maker(place) for maker in (model, adapter, training_state, part, torch_file)
    }


def write_stars(folder: Path, count: int) -> Path:
    """Write stars with lines and noise, one .npz file each, and a table of labels beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    centres = rng.uniform(3700, 5700, 60)
    fe_h = rng.uniform(-2, 0.5, count)
    for number in range(count):
        depth = 0.4 * 10 ** (0.3 * fe_h[number]) * rng.uniform(0.9, 1.1, 60)
        lines = (depth * np.exp(-0.5 * ((GRID[:, None] - centres) / 4.0) ** 2)).sum(axis=1)
        flux = (GRID / 5000) ** -1.0 * np.exp(-lines) * (1 + 0.01 * rng.normal(size=GRID.size))
        np.savez(
            folder / f"{number:03d}.npz",
            wavelength=GRID,
            flux=flux[None],
            ivar=np.full((1, GRID.size), 1e4),
            id=[f"star{number}"],
            survey="stars",
            wavelength_medium="vacuum",
        )
    write_table(
        folder.with_suffix(".csv"), {"id": np.array([f"star{k}" for k in range(count)]), "fe_h": fe_h}
    )
    return folder


def content_of(spectra: Spectra) -> Content:
    """Return spectra as one array per id, with the grid and the columns that belong to it."""
    shared = {"wavelength": np.atleast_2d(spectra.wavelength)[0]}
    shared["about"] = np.array([spectra.medium, spectra.survey, str(spectra.has_ivar), str(spectra.prepared)])
    for row, name in enumerate(spectra.id.tolist()):
        pixels = np.stack([spectra.flux[row], spectra.ivar[row], spectra.mask[row]])
        shared[f"id {name}"] = pixels
        shared[f"columns of {name}"] = np.array([str(column[row]) for column in spectra.meta.values()])
    return shared


def prepared(place: Path) -> Kind:
    """Return a file of `specjax prepare`."""
    path = place / "prepared.h5"
    prepare_spectra([write_stars(place / "stars", 6)], path, workers=1, say=silent)
    return Kind(files=[path], read=lambda: content_of(read(path)), guarded="CRC-32 of each row")


def simulated(place: Path) -> Kind:
    """Return a file such as `specjax simulate` writes."""
    path, shape, rng = place / "simulated.h5", (6, GRID.size), np.random.default_rng(1)
    with arrays.stream(path, 6, GRID, survey="simulated", notes={}) as stream:
        stream.append(rng.random(shape), rng.random(shape), rng.random(shape) > 0.9)
        stream.add_columns({"id": np.array([f"s{k}" for k in range(6)]), "fe_h": rng.normal(size=6)})
    return Kind(files=[path], read=lambda: content_of(read(path)), guarded="CRC-32 of each row")


def npz(place: Path) -> Kind:
    """Return an .npz file of spectra."""
    path = place / "stars" / "000.npz"
    return Kind(files=[path], read=lambda: content_of(read(path)), guarded="CRC-32 of each array")


def fits_gz(place: Path) -> Kind:
    """Return a gzipped FITS file."""
    path = place / "spectra.fits.gz"
    path.write_bytes(gzip.compress(_fits(place / "a.fits").read_bytes(), mtime=0))
    return Kind(files=[path], read=lambda: content_of(read(path)), guarded="CRC-32 of gzip")


def fits_sums(place: Path) -> Kind:
    """Return a FITS file with CHECKSUM and DATASUM."""
    path = _fits(place / "sums.fits", checksum=True)
    return Kind(files=[path], read=lambda: content_of(read(path)), guarded="CHECKSUM and DATASUM")


def fits_plain(place: Path) -> Kind:
    """Return a FITS file without either."""
    path = _fits(place / "plain.fits")
    return Kind(files=[path], read=lambda: content_of(read(path)), guarded="nothing")


def table(place: Path) -> Kind:
    """Return a FITS table of labels."""
    path = place / "labels.fits"
    write_table(path, {"id": np.array(["a", "b", "c"]), "fe_h": np.array([0.1, -0.5, -2.0])})
    return Kind(files=[path], read=lambda: _table(path), guarded="CHECKSUM and DATASUM")


def text_table(place: Path) -> Kind:
    """Return a text table of labels."""
    path = place / "labels.ecsv"
    write_table(path, {"id": np.array(["a", "b", "c"]), "fe_h": np.array([0.1, -0.5, -2.0])})
    return Kind(files=[path], read=lambda: _table(path), guarded="nothing")


def model(place: Path) -> Kind:
    """Return a model folder."""
    folder = place / "model"
    save_model(folder, config={"sizes": [3, 4]}, arrays={"params": {"w": _numbers()}})

    def read_model() -> Content:
        stored = load_model(folder)
        return {"w": stored.arrays["params"]["w"], "config": np.array([str(stored.config)])}

    return Kind(files=sorted(folder.iterdir()), read=read_model, guarded="SHA-256 of each file")


def adapter(place: Path) -> Kind:
    """Return an adapter folder."""
    folder = place / "adapter"
    save_adapter(folder, config={"label": "fe_h"}, arrays={"a": _numbers()}, base="0" * 64)

    def read_adapter() -> Content:
        stored = load_adapter(folder, base="0" * 64)
        return {"a": stored.arrays["a"], "config": np.array([str(stored.config)])}

    return Kind(files=sorted(folder.iterdir()), read=read_adapter, guarded="SHA-256 of each file")


def training_state(place: Path) -> Kind:
    """Return a training state of pretraining."""
    import jax.numpy as jnp

    folder, state = place / "training", {"w": jnp.asarray(_numbers())}
    with TrainingStates(folder) as states:
        states.save(1, state, {"next": 3})

    def read_state() -> Content:
        with TrainingStates(folder) as states:
            found = states.restore(state)
        return {
            "w": np.asarray(found.state["w"]),
            "position": np.array([str(found.position), str(found.step)]),
        }

    files = sorted(path for path in (folder / "1").rglob("*") if path.is_file())
    return Kind(files=files, read=read_state, guarded="SHA-256 of each file")


def part(place: Path) -> Kind:
    """Return a part of an unfinished run, which has the format of the feature cache, too."""
    path = place / "part.npz"
    np.savez(path, prediction=_numbers(), seed=np.arange(3))
    return Kind(files=[path], read=lambda: dict(read_npz(path)), guarded="CRC-32 of each array")


def torch_file(place: Path) -> Kind:
    """Return a PyTorch file of weights."""
    path = place / "weights.ckpt"
    write_torch_file(path, {"state_dict": {"w": _numbers(), "b": np.arange(4, dtype=np.float32)}})

    def read_weights() -> Content:
        state = open_torch_file(path).state_dict()
        return {name: np.array(tensor.array()) for name, tensor in state.items()}

    return Kind(files=[path], read=read_weights, guarded="CRC-32 of each tensor")


def _table(path: Path) -> Content:
    found = read_table(path)
    return {name: np.asarray(found[name]) for name in found.colnames}


def _fits(path: Path, **options: Any) -> Path:
    rng = np.random.default_rng(0)
    images = {"FLUX": rng.random((3, 500)), "IVAR": rng.random((3, 500)), "WAVE": 4000.0 + np.arange(500)}
    hdus = [fits.ImageHDU(data.astype(np.float32), name=name) for name, data in images.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, overwrite=True, **options)
    return path


def _numbers() -> FloatArray:
    return np.random.default_rng(2).normal(size=(40, 30)).astype(np.float32)
