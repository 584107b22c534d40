"""A small model on the LAMOST grid, an adapter of three seeds, and files of stars."""

import dataclasses

import h5py
import jax
import numpy as np
import pytest

from specjax.adapt.configuration import Configuration
from specjax.adapt.start import initial_leaves
from specjax.calibration.calibration import calibrate
from specjax.checkpoints import save_adapter
from specjax.foundation import Foundation
from specjax.foundation.ood import OutOfDomain
from specjax.prepare import Options, prepare_spectra
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.surveys import read
from tests import synthetic
from tests.models.tiny import SMALL, head_stats, random_system
from tests.prepare.stars import GRID, star, write_star, write_stars

SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths of a model, an adapter, and the same stars in three forms.

    `raw` is a folder of one star per file, with a file that cannot be read and stars that cannot be used;
    `arrays` has further stars in one HDF5 file, and `prepared` is the file made from `raw`.
    """

    model: object
    adapter: object
    raw: object
    arrays: object
    prepared: object


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    raw = write_stars(folder / "raw", 7)
    write_star(raw, 2, flux=np.full((1, GRID.size), np.nan))
    write_star(raw, 4, mask=(np.abs(GRID - 4800) < 250)[None])
    write_star(raw, 5, ivar=None)
    (raw / "003.npz").write_text("no spectra")
    with h5py.File(folder / "arrays.h5", "w") as file:
        many = np.stack([star(100 + k) for k in range(10)])
        file.update(wavelength=GRID, flux=many, id=[f"s{k}" for k in range(10)])
        file.attrs["wavelength_medium"] = "vacuum"
    prepare_spectra([raw], folder / "prepared.h5", options=Options(fwhm_from=6.0), workers=1)
    with synthetic.quick_compilation():
        _save_model(folder, Spectra.concatenate([to_lamost(read(raw / f"{k:03d}.npz")) for k in (0, 1, 6)]))
    return Files(folder / "model", folder / "adapter", raw, folder / "arrays.h5", folder / "prepared.h5")


def _save_model(folder, spectra):
    scale = {"label_mean": np.float32([5500, -0.7]), "label_std": np.float32([800, 0.8])}
    model = Foundation(config=SMALL, variables=random_system(SMALL))
    stats, mean = head_stats(model, spectra, scale), model.mean_token(spectra)
    domain = OutOfDomain(mean=mean.mean(0), whitening=np.eye(mean.shape[1]), limit=0.1)
    digest = dataclasses.replace(model, stats=stats, ood=domain).save(folder / "model")
    configuration = Configuration.parse("lora4")
    keys = jax.random.split(jax.random.key(0), SEEDS)
    leaves = initial_leaves(SMALL, configuration)(keys, model.variables)
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.05, leaves)
    about = {"configuration": "lora4", "target": "stars", "label": "fe_h", "seeds": SEEDS, "sigma": 0.1}
    truth = np.linspace(-2, 0.4, 30)
    calibration = calibrate(truth + 0.1 * np.cos(np.arange(30)), truth, snr=np.geomspace(5, 80, 30))
    about["calibration"] = calibration.to_json()
    how = {"method": "rebin", "fwhm": 6.0, "fwhm_to": None, "velocity_column": None}
    save_adapter(
        folder / "adapter",
        config={**about, "preparation": {"tower": "lamost", **how}},
        arrays=moved,
        base=digest,
    )
