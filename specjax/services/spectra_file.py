"""Write spectra on one grid to an HDF5 file in the layout that `surveys.arrays` reads, a page at a time."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np

from specjax.spectra import Spectra
from specjax.surveys.arrays import for_hdf5
from specjax.surveys.io import checksums
from specjax.typing import AnyArray, FloatArray

_GRID_TOLERANCE = 1e-9  # relative; wavelengths that went through text differ by less


class SpectraFile:
    """An open file to which spectra on one grid are appended, so that memory holds one page at a time.

    The file has wavelength (p,), flux, ivar and mask (n, p), id (n,) and one dataset per column of
    `Spectra.meta`, with units as attributes, and checksums of them all.
    """

    def __init__(self, path: Path, grid: FloatArray, survey: str, flux_unit: str):
        self._file = h5py.File(path, "w", libver=checksums.LIBVER)
        about = {"wavelength_medium": "vacuum", "wavelength_unit": "angstrom", "survey": survey}
        checksums.set_attributes(self._file, about)
        self._texts: dict[str, list[AnyArray]] = {}
        self._units = {"flux": flux_unit, "ivar": f"({flux_unit})-2", "ra": "deg", "dec": "deg"}
        self._grid = grid
        self._file["wavelength"] = grid
        self._file["wavelength"].attrs["unit"] = "Angstrom"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for name, pieces in self._texts.items():
                    self._file[name] = for_hdf5(np.concatenate(pieces))
                checksums.seal(self._file)
        finally:
            self._file.close()

    def has_grid_of(self, spectra: Spectra) -> bool:
        """Return whether spectra are on the file's grid."""
        grid = spectra.wavelength
        return grid.shape == self._grid.shape and bool(
            np.allclose(grid, self._grid, rtol=_GRID_TOLERANCE, atol=0.0)
        )

    def append(self, parts: Sequence[Spectra]) -> None:
        """Append spectra that are on the file's grid and have an inverse variance."""
        columns: dict[str, list[AnyArray]] = {}
        for part in parts:
            arrays = {"flux": part.flux, "ivar": part.ivar, "mask": part.mask, "id": part.id, **part.meta}
            for name, array in arrays.items():
                columns.setdefault(name, []).append(array)
        for name, pieces in columns.items():
            self._extend(name, np.concatenate(pieces), self._units.get(name))

    def _extend(self, name: str, rows: AnyArray, unit: str | None) -> None:
        if rows.dtype.kind == "U":  # of an unknown length before the last page
            self._texts.setdefault(name, []).append(rows)
            return
        if name not in self._file:
            self._file.create_dataset(
                name,
                shape=(0, *rows.shape[1:]),
                maxshape=(None, *rows.shape[1:]),
                chunks=(8 if rows.ndim > 1 else 1024, *rows.shape[1:]),
                dtype=rows.dtype,
            )
            if unit is not None:
                self._file[name].attrs["unit"] = unit
        data = self._file[name]
        before = len(data)
        data.resize(before + len(rows), axis=0)
        data[before:] = rows
