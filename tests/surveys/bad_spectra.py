"""Cases of test_bad_spectra.py: files with bad spectra, and the outcome required of each."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from specjax.wavelength import air_to_vacuum

GRID = np.arange(3750.4, 5750.0, 1.5)
N = GRID.size
LINES = np.random.default_rng(0).uniform(3800, 5650, 60)
IVAR = np.full(N, 1e4)
LOG_GRID = 10 ** (3.574 + 1e-4 * np.arange(1850))


def star(wavelength=GRID):
    """Flux of a star with sixty lines on a sloping continuum."""
    depth = 0.3 * np.exp(-0.5 * ((wavelength[:, None] - LINES) / 4.0) ** 2).sum(axis=1)
    return (wavelength / 5000) ** -1.5 * np.exp(-depth)


FLUX = star()


def put(array, where, value):
    """Return a copy with `value` at `where`."""
    changed = np.array(array)
    changed[where] = value
    return changed


@dataclass(frozen=True)
class Case:
    """A file, how it is read, and the outcome: `refused`, `flag` or, without either, the correct star."""

    name: str
    write: Callable[[Path], object]
    refused: str = ""
    flag: str = "good"
    atol: float = 2e-5  # four masked pixels of 1300 move the continuum by less
    file: str = "spectrum.npz"
    read: dict[str, Any] = field(default_factory=dict)

    def make(self, folder):
        path = folder / self.file
        self.write(path)
        return path


def npz(**changes):
    """Write an .npz with these arrays changed; None leaves one out."""
    arrays = {"wavelength": GRID, "flux": FLUX, "ivar": IVAR} | changes
    return lambda path: np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def content(data):
    """Write a file with these bytes."""
    return lambda path: path.write_bytes(data)


def lamost(rows=None, change=None, keep=1.0, cards=(), wavelength=LOG_GRID):
    """Write a LAMOST image; `change(rows)` modifies it in place, `keep` truncates the file."""

    def write(path):
        size = wavelength.size
        table = [star(wavelength), np.full(size, 1e4), wavelength, np.zeros(size), np.zeros(size)]
        table = np.array(table if rows is None else rows)
        if change is not None:
            change(table)
        hdu = fits.PrimaryHDU(table.astype(">f4"))
        hdu.header.update({"TELESCOP": "LAMOST", "COEFF0": 3.574, "COEFF1": 1e-4, **dict(cards)})
        stream = io.BytesIO()
        hdu.writeto(stream)
        whole = stream.getvalue()
        data = gzip.compress(whole) if path.name.endswith(".gz") else whole
        path.write_bytes(data[: int(keep * len(data))])

    return write


def sparcl(**changes):
    """Write a JSON list of one SPARCL record."""
    record = {"sparcl_id": "a", "wavelength": GRID.tolist(), "flux": FLUX.tolist(), "ivar": IVAR.tolist()}
    return lambda path: path.write_text(json.dumps([record | changes]))


def csv(flux=None, wavelength=None, head="wavelength,flux"):
    """Write a table of two columns."""
    columns = [GRID if wavelength is None else wavelength, FLUX if flux is None else flux]
    lines = [head, *(f"{w},{f}" for w, f in zip(*columns, strict=True))]
    return lambda path: path.write_text("\n".join(lines) + "\n")


def spec_lite(columns):
    """Write an SDSS file with these columns in the coadd."""
    cards = [fits.Column(name, form, array=values) for name, (form, values) in columns.items()]
    return lambda path: fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(cards)]).writeto(path)


def bomb(path):
    """Write an .npz whose flux declares a length of 1e13 numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**6)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flux.npy", stream.getvalue() + bytes(10**6))
        archive.writestr("wavelength.npy", stream.getvalue())


def pickled(path):
    """Write an .npz of objects, which only a pickle can restore."""
    np.savez(path, wavelength=GRID, flux=np.array([FLUX.tolist(), None], dtype=object))


def deep(array, *shape):
    return np.broadcast_to(array, (*shape, array.size))


SOME = slice(400, 404)
SHUFFLED = np.random.default_rng(1).permutation(N)
BIG, LITTLE = ">f8", "<f4"
FIFTH = slice(500, 900)

CASES = [
    # pixels that are not finite or not to be used
    Case("nan pixels", npz(flux=put(FLUX, SOME, np.nan))),
    Case("infinite pixels", npz(flux=put(FLUX, SOME, np.inf))),
    Case("all pixels nan", npz(flux=np.full(N, np.nan)), flag="no_coverage"),
    Case("all pixels infinite", npz(flux=np.full(N, -np.inf)), flag="no_coverage"),
    Case("all pixels masked", npz(mask=np.ones(N, bool)), flag="no_coverage"),
    Case("masked pixels of 1e4", npz(flux=put(FLUX, SOME, 1e4), mask=put(np.zeros(N), SOME, 1))),
    Case("a bit mask", npz(flux=put(FLUX, SOME, -7), mask=put(np.zeros(N, int), SOME, 1 << 20))),
    Case("over a fifth masked", npz(mask=put(np.zeros(N), FIFTH, 1)), flag="masked_fraction", atol=9e-3),
    Case("ivar zero", npz(ivar=np.zeros(N)), flag="no_coverage"),
    Case("ivar negative", npz(ivar=-IVAR), flag="no_coverage"),
    Case("ivar nan", npz(ivar=np.full(N, np.nan)), flag="no_coverage"),
    Case("ivar zero in pixels of 1e4", npz(flux=put(FLUX, SOME, 1e4), ivar=put(IVAR, SOME, 0))),
    Case("ivar negative in pixels", npz(flux=put(FLUX, SOME, 1e4), ivar=put(IVAR, SOME, -1))),
    Case("ivar nan in pixels", npz(flux=put(FLUX, SOME, 1e4), ivar=put(IVAR, SOME, np.nan))),
    Case("ivar infinite in pixels", npz(flux=put(FLUX, SOME, 1e4), ivar=put(IVAR, SOME, np.inf))),
    Case("a gap filled with zeros", npz(flux=put(FLUX, slice(600, 650), 0)), atol=1e-3),
    Case(
        "a gap of missing pixels",
        npz(
            **{
                name: np.delete(array, slice(600, 650))
                for name, array in (("wavelength", GRID), ("flux", FLUX), ("ivar", IVAR))
            }
        ),
        atol=1e-3,
    ),
    # units and media of wavelength
    Case("nm, undeclared", npz(wavelength=GRID / 10), refused="say wavelength unit 'nm'"),
    Case("nm, declared by the user", npz(wavelength=GRID / 10), read={"wavelength_unit": "nm"}),
    Case("nm, declared by the file", npz(wavelength=GRID / 10, wavelength_unit="nm")),
    Case("micron, undeclared", npz(wavelength=GRID / 1e4), refused="say wavelength unit 'um'"),
    Case("micron, declared by the file", npz(wavelength=GRID / 1e4, wavelength_unit="um")),
    Case("log10, undeclared", npz(wavelength=np.log10(GRID)), refused="say wavelength unit 'log10'"),
    Case("log10, declared by the user", npz(wavelength=np.log10(GRID)), read={"wavelength_unit": "log10"}),
    Case("natural log", npz(wavelength=np.log(GRID)), refused="not optical in Angstrom"),
    Case("metres", npz(wavelength=GRID * 1e-10), refused="not optical in Angstrom"),
    Case("frequencies", npz(wavelength=2.998e18 / GRID[::-1]), flag="no_coverage"),
    Case("Angstrom declared as nm", npz(), flag="no_coverage", read={"wavelength_unit": "nm"}),
    Case("an unknown unit", npz(wavelength_unit="furlong"), refused="'furlong' is not one of"),
    Case(
        "contradictory units",
        npz(wavelength_unit="nm"),
        refused="is nm, not um",
        read={"wavelength_unit": "um"},
    ),
    Case("two units", npz(wavelength_unit=["nm", "um"]), refused="should be one text, not 2"),
    Case("an unknown medium", npz(wavelength_medium="water"), refused="not 'water'"),
    Case(
        "contradictory media",
        npz(wavelength_medium="air"),
        refused="is air, not",
        read={"wavelength_medium": "vacuum"},
    ),
    Case(
        "air, declared by the file", npz(flux=star(air_to_vacuum(GRID)), wavelength_medium="air"), atol=0.02
    ),
    Case(
        "air, declared by the user",
        npz(flux=star(air_to_vacuum(GRID))),
        read={"wavelength_medium": "air"},
        atol=0.02,
    ),
    Case(
        "LAMOST declared as air",
        lamost(),
        refused="in vacuum, not air",
        file="s.fits",
        read={"wavelength_medium": "air"},
    ),
    # wavelengths that do not form a grid
    Case("reversed", npz(wavelength=GRID[::-1], flux=FLUX[::-1])),
    Case("unsorted", npz(wavelength=GRID[SHUFFLED], flux=FLUX[SHUFFLED])),
    Case(
        "duplicated wavelengths",
        npz(wavelength=put(GRID, 7, GRID[6])),
        refused="occur twice, the first at 3759",
    ),
    Case("nan wavelengths", npz(wavelength=put(GRID, SOME, np.nan)), refused="4 wavelengths are not finite"),
    Case(
        "negative wavelengths",
        npz(wavelength=put(GRID, SOME, -GRID[SOME])),
        refused="not finite and positive",
    ),
    Case(
        "zero wavelength",
        npz(wavelength=put(GRID, 0, 0.0)),
        refused="1 wavelengths are not finite and positive",
    ),
    Case("all wavelengths nan", npz(wavelength=np.full(N, np.nan)), refused="not finite and positive"),
    Case("no wavelength", npz(wavelength=None), refused="has no wavelength: it contains flux, ivar"),
    Case("no flux", npz(flux=None), refused="has no flux"),
    Case("no overlap", npz(wavelength=GRID + 4000), flag="no_coverage"),
    Case(
        "half overlap", npz(wavelength=GRID - 700, flux=star(GRID - 700)), flag="masked_fraction", atol=0.03
    ),
    Case(
        "a known velocity of 300 km/s",
        npz(wavelength=GRID * 1.001, redshift=np.array([0.001])),
        flag="too_fast",
    ),
    Case("a galaxy", npz(redshift=np.array([0.3])), flag="too_fast"),
    # shapes
    Case("different lengths", npz(flux=FLUX[:-1]), refused="does not fit flux"),
    Case("ivar of another length", npz(ivar=IVAR[:-3]), refused="ivar .* does not fit flux"),
    Case("mask of another shape", npz(mask=np.zeros((2, N))), refused="mask .* does not fit flux"),
    Case("transposed", npz(flux=deep(FLUX, 3).T, ivar=None), refused="is flux transposed"),
    Case("extra dimensions", npz(flux=deep(FLUX, 2, 2), ivar=None), refused="spectra, pixels"),
    Case("one pixel", npz(wavelength=[5000.0], flux=[1.0], ivar=[1.0]), refused="at least two pixels"),
    Case(
        "two pixels", npz(wavelength=[5000.0, 5001.0], flux=[1.0, 2], ivar=[1.0, 1]), flag="continuum_failed"
    ),
    Case("no pixels", npz(wavelength=[], flux=[], ivar=[]), refused="at least two pixels"),
    Case("no spectra", npz(flux=np.zeros((0, N)), ivar=None), refused="no spectra"),
    Case("a number for flux", npz(flux=1.0, ivar=None), refused="wavelength .* does not fit flux"),
    # values of the flux and its variance
    Case("cosmic ray of 1e4", npz(flux=put(FLUX, slice(700, 702), 1e4)), atol=2e-3),
    Case("one pixel of -1e4", npz(flux=put(FLUX, 700, -1e4)), atol=2e-3),
    Case("a dozen cosmic rays", npz(flux=put(FLUX, slice(50, 1300, 110), 3e3)), atol=4e-3),
    Case("zero flux", npz(flux=np.zeros(N)), flag="no_coverage"),
    Case("negative flux", npz(flux=-FLUX), flag="continuum_failed"),
    Case("constant flux", npz(flux=np.ones(N)), flag="featureless"),
    Case("integer flux", npz(flux=np.rint(FLUX * 1e6).astype(int))),
    Case("flux of single bytes", npz(flux=np.rint(FLUX * 100).astype(np.uint8)), atol=0.02),
    Case("huge flux", npz(flux=FLUX * 1e30, ivar=IVAR / 1e60)),
    Case("denormal flux", npz(flux=FLUX * 1e-310, ivar=None), atol=1e-3),
    Case("flux near the largest number", npz(flux=FLUX * 1e308, ivar=None), flag="no_coverage"),
    Case("huge ivar", npz(ivar=np.full(N, 1e300))),
    Case("boolean flux", npz(flux=FLUX > 0.8), refused="true and false"),
    # types
    Case("big-endian", npz(wavelength=GRID.astype(BIG), flux=FLUX.astype(BIG), ivar=IVAR.astype(">f4"))),
    Case("single precision", npz(flux=FLUX.astype(LITTLE), ivar=IVAR.astype(LITTLE)), atol=1e-5),
    Case("half precision", npz(flux=FLUX.astype(np.float16)), atol=5e-3),
    Case("complex flux", npz(flux=FLUX + 1j), refused="flux"),
    Case("text for flux", npz(flux=np.full(N, "high")), refused="flux is not"),
    Case("numbers as text", npz(flux=FLUX.astype(str)), refused="flux is not"),
    Case("pickled objects", pickled, refused="not a readable .npz"),
    Case("a structured array", npz(flux=np.zeros(N, [("a", float)])), refused="flux is not"),
    Case("times for flux", npz(flux=np.zeros(N, "datetime64[s]")), refused="flux is not"),
    # ids
    Case("unicode ids", npz(id=["HD 1 β Ω☆"])),
    Case("bytes as ids", npz(id=[b"HD1"])),
    Case("ids of another number", npz(id=["a", "b"]), refused="id has shape"),
    # files
    Case("an empty .npz", content(b""), refused="not a readable .npz"),
    Case("text named .npz", content(b"wavelength flux"), refused="not a readable .npz"),
    Case(
        "half an .npz",
        lambda path: (npz()(path), path.write_bytes(path.read_bytes()[:9000])),
        refused="not a readable",
    ),
    Case("an .npz with a declared length of 1e13", bomb, refused="spectrum.npz"),
    Case("text named .h5", content(b"not HDF5"), refused="s.h5", file="s.h5"),
    Case("an empty .h5", content(b""), refused="s.h5", file="s.h5"),
    Case("text named .fits", content(b"SIMPLE text"), refused="s.fits is not", file="s.fits"),
    Case("an empty .fits", content(b""), refused="s.fits is not", file="s.fits"),
    Case("a missing file", lambda path: None, refused="does not exist", file="none.npz"),
    Case("an empty folder", lambda path: path.mkdir(), refused="a folder without files", file="folder"),
    Case("a folder named .fits", lambda path: path.mkdir(), refused="a folder without files", file="s.fits"),
    Case("a broken link", lambda path: path.symlink_to(path.parent / "gone"), refused="does not exist"),
    Case("LAMOST", lamost(), file="s.fits.gz", atol=0.02),
    Case("a truncated gz", lamost(keep=0.6), refused="s.fits.gz is not", file="s.fits.gz"),
    Case("a gz cut within its header", lamost(keep=0.02), refused="s.fits.gz is not", file="s.fits.gz"),
    Case("a truncated FITS", lamost(keep=0.6), refused="s.fits is not", file="s.fits"),
    Case(
        "plain FITS named .gz",
        lambda path: lamost()(path.with_suffix("")) or path.with_suffix("").rename(path),
        file="s.fits.gz",
        atol=0.02,
    ),
    Case(
        "gz named .fits",
        lambda path: path.write_bytes(gzip.compress(b"x" * 3000)),
        refused="s.fits is not",
        file="s.fits",
    ),
    Case("LAMOST of three rows", lamost(rows=np.ones((3, 50))), refused="not five rows", file="s.fits"),
    Case(
        "LAMOST with all exposures bad",
        lamost(change=lambda r: r[3].fill(4)),
        flag="no_coverage",
        file="s.fits",
    ),
    Case(
        "LAMOST with nan ivar", lamost(change=lambda r: r[1].fill(np.nan)), flag="no_coverage", file="s.fits"
    ),
    Case("LAMOST with a step of zero", lamost(cards={"COEFF1": 0.0}), refused="s.fits", file="s.fits"),
    Case("LAMOST with text for COEFF0", lamost(cards={"COEFF0": "high"}), refused="s.fits", file="s.fits"),
    Case("LAMOST of a star at 300 km/s", lamost(cards={"Z": 0.001}), flag="too_fast", file="s.fits"),
    Case(
        "FITS without data",
        lambda path: fits.PrimaryHDU().writeto(path),
        refused="does not recognise",
        file="s.fits",
    ),
    Case("the wrong HDU", spec_lite({"x": ("E", [1.0])}), refused="does not recognise", file="s.fits"),
    Case(
        "SDSS without ivar",
        spec_lite({"flux": ("E", FLUX), "loglam": ("D", np.log10(GRID))}),  # as any table of a spectrum
        file="s.fits",
    ),
    Case(
        "SDSS with text for flux",
        spec_lite({"flux": ("4A", ["a"] * N), "loglam": ("E", np.log10(GRID)), "ivar": ("E", IVAR)}),
        refused="s.fits: flux is not",
        file="s.fits",
    ),
    Case(
        "SDSS without rows",
        spec_lite({"flux": ("E", []), "loglam": ("E", []), "ivar": ("E", [])}),
        refused="s.fits",
        file="s.fits",
    ),
    Case("SPARCL", sparcl(), file="s.json"),
    Case(
        "SPARCL with nulls",
        sparcl(flux=[None if 400 <= k < 404 else float(f) for k, f in enumerate(FLUX)]),
        file="s.json",
    ),
    Case("SPARCL without flux", sparcl(flux=None), refused="s.json", file="s.json"),
    Case(
        "SPARCL with text for flux",
        sparcl(flux="bright"),
        refused="flux is not a list of numbers",
        file="s.json",
    ),
    Case(
        "SPARCL with nested lists",
        sparcl(flux=[[1.0], 2.0]),
        refused="flux is not a list of numbers",
        file="s.json",
    ),
    Case("SPARCL of a galaxy", sparcl(redshift=0.4), flag="too_fast", file="s.json"),
    Case("SPARCL with zwarn as text", sparcl(redshift_warning="bad"), file="s.json"),
    Case(
        "half a JSON", content(b'[{"sparcl_id": "a", "flux": [1.0,'), refused="not a JSON list", file="s.json"
    ),
    Case("HTML for JSON", content(b"<html>502 Bad Gateway</html>"), refused="not a JSON list", file="s.json"),
    Case("csv", csv(), file="s.csv"),
    Case("csv with empty cells", csv(flux=[*FLUX[:5], "", *FLUX[6:]]), file="s.csv"),
    Case(
        "csv with text for flux",
        csv(flux=["high", *FLUX[1:]]),
        refused="flux does not contain numbers",
        file="s.csv",
    ),
    Case("csv of one line", csv(flux=[], wavelength=[]), refused="s.csv", file="s.csv"),
    Case(
        "csv in another encoding",
        content("wavelength,flux,étoile\n".encode("utf-16")),
        refused="s.csv",
        file="s.csv",
    ),
    Case("an empty csv", content(b""), refused="s.csv", file="s.csv"),
    Case("a table of labels", content(b"id,fe_h\na,0.1\n"), refused="does not recognise", file="s.csv"),
    Case("half a parquet", content(b"PAR1abc"), refused="s.parquet", file="s.parquet"),
]
