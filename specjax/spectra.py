"""The one container for spectra, the two wavelength grids of the models, and air against vacuum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from specjax.errors import DataError
from specjax.typing import AnyArray, BoolArray, FloatArray, IntArray, StrArray

LAMOST_WAVELENGTH: FloatArray = np.power(10.0, 3.602 + 1e-4 * np.arange(1462, dtype=np.float64))
"""(1462,) vacuum Angstrom: the grid of the LAMOST tower, 4000 to 5599 A."""

GAIA_XP_WAVELENGTH: FloatArray = np.arange(3360, 10201, 20, dtype=np.float64)
"""(343,) vacuum Angstrom: the grid of the Gaia XP tower, 336 to 1020 nm every 2 nm."""

_GAP = 5.0  # times the steps beside it
_HUGE = 1e150  # flux whose square is not a number any more
_ANGSTROM_PER_UNIT = {"angstrom": 1.0, "nm": 10.0, "um": 1e4}


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectra:
    """n spectra of p pixels. The constructor is strict; `Spectra.build` accepts what users really have.

    Attributes:
      wavelength: (p,) for a shared grid or (n, p), strictly increasing, Angstrom.
      flux: (n, p), finite, any unit of flux density per wavelength.
      ivar: (n, p), inverse variance of the flux, >= 0; 0 means no information. Ones if the source has none.
      mask: (n, p), True means do not use.
      id: (n,) strings.
      meta: columns of length n.
      medium: "vacuum" or "air"; declared, never guessed.
      survey: where the spectra come from, free text.
      has_ivar: False where `ivar` is a placeholder because the source gives no uncertainties.
      prepared: how `preprocess` made them a tower's input, {"tower": "lamost" or "gaia_xp", option: value};
        None for spectra as observed.

    Raises:
      DataError: shapes that do not fit, wavelengths that are not finite, positive and increasing, flux or
        ivar that are not finite, an unknown medium.
    """

    wavelength: FloatArray
    flux: FloatArray
    ivar: FloatArray
    mask: BoolArray
    id: StrArray
    meta: dict[str, AnyArray] = field(default_factory=dict)
    medium: str = "vacuum"
    survey: str = ""
    has_ivar: bool = True
    prepared: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        if self.medium not in ("vacuum", "air"):
            raise DataError(f"wavelength medium must be 'vacuum' or 'air', not {self.medium!r}")
        _check_wavelength(self.wavelength)
        if not (_all_rows(np.isfinite, self.flux) and _all_rows(np.isfinite, self.ivar)):
            raise DataError("flux and ivar must be finite; Spectra.build masks the pixels that are not")
        if not _all_rows(lambda ivar: ivar >= 0, self.ivar):
            raise DataError("ivar must not be negative; Spectra.build masks the pixels where it is")

    @classmethod
    def build(
        cls,
        wavelength: ArrayLike,
        flux: ArrayLike,
        ivar: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        id: Sequence[str] | AnyArray | None = None,
        *,
        meta: Mapping[str, ArrayLike] | None = None,
        medium: str = "vacuum",
        survey: str = "",
        unit: str | None = None,
    ) -> Spectra:
        """Spectra from arrays as they come.

        Casts to native float64, sorts by wavelength (flux, ivar and mask go along), turns one spectrum (p,)
        into (1, p), and masks pixels whose flux is not finite (or so large that its square is not), whose
        ivar is not finite and positive, or that lie in a run of at least three pixels of exactly zero flux,
        which is how files fill gaps. A gap in a shared grid, a step five times those beside it, gets a masked
        pixel at either end: without them the pixels beside it would be as wide as half the gap.

        Args:
          wavelength: (p,) or (n, p).
          flux: (n, p) or (p,).
          ivar: as flux, or None where the source gives no uncertainties.
          mask: as flux, or None. Any nonzero value means do not use.
          id: (n,) names; row numbers where None.
          meta: columns of length n.
          medium: "vacuum" or "air".
          survey: where the spectra come from.
          unit: "angstrom", "nm", "um" or "log10" (of Angstrom). None means Angstrom and refuses grids that
            look like another unit.

        Raises:
          DataError: as the constructor, and for duplicated wavelengths or a grid that looks like another
            unit.
        """
        flux_2d = np.atleast_2d(_native(flux, "flux"))
        grid = _in_angstrom(_native(wavelength, "wavelength"), unit)
        grid = grid[0] if grid.ndim == 2 and len(grid) == 1 else grid
        has_ivar = ivar is not None
        ivar_2d = np.ones_like(flux_2d) if ivar is None else np.atleast_2d(_native(ivar, "ivar"))
        bad = np.zeros(flux_2d.shape, bool) if mask is None else np.atleast_2d(_native(mask, "mask") != 0)
        _check_pixels(grid, flux_2d, ivar_2d, bad)
        order = np.argsort(grid, axis=-1, kind="stable")
        if (np.diff(order, axis=-1) < 0).any():
            grid = np.take_along_axis(grid, order, axis=-1)
            rows = np.broadcast_to(order, flux_2d.shape)
            flux_2d, ivar_2d, bad = (np.take_along_axis(a, rows, axis=1) for a in (flux_2d, ivar_2d, bad))
        used = np.asarray((~bad & (ivar_2d > 0)).any(axis=0))
        if grid.ndim == 1 and (gaps := _gaps(grid, used)).size:
            grid, (flux_2d, ivar_2d, bad) = _span(grid, gaps, flux_2d, ivar_2d, bad)
        flux_2d = np.where(np.abs(flux_2d) < _HUGE, flux_2d, np.nan)
        usable = np.isfinite(flux_2d) & np.isfinite(ivar_2d) & (ivar_2d > 0) & ~_zero_runs(flux_2d)
        names = np.arange(len(flux_2d)) if id is None else np.atleast_1d(np.asarray(id))
        return cls(
            wavelength=grid,
            flux=np.where(np.isfinite(flux_2d), flux_2d, 0.0),
            ivar=np.where(usable, ivar_2d, 0.0),
            mask=bad | ~usable,
            id=names.astype(np.str_),
            meta={key: np.atleast_1d(np.asarray(column)) for key, column in (meta or {}).items()},
            medium=medium,
            survey=survey,
            has_ivar=has_ivar,
        )

    def __len__(self) -> int:
        return int(self.flux.shape[0])

    def __getitem__(self, rows: int | slice | ArrayLike) -> Spectra:
        """The chosen rows (an index, a slice, an index array or a boolean array) as Spectra."""
        if isinstance(rows, int | np.integer):
            rows = [int(rows)]
        index = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)]
        return replace(
            self,
            wavelength=self.wavelength if self.wavelength.ndim == 1 else self.wavelength[index],
            flux=self.flux[index],
            ivar=self.ivar[index],
            mask=self.mask[index],
            id=self.id[index],
            meta={key: column[index] for key, column in self.meta.items()},
        )

    @property
    def valid(self) -> BoolArray:
        """(n, p) True where a pixel may be used: not masked and with information."""
        return ~self.mask & (self.ivar > 0)

    def select(self, ids: Sequence[str] | StrArray) -> Spectra:
        """The spectra with these ids, in this order; DataError for an id that is absent or not unique."""
        position: dict[str, int] = {}
        for row, name in enumerate(self.id.tolist()):
            if position.setdefault(name, row) != row:
                position[name] = -1
        rows = [position.get(str(name), -2) for name in ids]
        for name, row in zip(ids, rows, strict=True):
            if row < 0:
                raise DataError(
                    f"id {str(name)!r} is {'not unique' if row == -1 else 'not'} among the spectra"
                )
        return self[np.asarray(rows, dtype=int)]

    def with_meta(self, **columns: ArrayLike) -> Spectra:
        """A copy with these columns added to, or replaced in, `meta`."""
        return replace(self, meta={**self.meta, **{key: np.asarray(value) for key, value in columns.items()}})

    def to_vacuum(self) -> Spectra:
        """The same spectra with vacuum wavelengths (flux per Angstrom left as it is: a 3e-4 effect)."""
        if self.medium == "vacuum":
            return self
        return replace(self, wavelength=air_to_vacuum(self.wavelength), medium="vacuum")

    @staticmethod
    def concatenate(parts: Sequence[Spectra]) -> Spectra:
        """One Spectra of all rows. Different grids become (n, p), shorter ones padded with masked pixels.

        Only the meta columns that every part has are kept. `has_ivar` is False if any part has no
        uncertainties.

        Raises:
          DataError: nothing to join, parts in different media, or parts prepared differently.
        """
        if not parts:
            raise DataError("no spectra to join")
        if len({part.medium for part in parts}) > 1:
            raise DataError(
                "cannot join spectra in air with spectra in vacuum: call to_vacuum() on each first"
            )
        first = parts[0]
        if any(part.prepared != first.prepared for part in parts):
            raise DataError("cannot join spectra that were prepared in different ways, or some not at all")
        same = all(p.wavelength.ndim == 1 and np.array_equal(p.wavelength, first.wavelength) for p in parts)
        width = max(part.flux.shape[1] for part in parts)
        shared = [key for key in first.meta if all(key in part.meta for part in parts)]
        surveys = list(dict.fromkeys(part.survey for part in parts))
        return Spectra(
            wavelength=first.wavelength
            if same
            else np.concatenate([_extend(part.wavelength, len(part), width) for part in parts]),
            flux=np.concatenate([_pad(part.flux, width, 0.0) for part in parts]),
            ivar=np.concatenate([_pad(part.ivar, width, 0.0) for part in parts]),
            mask=np.concatenate([_pad(part.mask, width, True) for part in parts]),
            id=np.concatenate([part.id for part in parts]),
            meta={key: np.concatenate([part.meta[key] for part in parts]) for key in shared},
            medium=first.medium,
            survey="+".join(surveys),
            has_ivar=all(part.has_ivar for part in parts),
            prepared=first.prepared,
        )


def air_to_vacuum(wavelength: ArrayLike) -> FloatArray:
    """Vacuum wavelengths of air wavelengths in Angstrom, any shape, by wcslib through astropy.

    wcslib (Greisen et al. 2006, A&A 446, 747, section 4) knows a spectral axis that is linear in air and read
    in vacuum, "WAVE-A2W"; pixels of 1 A along it are the wavelengths to convert. It agrees with Ciddor (1996)
    to 5 m/s from 2500 to 11000 A.
    """
    from astropy.wcs import WCS  # here, so that the container itself needs no astropy

    air = np.asarray(wavelength, dtype=np.float64)
    axis = WCS(naxis=1)
    axis.wcs.ctype, axis.wcs.cunit = ["AWAV"], ["m"]
    axis.wcs.crpix, axis.wcs.crval, axis.wcs.cdelt = [1.0], [5000e-10], [1e-10]
    axis.wcs.set()
    axis.wcs.sptr("WAVE-A2W")
    vacuum = axis.wcs_pix2world(air.ravel() - 5000.0, 0)[0]
    return np.reshape(vacuum * 1e10, air.shape)


def _native(values: ArrayLike, name: str) -> FloatArray:
    """Native float64; a masked array's masked values as NaN, of which a mask makes "do not use"."""
    try:
        array = np.ma.asarray(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
        if array.dtype.kind not in ("iufb" if name == "mask" else "iuf"):
            kind = {"b": "true and false", "c": "complex numbers", "U": "text", "S": "text"}
            found = kind.get(array.dtype.kind, "objects")
            raise DataError(f"{name} is not a rectangular array of numbers: it holds {found}")
        return np.ascontiguousarray(np.ma.filled(array.astype(np.float64), np.nan))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not a rectangular array of numbers: {error}") from None


def _in_angstrom(grid: FloatArray, unit: str | None) -> FloatArray:
    if unit == "log10":
        return 10.0**grid
    if unit is not None:
        if unit not in _ANGSTROM_PER_UNIT:
            raise DataError(f"wavelength unit {unit!r} is not one of angstrom, nm, um, log10")
        return grid * _ANGSTROM_PER_UNIT[unit]
    top = float(np.nanmax(grid)) if np.isfinite(grid).any() else np.inf
    if top < 3000:
        likely = "um" if top < 3 else "log10" if 3.3 < top < 4.7 else "um" if top < 30 else "nm"
        low = float(np.nanmin(grid))
        raise DataError(
            f"wavelengths run from {low:g} to {top:g}, which is not optical in Angstrom: "
            f"if they are in {likely}, say wavelength unit {likely!r}"
        )
    return grid


def _gaps(grid: FloatArray, used: BoolArray) -> IntArray:
    """Indices of pixels followed by a step over five times both beside it, unless both ends are unused."""
    step = np.diff(grid)
    if step.size < 10 or not (step > 0).all():
        return np.zeros(0, dtype=np.int64)
    wide = step[1:-1] > _GAP * np.maximum(step[:-2], step[2:])
    return np.flatnonzero(wide & (used[1:-2] | used[2:-1])) + 1


def _span(grid: FloatArray, gaps: IntArray, *arrays: AnyArray) -> tuple[FloatArray, list[AnyArray]]:
    """The grid with two pixels more in each gap, and (n, p) arrays with zero (no information) there."""
    first, second = 2 * grid[gaps] - grid[gaps - 1], 2 * grid[gaps + 1] - grid[gaps + 2]
    at = np.repeat(gaps + 1, 2)
    wider = np.insert(grid, at, np.stack([first, second], axis=1).ravel())
    return wider, [np.insert(array, at, 0, axis=1) for array in arrays]


def _zero_runs(flux: FloatArray, length: int = 3) -> BoolArray:
    """(n, p) True in runs of at least `length` pixels of exactly zero flux."""
    zero = flux == 0
    first = zero.copy()  # pixels that begin `length` zeros in a row
    for step in range(1, length):
        first[:, :-step] &= zero[:, step:]
        first[:, -step:] = False
    run = first.copy()
    for step in range(1, length):
        run[:, step:] |= first[:, :-step]
    return run


def _check_pixels(grid: FloatArray, flux: FloatArray, ivar: FloatArray, mask: BoolArray) -> None:
    if flux.ndim != 2:
        raise DataError(f"flux must be (spectra, pixels), not {flux.shape}")
    if grid.shape not in ((flux.shape[1],), flux.shape):
        hint = " (is flux transposed?)" if grid.shape == (flux.shape[0],) else ""
        raise DataError(f"wavelength {grid.shape} does not fit flux {flux.shape}{hint}")
    for name, array in (("ivar", ivar), ("mask", mask)):
        if array.shape != flux.shape:
            raise DataError(f"{name} {array.shape} does not fit flux {flux.shape}")
    if flux.shape[1] < 2:
        raise DataError(f"a spectrum needs at least two pixels; flux is {flux.shape}")


def _check_shapes(spectra: Spectra) -> None:
    _check_pixels(spectra.wavelength, spectra.flux, spectra.ivar, spectra.mask)
    count = len(spectra.flux)
    for name, column in {"id": spectra.id, **spectra.meta}.items():
        if column.shape[:1] != (count,):
            raise DataError(f"{name} has shape {column.shape} for {count} spectra")


def _all_rows(test: Callable[[FloatArray], BoolArray], array: FloatArray, rows: int = 4096) -> bool:
    """Whether all pixels pass; those of a file mapped into memory are looked at when they are taken."""
    if isinstance(array.base, np.memmap):
        return True
    return all(bool(test(array[start : start + rows]).all()) for start in range(0, len(array), rows))


def _check_wavelength(grid: FloatArray) -> None:
    if not np.isfinite(grid).all() or (grid <= 0).any():
        count = int((~np.isfinite(grid) | (grid <= 0)).sum())
        raise DataError(f"{count} wavelengths are not finite and positive")
    step = np.diff(grid, axis=-1)
    if (step == 0).any():
        count, first = int((step == 0).sum()), float(grid[..., :-1][step == 0][0])
        raise DataError(f"{count} wavelengths occur twice, the first at {first:.3f} A")
    if (step < 0).any():
        raise DataError("wavelengths are not increasing; Spectra.build sorts them")


def _pad(array: AnyArray, width: int, value: float | bool) -> AnyArray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)


def _extend(grid: FloatArray, count: int, width: int) -> FloatArray:
    """(count, width) wavelengths: rows repeated if shared, continued with the last step under the padding."""
    rows = np.broadcast_to(grid, (count, grid.shape[-1]))
    steps = np.arange(1, width - rows.shape[1] + 1)
    tail = rows[:, -1:] + (rows[:, -1:] - rows[:, -2:-1]) * steps
    return np.concatenate([rows, tail], axis=1)
