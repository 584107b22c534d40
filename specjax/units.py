"""Units and plot symbols of labels and table columns, by column name."""

LABELS = {
    "teff": "K",
    "logg": "dex",
    "fe_h": "dex",
    "alpha_fe": "dex",
    "vmicro": "km / s",
    "velocity": "km / s",
    "radial_velocity": "km / s",
}
"""Units of labels and of columns derived from them, such as `fe_h_err`."""

COLUMNS = {**LABELS, "ra": "deg", "dec": "deg", "wavelength": "Angstrom"}
"""Units of columns, by exact name."""

SYMBOLS = {"fe_h": "[Fe/H]", "teff": "Teff", "logg": "log g", "alpha_fe": "[alpha/Fe]"}


def label_unit(column: str) -> str | None:
    """Return the unit of a label column or a column derived from one; None for any other column.

    >>> label_unit("teff"), label_unit("fe_h_err"), label_unit("snr")
    ('K', 'dex', None)
    """
    return next(
        (unit for name, unit in LABELS.items() if column == name or column.startswith(f"{name}_")), None
    )


def symbol_and_unit(label: str) -> tuple[str, str]:
    """Return a label's symbol and unit for plot axes; an unknown label is its own symbol.

    >>> symbol_and_unit("fe_h"), symbol_and_unit("v_sin_i")
    (('[Fe/H]', 'dex'), ('v_sin_i', ''))
    """
    return SYMBOLS.get(label, label), LABELS.get(label, "")
