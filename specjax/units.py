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

RANGES = {
    "teff": (1000.0, 100000.0),
    "logg": (-2.0, 10.0),
    "fe_h": (-8.0, 3.0),
    "alpha_fe": (-3.0, 3.0),
    "vmicro": (0.0, 50.0),
}
"""What labels of stars can be; values beyond are in another unit, or another quantity."""

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


_DESCRIPTIONS = {
    "_predicted": "predicted label",
    "_std": "standard deviation over seeds",
    "_err": "standard error; of a predicted label, half the width of its 68% interval if it has one",
    "_lo": "lower end of the 68% interval",
    "_hi": "upper end of the 68% interval",
    "_lo95": "lower end of the 95% interval",
    "_hi95": "upper end of the 95% interval",
}


def column_description(column: str) -> str | None:
    """Return the description of a column that is derived from a label; None for any other column.

    >>> column_description("fe_h_hi95"), column_description("redshift_err"), column_description("fe_h")
    ('upper end of the 95% interval', None, None)
    """
    return next(
        (
            text
            for end, text in _DESCRIPTIONS.items()
            if column.removesuffix(end) in LABELS and column not in LABELS
        ),
        None,
    )


def symbol_and_unit(label: str) -> tuple[str, str]:
    """Return a label's symbol and unit for plot axes; an unknown label is its own symbol.

    >>> symbol_and_unit("fe_h"), symbol_and_unit("v_sin_i")
    (('[Fe/H]', 'dex'), ('v_sin_i', ''))
    """
    return SYMBOLS.get(label, label), LABELS.get(label, "")
