"""Units and symbols of labels and columns, by the names that they have in tables."""

LABELS = {"teff": "K", "logg": "dex", "fe_h": "dex", "radial_velocity": "km / s"}
"""Units of labels, and of columns that begin with a label's name, such as `fe_h_err`."""

COLUMNS = {**LABELS, "ra": "deg", "dec": "deg", "wavelength": "Angstrom"}
"""Units of columns by their exact name."""

SYMBOLS = {"fe_h": "[Fe/H]", "teff": "Teff", "logg": "log g"}


def label_unit(column: str) -> str | None:
    """Return the unit of a label's column, or of one derived from it; None for any other column.

    >>> label_unit("teff"), label_unit("fe_h_err"), label_unit("snr")
    ('K', 'dex', None)
    """
    return next(
        (unit for name, unit in LABELS.items() if column == name or column.startswith(f"{name}_")), None
    )


def symbol_and_unit(label: str) -> tuple[str, str]:
    """Return the symbol and the unit of a label for the axes of a plot; its bare name if it is not known.

    >>> symbol_and_unit("fe_h"), symbol_and_unit("v_sin_i")
    (('[Fe/H]', 'dex'), ('v_sin_i', ''))
    """
    return SYMBOLS.get(label, label), LABELS.get(label, "")
