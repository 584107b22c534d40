"""Numbers with the noun that they count."""


def counted(count: float, noun: str, plural: str = "") -> str:
    """Return a number and a noun, in the plural unless there is one of it.

    Args:
        count: the number.
        noun: in the singular.
        plural: by default the noun with an s.

    >>> counted(1, "seed"), counted(0, "seed"), counted(1200, "spectrum", "spectra")
    ('1 seed', '0 seeds', '1,200 spectra')
    """
    number = f"{int(count):,}" if count == int(count) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural or noun + 's'}"
