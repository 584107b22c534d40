"""Units, descriptions, UCDs and plot symbols of labels and table columns, by column name."""

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
    "teff": (2000.0, 60000.0),
    "logg": (-1.0, 9.0),
    "fe_h": (-8.0, 2.0),
    "alpha_fe": (-3.0, 3.0),
    "vmicro": (0.0, 50.0),
}
"""What labels of stars can be; values beyond are in another unit, or another quantity."""

COLUMNS = {**LABELS, "ra": "deg", "dec": "deg", "wavelength": "Angstrom"}
"""Units of columns, by exact name."""

SYMBOLS = {"fe_h": "[Fe/H]", "teff": "Teff", "logg": "log g", "alpha_fe": "[alpha/Fe]"}

NOT_STANDARD = ("dex",)
"""Units that neither FITS nor VOTable knows; there the description of the column names them."""

DESCRIBED = {
    "teff": ("effective temperature", "phys.temperature.effective"),
    "logg": ("surface gravity log g, g in cm / s2", "phys.gravity"),
    "fe_h": ("iron abundance [Fe/H]", "phys.abund.Fe"),
    "alpha_fe": ("alpha abundance [alpha/Fe]", "phys.abund"),
    "vmicro": ("microturbulent velocity", "phys.veloc.microTurb"),
    "velocity": ("radial velocity", "spect.dopplerVeloc"),
    "radial_velocity": ("radial velocity", "spect.dopplerVeloc"),
    "id": ("name of the spectrum", "meta.id;meta.main"),
    "ra": ("right ascension", "pos.eq.ra;meta.main"),
    "dec": ("declination", "pos.eq.dec;meta.main"),
    "redshift": ("redshift", "src.redshift"),
    "redshift_err": ("error of the redshift", "stat.error;src.redshift"),
    "snr": ("signal-to-noise ratio per pixel", "stat.snr"),
    "wavelength": ("wavelength", "em.wl"),
    "flag": ("good, or why not to trust the spectrum", "meta.code.qual"),
    "masked_fraction": ("fraction of masked pixels of the model grid", "stat.value"),
    "distance": ("out-of-domain distance; above 1 unlike training spectra", "stat.value"),
    "vectors": ("vector of the model", None),
    "tokens": ("output tokens of the LAMOST encoder", None),
    "target": ("survey that was adapted to", None),
    "configuration": ("configuration of the adaptation", None),
    "seed": ("number of the random split", "meta.number"),
}
"""Descriptions and UCDs of columns, by exact name."""

_DERIVED = {
    "_predicted": ("predicted {}", "{};meta.modelled"),
    "_std": ("standard deviation over seeds of {}", "stat.stdev;{}"),
    "_err": ("standard error of {}", "stat.error;{}"),
    "_lo": ("lower end of the 68% interval of {}", "{};stat.min"),
    "_hi": ("upper end of the 68% interval of {}", "{};stat.max"),
    "_lo95": ("lower end of the 95% interval of {}", "{};stat.min"),
    "_hi95": ("upper end of the 95% interval of {}", "{};stat.max"),
}
"""The same of columns that are derived from a label, by suffix."""


def label_unit(column: str) -> str | None:
    """Return the unit of a label column or a column derived from one; None for any other column.

    >>> label_unit("teff"), label_unit("fe_h_err"), label_unit("snr")
    ('K', 'dex', None)
    """
    return next(
        (unit for name, unit in LABELS.items() if column == name or column.startswith(f"{name}_")), None
    )


def column_unit(column: str) -> str | None:
    """Return the unit of a column of a table; None if it has none, or it is not known.

    >>> column_unit("fe_h_err"), column_unit("ra"), column_unit("flag")
    ('dex', 'deg', None)
    """
    return label_unit(column) or COLUMNS.get(column)


def column_description(column: str) -> str | None:
    """Return what a column of a table holds, in at most 68 characters; None if that is not known.

    >>> column_description("fe_h_hi95"), column_description("mood")
    ('upper end of the 95% interval of [Fe/H]', None)
    """
    return _about(column)[0]


def column_ucd(column: str) -> str | None:
    """Return the UCD (unified content descriptor of the Virtual Observatory) of a column, if it has one.

    >>> column_ucd("teff"), column_ucd("fe_h_err"), column_ucd("vectors")
    ('phys.temperature.effective', 'stat.error;phys.abund.Fe', None)
    """
    return _about(column)[1]


def symbol_and_unit(label: str) -> tuple[str, str]:
    """Return a label's symbol and unit for plot axes; an unknown label is its own symbol.

    >>> symbol_and_unit("fe_h"), symbol_and_unit("v_sin_i")
    (('[Fe/H]', 'dex'), ('v_sin_i', ''))
    """
    return SYMBOLS.get(label, label), LABELS.get(label, "")


def _about(column: str) -> tuple[str | None, str | None]:
    """Return description and UCD of a column."""
    if column in DESCRIBED:
        return DESCRIBED[column]
    for suffix, (text, form) in _DERIVED.items():
        label = column.removesuffix(suffix)
        if label != column and label in LABELS:
            return text.format(SYMBOLS.get(label, label)), form.format(DESCRIBED[label][1])
    return None, None
