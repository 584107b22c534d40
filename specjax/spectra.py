"""`Spectra`, the container for spectra with their masks and uncertainties."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from specjax import display
from specjax.errors import DataError
from specjax.flags import mask_columns
from specjax.pixels import (
    all_rows,
    check_pixels,
    ever_used,
    mask_unusable,
    native,
    native_mask,
    pad,
    row_blocks,
)
from specjax.typing import AnyArray, BoolArray, FloatArray, StrArray
from specjax.wavelength import (
    MODEL_GRIDS,
    air_to_vacuum,
    check_wavelength,
    extend,
    fill_gaps,
    find_gaps,
    in_angstrom,
)

_MOST_NAMES = 3  # of surveys that are joined


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Spectra:
    """n spectra of p pixels each.

    The constructor is strict; `Spectra.build` accepts arrays as files hold them, and `Spectra.on_grid` flux
    that is already model input.

    Attributes:
        wavelength: (p,) for a shared grid or (n, p), strictly increasing, Angstrom.
        flux: (n, p), finite, flux density per unit wavelength in any unit.
        ivar: (n, p), inverse variance of the flux, >= 0; 0 means no information. Ones if the source gives no
            uncertainties.
        mask: (n, p), True for pixels that must not be used.
        id: (n,) strings.
        meta: columns of length n.
        medium: "vacuum" or "air"; declared, never guessed.
        survey: origin of the spectra, free text.
        has_ivar: False where `ivar` is a placeholder because the source gives no uncertainties.
        prepared: options with which `preprocess` turned the spectra into model input, {"tower": "lamost" or
            "gaia_xp", option: value}; None for spectra as observed.

    Raises:
        DataError: if shapes differ, wavelengths are not finite, positive and increasing, flux or ivar are not
            finite, ivar is negative, or the medium is unknown.
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
        check_wavelength(self.wavelength)
        if not (all_rows(np.isfinite, self.flux) and all_rows(np.isfinite, self.ivar)):
            raise DataError("flux and ivar must be finite; Spectra.build masks the pixels that are not")
        if not all_rows(lambda ivar: ivar >= 0, self.ivar):
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
    ) -> Self:
        """Build spectra from arrays as files hold them, or from astropy quantities.

        Quantities are converted once: wavelengths, frequencies, wavenumbers and energies to Angstrom, flux
        densities per frequency or in photons to those per wavelength (see `quantities`). Any other unit of
        the flux is kept, and named in the column "flux_unit" of `meta`.

        Casts to native float64, sorts by wavelength together with flux, ivar and mask, and turns one spectrum
        (p,) into (1, p). Masks pixels whose flux is not finite (or so large that its square overflows), whose
        ivar is not finite and positive, or that lie in a run of at least three pixels of exactly zero flux,
        which is how files fill gaps. A gap in a shared grid, i.e. a step over five times both adjacent steps,
        gets a masked pixel at either end; otherwise the pixels next to it would extend halfway across it.

        Args:
            wavelength: (p,) or (n, p).
            flux: (n, p) or (p,).
            ivar: like flux, or None if the source gives no uncertainties.
            mask: like flux, or None. Any nonzero value means that the pixel must not be used.
            id: (n,) names; by default, row numbers.
            meta: columns of length n.
            medium: "vacuum" or "air".
            survey: origin of the spectra.
            unit: "angstrom", "nm", "um" or "log10" (of Angstrom). None means Angstrom, or the unit of a
                quantity, and a grid that looks like another unit is refused.

        Raises:
            DataError: as for the constructor, for duplicate wavelengths, for a grid that looks like another
                unit, and for quantities that are no wavelength or no flux.

        Examples:
            >>> spectra = Spectra.build([5000.0, 5001.0, 5002.0], [1.0, np.nan, 0.9], id=["star"])
            >>> spectra.valid
            array([[ True, False,  True]])
        """
        if any(getattr(values, "unit", None) is not None for values in (wavelength, flux, ivar)):
            from specjax import quantities  # slow to import

            if getattr(wavelength, "unit", None) is None:
                wavelength = in_angstrom(native(wavelength, "wavelength"), unit)
            elif unit is not None:
                raise DataError(f"the wavelengths have a unit of their own: leave out {unit!r}")
            plain = quantities.build_arguments(wavelength, flux, ivar, medium=medium)
            wavelength, flux, ivar = (plain[name] for name in ("wavelength", "flux", "ivar"))
            unit = "angstrom"
            if text := plain["flux_unit"]:
                meta = {**(meta or {}), quantities.FLUX_UNIT: np.full(len(np.atleast_2d(flux)), text)}
        flux_2d = np.atleast_2d(native(flux, "flux"))
        grid = in_angstrom(native(wavelength, "wavelength"), unit)
        grid = grid[0] if grid.ndim == 2 and len(grid) == 1 else grid
        has_ivar = ivar is not None
        ivar_2d = np.ones_like(flux_2d) if ivar is None else np.atleast_2d(native(ivar, "ivar"))
        bad: AnyArray = np.zeros(flux_2d.shape, bool) if mask is None else np.atleast_2d(native_mask(mask))
        check_pixels(grid, flux_2d, ivar_2d, bad)
        order = np.argsort(grid, axis=-1, kind="stable")
        if (np.diff(order, axis=-1) < 0).any():
            grid = np.take_along_axis(grid, order, axis=-1)
            rows = np.broadcast_to(order, flux_2d.shape)
            flux_2d, ivar_2d, bad = (np.take_along_axis(a, rows, axis=1) for a in (flux_2d, ivar_2d, bad))
        if grid.ndim == 1 and (gaps := find_gaps(grid, ever_used(ivar_2d, bad))).size:
            grid, (flux_2d, ivar_2d, bad) = fill_gaps(grid, gaps, flux_2d, ivar_2d, bad)
        for block in row_blocks(flux_2d):
            mask_unusable(flux_2d[block], ivar_2d[block], bad[block])
        return cls(
            wavelength=grid,
            flux=flux_2d,
            ivar=ivar_2d,
            mask=bad,
            id=_names(id, len(flux_2d)),
            meta={key: np.atleast_1d(np.asarray(column)) for key, column in (meta or {}).items()},
            medium=medium,
            survey=survey,
            has_ivar=has_ivar,
        )

    @classmethod
    def on_grid(
        cls,
        flux: ArrayLike,
        *,
        ivar: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        id: Sequence[str] | AnyArray | None = None,
        survey: str = "lamost",
    ) -> Self:
        """Build spectra from flux that is already model input.

        `to_lamost` and `to_gaia_xp` return such spectra unchanged. Pixels that are masked or have ivar 0 may
        hold any value; they get mask True, ivar 0, and flux 1 ("lamost") or 0 ("gaia_xp"). float32 stays
        float32; other types become float64.

        Args:
            flux: (n, 1462) continuum-normalised flux on LAMOST_WAVELENGTH, or (n, 343) flux over that at
                550 nm on GAIA_XP_WAVELENGTH; (p,) for one spectrum.
            ivar: like flux, or None if there are no uncertainties.
            mask: like flux, or None. Any nonzero value means that the pixel must not be used.
            id: (n,) names; by default, row numbers.
            survey: "lamost" or "gaia_xp".

        Returns:
            Spectra whose `meta` has the columns masked_fraction and flag.

        Raises:
            DataError: if the survey is unknown, shapes do not fit its grid, or flux or ivar is not finite, or
                ivar is negative, in an unmasked pixel.
        """
        if survey not in MODEL_GRIDS:
            raise DataError(f"unknown survey {survey!r}; surveys are {' and '.join(MODEL_GRIDS)}")
        grid = MODEL_GRIDS[survey]
        flux_2d = np.atleast_2d(native(flux, "flux", keep_single=True))
        if flux_2d.shape[1:] != grid.shape:
            raise DataError(f"flux for survey {survey!r} must be (spectra, {grid.size}), not {flux_2d.shape}")
        ivar_2d = (
            np.ones_like(flux_2d) if ivar is None else np.atleast_2d(native(ivar, "ivar", keep_single=True))
        )
        bad = np.zeros(flux_2d.shape, bool) if mask is None else np.atleast_2d(native_mask(mask))
        check_pixels(grid, flux_2d, ivar_2d, bad)
        bad = bad | (ivar_2d == 0)
        return cls(
            wavelength=grid,
            flux=np.where(bad, 1.0 if survey == "lamost" else 0.0, flux_2d),
            ivar=np.where(bad, 0.0, ivar_2d),
            mask=bad,
            id=_names(id, len(flux_2d)),
            meta=mask_columns(bad),
            survey=survey,
            has_ivar=ivar is not None,
            prepared={"tower": survey},
        )

    @classmethod
    def from_specutils(
        cls,
        spectra: Any,
        *,
        id: Sequence[str] | None = None,
        medium: str | None = None,
        survey: str = "",
    ) -> "Spectra":
        """Build spectra from those of specutils, as `build` does: any units, masks and uncertainties.

        Numbers and texts in their `meta` become columns, and a redshift that is set the column "redshift".

        Args:
            spectra: a `Spectrum` (several rows on one axis are several spectra), a `SpectrumCollection`, a
                `SpectrumList` or any other sequence of `Spectrum`.
            id: (n,) names; by default `meta["id"]` of each, or row numbers if any has none.
            medium: "vacuum" or "air", if neither `meta["medium"]` nor a FITS header (AWAV) declares it;
                vacuum by default.
            survey: origin of the spectra; by default `meta["survey"]`.

        Raises:
            DataError: as `build`, for other objects, and if specutils is not installed.
        """
        from specjax import quantities  # slow to import

        given = quantities.specutils_arguments(spectra, id=id, medium=medium, survey=survey)
        return cls.concatenate([cls.build(**arguments) for arguments in given])

    def to_specutils(self) -> Any:
        """Return a `SpectrumList` of specutils, with one `Spectrum` per row.

        Wavelengths are in Angstrom; the flux has the unit of the column "flux_unit", or none, as prepared
        spectra have. `meta` holds id, survey, medium and all columns, so that `from_specutils` restores them.

        Raises:
            DataError: specutils is not installed.
        """
        from specjax import quantities  # slow to import

        columns = {key: column for key, column in self.meta.items() if column.ndim == 1}
        if self.prepared is not None:
            columns.pop(quantities.FLUX_UNIT, None)
        about = {"survey": self.survey, "medium": self.medium}
        return quantities.to_specutils(
            (
                self.wavelength if self.wavelength.ndim == 1 else self.wavelength[row],
                self.flux[row],
                self.ivar[row] if self.has_ivar else None,
                self.mask[row],
                {"id": str(name), **about, **{key: column[row].item() for key, column in columns.items()}},
            )
            for row, name in enumerate(self.id)
        )

    def __len__(self) -> int:
        return int(self.flux.shape[0])

    def __repr__(self) -> str:
        count, pixels = self.flux.shape
        tower = f", input of the {self.prepared['tower']} tower" if self.prepared else ""
        low, high = _ends(self.wavelength)
        return (
            f"<Spectra {self.survey!r}: {count} spectra of {pixels} pixels, {low:.0f}-{high:.0f} A in"
            f" {self.medium}{tower}>"
        )

    def _repr_html_(self) -> str:
        low, high = _ends(self.wavelength)
        snr = self.meta.get("snr", np.zeros(0))
        known = snr[np.isfinite(snr)] if snr.dtype.kind == "f" else snr[:0]
        some = ", ".join(self.id[:3].tolist())
        return display.card(
            f"{len(self)} spectra",
            {
                "survey": self.survey,
                "pixels": f"{self.flux.shape[1]:,}{'' if self.wavelength.ndim == 1 else ', own grids'}",
                "wavelength": f"{low:.1f} to {high:.1f} A in {self.medium}",
                "uncertainties": "yes" if self.has_ivar else "no",
                "prepared": self.prepared and f"for the {self.prepared['tower']} tower",
                "median S/N": f"{np.median(known):.3g}" if known.size else None,
                "ids": f"{some}, ..." if len(self) > 3 else some,
                "columns": ", ".join(sorted(self.meta)),
            },
        )

    def __getitem__(self, rows: int | slice | ArrayLike) -> Self:
        """Return the selected rows; `rows` is an index, a slice, an index array or a boolean array."""
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
        """(n, p) True where a pixel may be used: not masked, and ivar > 0."""
        return ~self.mask & (self.ivar > 0)

    def derive(self, **changes: Any) -> Self:
        """Return a copy with some attributes changed, as `dataclasses.replace` does, but without the checks.

        For changes that cannot make spectra invalid. Checking every pixel again takes as long as many a step
        of preprocessing.
        """
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    def select(self, ids: Sequence[str] | StrArray) -> Self:
        """Return the spectra with these ids, in this order.

        Raises:
            DataError: if an id is absent or not unique.
        """
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

    def with_meta(self, **columns: ArrayLike) -> Self:
        """Return a copy with these columns added to or replaced in `meta`."""
        new = {key: np.asarray(value) for key, value in columns.items()}
        _check_columns(len(self), new)
        return self.derive(meta={**self.meta, **new})

    def to_vacuum(self) -> Self:
        """Return the spectra with vacuum wavelengths; flux per Angstrom is not rescaled (a 3e-4 effect)."""
        if self.medium == "vacuum":
            return self
        return self.derive(wavelength=air_to_vacuum(self.wavelength), medium="vacuum")

    @staticmethod
    def concatenate(parts: Sequence["Spectra"]) -> "Spectra":
        """Concatenate spectra. Different grids become (n, p), shorter ones padded with masked pixels.

        Only meta columns that every part has are kept. `has_ivar` is False if any part has no uncertainties.

        Raises:
            DataError: if there are no parts, or they differ in medium or in preparation.
        """
        if not parts:
            raise DataError("no spectra to join")
        if len(parts) == 1:
            return parts[0]
        if len({part.medium for part in parts}) > 1:
            raise DataError(
                "cannot join spectra in air with spectra in vacuum: call to_vacuum() on each first"
            )
        first = parts[0]
        if any(part.prepared != first.prepared for part in parts):
            raise DataError("cannot join spectra that were prepared in different ways or not at all")
        same = all(p.wavelength.ndim == 1 and np.array_equal(p.wavelength, first.wavelength) for p in parts)
        width = max(part.flux.shape[1] for part in parts)
        shared = [key for key in first.meta if all(key in part.meta for part in parts)]
        return Spectra(
            wavelength=first.wavelength
            if same
            else np.concatenate([extend(part.wavelength, len(part), width) for part in parts]),
            flux=np.concatenate([pad(part.flux, width, 0.0) for part in parts]),
            ivar=np.concatenate([pad(part.ivar, width, 0.0) for part in parts]),
            mask=np.concatenate([pad(part.mask, width, True) for part in parts]),
            id=np.concatenate([part.id for part in parts]),
            meta={key: np.concatenate([part.meta[key] for part in parts]) for key in shared},
            medium=first.medium,
            survey=joint_name([part.survey for part in parts]),
            has_ivar=all(part.has_ivar for part in parts),
            prepared=first.prepared,
        )


def joint_name(surveys: Iterable[str], place: str = "") -> str:
    """Return a name for spectra of several surveys: that of the place that holds them, if they are many.

    Files of one's own have their file names as surveys.

    >>> joint_name(["lamost", "sdss", "lamost"], "data"), joint_name(["a", "b", "c", "d"], "data")
    ('lamost+sdss', 'data')
    >>> joint_name(["a", "b", "c", "d"])
    'a+3 more'
    """
    names = list(dict.fromkeys(surveys))
    if len(names) <= _MOST_NAMES:
        return "+".join(names)
    return place or f"{names[0]}+{len(names) - 1} more"


def _ends(wavelength: FloatArray) -> tuple[float, float]:
    """Return the smallest and the largest wavelength of increasing ones."""
    return (float(wavelength[..., 0].min()), float(wavelength[..., -1].max())) if wavelength.size else (0, 0)


def _names(id: Sequence[str] | AnyArray | None, count: int) -> StrArray:
    """Return ids as an array of strings; row numbers by default."""
    return (np.arange(count) if id is None else np.atleast_1d(np.asarray(id))).astype(np.str_)


def _check_shapes(spectra: Spectra) -> None:
    check_pixels(spectra.wavelength, spectra.flux, spectra.ivar, spectra.mask)
    _check_columns(len(spectra.flux), {"id": spectra.id, **spectra.meta})


def _check_columns(count: int, columns: Mapping[str, AnyArray]) -> None:
    for name, column in columns.items():
        if column.shape[:1] != (count,):
            raise DataError(f"{name} has shape {column.shape} for {count} spectra")
