"""Observed spectra with which translated ones are compared, star by star."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.spectra import Spectra
from specjax.surveys import read, read_xp
from specjax.typing import AnyArray, Float32Array, FloatArray, IntArray, StrArray

ERRORS = ("truth_pixels", "bias", "rms", "rms_of_mean")
"""The columns of `Truth.compare`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Observed spectra on the grid of a survey.

    Attributes:
        spectra: n spectra on a model grid; masked pixels are not compared.
    """

    spectra: Spectra

    @classmethod
    def read(cls, path: str | Path, target: str) -> "Truth":
        """Read the spectra of a survey, "lamost" or "gaia_xp".

        Raises:
            DataError: nothing can be read, or the file holds no spectra of that survey.
        """
        path = Path(path)
        if target == "lamost":
            return cls(spectra=to_lamost(read(path)))
        partner = read_xp(path)
        if partner is not None:
            return cls(spectra=partner)
        spectra = read(path)
        if spectra.survey != "gaia_xp" and (spectra.prepared or {}).get("tower") != "gaia_xp":
            raise DataError(f"{path} holds no Gaia XP spectra to compare with")
        return cls(spectra=to_gaia_xp(spectra))

    @cached_property
    def digest(self) -> str:
        """A digest of ids, flux and mask."""
        total = hashlib.sha256("\n".join(self.spectra.id.tolist()).encode())
        total.update(self.spectra.flux.tobytes())
        total.update(self.spectra.valid.tobytes())
        return total.hexdigest()

    def flux_of(self, name: str) -> FloatArray | None:
        """Return the flux (p,) of a star, NaN where it is masked; None if the star is unknown."""
        row = self._row_of.get(name)
        if row is None or not self.spectra.valid[row].any():
            return None
        return np.where(self.spectra.valid[row], self.spectra.flux[row], np.nan)

    def compare(self, ids: StrArray, flux: Float32Array) -> dict[str, AnyArray]:
        """Compare translated flux (n, p) with that of the same stars.

        Returns:
            Columns (n,): truth_pixels, the number of pixels that are known of the star; bias and rms, mean
            and root mean square of translated minus observed flux over them; and rms_of_mean, that of the
            mean spectrum of all other stars, which is what a translation must beat. NaN where the star is
            unknown, was not translated, or, for the last one, is the only one.
        """
        rows = np.array([self._row_of.get(name, -1) for name in ids.tolist()], dtype=np.int64)
        valid = self.spectra.valid[rows] & (rows >= 0)[:, None]
        observed = self.spectra.flux[rows]
        count, others = valid.sum(axis=1), self._mean_of_others(rows)
        return {
            "truth_pixels": count,
            "bias": _mean(flux - observed, valid),
            "rms": np.sqrt(_mean((flux - observed) ** 2, valid)),
            "rms_of_mean": np.sqrt(_mean((others - observed) ** 2, valid & np.isfinite(others))),
        }

    def _mean_of_others(self, rows: IntArray) -> FloatArray:
        """Return the mean spectra (n, p) of all stars but one each, NaN where there are no others."""
        total, count = self._sums
        valid = self.spectra.valid[rows]
        own = np.where(valid, self.spectra.flux[rows], 0.0)
        left = count - valid
        mean: FloatArray = np.divide(total - own, left, out=np.full(own.shape, np.nan), where=left > 0)
        return mean

    @cached_property
    def _sums(self) -> tuple[FloatArray, IntArray]:
        """The sums (p,) and the numbers (p,) of valid pixels."""
        valid = self.spectra.valid
        return np.where(valid, self.spectra.flux, 0.0).sum(axis=0), valid.sum(axis=0)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        """The first row of each id."""
        return {name: row for row, name in reversed(list(enumerate(self.spectra.id.tolist())))}


def _mean(values: FloatArray, valid: AnyArray) -> FloatArray:
    """Return the mean (n,) of values (n, p) over valid pixels, NaN without any."""
    count = valid.sum(axis=1)
    total = np.where(valid, values, 0.0).sum(axis=1)
    mean: FloatArray = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return mean
