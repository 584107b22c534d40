"""What to fetch of DESI, and what of it the archive itself can choose by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specjax.errors import ConfigError
from specjax.services.sparcl import RETRIEVE_LIMIT


@dataclass(frozen=True, kw_only=True)
class DesiQuery:
    """What to fetch. Ranges include their ends; None means any.

    Attributes:
      release: DESI-EDR or DESI-DR1.
      spectype: what the pipeline classified the spectra as; () for any.
      redshift: range of redshift, v/c for stars.
      ra, dec: ranges in degrees; ra may wrap, as 350 to 10.
      any_warning: also spectra whose redshift is doubtful (redshift_warning not 0).
      any_visit: also spectra that are not the primary one of their target.
      min_snr: median signal to noise of a pixel, from flux and ivar; spectra below are left out.
      limit: at most so many spectra.
      radius: arcsec within which a position is a target's.
      page: spectra fetched at a time.
    """

    release: str = "DESI-EDR"
    spectype: tuple[str, ...] = ("STAR",)
    redshift: tuple[float, float] | None = None
    ra: tuple[float, float] | None = None
    dec: tuple[float, float] | None = None
    any_warning: bool = False
    any_visit: bool = False
    min_snr: float | None = None
    limit: int | None = None
    radius: float = 1.0
    page: int = 100

    def __post_init__(self) -> None:
        if not self.release.startswith("DESI-"):
            raise ConfigError(f"{self.release!r} is not a release of DESI, such as DESI-EDR or DESI-DR1")
        if not 1 <= self.page <= RETRIEVE_LIMIT:
            raise ConfigError(f"a page has 1 to {RETRIEVE_LIMIT} spectra, not {self.page}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"the limit is at least 1, not {self.limit}")
        if not 0 < self.radius <= 60:
            raise ConfigError(f"the radius is above 0 and at most 60 arcsec, not {self.radius}")
        for name, (low, top) in {"redshift": (-1.0, 20.0), "ra": (0.0, 360.0), "dec": (-90.0, 90.0)}.items():
            ends = getattr(self, name)
            if ends is not None and not (low <= ends[0] <= top and low <= ends[1] <= top):
                raise ConfigError(f"{name} lies between {low:g} and {top:g}, not {ends[0]:g} to {ends[1]:g}")
            if ends is not None and name != "ra" and ends[0] > ends[1]:
                raise ConfigError(f"{name} goes from {ends[0]:g} down to {ends[1]:g}")

    @property
    def search(self) -> dict[str, list[Any]]:
        """The constraints that the archive knows, but for the position."""
        search: dict[str, list[Any]] = {"spectype": list(self.spectype)} if self.spectype else {}
        if self.redshift is not None:
            search["redshift"] = list(self.redshift)
        if not self.any_warning:
            search["redshift_warning"] = [0]
        if not self.any_visit:
            search["specprimary"] = [True]
        return search
