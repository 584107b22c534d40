"""Names that columns of a spectrum have in the files of many."""

from collections.abc import Sequence

AIR = ("wave_air", "wavelength_air", "lambda_air")
VACUUM = ("wave_vac", "wavelength_vac", "lambda_vac", "wave_vacuum", "wavelength_vacuum")
LOG = ("loglam", "log_wave", "log_wavelength", "log_lambda", "loglambda")
COLUMNS = {
    "wavelength": ("wavelength", "wave", "lambda", "lam", "wl", *VACUUM, *AIR, *LOG),
    "flux": ("flux", "flam", "flux_lambda", "f_lambda"),
    "ivar": ("ivar", "flux_ivar", "invvar", "flux_invvar"),
    "error": (
        "error", "err", "errors", "flux_error", "flux_err", "fluxerr", "e_flux", "flux_e", "eflux",
        "sigma", "flux_sigma", "uncertainty", "uncert", "flux_uncertainty", "noise", "stdev", "std",
    ),
    "mask": ("mask", "and_mask", "flux_mask"),
    "id": ("id", "star", "name", "object", "source_id", "targetid"),
}  # fmt: skip
"""Names of columns by their roles, in lower case, in the order of preference."""


def by_role(names: Sequence[str]) -> dict[str, str]:
    """Return the name of the column of each role that occurs.

    >>> by_role(["WAVE", "FLUX", "err", "quality"])
    {'wavelength': 'WAVE', 'flux': 'FLUX', 'error': 'err'}
    """
    lower = {name.lower().strip(): name for name in names}
    found = {role: [lower[name] for name in known if name in lower] for role, known in COLUMNS.items()}
    return {role: columns[0] for role, columns in found.items() if columns}


def medium_of(name: str) -> str | None:
    """Return the medium that the name of a column of wavelengths declares, such as WAVE_AIR."""
    return "air" if name.lower() in AIR else "vacuum" if name.lower() in VACUUM else None
