"""Atomic and molecular lines from 3925 to 5660 A, in the format of Turbospectrum.

Atoms are those of Gaia-ESO (Heiter et al. 2021, A&A 645, A106) from 4200 A on and those of linemake (Placco
et al. 2021) below; molecules are those of linemake: CH, NH, OH, MgH, SiH, CN, C2 and TiO.

Three things differ from the published lists. Lines that linemake lists twice, near 4000 A, are kept once. CH
lines that are extrapolated and far too strong, absent in the Sun, are left out. Two lines of Fe I that are
far too strong in the Sun, tau Ceti and epsilon Eridani have a lower log gf.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.synthesis.packages import Sources
from specjax.atomic import atomic_file

FIRST, LAST = 3925.0, 5660.0
"""Wavelengths of the lists in air, Angstrom: broad lines reach into the spectra from outside."""
GAIA_ESO_FIRST = 4200.0
"""Atoms below this wavelength are those of linemake."""


class Line(NamedTuple):
    """One line.

    Attributes:
        species: as Turbospectrum names it, such as "26.000" for iron or "0106.001012" for 12CH.
        ion: 1 for neutral, 2 for once ionised.
        wavelength: in air, Angstrom.
        excitation: of the lower level, eV.
        log_gf: log10 of the weighted oscillator strength.
        damping: by hydrogen; either sigma.alpha, log10 of the width at 10,000 K, or a factor on the
            approximation of Unsoeld.
        upper_weight: statistical weight of the upper level.
        radiative: radiative width, 1/s.
        levels: orbital letters of the upper and the lower level, "X" where unknown.
    """

    species: str
    ion: int
    wavelength: float
    excitation: float
    log_gf: float
    damping: float = 0.0
    upper_weight: float = 1.0
    radiative: float = 1e8
    levels: tuple[str, str] = ("X", "X")


# Factors on the widths of Unsoeld for atoms without data.
_UNSOELD = 2.5
_UNSOELD_OF = {(20, 1): 1.8, (14, 1): 1.3}  # (atomic number, ion)
_UNSOELD_IRON = (2.6, 1.4, 1.8)  # neutral iron: limit of the excitation, below, above
# The H and K lines need real data: wavelength to (sigma.alpha, radiative width).
_CALCIUM = {3933.66: (234.223, 1.48e8), 3968.47: (234.223, 1.50e8)}

# Neutral iron: wavelength to log gf.
_WEAKENED = {4014.531: -0.587, 4081.567: -1.2}

# CH: largest log gf that is trusted below each wavelength.
_CH = "0106"
_CH_LIMITS = (
    (4000.0, -1.09),
    (4100.0, -1.10),
    (4200.0, -1.12),
    (4300.0, -0.877),
    (4400.0, -0.95),
    (4460.0, -1.17),
    (4600.0, -1.25),
    (np.inf, -1.9),
)

_MOLECULES = ("hyd", "cn", "c2", "sih", "tio")
TIO = "0822"
"""First digits of the species TiO."""

_TIO_KEPT = ("047", "049")  # the isotopes to which `turbospectrum.ISOTOPES` gives the shares of all
_REPEATED = (3960.0, 4040.0)  # where linemake joins two lists


def read_lines(sources: Sources) -> list[Line]:
    """Return all lines, by species and wavelength."""
    with sources.gaia_eso.open() as text:
        lines = [line for line in gaia_eso_lines(text) if line.wavelength >= GAIA_ESO_FIRST]
    with sources.linemake("atom") as text:
        lines += [line for line in linemake_atoms(text) if line.wavelength < GAIA_ESO_FIRST]
    for name in _MOLECULES:
        with sources.linemake(name) as text:
            lines += linemake_molecules(text)
    lines = [corrected(line) for line in lines if FIRST <= line.wavelength <= LAST and is_trusted(line)]
    return sorted(lines)


def gaia_eso_lines(text: Iterable[str]) -> Iterator[Line]:
    """Yield the lines of a list in the format of Turbospectrum, without what concerns NLTE.

    Some species have a column for the Stark effect; it is ignored, as it holds zeros.
    """
    species, ion = "", 0
    for row in text:
        if row.startswith("'"):
            if header := re.match(r"'\s*([\d.]+)\s*'\s+(\d+)\s+\d+", row):
                species, ion = header[1], int(header[2])
            continue
        wavelength, excitation, log_gf, damping, weight, radiative = map(float, row.split()[:6])
        upper, lower = (level.strip()[:1] or "X" for level in re.findall(r"'([^']*)'", row)[:2])
        yield Line(species, ion, wavelength, excitation, log_gf, damping, weight, radiative, (upper, lower))


def linemake_atoms(text: Iterable[str]) -> Iterator[Line]:
    """Yield neutral and once ionised atoms from lithium on, without data on broadening by hydrogen."""
    for row in _unrepeated(text):
        wavelength, code, excitation, log_gf = map(float, row.split()[:4])
        number = int(code)
        ion = round((code - number) * 10) + 1
        if number < 3 or ion > 2:
            continue
        damping, radiative = _UNSOELD_OF.get((number, ion), _UNSOELD), 1e8
        if (number, ion) == (26, 1):
            limit, below, above = _UNSOELD_IRON
            damping = below if excitation < limit else above
        for centre, data in _CALCIUM.items():
            if (number, ion) == (20, 2) and abs(wavelength - centre) < 0.1:
                damping, radiative = data
        yield Line(f"{number}.000", ion, wavelength, excitation, log_gf, damping, 1.0, radiative)


def linemake_molecules(text: Iterable[str]) -> Iterator[Line]:
    """Yield molecular lines; 106.00112, for instance, is 12CH."""
    for row in _unrepeated(text):
        wavelength, code, excitation, log_gf = row.split()[:4]
        atoms, isotopes = code.split(".")
        species = f"{int(atoms):04d}.{int(isotopes[1:3]):03d}{int(isotopes[3:5]):03d}"
        yield Line(species, 1, float(wavelength), float(excitation), float(log_gf))


def is_trusted(line: Line) -> bool:
    """Return whether a line belongs into a synthesis, see the docstring of this module."""
    if line.species.startswith(_CH):
        limit = next(value for end, value in _CH_LIMITS if line.wavelength < end)
        return line.log_gf <= limit
    if line.species.startswith(TIO):
        return line.species.endswith(_TIO_KEPT)
    return True


def corrected(line: Line) -> Line:
    """Return a line with its log gf lowered if it is one of the two that are far too strong."""
    if (line.species, line.ion) == ("26.000", 1) and line.wavelength in _WEAKENED:
        return line._replace(log_gf=_WEAKENED[line.wavelength])
    return line


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Write lines in the format of Turbospectrum, one block per species and ion."""
    blocks: dict[tuple[str, int], list[str]] = {}
    for line in lines:
        upper, lower = line.levels
        blocks.setdefault((line.species, line.ion), []).append(
            f"{line.wavelength:10.3f} {line.excitation:7.3f} {line.log_gf:7.3f} {line.damping:9.3f}"
            f" {line.upper_weight:5.1f} {line.radiative:9.2E} '{upper}' '{lower}'\n"
        )
    with atomic_file(path) as temporary, temporary.open("w") as file:
        for (species, ion), rows in blocks.items():
            file.write(f"'{species:>20}' {ion:4d} {len(rows):9d}\n'{species}'\n")
            file.writelines(rows)


def _unrepeated(text: Iterable[str]) -> Iterator[str]:
    """Yield the rows of a list of linemake that are lines in the range, each once where it repeats them."""
    seen = set()
    for row in text:
        try:
            wavelength = float(row[:11])
        except ValueError:
            continue
        if not FIRST <= wavelength <= LAST:
            continue
        if _REPEATED[0] < wavelength < _REPEATED[1]:
            if row in seen:
                continue
            seen.add(row)
        yield row
